// SPDX-License-Identifier: MIT OR Apache-2.0

//! The payload format: names, sizes and records, read without trusting them.

use crate::host::Hook;
use xsplice_abi::payload::{LivepatchFunc, OPAQUE_SIZE, section};

/// Largest payload, and largest section without file contents, in bytes.
pub const MAX_SIZE: u64 = 2 << 20;
/// Most memory that the engine lays out for one payload.
pub(crate) const MAX_IMAGE: u64 = 16 * MAX_SIZE;
/// Section headers from this number on are refused.
pub(crate) const MAX_SECTIONS: u16 = 1024;
/// Symbol names that the hypervisor can hold, terminator not counted.
pub(crate) const MAX_NAME: usize = 127;
/// Size of one function record.
pub(crate) const FUNC_SIZE: u64 = size_of::<LivepatchFunc>() as u64;
/// Most bytes of a function that can be made no-ops.
pub(crate) const NOP_LIMIT: u32 = 31;
const _: () = assert!(NOP_LIMIT as usize == OPAQUE_SIZE);

pub(crate) const ALTERNATIVES: &str = ".altinstructions";
pub(crate) const REPLACEMENTS: &str = ".altinstr_replacement";
pub(crate) const EX_TABLE: &str = ".ex_table";
/// Sections of hooks. There is any number of the first two kinds, and one of
/// each other.
pub(crate) const HOOKS: [(&str, Hook); 8] = [
    (section::HOOKS_LOAD, Hook::Load),
    (section::HOOKS_UNLOAD, Hook::Unload),
    (section::HOOKS_PREAPPLY, Hook::PreApply),
    (section::HOOKS_APPLY, Hook::Apply),
    (section::HOOKS_POSTAPPLY, Hook::PostApply),
    (section::HOOKS_PREREVERT, Hook::PreRevert),
    (section::HOOKS_REVERT, Hook::Revert),
    (section::HOOKS_POSTREVERT, Hook::PostRevert),
];
/// Tables of places that raise a bug frame.
pub(crate) const BUG_FRAMES: [&str; 4] = [
    ".bug_frames.0",
    ".bug_frames.1",
    ".bug_frames.2",
    ".bug_frames.3",
];
/// Sections of which a payload has at most one.
pub(crate) const UNIQUE: [&str; 8] = [
    section::BUILD_ID,
    section::DEPENDS,
    section::XEN_DEPENDS,
    section::FUNCS,
    section::MODINFO,
    ALTERNATIVES,
    REPLACEMENTS,
    EX_TABLE,
];

/// Little-endian integers out of bytes that may be too short.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    fn chunk<const N: usize>(self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }

    pub(crate) fn u8(self, offset: usize) -> Option<u8> {
        self.0.get(offset).copied()
    }

    pub(crate) fn u16(self, offset: usize) -> Option<u16> {
        self.chunk(offset).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(self, offset: usize) -> Option<u32> {
        self.chunk(offset).map(u32::from_le_bytes)
    }

    pub(crate) fn i32(self, offset: usize) -> Option<i32> {
        self.chunk(offset).map(i32::from_le_bytes)
    }

    pub(crate) fn u64(self, offset: usize) -> Option<u64> {
        self.chunk(offset).map(u64::from_le_bytes)
    }

    /// `size` bytes at `offset`, both as they stand in a file.
    pub(crate) fn range(self, offset: u64, size: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(offset).ok()?;
        self.0
            .get(start..start.checked_add(usize::try_from(size).ok()?)?)
    }

    /// The string that starts at `offset`, when it ends within `limit` bytes.
    pub(crate) fn c_str(self, offset: usize, limit: usize) -> Option<&'a [u8]> {
        let bytes = self.0.get(offset..)?;
        let bytes = bytes.get(..limit.saturating_add(1)).unwrap_or(bytes);
        let (words, rest) = bytes.as_chunks();
        let mut end = 0;
        for word in words {
            let zeros = zeros(*word);
            if zeros != 0 {
                return bytes.get(..end + zeros.trailing_zeros() as usize / 8);
            }
            end += 8;
        }
        bytes.get(..end + rest.iter().position(|byte| *byte == 0)?)
    }
}

/// A bit in each byte that is zero, and maybe in some that are not behind the
/// first of them: without looking at each byte, as there are many names.
fn zeros(bytes: [u8; 8]) -> u64 {
    const LOW: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = LOW << 7;
    let word = u64::from_le_bytes(bytes);
    // Only a zero byte borrows from above, or what is above one.
    word.wrapping_sub(LOW) & !word & HIGH
}

#[cfg(test)]
mod tests {
    use super::Bytes;

    #[test]
    fn strings_end_at_their_first_zero() {
        for length in 0..40 {
            let mut bytes = [0xff; 48];
            bytes[length + 3] = 0;
            bytes[length + 5] = 0;
            let string = Bytes(&bytes).c_str(3, 40);
            assert_eq!(string.map(<[u8]>::len), Some(length));
            assert_eq!(Bytes(&bytes).c_str(3, length), string);
            assert_eq!(
                length
                    .checked_sub(1)
                    .and_then(|l| Bytes(&bytes).c_str(3, l)),
                None
            );
            bytes[length + 3] = 1;
            assert_eq!(Bytes(&bytes[..length + 5]).c_str(3, 40), None);
        }
    }
}
