// SPDX-License-Identifier: MIT OR Apache-2.0
//! The trampoline: what the hypervisor writes over the start of an old function, so
//! that it leads to the new one.

/// Size in bytes: `jmp rel32`.
pub const SIZE: u8 = 5;
/// What it begins with.
pub const OPCODE: u8 = 0xe9;
/// The landing pad `endbr64`, which an indirect branch needs where it leads to. The
/// trampoline goes behind it.
pub const LANDING_PAD: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
/// Size of a landing pad in bytes.
pub const LANDING_PAD_SIZE: u8 = 4;
const _: () = assert!(LANDING_PAD.len() == LANDING_PAD_SIZE as usize);
/// `nopw (%rcx)`, which the hypervisor writes over landing pads while booting that
/// it never needs; code of an object or of `xen-syms` does not have it.
pub const DISABLED_LANDING_PAD: [u8; 4] = [0x66, 0x0f, 0x1f, 0x01];

/// How many bytes a function must have that begins with `code` and is replaced.
#[must_use]
pub fn needed(code: &[u8]) -> u8 {
    if code.starts_with(&LANDING_PAD) {
        LANDING_PAD_SIZE + SIZE
    } else {
        SIZE
    }
}
