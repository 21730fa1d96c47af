// SPDX-License-Identifier: MIT OR Apache-2.0

//! The instructions whose meaning depends on where they are, or behind which there may be
//! data.

use crate::arch::arm::Branch;
use crate::arch::arm::pairs::Step;
use xsplice_abi::trampoline::arm32::AHEAD;

/// The number of the program counter.
const PC: u32 = 15;
/// The condition of instructions that are always executed.
const ALWAYS: u32 = 0xe;
/// The condition that other instructions have which are always executed.
const UNCONDITIONAL: u32 = 0xf;

const fn condition(word: u32) -> u32 {
    word >> 28
}

/// The register whose number is in the four bits from bit `at` on.
const fn register(word: u32, at: u32) -> u32 {
    word >> at & 0xf
}

/// The branch of this encoding: `b`, `bl` or `blx` with a distance.
pub(super) fn branch(word: u32) -> Option<Branch> {
    if word & 0x0e00_0000 != 0x0a00_0000 {
        return None;
    }
    let words = i64::from((word << 8).cast_signed() >> 8);
    let half = match condition(word) {
        // `blx`: its lowest bit is half an instruction, for it leads to Thumb code.
        UNCONDITIONAL => i64::from(word >> 24 & 1) * 2,
        _ => 0,
    };
    Some(Branch {
        distance: words * 4 + half,
        limit: 1 << 25,
        ahead: AHEAD.into(),
    })
}

/// Whether an instruction, which is no branch with a distance, uses its own address. In
/// case of doubt, it does.
pub(super) fn uses_own_address(word: u32) -> bool {
    let base = register(word, 16) == PC;
    let operand = register(word, 0) == PC;
    let bit = |at: u32| word >> at & 1 == 1;
    match word >> 25 & 7 {
        // Registers, and what is encoded between: `bx` and its like, loads of halves.
        0 => match (bit(4), bit(7)) {
            _ if is_miscellaneous(word) => operand,
            (true, true) => base || operand && !bit(22),
            _ => base || operand,
        },
        // A number; `movw`, `movt`, `msr` and hints have no base.
        1 => base && word & 0x0190_0000 != 0x0100_0000,
        // Loads and stores; barriers have no base.
        2 => base && word & 0xfff0_0000 != 0xf570_0000,
        3 if !bit(4) || condition(word) == UNCONDITIONAL => base || operand,
        // Several registers; a store of the program counter.
        4 => base || bit(15) && !bit(20),
        6 => base,
        _ => false,
    }
}

/// Status registers, `bx`, `clz` and the like, which use at most the last register.
const fn is_miscellaneous(word: u32) -> bool {
    word & 0x0f90_0000 == 0x0100_0000 && word & 0x90 != 0x90
}

/// The instruction `movw` or `movt`, and the register that it writes.
fn half(word: u32) -> Option<(Half, usize)> {
    let half = match word & 0x0ff0_0000 {
        0x0300_0000 => Half::Low,
        0x0340_0000 => Half::High,
        _ => return None,
    };
    (condition(word) != UNCONDITIONAL).then_some((half, register(word, 12) as usize))
}

/// A half of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    /// `movw`, which clears the other half.
    Low,
    /// `movt`.
    High,
}

/// What it is for an address in two steps: `movw` has the low half, and `movt` the high
/// one.
pub(super) fn step(word: u32) -> Step {
    match half(word) {
        Some((Half::Low, register)) => Step::First(register),
        Some((Half::High, register)) => Step::Second(register),
        None if jumps(word) && condition(word) == ALWAYS => Step::Leaves,
        None => Step::Other,
    }
}

/// The register that it writes, and its value, if `before` is what the register had.
pub(super) fn value(word: u32, before: impl Fn(usize) -> Option<u32>) -> Option<(usize, u32)> {
    let (half, register) = half(word)?;
    let immediate = (word >> 16 & 0xf) << 12 | word & 0xfff;
    match half {
        Half::Low => Some((register, immediate)),
        Half::High => Some((register, immediate << 16 | before(register)? & 0xffff)),
    }
}

/// Whether it writes to the program counter, other than by a distance: `bx`, a load, a
/// computation.
fn jumps(word: u32) -> bool {
    let to_pc = register(word, 12) == PC;
    let bit = |at: u32| word >> at & 1 == 1;
    match word >> 25 & 7 {
        _ if condition(word) == UNCONDITIONAL => false,
        // `bx`, `bxj`; and operations, but not comparisons, which have no result.
        0 if is_miscellaneous(word) => matches!(word >> 4 & 0xf, 1 | 2) && !bit(22) && bit(21),
        0 => to_pc && !(bit(4) && bit(7)) && !is_comparison(word),
        1 => to_pc && !is_comparison(word),
        2 => to_pc && bit(20),
        3 => to_pc && bit(20) && !bit(4),
        4 => bit(15) && bit(20),
        _ => false,
    }
}

/// `tst`, `teq`, `cmp` and `cmn`, and what is encoded between.
const fn is_comparison(word: u32) -> bool {
    word & 0x0180_0000 == 0x0100_0000
}

/// Whether data may begin behind it: it leads elsewhere, or calls what need not return, or
/// traps.
pub(super) fn may_end(word: u32) -> bool {
    let calls = word & 0x0fff_fff0 == 0x012f_ff30;
    let traps = word & 0x0ff0_00f0 == 0x07f0_00f0 || word & 0x0f00_0000 == 0x0f00_0000;
    // `rfe` and `eret`.
    let returns = word & 0xfe50_0000 == 0xf810_0000 || word & 0x0fff_ffff == 0x0160_006e;
    let always = condition(word) >= ALWAYS;
    always && (branch(word).is_some() || jumps(word) || calls || traps || returns)
}

