// SPDX-License-Identifier: MIT OR Apache-2.0

//! The bytes written over a function.

use crate::arch::{Architecture, Instructions as _};
use crate::{Function, Host};
use core::ops::Range;
use xsplice_abi::payload::OPAQUE_SIZE;

/// New bytes at the start of a function, and the old ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// Address of the first byte.
    pub addr: u64,
    len: u8,
    old: Bytes,
    new: Bytes,
}

/// A write in the window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    pub(crate) addr: u64,
    len: u8,
    bytes: Bytes,
}

/// Large enough for the longest sequence of no-ops.
type Bytes = [u8; OPAQUE_SIZE];

/// The bytes, if they are those of a jump, as of nearly all writes. With a constant
/// size, a write is cheaper than a call to a function that writes. Other sizes are
/// written by one out-of-line function per kind that takes only the record: any other
/// argument would have to be kept live in the loops of the window, at three more
/// instructions per jump.
#[inline(always)]
fn jump<'b>(host: &impl Host, bytes: &'b Bytes, len: u8) -> Option<&'b [u8]> {
    let size = host.architecture().jump_size();
    bytes.get(..usize::from(size)).filter(|_| len == size)
}

fn range(addr: u64, len: u8) -> Range<u64> {
    addr..addr + u64::from(len)
}

fn first(bytes: &Bytes, len: u8) -> &[u8] {
    bytes.get(..usize::from(len)).unwrap_or_default()
}

impl Write {
    /// The address range.
    pub(crate) fn range(&self) -> Range<u64> {
        range(self.addr, self.len)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        first(&self.bytes, self.len)
    }

    /// Writes the bytes, *in the window*.
    pub(crate) fn write(&self, host: &impl Host) {
        match jump(host, &self.bytes, self.len) {
            Some(bytes) => host.write_text(self.addr, bytes),
            None => self.write_other(host),
        }
    }

    #[cold]
    fn write_other(&self, host: &impl Host) {
        host.write_text(self.addr, self.bytes());
    }
}

impl Patch {
    /// A jump to the new function, or no-ops; `read` returns the bytes before the
    /// apply. `None` if they cannot be read.
    pub(crate) fn new(
        arch: impl Architecture,
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
            arch.nops(new);
        } else {
            arch.jump(addr, function.new_addr, new)?;
        }
        let old = patch.old.get_mut(..usize::from(patch.len))?;
        read(addr, old).then_some(patch)
    }

    /// The address range of both.
    pub(crate) fn range(&self) -> Range<u64> {
        range(self.addr, self.len)
    }

    /// The old bytes.
    #[must_use]
    pub fn old(&self) -> &[u8] {
        first(&self.old, self.len)
    }

    /// The new bytes.
    #[must_use]
    pub fn new_bytes(&self) -> &[u8] {
        first(&self.new, self.len)
    }

    /// Writes the new bytes, *in the window*.
    #[inline(always)]
    pub(crate) fn apply(&self, host: &impl Host) {
        match jump(host, &self.new, self.len) {
            Some(bytes) => host.write_text(self.addr, bytes),
            None => self.apply_other(host),
        }
    }

    #[cold]
    fn apply_other(&self, host: &impl Host) {
        host.write_text(self.addr, self.new_bytes());
    }

    /// Writes the old bytes, *in the window*.
    #[inline(always)]
    pub(crate) fn revert(&self, host: &impl Host) {
        match jump(host, &self.old, self.len) {
            Some(bytes) => host.write_text(self.addr, bytes),
            None => self.revert_other(host),
        }
    }

    #[cold]
    fn revert_other(&self, host: &impl Host) {
        host.write_text(self.addr, self.old());
    }

    /// The write that undoes it.
    pub(crate) fn undo(&self) -> Write {
        Write {
            addr: self.addr,
            len: self.len,
            bytes: self.old,
        }
    }

    /// Saves the current bytes as the old ones.
    pub(crate) fn read_old(&mut self, host: &impl Host) -> bool {
        let old = self.old.get_mut(..usize::from(self.len));
        old.is_some_and(|old| host.read(self.addr, old))
    }
}
