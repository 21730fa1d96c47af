// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is written over a function.

use crate::{Function, Host, x86_64};
use core::ops::Range;
use xsplice_abi::payload::OPAQUE_SIZE;

/// Bytes over the beginning of a function, and those that were there before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// Address of the first byte.
    pub addr: u64,
    len: u8,
    old: [u8; OPAQUE_SIZE],
    new: [u8; OPAQUE_SIZE],
}

/// Bytes that are written in the window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    pub(crate) addr: u64,
    len: u8,
    bytes: [u8; OPAQUE_SIZE],
}

impl Write {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl Patch {
    /// A jump to the new function, or no-ops; `read` gives the bytes that are
    /// there before it is applied. `None` when they cannot be read.
    pub(crate) fn new(
        function: &Function,
        read: impl FnOnce(u64, &mut [u8]) -> bool,
    ) -> Option<Self> {
        let Range { start: addr, end } = function.patched();
        let mut patch = Self {
            addr,
            len: u8::try_from(end - addr).ok()?,
            ..Self::default()
        };
        let new = patch.new.get_mut(..usize::from(patch.len))?;
        if function.new_addr == 0 {
            x86_64::nops(new);
        } else {
            let displacement = x86_64::displacement(addr, function.new_addr)?;
            new.copy_from_slice(&x86_64::jump(displacement));
        }
        let old = patch.old.get_mut(..usize::from(patch.len))?;
        read(addr, old).then_some(patch)
    }

    /// The bytes that were there.
    #[must_use]
    pub fn old(&self) -> &[u8] {
        self.old.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// The bytes that go there.
    #[must_use]
    pub fn new_bytes(&self) -> &[u8] {
        self.new.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// What takes it back.
    pub(crate) fn undo(&self) -> Write {
        Write {
            addr: self.addr,
            len: self.len,
            bytes: self.old,
        }
    }

    /// Takes the bytes that are there now for the old ones.
    pub(crate) fn read_old(&mut self, host: &impl Host) -> bool {
        let old = self.old.get_mut(..usize::from(self.len));
        old.is_some_and(|old| host.read(self.addr, old))
    }
}
