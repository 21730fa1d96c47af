// SPDX-License-Identifier: MIT OR Apache-2.0
//! ARM32: an instruction is a word, which may have half of an address, or what leads from
//! 8 bytes behind it to one. Addresses also lie between functions, or within them.
//!
//! Encodings: Arm Architecture Reference Manual, ARMv7-A and ARMv7-R edition, "ARM
//! Instruction Set Encoding"; relocations: ELF for the Arm Architecture, in the form of
//! [`crate::elf`].

use super::{Arch, Bits, Part, Shape, WORD, Words, word};
use crate::image::{Entity, Image};
use object::elf::{self, RelocationType};
use std::collections::BTreeSet;
use xsplice_abi::machine::Machine;
use xsplice_abi::special::{Entry, Table, arm};
use xsplice_abi::trampoline::arm32::{self, AHEAD, veneer};
use yaxpeax_arch::{Decoder as _, U8Reader};
use yaxpeax_arm::armv7::InstDecoder;

/// The condition of instructions that are always executed; one more has no condition.
const ALWAYS: u32 = 0xe;
/// The distance of `b` and `bl` in words, and the halves of `movw` and `movt`.
const BRANCH: u32 = 0x00ff_ffff;
const HALF: u32 = 0x000f_0fff;
/// Whether a distance is to be added, or subtracted.
const UP: u32 = 1 << 23;
/// Number of bits of half an address.
const HALF_BITS: u32 = 16;

/// ARM32.
#[derive(Debug)]
pub(crate) struct Arm32;

/// The condition, which is none for what is always another instruction.
fn condition(word: u32) -> u32 {
    word >> 28
}

/// Whether it is `b`, `bl` or `blx`, which leads to Thumb code.
fn is_branch(word: u32) -> bool {
    word & 0x0e00_0000 == 0x0a00_0000
}

fn is_thumb_call(word: u32) -> bool {
    is_branch(word) && condition(word) > ALWAYS
}

/// What an instruction at `at` leads to by a distance from the program counter: a branch,
/// an access, or `adr`. What is not a branch has all of its distance in common with its
/// counterpart.
fn whole(word: u32, at: u64) -> Option<Bits> {
    if condition(word) > ALWAYS {
        return None;
    }
    let here = at.wrapping_add(AHEAD.into());
    if is_branch(word) {
        let distance = i64::from((word << 8).cast_signed() >> 8) * 4;
        return Some(Bits {
            mask: BRANCH,
            value: here.wrapping_add_signed(distance),
            accessed: 0,
            branch: true,
        });
    }
    let (distance, accessed) = accessed(word).or_else(|| Some((adr(word)?, 0)))?;
    Some(Bits {
        mask: 0,
        value: here.wrapping_add_signed(distance),
        accessed,
        branch: false,
    })
}

/// The distance to what a load or store relative to the program counter accesses, and the
/// number of bytes.
fn accessed(word: u32) -> Option<(i64, u64)> {
    let (distance, accessed) = if word & 0x0f2f_0000 == 0x050f_0000 {
        let byte = word & 0x0040_0000 != 0;
        (word & 0xfff, if byte { 1 } else { 4 })
    } else if word & 0x0f6f_0090 == 0x014f_0090 {
        let load = word & 0x0010_0000 != 0;
        let accessed = match (word >> 5 & 3, load) {
            (1, _) | (3, true) => 2,
            (2, true) => 1,
            (2 | 3, false) => 8,
            _ => return None,
        };
        (word >> 4 & 0xf0 | word & 0xf, accessed)
    } else if word & 0x0f2f_0000 == 0x0d0f_0000 {
        // By a coprocessor.
        ((word & 0xff) * 4, 8)
    } else {
        return None;
    };
    let distance = i64::from(distance);
    let up = word & UP != 0;
    Some((if up { distance } else { -distance }, accessed))
}

