// SPDX-License-Identifier: MIT OR Apache-2.0

//! The symbols of a payload.

use crate::names::{Name, Names};
use alloc::vec::Vec;
use xsplice_fallible::{self as fallible, NoMemory};

/// Symbols of a payload that others can refer to. Of two with the same name, the
/// first counts.
#[derive(Debug, Default)]
pub(crate) struct NewSymbols {
    names: Names,
    /// The name of each, and the address.
    pub(super) list: Vec<(Name, u64)>,
}

impl NewSymbols {
    pub(crate) fn add(&mut self, name: &[u8], addr: u64) -> Result<(), NoMemory> {
        let name = self.names.add(name)?;
        fallible::push(&mut self.list, (name, addr))
    }

    pub(super) fn name(&self, index: usize) -> &[u8] {
        let name = self.list.get(index).map(|(name, _)| *name);
        self.names.get(name.unwrap_or_default())
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.list.iter().map(|(name, _)| self.names.get(*name))
    }
}
