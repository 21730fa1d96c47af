// SPDX-License-Identifier: MIT OR Apache-2.0
//! The preimage note: the expected contents of each complete old function.
//!
//! An expectation of the payload format covers at most 31 bytes, and a build-id
//! identifies what was loaded, not what is in memory. The section [`SECTION`] holds
//! one ELF note for each replaced function, with owner `xsplice` and type [`TYPE`].
//! It is not loaded, so an unmodified Xen ignores it. The description of a note,
//! little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | address of the function in the hypervisor |
//! | 4 | its size in bytes |
//! | 4 | number of masked ranges |
//! | 32 | SHA-256 of its bytes, with masked ranges zeroed |
//! | 8 each | masked ranges: offset in the function, length; by offset |
//!
//! Masked ranges are those that the hypervisor itself patches at boot.

#[cfg(feature = "alloc")]
use alloc::vec::Vec;

/// Name of the section.
pub const SECTION: &str = ".note.xsplice.preimage";
/// Owner of the notes, with its terminating zero.
pub const OWNER: [u8; 8] = *b"xsplice\0";
/// Type of the notes.
pub const TYPE: u32 = 1;
/// Size limit of a function in a note, in bytes: far larger than any.
pub const MAX_SIZE: u32 = 1 << 20;

/// A preimage note to write.
#[cfg(feature = "alloc")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preimage {
    /// Address in the hypervisor.
    pub address: u64,
    /// Size in bytes.
    pub size: u32,
    /// SHA-256 of the masked bytes.
    pub hash: [u8; 32],
    /// Offset and length of each range that is taken as zero, by offset.
    pub masked: Vec<(u32, u32)>,
}

#[cfg(feature = "alloc")]
impl Preimage {
    /// Appends the note to `section`.
    pub fn append_to(&self, section: &mut Vec<u8>) {
        let count = u32::try_from(self.masked.len()).unwrap_or(u32::MAX);
        let mut description = Vec::new();
        description.extend_from_slice(&self.address.to_le_bytes());
        description.extend_from_slice(&self.size.to_le_bytes());
        description.extend_from_slice(&count.to_le_bytes());
        description.extend_from_slice(&self.hash);
        for (offset, length) in &self.masked {
            description.extend_from_slice(&offset.to_le_bytes());
            description.extend_from_slice(&length.to_le_bytes());
        }
        let length = u32::try_from(description.len()).unwrap_or(u32::MAX);
        for word in [8, length, TYPE] {
            section.extend_from_slice(&word.to_le_bytes());
        }
        section.extend_from_slice(&OWNER);
        section.extend_from_slice(&description);
    }

    /// Zeroes the masked ranges in the bytes of the function.
    pub fn mask(&self, code: &mut [u8]) {
        mask(self.masked.iter().copied(), code);
    }
}

/// A preimage note, as in its section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note<'a> {
    /// Address in the hypervisor.
    pub address: u64,
    /// Size in bytes.
    pub size: u32,
    /// SHA-256 of the masked bytes.
    pub hash: [u8; 32],
    ranges: &'a [u8],
}

/// Reads the notes of `section`; the last is `None` if it is damaged or of another
/// type.
///
/// ```
/// use xsplice_abi::preimage::{Preimage, notes};
///
/// let preimage = Preimage {
///     address: 0xffff_82d0_4020_0100,
///     size: 32,
///     hash: [0x5a; 32],
///     // What the hypervisor changes itself, such as an alternative.
///     masked: vec![(4, 5)],
/// };
/// let mut section = Vec::new();
/// preimage.append_to(&mut section);
/// let note = notes(&section).next().unwrap().unwrap();
/// assert_eq!((note.address, note.size), (preimage.address, 32));
/// let mut code = [0xcc; 32];
/// note.mask(&mut code);
/// assert_eq!(code[3..10], [0xcc, 0, 0, 0, 0, 0, 0xcc]);
/// ```
pub fn notes(mut section: &[u8]) -> impl Iterator<Item = Option<Note<'_>>> {
    core::iter::from_fn(move || {
        if section.is_empty() {
            return None;
        }
        let note = Note::take(&mut section);
        if note.is_none() {
            section = &[];
        }
        Some(note)
    })
}

