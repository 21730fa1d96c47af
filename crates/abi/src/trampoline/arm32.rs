// SPDX-License-Identifier: MIT OR Apache-2.0
//! The trampoline on ARM32: one branch.
//!
//! Source: Arm Architecture Reference Manual, ARMv7-A and ARMv7-R edition, "B".

/// Size in bytes of the trampoline, as of every instruction.
pub const SIZE: u8 = 4;
/// `mov r0, r0`, as Xen writes it.
pub const NOP: [u8; SIZE as usize] = 0xe1a0_0000_u32.to_le_bytes();
/// From an instruction to the place that its distances count from.
pub const AHEAD: u8 = 8;

/// A veneer: code that a branch can take to reach a place that it cannot reach itself, or
/// that a loader cannot lead it to. It changes no register.
pub mod veneer {
    /// `ldr pc, [pc, #-4]`, and the pointer that it loads.
    pub const CODE: [u8; 8] = [0x04, 0xf0, 0x1f, 0xe5, 0, 0, 0, 0];
    /// The offset of the pointer.
    pub const POINTER: usize = 4;
}

/// `b` without its distance, which counts instructions in its lowest 24 bits.
const BRANCH: u32 = 0xea00_0000;
const FIELD: u32 = 0x00ff_ffff;
/// The first distance that does not fit.
const LIMIT: i128 = 1 << 25;

/// The trampoline at `from` that leads to `to`; `None` if that is out of reach, 32 MiB,
/// or if one of the two is no place of an instruction.
///
/// ```
/// use xsplice_abi::trampoline::arm32::branch;
///
/// assert_eq!(branch(0x20_0000, 0xa0_2000), Some([0xfe, 0x07, 0x20, 0xea]));
/// assert_eq!(branch(0xa0_2004, 0x20_0000), Some([0xfd, 0xf7, 0xdf, 0xea]));
/// assert_eq!(branch(0x20_0000, 0x20_0002), None);
/// assert_eq!(branch(0, (1 << 25) + 8), None);
/// assert_eq!(branch(0, (1 << 25) + 4), Some([0xff, 0xff, 0x7f, 0xea]));
/// assert_eq!(branch(1 << 25, 8), Some([0x00, 0x00, 0x80, 0xea]));
/// assert_eq!(branch(1 << 25, 4), None);
/// ```
#[must_use]
pub fn branch(from: u64, to: u64) -> Option<[u8; SIZE as usize]> {
    let distance = i128::from(to) - i128::from(from) - i128::from(AHEAD);
    let aligned = (from | to) % u64::from(SIZE) == 0;
    if !aligned || !(-LIMIT..LIMIT).contains(&distance) {
        return None;
    }
    let words = u32::try_from(distance >> 2 & i128::from(FIELD)).ok()?;
    Some((BRANCH | words).to_le_bytes())
}