/// What `adr` adds: an immediate of 8 bits, turned right by twice the number above them.
fn adr(word: u32) -> Option<i64> {
    let distance = i64::from((word & 0xff).rotate_right((word >> 8 & 0xf) * 2));
    match word & 0x0fff_0000 {
        0x028f_0000 => Some(distance),
        0x024f_0000 => Some(-distance),
        _ => None,
    }
}

/// The half of an address, or of a distance, that `movw` or `movt` has.
fn half(word: u32, upper: bool) -> Option<u64> {
    let wanted = if upper { 0x0340_0000 } else { 0x0300_0000 };
    let is_half = word & 0x0ff0_0000 == wanted && condition(word) <= ALWAYS;
    is_half.then_some((word >> 4 & 0xf000 | word & 0xfff).into())
}

fn half_bits(value: u64) -> Bits {
    Bits {
        mask: HALF,
        value,
        accessed: 0,
        branch: false,
    }
}

/// Whether it writes to the program counter: `bx`, a return from an exception, a load, or
/// an operation.
fn leaves(word: u32) -> bool {
    let to_pc = word >> 12 & 0xf == 0xf;
    let loads = word & 0x0010_0000 != 0;
    let operation = to_pc && word & 0x0180_0000 != 0x0100_0000;
    match word >> 25 & 7 {
        0 if word & 0x0fff_fff0 == 0x012f_ff10 || word & 0x0fff_ffff == 0x0160_006e => true,
        // Neither a multiplication nor an access.
        0 => operation && word & 0x90 != 0x90,
        1 => operation,
        2 => to_pc && loads,
        3 => to_pc && loads && word & 0x10 == 0,
        4 => word & 0x8000 != 0 && loads,
        _ => false,
    }
}

/// The word that leads to `value`; `None` if it cannot.
fn linked(r_type: RelocationType, word: u32, value: u64, place: u64) -> Option<u32> {
    let with_half = |half: u64| {
        let half = u32::try_from(half & 0xffff).ok()?;
        Some(word & !HALF | half >> 12 << 16 | half & 0xfff)
    };
    match r_type {
        elf::R_ARM_CALL | elf::R_ARM_JUMP24 if !is_thumb_call(word) => {
            let branch = u32::from_le_bytes(arm32::branch(place, value)?);
            Some(word & !BRANCH | branch & BRANCH)
        }
        elf::R_ARM_MOVW_ABS_NC => with_half(value),
        elf::R_ARM_MOVT_ABS => with_half(value >> HALF_BITS),
        elf::R_ARM_ABS32 => u32::try_from(value).ok(),
        elf::R_ARM_REL32 => u32::try_from(value.wrapping_sub(place) & u64::from(u32::MAX)).ok(),
        _ => None,
    }
}

impl Words for Arm32 {
    fn operand(&self, word: u32, at: u64, part: Part) -> Option<Bits> {
        match part {
            Part::Upper => Some(half_bits(half(word, true)? << HALF_BITS)),
            Part::Rest | Part::Distance(0) => half(word, false).map(half_bits),
            Part::Distance(_) => half(word, true).map(half_bits),
            Part::Word | Part::Bytes => whole(word, at),
            Part::Computed(_) => None,
        }
    }

    fn is_incomplete(&self, word: u32) -> bool {
        is_thumb_call(word)
    }

    fn ends(&self, word: u32) -> bool {
        let call = word & 0x0100_0000 != 0;
        // `rfe` has no condition.
        word & 0xfe50_ffff == 0xf810_0a00
            || condition(word) == ALWAYS && (is_branch(word) && !call || leaves(word))
    }

    fn traps(&self, word: u32) -> bool {
        word & 0xfff0_00f0 == 0xe7f0_00f0
    }

    fn rest(&self) -> u64 {
        (1 << HALF_BITS) - 1
    }

    fn veneer(&self, image: &Image, address: u64) -> Option<u64> {
        let [code @ .., _, _, _, _] = image.from(address).first_chunk::<8>()?;
        let pointer = address + veneer::POINTER as u64;
        let jumps = veneer::CODE.starts_with(code);
        jumps.then(|| word(image, pointer))?.map(u64::from)
    }
}