#[cfg(test)]
mod tests {
    use super::{Step, branch, may_end, step, uses_own_address, value};

    /// As GNU as encodes them at 0x1000.
    #[test]
    fn branches_of_the_assembler() {
        for (word, target) in [
            (0xea00_0002, 0x1010), // b .+16
            (0xebff_fffd, 0x0ffc), // bl .-4
            (0x0a00_0000, 0x1008), // beq .+8
            (0xfaff_fffe, 0x1000), // blx .
            (0xfb00_0000, 0x100a), // blx .+10
        ] {
            let branch = branch(word).expect("a branch");
            assert_eq!(branch.target(0x1000), target, "{word:#x}");
            assert_eq!(branch.counted(0x1000), target - 8, "{word:#x}");
        }
        for word in [0xe12f_ff1e, 0xe1a0_0000, 0xe8bd_8010] {
            assert_eq!(branch(word), None, "{word:#x}");
        }
    }

    #[test]
    fn branches_reach_32_mebibytes() {
        let branch = branch(0xea00_0000).expect("a branch");
        let (from, limit) = (1 << 30, 32 << 20);
        assert!(branch.reaches(from, from + limit + 4) && branch.reaches(from, from - limit + 8));
        assert!(!branch.reaches(from, from + limit + 8));
        assert!(!branch.reaches(from, from - limit + 4));
    }

    #[test]
    fn instructions_that_use_their_own_address() {
        for word in [
            0xe28f_0008, // add r0, pc, #8
            0xe24f_0010, // sub r0, pc, #16
            0xe08f_0001, // add r0, pc, r1
            0xe1a0_e00f, // mov lr, pc
            0xe59f_0008, // ldr r0, [pc, #8]
            0xe1df_00b8, // ldrh r0, [pc, #8]
            0xe1cf_00d8, // ldrd r0, [pc, #8]
            0xe79f_0001, // ldr r0, [pc, r1]
            0x979f_f103, // ldrls pc, [pc, r3, lsl #2]
            0xed9f_0b02, // vldr d0, [pc, #8]
            0xf5df_f008, // pld [pc, #8]
            0xe92d_8000, // push {pc}
        ] {
            assert!(uses_own_address(word), "{word:#x}");
        }
        for word in [
            0xe1a0_0000, // mov r0, r0
            0xe3a0_0011, // mov r0, #17
            0xe301_0234, // movw r0, #0x1234
            0xe34f_0fff, // movt r0, #0xffff
            0xe30f_0fff, // movw r0, #0xffff
            0xe320_f000, // nop
            0xe12f_ff1e, // bx lr
            0xe12f_ff33, // blx r3
            0xe16f_0f10, // clz r0, r0
            0xe10f_0000, // mrs r0, cpsr
            0xe121_f000, // msr cpsr_c, r0
            0xe6ef_0070, // uxtb r0, r0
            0xe7df_001f, // bfc r0, #0, #32
            0xe591_000f, // ldr r0, [r1, #15]
            0xe1d1_00bf, // ldrh r0, [r1, #15]
            0xe8bd_8010, // pop {r4, pc}
            0xee07_0f15, // mcr p15, 0, r0, c7, c5, 0
            0xf57f_f04f, // dsb sy
            0xe354_0000, // cmp r4, #0
        ] {
            assert!(!uses_own_address(word), "{word:#x}");
        }
    }

    #[test]
    fn data_may_follow_what_leads_elsewhere() {
        for word in [
            0xea00_0002, // b
            0xeb00_0002, // bl
            0xfa00_0002, // blx
            0xe12f_ff1e, // bx lr
            0xe12f_ff33, // blx r3
            0xe8bd_8010, // pop {r4, pc}
            0xe49d_f004, // pop {pc}
            0xe79f_f103, // ldr pc, [pc, r3, lsl #2]
            0xe08f_f103, // add pc, pc, r3, lsl #2
            0xe1a0_f00e, // mov pc, lr
            0xe7f0_00f0, // udf #0
            0xef00_0000, // svc #0
            0xf8bd_0a00, // rfe sp!
            0xe160_006e, // eret
        ] {
            assert!(may_end(word), "{word:#x}");
        }
        for word in [
            0x0a00_0002, // beq
            0x979f_f103, // ldrls pc, [pc, r3, lsl #2]
            0xe354_0000, // cmp r4, #0
            0xe154_f00f, // cmp r4, pc, with bits that are ignored
            0xe59f_0008, // ldr r0, [pc, #8]
            0xe92d_4010, // push {r4, lr}
            0xe12f_f000, // msr cpsr, r0
            0xe320_f000, // nop
            0xf57f_f04f, // dsb sy
        ] {
            assert!(!may_end(word), "{word:#x}");
        }
    }

    #[test]
    fn addresses_have_two_halves() {
        assert_eq!(step(0xe305_3678), Step::First(3)); // movw r3, #0x5678
        assert_eq!(step(0xe341_3234), Step::Second(3)); // movt r3, #0x1234
        assert_eq!(step(0xe12f_ff1e), Step::Leaves); // bx lr
        assert_eq!(step(0xe1a0_0000), Step::Other);
        assert_eq!(value(0xe305_3678, |_| None), Some((3, 0x5678)));
        assert_eq!(value(0xe341_3234, |_| Some(0x5678)), Some((3, 0x1234_5678)));
        assert_eq!(value(0xe341_3234, |_| None), None);
    }
}
