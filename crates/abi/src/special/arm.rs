// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forms of the special sections that differ on ARM, 64 and 32 bits.
//!
//! Neither has an exception table or call sites.
//!
//! Sources: Xen's `arch/arm/include/asm/{alternative,bug}.h`.

use super::{Alternative, BugFrame, Entry, Table, leads_to, word};

/// Size in bytes of `struct alt_instr`.
pub const ALTERNATIVE_SIZE: u64 = 12;
/// Size in bytes of `struct bug_frame`, which has a message for all kinds.
pub const BUG_FRAME_SIZE: u64 = 16;

/// Size in bytes of an entry of `table`.
#[must_use]
pub const fn entry_size(table: Table) -> u64 {
    match table {
        Table::BugFrames(_) => BUG_FRAME_SIZE,
        Table::Alternatives => ALTERNATIVE_SIZE,
        Table::Exceptions | Table::EarlyExceptions | Table::CallSites => table.entry_size(),
    }
}

/// Reads the entry of `table` that is at `at`; `None` if it is truncated.
#[must_use]
pub fn read(table: Table, entry: &[u8], at: u64) -> Option<Entry> {
    match table {
        Table::BugFrames(kind) => Some(Entry::BugFrame {
            kind,
            frame: bug_frame(entry, at)?,
            message: Some(message(entry, at)?),
        }),
        Table::Alternatives => Some(Entry::Alternative(alternative(entry, at)?)),
        Table::Exceptions | Table::EarlyExceptions | Table::CallSites => table.read(entry, at),
    }
}

/// Reads the alternative that is at `at`. It has no padding: original and replacement
/// have the same length. Without a replacement, its address is that of a function
/// which writes one.
///
/// ```
/// use xsplice_abi::special::arm;
///
/// let entry = [0xf0, 0xff, 0xff, 0xff, 0x1c, 0, 0, 0, 8, 0, 4, 4];
/// let alternative = arm::alternative(&entry, 0x1000).unwrap();
/// assert_eq!((alternative.place, alternative.replacement), (0xff0, 0x1020));
/// assert_eq!((alternative.condition, alternative.total_len()), (8, 4));
/// ```
#[must_use]
pub fn alternative(entry: &[u8], at: u64) -> Option<Alternative> {
    let [low, high, original_len, replacement_len] = *entry.get(8..)?.first_chunk()?;
    Some(Alternative {
        place: leads_to(entry, at, 0)?,
        replacement: leads_to(entry, at, 4)?,
        condition: u16::from_le_bytes([low, high]),
        original_len,
        replacement_len,
        padding: 0,
        used: 0,
    })
}

/// Reads the bug frame that is at `at`. The function of a frame that calls one is in a
/// register; the file name and the message of such a frame lead to the frame itself.
#[must_use]
pub fn bug_frame(frame: &[u8], at: u64) -> Option<BugFrame> {
    let leads = |offset| Some(at.wrapping_add_signed(word(frame, offset)?.into()));
    let [low, high] = *frame.get(12..)?.first_chunk()?;
    Some(BugFrame {
        place: leads(0)?,
        pointer: leads(4)?,
        line: u16::from_le_bytes([low, high]).into(),
    })
}

/// The address of the message of the bug frame that is at `at`.
#[must_use]
pub fn message(frame: &[u8], at: u64) -> Option<u64> {
    Some(at.wrapping_add_signed(word(frame, 8)?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::special::BugKind;

    #[test]
    fn bug_frames_lead_from_their_start() {
        let mut bytes = [-0x20_i32, 0x1234, 0x2000].map(i32::to_le_bytes).concat();
        bytes.extend([0x34, 0x12, 0, 0]);
        let table = Table::BugFrames(BugKind::Assert);
        let frame = BugFrame {
            place: 0x7fe0,
            pointer: 0x9234,
            line: 0x1234,
        };
        let kind = BugKind::Assert;
        let message = Some(0xa000);
        let whole = Entry::BugFrame {
            kind,
            frame,
            message,
        };
        assert_eq!(read(table, &bytes, 0x8000), Some(whole));
        assert_eq!(read(table, &bytes[..13], 0x8000), None);
        assert_eq!(entry_size(table), bytes.len() as u64);
    }
}
