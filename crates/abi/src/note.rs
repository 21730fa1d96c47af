// SPDX-License-Identifier: MIT OR Apache-2.0
//! ELF notes with a build-id: `.note.gnu.build-id`, `.livepatch.depends` and
//! `.livepatch.xen_depends`.

#[cfg(feature = "alloc")]
use alloc::{string::String, vec::Vec};
use core::fmt;

/// Owner of the note, with its terminating zero.
pub const OWNER: [u8; 4] = *b"GNU\0";
/// Type of the note: `NT_GNU_BUILD_ID`.
pub const TYPE: u32 = 3;

/// The note that holds the build-id `id`.
#[cfg(feature = "alloc")]
pub fn build_id_note(id: &[u8]) -> Vec<u8> {
    let length = u32::try_from(id.len()).unwrap_or(u32::MAX);
    let mut note = Vec::with_capacity(16 + id.len());
    for word in [4, length, TYPE] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(&OWNER);
    note.extend_from_slice(id);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

/// Build-ids and hashes as text: two lower-case digits per byte.
#[derive(Clone, Copy, Debug)]
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// [`Hex`] as a text.
#[cfg(feature = "alloc")]
pub fn hex(bytes: &[u8]) -> String {
    alloc::format!("{}", Hex(bytes))
}

/// The build-id in the note `data`; `None` if it is a different note or damaged.
///
/// ```
/// use xsplice_abi::note::{Hex, build_id_note, parse_build_id};
///
/// let note = build_id_note(&[0xab; 20]);
/// let id = parse_build_id(&note).unwrap();
/// assert_eq!(Hex(&id[..4]).to_string(), "abababab");
/// assert_eq!(parse_build_id(&note[..30]), None);
/// ```
pub fn parse_build_id(data: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(
            data.get(at..at.checked_add(4)?)?.try_into().ok()?,
        ))
    };
    let (owner_size, size, kind) = (word(0)?, word(4)?, word(8)?);
    if owner_size != 4 || kind != TYPE || data.get(12..16)? != OWNER || size == 0 {
        return None;
    }
    data.get(16..16_usize.checked_add(usize::try_from(size).ok()?)?)
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;

    #[test]
    fn a_note_gives_back_its_id() {
        for length in [1, 8, 20, 32] {
            let id: Vec<u8> = (0..length).collect();
            assert_eq!(parse_build_id(&build_id_note(&id)), Some(id.as_slice()));
        }
    }

    #[test]
    fn truncated_and_foreign_notes_are_refused() {
        let note = build_id_note(&[7; 20]);
        for length in 0..note.len() {
            assert_eq!(parse_build_id(&note[..length]), None, "{length} bytes");
        }
        let mut foreign = note.clone();
        foreign[8] = 1;
        assert_eq!(parse_build_id(&foreign), None);
        assert_eq!(parse_build_id(&build_id_note(&[])), None);
    }
}
