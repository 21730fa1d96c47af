// SPDX-License-Identifier: MIT OR Apache-2.0
//! What ARM64 and ARM32 have in common.

use xsplice_abi::special::{BugKind, Table, arm};

pub(super) fn has(table: Table) -> bool {
    match table {
        Table::BugFrames(_) | Table::Alternatives => true,
        Table::Exceptions | Table::EarlyExceptions | Table::CallSites => false,
    }
}

pub(super) fn compared_size(table: Table) -> u64 {
    /// Size of the line number and what fills the last word of a bug frame.
    const LINE: u64 = 4;
    match table {
        Table::BugFrames(_) => arm::BUG_FRAME_SIZE - LINE,
        _ => arm::entry_size(table),
    }
}

pub(super) fn uses_field(table: Table, offset: u64) -> bool {
    /// Offset of the message in a bug frame. Without one, it leads to whatever the
    /// assembler put behind the file name.
    const MESSAGE: u64 = 8;
    match table {
        Table::BugFrames(BugKind::Assert) => true,
        Table::BugFrames(_) => offset != MESSAGE,
        _ => true,
    }
}
