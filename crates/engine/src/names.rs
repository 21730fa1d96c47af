// SPDX-License-Identifier: MIT OR Apache-2.0

//! Many names in one allocation.

use alloc::vec::Vec;
use xsplice_fallible::{self as fallible, NoMemory};

/// Position of a name in [`Names`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Name {
    start: u32,
    len: u32,
}

/// Concatenated names, as in a payload.
#[derive(Debug, Default)]
pub(crate) struct Names(Vec<u8>);

impl Names {
    pub(crate) fn add(&mut self, name: &[u8]) -> Result<Name, NoMemory> {
        // The size limit of payloads fits.
        let [start, len] = [self.0.len(), name.len()].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        fallible::append(&mut self.0, name)?;
        Ok(Name { start, len })
    }

    pub(crate) fn get(&self, Name { start, len }: Name) -> &[u8] {
        let names = self.0.get(start as usize..).unwrap_or_default();
        names.get(..len as usize).unwrap_or_default()
    }
}
