// SPDX-License-Identifier: MIT OR Apache-2.0

//! The payload format: names, sizes and records, read without trusting them.

use crate::arch::Entries;
use crate::host::Hook;
use xsplice_abi::machine::Width;
use xsplice_abi::payload::{OPAQUE_SIZE, section};
use xsplice_abi::special::{self, BugKind, Table};
use xsplice_abi::{preimage, signature};

/// Largest payload, and largest section without file contents, in bytes.
pub const MAX_SIZE: u64 = 2 << 20;
/// Most memory that the engine lays out for one payload.
pub(crate) const MAX_IMAGE: u64 = 16 * MAX_SIZE;
/// Section headers from this number on are refused.
pub(crate) const MAX_SECTIONS: u16 = 1024;
/// Symbol names that the hypervisor can hold, terminator not counted.
pub(crate) const MAX_NAME: usize = 127;
/// Most bytes of a function that can be overwritten with no-ops.
pub(crate) const NOP_LIMIT: u32 = 31;
const _: () = assert!(NOP_LIMIT as usize == OPAQUE_SIZE);

/// The form of function records.
pub(crate) fn functions(width: Width) -> Entries {
    Entries {
        size: width.func_size() as u64,
        expected: match width {
            Width::Bits32 => "a multiple of 92 (function records)",
            Width::Bits64 => "a multiple of 104 (function records)",
        },
    }
}

/// The form of pointers; `single` if there is one.
pub(crate) fn pointers(width: Width, single: bool) -> Entries {
    Entries {
        size: width.bytes() as u64,
        expected: match (width, single) {
            (Width::Bits32, true) => "one pointer (4 bytes)",
            (Width::Bits32, false) => "a multiple of 4 (pointers)",
            (Width::Bits64, true) => "one pointer (8 bytes)",
            (Width::Bits64, false) => "a multiple of 8 (pointers)",
        },
    }
}

/// A section that the loader interprets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    BuildId,
    Depends,
    XenDepends,
    Funcs,
    ModInfo,
    HooksLoad,
    HooksUnload,
    HooksPreApply,
    HooksApply,
    HooksPostApply,
    HooksPreRevert,
    HooksRevert,
    HooksPostRevert,
    Preimages,
    Signature,
    Alternatives,
    Replacements,
    ExTable,
    BugFrames0,
    BugFrames1,
    BugFrames2,
    BugFrames3,
    CallSites,
}

/// The name of each, in the order of their numbers.
const NAMES: [(&str, Known); Known::COUNT] = [
    (section::BUILD_ID, Known::BuildId),
    (section::DEPENDS, Known::Depends),
    (section::XEN_DEPENDS, Known::XenDepends),
    (section::FUNCS, Known::Funcs),
    (section::MODINFO, Known::ModInfo),
    (section::HOOKS_LOAD, Known::HooksLoad),
    (section::HOOKS_UNLOAD, Known::HooksUnload),
    (section::HOOKS_PREAPPLY, Known::HooksPreApply),
    (section::HOOKS_APPLY, Known::HooksApply),
    (section::HOOKS_POSTAPPLY, Known::HooksPostApply),
    (section::HOOKS_PREREVERT, Known::HooksPreRevert),
    (section::HOOKS_REVERT, Known::HooksRevert),
    (section::HOOKS_POSTREVERT, Known::HooksPostRevert),
    (preimage::SECTION, Known::Preimages),
    (signature::SECTION, Known::Signature),
    (Table::Alternatives.section(), Known::Alternatives),
    (special::REPLACEMENTS, Known::Replacements),
    (Table::Exceptions.section(), Known::ExTable),
    (Table::BugFrames(BugKind::Call).section(), Known::BugFrames0),
    (Table::BugFrames(BugKind::Warn).section(), Known::BugFrames1),
    (Table::BugFrames(BugKind::Bug).section(), Known::BugFrames2),
    (
        Table::BugFrames(BugKind::Assert).section(),
        Known::BugFrames3,
    ),
    (Table::CallSites.section(), Known::CallSites),
];

/// The ends of the [`NAMES`], which all differ.
const ENDS: [u64; Known::COUNT] = {
    let mut ends = [0; Known::COUNT];
    let mut index = 0;
    while index < Known::COUNT {
        let (name, known) = NAMES[index];
        assert!(known as usize == index, "the names are in another order");
        ends[index] = end(name.as_bytes()).expect("a name has at least 8 bytes");
        index += 1;
    }
    ends
};

/// The last eight bytes.
const fn end(name: &[u8]) -> Option<u64> {
    match name.last_chunk() {
        Some(end) => Some(u64::from_le_bytes(*end)),
        None => None,
    }
}

impl Known {
    /// How many there are.
    pub(crate) const COUNT: usize = Self::CallSites as usize + 1;

