// SPDX-License-Identifier: MIT OR Apache-2.0
//! The trampoline: the jump that the hypervisor writes over the start of an old
//! function. The items are those of x86-64.

pub mod arm32;
pub mod arm64;

/// Size in bytes: `jmp rel32`.
pub const SIZE: u8 = 5;
/// Its first byte.
pub const OPCODE: u8 = 0xe9;
/// The landing pad `endbr64`, which indirect branches must land on. The trampoline
/// goes after it.
pub const LANDING_PAD: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
/// Size of a landing pad in bytes.
pub const LANDING_PAD_SIZE: u8 = 4;
const _: () = assert!(LANDING_PAD.len() == LANDING_PAD_SIZE as usize);
/// `nopw (%rcx)`, which the hypervisor writes over unneeded landing pads at boot;
/// code of an object or of `xen-syms` does not have it.
pub const DISABLED_LANDING_PAD: [u8; 4] = [0x66, 0x0f, 0x1f, 0x01];

/// The minimum size of a replaceable function that starts with `code`.
#[must_use]
pub fn needed(code: &[u8]) -> u8 {
    if code.starts_with(&LANDING_PAD) {
        LANDING_PAD_SIZE + SIZE
    } else {
        SIZE
    }
}
