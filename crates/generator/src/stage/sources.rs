// SPDX-License-Identifier: MIT OR Apache-2.0
//! The second stage: the source of the payloads below, and of this one.

use super::Inputs;
use crate::code::Code;
use crate::patch::Edits;
use crate::problem::Refused;
use crate::progress::Progress;
use crate::rebuild::{Patched, Rebuild};
use crate::source::PatchedSource;
use std::collections::BTreeSet;

/// Source to which the patches have been applied.
pub(crate) struct Sources<'a> {
    pub(super) inputs: &'a Inputs<'a>,
    pub(super) progress: &'a dyn Progress,
    pub(super) rebuild: Rebuild<'a>,
    /// What each payload below made of the source.
    pub(super) levels: Vec<Patched<'a>>,
    /// What this payload's patches make of it.
    pub(super) patched: Patched<'a>,
    /// What the patches did to its files.
    pub(super) source: PatchedSource,
    /// The lines that this payload's patches change.
    pub(super) edits: Edits,
}

impl Inputs<'_> {
    /// Applies the patches.
    ///
    /// # Errors
    /// What does not apply, or cannot be compiled apart from the rest; patches that
    /// reach nothing of this hypervisor.
    pub(crate) fn patch<'a>(&'a self, progress: &'a dyn Progress) -> Result<Sources<'a>, Refused> {
        let tree = &self.tree;
        let rebuild = Rebuild::new(tree, self.options.cache.as_deref(), progress)?;
        let levels = self.below.levels.iter().map(|level| {
            let patches = &self.patches[..level.patches];
            rebuild.lay_out(&PatchedSource::apply(tree, patches, &BTreeSet::new())?)
        });
        let levels: Vec<Patched> = levels.collect::<Result<_, _>>()?;
        let source = PatchedSource::apply(tree, &self.patches, &BTreeSet::new())?;
        let patched = rebuild.lay_out(&source)?;
        let all = || levels.iter().chain([&patched]);
        if all().flat_map(Patched::objects).next().is_none() {
            return Err(self.reaches_nothing());
        }
        Ok(Sources {
            inputs: self,
            progress,
            rebuild,
            levels,
            patched,
            source,
            edits: Edits::new(self.own_files()),
        })
    }

    fn reaches_nothing(&self) -> Refused {
        let message = match self.own_files().next() {
            None => {
                "everything that it changes is left out (--leave-out): there is nothing to patch"
            }
            Some(_) => {
                "nothing that it changes goes into this hypervisor with this configuration: \
                 there is nothing to patch"
            }
        };
        Refused::one(Code::NothingToPatch, "patch", message)
    }
}