    /// The tables of bug frames.
    pub(crate) const BUG_FRAMES: [(Self, BugKind); 4] = [
        (Self::BugFrames0, BugKind::Call),
        (Self::BugFrames1, BugKind::Warn),
        (Self::BugFrames2, BugKind::Bug),
        (Self::BugFrames3, BugKind::Assert),
    ];
    /// The hooks of the first two kinds are repeatable; the others are unique.
    pub(crate) const HOOKS: [(Self, Hook); 8] = [
        (Self::HooksLoad, Hook::Load),
        (Self::HooksUnload, Hook::Unload),
        (Self::HooksPreApply, Hook::PreApply),
        (Self::HooksApply, Hook::Apply),
        (Self::HooksPostApply, Hook::PostApply),
        (Self::HooksPreRevert, Hook::PreRevert),
        (Self::HooksRevert, Hook::Revert),
        (Self::HooksPostRevert, Hook::PostRevert),
    ];

    /// The one with this name, usually found by a few word comparisons.
    pub(crate) fn of(name: &[u8]) -> Option<Self> {
        let end = end(name)?;
        let index = ENDS.iter().position(|known| *known == end)?;
        let &(known_name, known) = NAMES.get(index)?;
        let known_name = known_name.as_bytes();
        // The remaining bytes are compared as the tail.
        let mut words = known_name.as_chunks().0.iter().zip(name.as_chunks().0);
        let same = known_name.len() == name.len()
            && words.all(|(a, b)| u64::from_le_bytes(*a) == u64::from_le_bytes(*b));
        same.then_some(known)
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// Whether it must be the same in the file and in memory: the identity of the
    /// payload, its dependencies and its metadata.
    pub(crate) fn is_read_from_file(self) -> bool {
        matches!(
            self,
            Self::BuildId | Self::Depends | Self::XenDepends | Self::ModInfo
        )
    }

    /// Whether the hypervisor reads numbers in it, and not only code or characters.
    pub(crate) fn has_words(self) -> bool {
        !matches!(
            self,
            Self::ModInfo | Self::Replacements | Self::Preimages | Self::Signature
        )
    }

    /// Whether there can be several.
    pub(crate) fn is_repeatable(self) -> bool {
        matches!(self, Self::Preimages | Self::Signature)
    }

    pub(crate) fn name(self) -> &'static str {
        NAMES.get(self.index()).map_or("", |(name, _)| name)
    }
}

/// Reads little-endian integers from bytes that may be too short.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    #[inline]
    fn chunk<const N: usize>(self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }

    #[inline]
    pub(crate) fn u16(self, offset: usize) -> Option<u16> {
        self.chunk(offset).map(u16::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u32(self, offset: usize) -> Option<u32> {
        self.chunk(offset).map(u32::from_le_bytes)
    }

    #[inline]
    pub(crate) fn i32(self, offset: usize) -> Option<i32> {
        self.chunk(offset).map(i32::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u64(self, offset: usize) -> Option<u64> {
        self.chunk(offset).map(u64::from_le_bytes)
    }

    /// An integer as wide as an address.
    #[inline]
    pub(crate) fn wide(self, offset: usize, width: Width) -> Option<u64> {
        width.read(self.0.get(offset..)?)
    }

    /// `size` bytes at `offset`, both as given in a file.
    #[inline]
    pub(crate) fn range(self, offset: u64, size: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(offset).ok()?;
        self.0
            .get(start..start.checked_add(usize::try_from(size).ok()?)?)
    }

    /// The string that starts at `offset`, if it ends within `limit` bytes.
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

/// Sets the top bit of every zero byte, all eight at once, as there are many names;
/// bytes after the first zero may be false positives.
fn zeros(bytes: [u8; 8]) -> u64 {
    const LOW: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = LOW << 7;
    let word = u64::from_le_bytes(bytes);
    // Only a zero byte borrows, or a byte above one.
    word.wrapping_sub(LOW) & !word & HIGH
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Known, NAMES};

    #[test]
    fn sections_are_known_by_their_whole_names() {
        for (index, (name, _)) in NAMES.iter().enumerate() {
            let known = Known::of(name.as_bytes());
            assert_eq!(known.map(Known::index), Some(index), "{name}");
            assert_eq!(known.map(Known::name), Some(*name));
            for at in 0..name.len() {
                let mut other = name.as_bytes().to_vec();
                other[at] ^= 1 << 5;
                assert_eq!(Known::of(&other), None, "{name}, byte {at}");
                assert_eq!(Known::of(&name.as_bytes()[at + 1..]), None);
                assert_eq!(Known::of(&name.as_bytes()[..at]), None);
            }
            assert_eq!(Known::of(&[b".", name.as_bytes()].concat()), None);
        }
        for (known, name) in [
            (Known::Funcs, ".livepatch.funcs"),
            (Known::BUG_FRAMES[3].0, ".bug_frames.3"),
        ] {
            assert_eq!(known.name(), name);
        }
    }

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
