// SPDX-License-Identifier: MIT OR Apache-2.0
//! The fifth stage: that the originals are what the hypervisor has, and that types are
//! what they were.

use super::compared::Compared;
use crate::archive;
use crate::layout::{self, Findings};
use crate::problem::{Problem, Refused};
use crate::select::Homes;

/// The objects, tied to the hypervisor and to the payloads below.
pub(crate) struct Proved<'s, 'a> {
    pub(super) compared: &'s Compared<'s, 'a>,
    /// Where everything is in memory; if the payloads below are not of their source,
    /// why.
    pub(super) homes: Result<Homes<'s>, Vec<Problem>>,
    /// What became of the types of data in memory.
    pub(super) layouts: Findings,
}

impl<'a> Compared<'_, 'a> {
    /// Proves the originals, and compares types. What is wrong there ends the build
    /// together with what cannot be selected.
    ///
    /// # Errors
    /// If nothing that changes is linked.
    pub(crate) fn prove(&self) -> Result<Proved<'_, 'a>, Refused> {
        let sources = self.compiled.sources;
        let inputs = sources.inputs;
        let changed = self.units.iter().filter(|unit| !unit.comparison.is_empty());
        let changed: Vec<&str> = changed.map(|unit| unit.file.path.as_str()).collect();
        archive::check_linked(&inputs.tree, &inputs.image, &changed)?;
        let (homes, layouts) = rayon::join(
            || Homes::new(&self.units, &inputs.below.levels, &inputs.image),
            || {
                layout::check(
                    &sources.rebuild,
                    (sources.levels.last(), &sources.patched),
                    (&self.compiled.pairs, &self.units),
                    &sources.edits,
                    &inputs.allow,
                )
            },
        );
        Ok(Proved {
            compared: self,
            homes,
            layouts,
        })
    }
}
