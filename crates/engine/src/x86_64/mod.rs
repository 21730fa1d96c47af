// SPDX-License-Identifier: MIT OR Apache-2.0

//! The x86-64 part: trampolines, no-ops and branches.

mod length;

pub(crate) use length::{LONGEST, across};

use crate::format::Bytes;
use xsplice_abi::trampoline;
use xsplice_reloc::reloc::x86_64::{R_X86_64_64, R_X86_64_PC32, R_X86_64_PLT32};

/// Size of a trampoline.
pub(crate) const JUMP_SIZE: u32 = trampoline::SIZE as u32;
/// Size of the instruction that marks a target of indirect branches.
pub(crate) const ENDBR_SIZE: u32 = trampoline::LANDING_PAD_SIZE as u32;

/// `endbr64`, inverted: as an immediate it would itself be a valid indirect branch
/// target.
const NOT_ENDBR: u32 = !u32::from_le_bytes(trampoline::LANDING_PAD);
/// What the hypervisor writes over an `endbr64` it disables; inverted too.
const NOT_ENDBR_DISABLED: u32 = !u32::from_le_bytes(trampoline::DISABLED_LANDING_PAD);

/// Offset of the patch in a function: after a leading `endbr64`.
pub(crate) fn patch_offset(first: &[u8; 4]) -> u32 {
    if is_endbr(first) || inverted(first) == NOT_ENDBR_DISABLED {
        ENDBR_SIZE
    } else {
        0
    }
}

/// Whether it is an `endbr64`.
pub(crate) fn is_endbr(first: &[u8; 4]) -> bool {
    inverted(first) == NOT_ENDBR
}

fn inverted(first: &[u8; 4]) -> u32 {
    // Without the barrier, the compiler inverts the constants back.
    core::hint::black_box(!u32::from_le_bytes(*first))
}

/// The displacement of a jump from `from` to `to`, if it fits.
pub(crate) fn displacement(from: u64, to: u64) -> Option<i32> {
    let next = from.wrapping_add(u64::from(JUMP_SIZE));
    i32::try_from(to.wrapping_sub(next).cast_signed()).ok()
}

/// The bytes of a jump.
pub(crate) fn jump(displacement: i32) -> [u8; JUMP_SIZE as usize] {
    let [a, b, c, d] = displacement.to_le_bytes();
    [trampoline::OPCODE, a, b, c, d]
}

/// The no-ops of 1 to 8 bytes that Intel's and AMD's manuals recommend.
const NOPS: [&[u8]; 8] = [
    &[0x90],
    &[0x66, 0x90],
    &[0x0f, 0x1f, 0x00],
    &[0x0f, 0x1f, 0x40, 0x00],
    &[0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
    &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
];

/// Fills `bytes` with as few no-ops as possible.
pub(crate) fn nops(bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(NOPS.len()) {
        let nop = chunk.len().checked_sub(1).and_then(|at| NOPS.get(at));
        chunk.copy_from_slice(nop.unwrap_or(&&[][..]));
    }
}

/// Whether an unmodified Xen performs this relocation.
pub(crate) fn stock_relocation(r_type: u32) -> bool {
    matches!(r_type, 0 | R_X86_64_64 | R_X86_64_PC32 | R_X86_64_PLT32)
}

/// A call or jump with a displacement.
pub(crate) struct Branch {
    pub(crate) is_jump: bool,
    size: u64,
    displacement: i32,
}

impl Branch {
    /// The direct call or jump at the start of `code`.
    pub(crate) fn direct(code: &[u8]) -> Option<Self> {
        let opcode = code.first().filter(|opcode| **opcode & 0xfe == 0xe8)?;
        Some(Self {
            is_jump: *opcode & 1 != 0,
            size: 5,
            displacement: Bytes(code).i32(1)?,
        })
    }

    /// The indirect call or jump at the start of `code`.
    pub(crate) fn indirect(code: &[u8], is_jump: bool) -> Option<Self> {
        let opcode: [u8; 2] = if is_jump { [0xff, 0x25] } else { [0xff, 0x15] };
        let displacement = Bytes(code.strip_prefix(&opcode)?).i32(0)?;
        Some(Self {
            is_jump,
            size: 6,
            displacement,
        })
    }

    /// Its target if it is at `at`, or the address of its pointer.
    pub(crate) fn target(&self, at: u64) -> u64 {
        let next = at.wrapping_add(self.size);
        next.wrapping_add_signed(self.displacement.into())
    }
}

#[cfg(test)]
mod tests {
    use super::{displacement, patch_offset};

    #[test]
    fn patches_go_behind_endbr() {
        assert_eq!(patch_offset(&[0xf3, 0x0f, 0x1e, 0xfa]), 4);
        assert_eq!(patch_offset(&[0x66, 0x0f, 0x1f, 0x01]), 4);
        assert_eq!(patch_offset(&[0x55, 0x48, 0x89, 0xe5]), 0);
    }

    #[test]
    fn jumps_reach_two_gigabytes() {
        let from = 0xffff_82d0_4020_0000_u64;
        assert_eq!(displacement(from, from + 5), Some(0));
        assert_eq!(displacement(from, from + 5 + 0x7fff_ffff), Some(i32::MAX));
        assert_eq!(displacement(from, from + 5 + 0x8000_0000), None);
        assert_eq!(displacement(from, from + 5 - 0x8000_0000), Some(i32::MIN));
        assert_eq!(displacement(from, from + 4 - 0x8000_0000), None);
    }
}