impl Arch for Arm32 {
    fn machine(&self) -> Machine {
        Machine::Arm32
    }

    fn words(&self) -> Option<&'static dyn Words> {
        Some(&Self)
    }

    fn entry_text(&self) -> Option<[&'static str; 2]> {
        None
    }

    fn decodes_boot_code(&self) -> bool {
        true
    }

    fn has_writers(&self) -> bool {
        true
    }

    fn text(&self, image: &Image, address: u64) -> String {
        let bytes = image.from(address);
        let decoded = InstDecoder::default().decode(&mut U8Reader::new(bytes));
        decoded.map_or_else(|_| String::new(), |instruction| instruction.to_string())
    }

    /// Any upper half counts with any lower one: this finds too many rather than too few.
    fn takes_address(&self, image: &Image, entity: &Entity, address: u64) -> bool {
        let places = (entity.address..entity.end()).step_by(WORD);
        let words = || places.clone().filter_map(|at| Some((at, word(image, at)?)));
        let has_whole = |(at, word): (u64, u32)| {
            u64::from(word) == address
                || whole(word, at).is_some_and(|bits| !bits.branch && bits.value == address)
        };
        if words().any(has_whole) {
            return true;
        }
        let halves = |upper| words().filter_map(move |(_, word)| half(word, upper));
        let upper: BTreeSet<u64> = halves(true).collect();
        upper.contains(&(address >> HALF_BITS))
            && halves(false).any(|rest| rest == address & self.rest())
    }

    fn padding(&self, data: &[u8], _address: u64) -> Option<u64> {
        /// `nop`, which GNU as puts between functions.
        const HINT: [u8; WORD] = 0xe320_f000_u32.to_le_bytes();
        if data.starts_with(&arm32::NOP) || data.starts_with(&HINT) {
            return Some(WORD as u64);
        }
        (data.first() == Some(&0)).then_some(1)
    }

    fn is_trap(&self, code: &[u8]) -> bool {
        super::only_traps(self, code)
    }

    fn longest_jump(&self) -> u64 {
        arm32::SIZE.into()
    }

    fn shape(&self, r_type: RelocationType) -> Option<Shape> {
        Some(match r_type {
            elf::R_ARM_ABS32 => Shape::bytes(4, false, 0),
            elf::R_ARM_REL32 => Shape::bytes(4, true, 0),
            elf::R_ARM_CALL | elf::R_ARM_JUMP24 => Shape::word(Part::Word),
            elf::R_ARM_MOVW_ABS_NC => Shape::word(Part::Rest),
            elf::R_ARM_MOVT_ABS => Shape::word(Part::Upper),
            elf::R_ARM_MOVW_PREL_NC => Shape::word(Part::Distance(0)),
            elf::R_ARM_MOVT_PREL => Shape::word(Part::Distance(16)),
            _ => return None,
        })
    }

    fn relocate(
        &self,
        r_type: RelocationType,
        rest: &mut [u8],
        value: u64,
        place: u64,
    ) -> Result<(), String> {
        if r_type == elf::R_ARM_NONE {
            return Ok(());
        }
        let field = rest.first_chunk_mut::<WORD>();
        let field = field.ok_or("a relocation lies outside of its section")?;
        let linked = linked(r_type, u32::from_le_bytes(*field), value, place);
        let linked = linked.ok_or_else(|| super::out_of_reach(r_type))?;
        *field = linked.to_le_bytes();
        Ok(())
    }

    fn entry_size(&self, table: Table) -> u64 {
        arm::entry_size(table)
    }

    fn entry(&self, table: Table, entry: &[u8], at: u64) -> Option<Entry> {
        super::arm_entry(table, entry, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As GNU as encodes them.
    #[test]
    fn relocated_words_lead_where_they_should() {
        let at = 0x20_1234;
        for (r_type, word, value) in [
            (elf::R_ARM_CALL, 0xebff_fffe, at - 0x1000),
            (elf::R_ARM_JUMP24, 0x1aff_fffe, at + 0x1ff_fffc),
        ] {
            let linked = linked(r_type, word, value, at).expect("it reaches");
            let bits = whole(linked, at).expect("an operand");
            assert!(bits.branch && bits.value == value, "{r_type:?}");
            assert_eq!(linked & !BRANCH, word & !BRANCH);
        }
        let value = 0x2a_b8c4;
        let low = linked(elf::R_ARM_MOVW_ABS_NC, 0xe300_3000, value, at).expect("a half");
        let high = linked(elf::R_ARM_MOVT_ABS, 0xe340_3000, value, at).expect("a half");
        assert_eq!((low, high), (0xe30b_38c4, 0xe340_302a));
        assert_eq!(
            (half(low, false), half(high, true)),
            (Some(0xb8c4), Some(0x2a))
        );
        assert_eq!((half(low, true), half(high, false)), (None, None));
        for (r_type, word, value) in [
            (elf::R_ARM_CALL, 0xebff_fffe, at + (32 << 20) + 8),
            (elf::R_ARM_CALL, 0xebff_fffe, at + 2),
            (elf::R_ARM_CALL, 0xfaff_fffe, at),
            (elf::R_ARM_ABS32, 0, 1 << 32),
            (elf::R_ARM_PREL31, 0, at),
        ] {
            assert_eq!(
                linked(r_type, word, value, at),
                None,
                "{r_type:?} {value:#x}"
            );
        }
    }

    #[test]
    fn what_is_relative_to_the_program_counter_is_found() {
        for (word, distance, accessed) in [
            (0xe59f_1010, 16, 4),  // ldr r1, [pc, #16]
            (0xe51f_f004, -4, 4),  // ldr pc, [pc, #-4]
            (0xe5df_1001, 1, 1),   // ldrb r1, [pc, #1]
            (0xe1cf_01d8, 24, 8),  // ldrd r0, [pc, #24]
            (0xe1df_11b2, 18, 2),  // ldrh r1, [pc, #18]
            (0xe15f_10d2, -2, 1),  // ldrsb r1, [pc, #-2]
            (0xe28f_0f41, 260, 0), // add r0, pc, #260
            (0xe24f_0008, -8, 0),  // sub r0, pc, #8
        ] {
            let bits = whole(word, 0x1000).expect("an operand");
            let value = 0x1008_u64.wrapping_add_signed(distance);
            assert_eq!((bits.value, bits.accessed), (value, accessed), "{word:#x}");
            assert_eq!((bits.mask, bits.branch), (0, false));
        }
        // ldr r1, [r2, #16]; add r0, r1, #260; mul r0, r1, r2; blx to Thumb code
        for word in [0xe592_1010, 0xe281_0f41, 0xe000_0291, 0xfa00_0000] {
            assert_eq!(whole(word, 0x1000), None, "{word:#x}");
        }
        assert!(Arm32.is_incomplete(0xfa00_0000) && !Arm32.is_incomplete(0xeb00_0000));
    }

    #[test]
    fn the_end_of_a_path_is_known() {
        // b; bx lr; pop {r4, pc}; ldr pc, [pc, #-4]; mov pc, lr; eret; rfeia sp!
        for word in [
            0xea00_0000,
            0xe12f_ff1e,
            0xe8bd_8010,
            0xe51f_f004,
            0xe1a0_f00e,
            0xe160_006e,
            0xf8bd_0a00,
        ] {
            assert!(Arm32.ends(word), "{word:#x}");
        }
        // bl; bxne lr; popeq {pc}; cmp r0, #0; push {lr}; blx r3
        for word in [
            0xeb00_0000,
            0x112f_ff1e,
            0x08bd_8000,
            0xe350_0000,
            0xe52d_e004,
            0xe12f_ff33,
        ] {
            assert!(!Arm32.ends(word), "{word:#x}");
        }
        assert!(Arm32.traps(0xe7f0_00f0) && !Arm32.traps(0xe320_f000));
    }
}
