// SPDX-License-Identifier: MIT OR Apache-2.0
//! The third stage: both builds of every object that the patches reach.

use super::sources::Sources;
use crate::archive;
use crate::pair::Pair;
use crate::problem::Refused;
use std::collections::BTreeSet;

/// What the original and the patched source compile to.
pub(crate) struct Compiled<'s, 'a> {
    pub(super) sources: &'s Sources<'a>,
    pub(super) pairs: Vec<Pair>,
    /// Members of the hypervisor's library that it does not need.
    pub(super) unneeded: BTreeSet<String>,
}

impl<'a> Sources<'a> {
    /// Compiles both.
    ///
    /// # Errors
    /// What does not compile.
    pub(crate) fn compile(&self) -> Result<Compiled<'_, 'a>, Refused> {
        let mut pairs = self.rebuild.pairs(&self.patched, &self.levels)?;
        let hypervisor = (&self.inputs.tree, &*self.inputs.image);
        let sources = (self.levels.as_slice(), &self.patched);
        let unneeded = archive::settle(hypervisor, &self.rebuild, sources, &mut pairs)?;
        Ok(Compiled {
            sources: self,
            pairs,
            unneeded,
        })
    }
}
