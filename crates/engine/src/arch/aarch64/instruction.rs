// SPDX-License-Identifier: MIT OR Apache-2.0

//! The instructions whose meaning depends on where they are.

use crate::arch::arm::Branch;
use crate::arch::arm::pairs::Step;

/// `bits` bits from bit `at` on, as a signed number.
fn signed(word: u32, at: u32, bits: u32) -> i64 {
    let top = word << (32 - at - bits);
    i64::from(top.cast_signed() >> (32 - bits))
}

/// The branch of this encoding: `b`, `bl`, `b.cond`, `cbz`, `cbnz`, `tbz` or `tbnz`.
pub(super) fn branch(word: u32) -> Option<Branch> {
    let (at, bits) = if word & 0x7c00_0000 == 0x1400_0000 {
        (0, 26)
    } else if word & 0xff00_0000 == 0x5400_0000 || word & 0x7e00_0000 == 0x3400_0000 {
        (5, 19)
    } else if word & 0x7e00_0000 == 0x3600_0000 {
        (5, 14)
    } else {
        return None;
    };
    Some(Branch {
        distance: signed(word, at, bits) * 4,
        limit: 4 << (bits - 1),
        ahead: 0,
    })
}

/// The register and the address, or page, that `adr` or `adrp` at `at` puts into it.
pub(super) fn address(word: u32, at: u64) -> Option<(usize, u64)> {
    if word & 0x1f00_0000 != 0x1000_0000 {
        return None;
    }
    let distance = signed(word, 5, 19) * 4 + i64::from(word >> 29 & 3);
    let value = if word >> 31 == 0 {
        at.wrapping_add_signed(distance)
    } else {
        (at & !0xfff).wrapping_add_signed(distance * 4096)
    };
    Some(((word & 31) as usize, value))
}

/// Whether it loads from a distance: `ldr` of a literal, `ldrsw`, `prfm`.
pub(super) fn is_literal(word: u32) -> bool {
    word & 0x3b00_0000 == 0x1800_0000
}

/// The base register and the offset of `add` with an immediate, or of a load or store
/// with an unsigned one.
pub(super) fn offset(word: u32) -> Option<(usize, u64)> {
    let base = (word >> 5 & 31) as usize;
    let immediate = u64::from(word >> 10 & 0xfff);
    if word & 0x7fc0_0000 == 0x1100_0000 {
        return Some((base, immediate));
    }
    // The size is in the upper bits; for 16 bytes, also in bit 23 of a vector's.
    let vector = word & 0x0400_0000 != 0;
    let scale = match word >> 30 {
        0 if vector && word & 0x0080_0000 != 0 => 4,
        size => size,
    };
    (word & 0x3b00_0000 == 0x3900_0000).then_some((base, immediate << scale))
}

/// What it is for an address in two steps: `adrp` has the page.
pub(super) fn step(word: u32) -> Step {
    if let Some((base, _)) = offset(word) {
        return Step::Second(base);
    }
    if let Some((register, _)) = address(word, 0) {
        return match word >> 31 {
            1 => Step::First(register),
            _ => Step::Overwrites(register),
        };
    }
    match word & 0xffff_fc1f {
        // `ret` and `br`.
        0xd65f_0000 | 0xd61f_0000 => Step::Leaves,
        _ => Step::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::{address, branch, is_literal, offset};

    /// As GNU as encodes them at 0x1000.
    #[test]
    fn encodings_of_the_assembler() {
        for (word, target) in [
            (0x1400_0004, 0x1010), // b .+16
            (0x97ff_ffff, 0x0ffc), // bl .-4
            (0x5400_0040, 0x1008), // b.eq .+8
            (0xb4ff_ffe0, 0x0ffc), // cbz x0, .-4
            (0x3500_0041, 0x1008), // cbnz w1, .+8
            (0x3607_fffe, 0x0ffc), // tbz w30, #0, .-4
            (0xb700_0040, 0x1008), // tbnz x0, #32, .+8
        ] {
            let branch = branch(word).expect("a branch");
            assert_eq!(branch.target(0x1000), target, "{word:#x}");
        }
        for word in [0xd65f_03c0, 0xd61f_0000, 0xd503_201f, 0x9100_0400] {
            assert_eq!(branch(word), None, "{word:#x}");
        }
    }

    #[test]
    fn branches_reach_as_far_as_their_kind() {
        let [far, near, test] = [0x1400_0000, 0x5400_0000, 0x3600_0000].map(branch);
        for (branch, limit) in [(far, 128 << 20), (near, 1 << 20), (test, 32 << 10)] {
            let branch = branch.expect("a branch");
            let from = 1 << 30;
            assert!(branch.reaches(from, from + limit - 4) && branch.reaches(from, from - limit));
            assert!(!branch.reaches(from, from + limit));
            assert!(!branch.reaches(from, from - limit - 4));
        }
    }

    #[test]
    fn addresses_and_offsets() {
        // adr x3, .+5; adrp x4, +2 pages; adrp x0, -1 page
        assert_eq!(address(0x3000_0023, 0x1000), Some((3, 0x1005)));
        assert_eq!(address(0xd000_0004, 0x1234), Some((4, 0x3000)));
        assert_eq!(address(0xf0ff_ffe0, 0x1234), Some((0, 0)));
        assert_eq!(address(0x1400_0000, 0x1000), None);
        // ldr x0, .+8; ldr w1, [x2, #4]
        assert!(is_literal(0x5800_0040) && !is_literal(0xb940_0441));
        for (word, expected) in [
            (0x9100_4020, Some((1, 16))), // add x0, x1, #16
            (0xb940_0441, Some((2, 4))),  // ldr w1, [x2, #4]
            (0xf900_0883, Some((4, 16))), // str x3, [x4, #16]
            (0x3940_0420, Some((1, 1))),  // ldrb w0, [x1, #1]
            (0x3dc0_0420, Some((1, 16))), // ldr q0, [x1, #16]
            (0xd503_201f, None),          // nop
        ] {
            assert_eq!(offset(word), expected, "{word:#x}");
        }
    }
}