impl<'a> Note<'a> {
    fn take(section: &mut &'a [u8]) -> Option<Self> {
        let (owner, length, kind) = (word(section, 0)?, word(section, 4)?, word(section, 8)?);
        if owner != 8 || kind != TYPE || section.get(12..20)? != OWNER {
            return None;
        }
        let end = 20_usize.checked_add(usize::try_from(length).ok()?)?;
        let note = Self::read(section.get(20..end)?)?;
        *section = section.get(end..)?;
        Some(note)
    }

    fn read(description: &'a [u8]) -> Option<Self> {
        let address = u64::from_le_bytes(description.get(..8)?.try_into().ok()?);
        let (size, count) = (word(description, 8)?, word(description, 12)?);
        let hash = description.get(16..48)?.try_into().ok()?;
        let ranges = description.get(48..)?;
        let count = usize::try_from(count).ok()?;
        if size > MAX_SIZE || ranges.len() != count.checked_mul(8)? {
            return None;
        }
        let note = Self {
            address,
            size,
            hash,
            ranges,
        };
        note.masked()
            .is_sorted_by_key(|(offset, _)| offset)
            .then_some(note)
    }

    /// Offset and length of each range that is taken as zero, by offset.
    pub fn masked(&self) -> impl Iterator<Item = (u32, u32)> {
        let ranges = self.ranges.chunks_exact(8);
        ranges.filter_map(|range| Some((word(range, 0)?, word(range, 4)?)))
    }

    /// Zeroes the masked ranges in the bytes of the function.
    pub fn mask(&self, code: &mut [u8]) {
        mask(self.masked(), code);
    }
}

fn mask(ranges: impl Iterator<Item = (u32, u32)>, code: &mut [u8]) {
    // Each byte once, even if ranges overlap.
    let mut done = 0;
    for (offset, length) in ranges {
        let end = u64::from(offset) + u64::from(length);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).max(done);
        let end = usize::try_from(end).unwrap_or(usize::MAX).min(code.len());
        if let Some(range) = code.get_mut(start..end) {
            range.fill(0);
            done = end;
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;
    use alloc::vec;

    fn example(ranges: usize) -> Preimage {
        Preimage {
            address: 0xffff_82d0_4020_0000,
            size: 64,
            hash: [7; 32],
            masked: vec![(4, 8); ranges],
        }
    }

    /// All notes, if none is damaged.
    fn read_all(section: &[u8]) -> Option<Vec<Preimage>> {
        let read = |note: Option<Note<'_>>| {
            let note = note?;
            Some(Preimage {
                address: note.address,
                size: note.size,
                hash: note.hash,
                masked: note.masked().collect(),
            })
        };
        notes(section).map(read).collect()
    }

    #[test]
    fn notes_are_read_as_they_were_written() {
        let all = [example(0), example(1), example(3)];
        let mut section = Vec::new();
        all.iter().for_each(|one| one.append_to(&mut section));
        assert_eq!(read_all(&section).as_deref(), Some(&all[..]));
        for length in 1..section.len() {
            // Truncated between two notes, it is a shorter list; elsewhere it is
            // invalid.
            if let Some(some) = read_all(&section[..length]) {
                assert_eq!(some, all[..some.len()]);
            }
        }
    }

    #[test]
    fn masked_bytes_do_not_matter() {
        let mut code = [1; 16];
        example(1).mask(&mut code);
        assert_eq!(code, [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
        let overlapping = Preimage {
            masked: vec![(0, 2), (1, 5), (2, 1), (15, u32::MAX), (17, 4)],
            ..example(0)
        };
        let mut code = [1; 16];
        overlapping.mask(&mut code);
        assert_eq!(code, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
    }

    #[test]
    fn ranges_out_of_order_are_refused() {
        let mut section = Vec::new();
        let masked = vec![(8, 1), (4, 1)];
        Preimage {
            masked,
            ..example(0)
        }
        .append_to(&mut section);
        assert_eq!(read_all(&section), None);
    }
}
