// SPDX-License-Identifier: MIT OR Apache-2.0
//! The trampoline on ARM64: one branch.
//!
//! Source: Arm Architecture Reference Manual for A-profile, "B".

/// Size in bytes of the trampoline, as of every instruction.
pub const SIZE: u8 = 4;
/// `nop`.
pub const NOP: [u8; SIZE as usize] = 0xd503_201f_u32.to_le_bytes();

/// `b` without its displacement, which counts instructions in its lowest 26 bits.
const BRANCH: u32 = 0x1400_0000;
const FIELD: u32 = 0x03ff_ffff;
/// The first distance that does not fit.
const LIMIT: i128 = 1 << 27;

/// The trampoline at `from` that leads to `to`; `None` if that is out of reach, 128 MiB,
/// or if one of the two is no place of an instruction.
///
/// ```
/// use xsplice_abi::trampoline::arm64::branch;
///
/// assert_eq!(branch(0x20_0000, 0xa0_2000), Some([0x00, 0x08, 0x20, 0x14]));
/// assert_eq!(branch(0xa0_2000, 0x20_0000), Some([0x00, 0xf8, 0xdf, 0x17]));
/// assert_eq!(branch(0x20_0000, 0x20_0002), None);
/// assert_eq!(branch(0, 1 << 27), None);
/// assert_eq!(branch(1 << 27, 0), Some([0x00, 0x00, 0x00, 0x16]));
/// ```
#[must_use]
pub fn branch(from: u64, to: u64) -> Option<[u8; SIZE as usize]> {
    let distance = i128::from(to) - i128::from(from);
    let aligned = (from | to) % u64::from(SIZE) == 0;
    if !aligned || !(-LIMIT..LIMIT).contains(&distance) {
        return None;
    }
    let words = u32::try_from(distance >> 2 & i128::from(FIELD)).ok()?;
    Some((BRANCH | words).to_le_bytes())
}
