// SPDX-License-Identifier: MIT OR Apache-2.0
//! The signature of a payload.
//!
//! Xen itself has no signatures. The format is that of the series "livepatch:
//! signature verification" (Ross Lagerwall, Jennifer Herbert and Kevin Lampis,
//! xen-devel, version 3 of 2 June 2025, message
//! `20250602133639.2871212-1-ross.lagerwall@citrix.com`), which was posted and not
//! merged. Version 1 of the series had its own header in the description; this is
//! the layout of versions 2 and 3:
//!
//! * The section [`SECTION`] holds one ELF note with the owner `Xen`.
//! * The note's type is a [`Kind`]: bits 0 to 15 are the version, 16 to 23 the
//!   algorithm, 24 to 31 the hash.
//! * The note's description is the signature, and its size the signature's.
//! * The **whole file** is signed, every byte from the ELF header to the end, with
//!   the description zeroed: name, type, sizes and padding of the note are signed as
//!   they are.
//!
//! The series takes the first section of that name and the first such note in it. Its
//! reviewers asked for more, and this follows them: there is exactly one such
//! section, its type is `SHT_NOTE`, it holds one note and nothing else, and an
//! unknown algorithm is `EOPNOTSUPP`. The series leaves some details open; our
//! interpretation is: an RSA signature is PKCS #1 version 1.5 (RFC 8017, 8.2), as
//! many bytes long as the modulus, most significant first; the section is not loaded.

#[cfg(feature = "alloc")]
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// Name of the section.
pub const SECTION: &str = ".note.Xen.signature";
/// Owner of the note, with its terminating zero.
pub const OWNER: [u8; 4] = *b"Xen\0";

/// Size of the note's header, before its description.
const HEADER: usize = 16;

/// How a payload is signed: the type of the note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Version of the format.
    pub version: u16,
    /// Number of the algorithm.
    pub algorithm: u8,
    /// Number of the hash.
    pub hash: u8,
}

impl Kind {
    /// The only one so far: version 1, RSA (algorithm 0) with SHA-256 (hash 0).
    pub const RSA_SHA256: Self = Self {
        version: 1,
        algorithm: 0,
        hash: 0,
    };

    /// Decodes the note's type.
    pub const fn from_type(kind: u32) -> Self {
        let [version_low, version_high, algorithm, hash] = kind.to_le_bytes();
        Self {
            version: u16::from_le_bytes([version_low, version_high]),
            algorithm,
            hash,
        }
    }

    /// The note's type.
    pub const fn to_type(self) -> u32 {
        let [version_low, version_high] = self.version.to_le_bytes();
        u32::from_le_bytes([version_low, version_high, self.algorithm, self.hash])
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::RSA_SHA256 {
            return f.write_str("RSA with SHA-256");
        }
        let Self {
            version,
            algorithm,
            hash,
        } = self;
        write!(f, "version {version}, algorithm {algorithm}, hash {hash}")
    }
}

/// The note in the section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// How the payload is signed.
    pub kind: Kind,
    /// The range of the signature in the section.
    pub signature: Range<usize>,
}

impl Note {
    /// The note in `section`; `None` unless there is exactly one note with this owner
    /// and a description, and nothing else.
    pub fn parse(section: &[u8]) -> Option<Self> {
        let (header, rest) = section.split_first_chunk::<HEADER>()?;
        let word = |at: usize| -> Option<u32> {
            let bytes = header.get(at..)?.first_chunk::<4>()?;
            Some(u32::from_le_bytes(*bytes))
        };
        let size = usize::try_from(word(4)?).ok()?;
        let whole = size.checked_next_multiple_of(4)?;
        if word(0)? != 4 || header.get(12..)? != OWNER || size == 0 || whole != rest.len() {
            return None;
        }
        Some(Self {
            kind: Kind::from_type(word(8)?),
            signature: HEADER..HEADER.checked_add(size)?,
        })
    }
}

/// The note that holds `signature`.
#[cfg(feature = "alloc")]
pub fn note(kind: Kind, signature: &[u8]) -> Vec<u8> {
    let size = u32::try_from(signature.len()).unwrap_or(u32::MAX);
    let mut note = Vec::with_capacity(HEADER + signature.len());
    for word in [4, size, kind.to_type()] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(&OWNER);
    note.extend_from_slice(signature);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;

    #[test]
    fn a_note_gives_back_its_signature() {
        for size in [1, 2, 3, 4, 256, 512] {
            let signature: Vec<u8> = (0..=u8::MAX).cycle().take(size).collect();
            let section = note(Kind::RSA_SHA256, &signature);
            let found = Note::parse(&section).expect("a note");
            assert_eq!(found.kind, Kind::RSA_SHA256);
            assert_eq!(section[found.signature], signature, "{size} bytes");
        }
    }

    #[test]
    fn the_type_is_version_algorithm_and_hash() {
        let section = note(Kind::RSA_SHA256, b"signature...");
        let header = b"\x04\0\0\0\x0c\0\0\0\x01\0\0\0Xen\0";
        assert_eq!(&section[..16], header);
        let other = Kind {
            version: 0x0102,
            algorithm: 0x03,
            hash: 0x04,
        };
        assert_eq!(other.to_type(), 0x0403_0102);
        assert_eq!(Kind::from_type(0x0403_0102), other);
        let named = "version 258, algorithm 3, hash 4";
        assert_eq!(alloc::format!("{other}"), named);
    }

    #[test]
    fn what_is_not_one_whole_note_is_refused() {
        let whole = note(Kind::RSA_SHA256, &[7; 30]);
        assert!(Note::parse(&whole).is_some());
        for length in 0..whole.len() {
            assert_eq!(Note::parse(&whole[..length]), None, "{length} bytes");
        }
        let twice = [whole.as_slice(), &whole].concat();
        assert_eq!(Note::parse(&twice), None);
        assert_eq!(Note::parse(&note(Kind::RSA_SHA256, &[])), None);
        // Every bit of the header except those of the type.
        for bit in (0..64).chain(96..128) {
            let mut other = whole.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            // Thirty bytes take as much space as twenty-nine, thirty-one or
            // thirty-two.
            let size = u32::from_le_bytes([other[4], other[5], other[6], other[7]]);
            let found = Note::parse(&other).map(|note| note.signature.len());
            let same_room = (29..=32).contains(&size) && other[8..] == whole[8..];
            let expected = (same_room && bit >= 32).then_some(size as usize);
            assert_eq!(found, expected, "bit {bit}");
        }
    }
}
