// SPDX-License-Identifier: MIT OR Apache-2.0

//! ARM32.

use super::{LARGEST_FRAME, Target};
use crate::packages;
use object::elf;

pub(super) static TARGET: Target = Target {
    shim: "arm",
    target: DIRECTORY,
    directory: DIRECTORY,
    cached: ("rust-core-arm32", RECIPE),
    code: CODE,
    link: ["arm-linux-gnueabihf-ld", "armelf_linux_eabi"],
    objcopy: "arm-linux-gnueabihf-objcopy",
    entries: &[],
    relocations: &[
        elf::R_ARM_ABS32,
        elf::R_ARM_CALL,
        elf::R_ARM_JUMP24,
        elf::R_ARM_MOVW_ABS_NC,
        elf::R_ARM_MOVT_ABS,
    ],
    foreign,
    packages: packages::ARM32,
};

/// The compiler's own target: no floating-point registers, and no access that is not
/// aligned, at which Xen traps (HSCTLR.A).
const DIRECTORY: &str = "armv7a-none-eabi";

/// Code generation for Xen: no jump tables and no unwinding.
const CODE: &[&str] = &[
    "-Zunstable-options",
    "-Cjump-tables=no",
    "-Cforce-unwind-tables=no",
    "-Csymbol-mangling-version=v0",
];

/// The inputs of the build of `core` and `alloc`, for its cache key.
const RECIPE: &str = concat!(include_str!("../rust_core.rs"), include_str!("arm32.rs"));

/// The first instruction that uses registers that Xen does not save, or allocates too
/// large a stack frame. Encodings: Arm Architecture Reference Manual, ARMv7-A and ARMv7-R
/// edition.
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

/// An instruction of the coprocessors 10 and 11, or one of Advanced SIMD, which has no
/// condition.
const fn is_vector(word: u32) -> bool {
    let coprocessor = word & 0x0c00_0000 == 0x0c00_0000
        && word & 0x0f00_0000 != 0x0f00_0000
        && word & 0x0000_0e00 == 0x0000_0a00;
    let simd = word & 0xfe00_0000 == 0xf200_0000 || word & 0xff10_0000 == 0xf400_0000;
    coprocessor || simd
}

/// The size of the stack frame that it allocates: `sub sp, sp, #size`, or a number in a
/// register, which may be anything.
const fn frame(word: u32) -> Option<u32> {
    match word & 0x0fff_f000 {
        0x024d_d000 => Some((word & 0xff).rotate_right(2 * (word >> 8 & 0xf))),
        0x004d_d000 => Some(u32::MAX),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{frame, is_vector};

    #[test]
    fn vectors_and_frames_are_known() {
        for (word, vector) in [
            (0xf260_01b0, true),  // vorr d16, d16, d16
            (0xf440_070f, true),  // vst1.8 {d16}, [r0]
            (0xee30_0a00, true),  // vadd.f32 s0, s0, s0
            (0xed9f_0b00, true),  // vldr d0, [pc]
            (0xe590_0000, false), // ldr r0, [r0]
            (0xe92d_4800, false), // push {fp, lr}
            (0xe082_0291, false), // umull r0, r2, r1, r2
            (0xf57f_f05b, false), // dmb ish
            (0xf5d0_f000, false), // pld [r0]
            (0xee1d_0f90, false), // mrc p15, 0, r0, c13, c0, 4
            (0xef00_0a00, false), // svc #0xa00
        ] {
            assert_eq!(is_vector(word), vector, "{word:#x}");
        }
        // sub sp, sp, #0x600; sub sp, sp, #0x1000; sub sp, sp, r4; sub r4, sp, #8.
        assert_eq!(frame(0xe24d_dc06), Some(0x600));
        assert_eq!(frame(0xe24d_da01), Some(0x1000));
        assert_eq!(frame(0xe04d_d004), Some(u32::MAX));
        assert_eq!(frame(0xe24d_4008), None);
    }
}
