// SPDX-License-Identifier: MIT OR Apache-2.0

//! ARM64.

use super::{LARGEST_FRAME, Target};
use crate::packages;
use object::elf;

pub(super) static TARGET: Target = Target {
    shim: "arm",
    target: DIRECTORY,
    directory: DIRECTORY,
    cached: ("rust-core-arm64", RECIPE),
    code: CODE,
    link: ["aarch64-linux-gnu-ld", "aarch64linux"],
    objcopy: "aarch64-linux-gnu-objcopy",
    entries: &[],
    relocations: &[
        elf::R_AARCH64_ABS64,
        elf::R_AARCH64_PREL32,
        elf::R_AARCH64_ADR_PREL_PG_HI21,
        elf::R_AARCH64_ADD_ABS_LO12_NC,
        elf::R_AARCH64_LDST8_ABS_LO12_NC,
        elf::R_AARCH64_LDST16_ABS_LO12_NC,
        elf::R_AARCH64_LDST32_ABS_LO12_NC,
        elf::R_AARCH64_LDST64_ABS_LO12_NC,
        elf::R_AARCH64_CALL26,
        elf::R_AARCH64_JUMP26,
    ],
    foreign,
    packages: packages::ARM64,
};

/// The compiler's own target for code without floating-point registers.
const DIRECTORY: &str = "aarch64-unknown-none-softfloat";

/// Code generation for Xen: no jump tables and no unwinding.
const CODE: &[&str] = &[
    "-Zunstable-options",
    "-Cjump-tables=no",
    "-Cforce-unwind-tables=no",
    "-Csymbol-mangling-version=v0",
];

/// The inputs of the build of `core` and `alloc`, for its cache key.
const RECIPE: &str = concat!(include_str!("../rust_core.rs"), include_str!("arm64.rs"));

/// The first instruction that uses registers that Xen does not save, or allocates too
/// large a stack frame. Encodings: Arm Architecture Reference Manual for A-profile.
fn foreign(code: &[u8]) -> Option<(u64, String)> {
    let words = code.as_chunks().0.iter();
    let words = words.map(|word| u32::from_le_bytes(*word));
    let mut places = (0..).step_by(4).zip(words);
    places.find_map(|(at, word)| {
        let what = if is_vector(word) {
            "a vector or floating-point instruction"
        } else if frame(word).is_some_and(|size| size > LARGEST_FRAME) {
            "too large a stack frame"
        } else {
            return None;
        };
        Some((at, format!("{what} ({word:#010x})")))
    })
}

/// Data processing of vectors and floating-point numbers, or a load or store of them.
const fn is_vector(word: u32) -> bool {
    word & 0x0c00_0000 == 0x0c00_0000
}

/// The size of the stack frame that it allocates: `sub sp, sp, #size`, or a store of a
/// pair that moves the stack pointer.
fn frame(word: u32) -> Option<u32> {
    if word & 0xff80_03ff == 0xd100_03ff {
        let shift = if word & 0x0040_0000 == 0 { 0 } else { 12 };
        return Some((word >> 10 & 0xfff) << shift);
    }
    let pair = word & 0xffc0_03e0 == 0xa980_03e0;
    let distance = (word << 10).cast_signed() >> 25;
    pair.then(|| distance.unsigned_abs() * 8)
}

#[cfg(test)]
mod tests {
    use super::{frame, is_vector};

    #[test]
    fn vectors_and_frames_are_known() {
        for (word, vector) in [
            (0x4e22_1c20, true),  // and v0.16b, v1.16b, v2.16b
            (0x1e60_2800, true),  // fadd d0, d0, d0
            (0x3dc0_0000, true),  // ldr q0, [x0]
            (0xad00_0400, true),  // stp q0, q1, [x0]
            (0xf940_0000, false), // ldr x0, [x0]
            (0xa9bf_7bfd, false), // stp x29, x30, [sp, #-16]!
            (0x9bc1_7c00, false), // umulh x0, x0, x1
            (0xd503_201f, false), // nop
        ] {
            assert_eq!(is_vector(word), vector, "{word:#x}");
        }
        // sub sp, sp, #0x600; sub sp, sp, #1, lsl #12; stp x29, x30, [sp, #-64]!
        assert_eq!(frame(0xd118_03ff), Some(0x600));
        assert_eq!(frame(0xd140_07ff), Some(0x1000));
        assert_eq!(frame(0xa9bc_7bfd), Some(64));
        assert_eq!(frame(0xd100_0400), None);
    }
}
