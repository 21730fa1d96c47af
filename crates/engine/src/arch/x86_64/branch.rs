// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls and jumps with a displacement.

use crate::format::Bytes;

/// A call or jump with a displacement.
pub(super) struct Branch {
    pub(super) is_jump: bool,
    size: u64,
    displacement: i32,
}

impl Branch {
    /// The direct call or jump at the start of `code`.
    pub(super) fn direct(code: &[u8]) -> Option<Self> {
        let opcode = code.first().filter(|opcode| **opcode & 0xfe == 0xe8)?;
        Some(Self {
            is_jump: *opcode & 1 != 0,
            size: 5,
            displacement: Bytes(code).i32(1)?,
        })
    }

    /// The indirect call or jump at the start of `code`.
    pub(super) fn indirect(code: &[u8], is_jump: bool) -> Option<Self> {
        let opcode: [u8; 2] = if is_jump { [0xff, 0x25] } else { [0xff, 0x15] };
        let displacement = Bytes(code.strip_prefix(&opcode)?).i32(0)?;
        Some(Self {
            is_jump,
            size: 6,
            displacement,
        })
    }

    /// Its target if it is at `at`, or the address of its pointer.
    pub(super) fn target(&self, at: u64) -> u64 {
        let next = at.wrapping_add(self.size);
        next.wrapping_add_signed(self.displacement.into())
    }
}
