// SPDX-License-Identifier: MIT OR Apache-2.0
//! Contiguous memory of the hypervisor.

use std::ops::Range;

/// A section that is in memory while the hypervisor runs.
#[derive(Debug)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// Its addresses; not empty.
    pub range: Range<u64>,
    /// Whether it has instructions.
    pub executable: bool,
    /// Whether it is marked writable, as all of Xen's sections except `.init.text`
    /// and the notes.
    pub writable: bool,
    /// Contents, as far as the file has them; the rest is zero.
    pub data: Vec<u8>,
}

impl Section {
    /// The contents from `address` on.
    pub(crate) fn tail(&self, address: u64) -> Option<&[u8]> {
        let offset = usize::try_from(address.checked_sub(self.range.start)?).ok()?;
        self.data.get(offset..)
    }
}
