// SPDX-License-Identifier: MIT OR Apache-2.0
//! ARM32, without Thumb code.
//!
//! Source of what is known about instructions: Arm Architecture Reference Manual, ARMv7-A
//! and ARMv7-R edition, "ARM Instruction Set Encoding".

use super::{Arch, Does, Instruction, Operand};
use object::elf;
use xsplice_abi::machine::Machine;
use xsplice_abi::special::{Entry, Table, arm};
use xsplice_abi::trampoline::arm32::{AHEAD, NOP};
use xsplice_reloc::reloc::{Relocation, arm32};
use yaxpeax_arch::{Decoder as _, U8Reader};
use yaxpeax_arm::armv7::{InstDecoder, Opcode};

/// Size of an instruction in bytes.
const SIZE: usize = 4;
/// The number of the program counter.
const PC: u32 = 15;
/// The condition of instructions that are always executed.
const ALWAYS: u32 = 0xe;
/// The condition that other instructions have which are always executed.
const UNCONDITIONAL: u32 = 0xf;
/// `nop`, as assemblers write it.
const HINT: u32 = 0xe320_f000;
/// Number of instructions in which a function reads what it has in itself.
const NEAR: usize = 6;
/// `R_ARM_LDR_PC_G0`: the distance of a load. No loader performs it.
const LOAD: elf::RelocationType = elf::RelocationType(4);

/// Its properties.
#[derive(Debug)]
pub struct Arm32;

fn load(word: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(*word.first_chunk()?))
}

/// The number of the register that four bits from bit `at` on are.
const fn register(word: u32, at: u32) -> u32 {
    word >> at & 0xf
}

/// The place that distances count from, for an instruction at `at`.
fn base(at: u64) -> u64 {
    at.wrapping_add(AHEAD.into())
}

/// The distance of `b` or `bl`. `blx` leads to Thumb code, which is nowhere.
fn branch(word: u32) -> Option<i64> {
    let is_branch = word & 0x0e00_0000 == 0x0a00_0000 && word >> 28 != UNCONDITIONAL;
    is_branch.then(|| i64::from((word << 8).cast_signed() >> 8) * 4)
}

/// What a load or store with a number as its offset adds to the program counter.
fn access(word: u32) -> Option<i64> {
    let always_executed = word >> 28 == UNCONDITIONAL;
    let distance = match word >> 25 & 7 {
        // Of these, only hints to load have a base: barriers have none.
        0 if always_executed => return None,
        2 if always_executed && word & 0x0070_0000 != 0x0050_0000 => return None,
        // Words and bytes.
        2 => word & 0xfff,
        // Pairs of words, halves, and bytes with a sign.
        0 if word & 0x0040_0090 == 0x0040_0090 && word & 0x60 != 0 => word >> 4 & 0xf0 | word & 0xf,
        // Coprocessors count words.
        6 => (word & 0xff) * 4,
        _ => return None,
    };
    let indexed = word & 0x0100_0000 != 0;
    (indexed && register(word, 16) == PC).then(|| signed(distance, word & 0x0080_0000 != 0))
}

/// What `add` or `sub` of a number adds to the program counter.
fn address(word: u32) -> Option<i64> {
    let add = match word & 0x0fef_0000 {
        0x028f_0000 => true,
        0x024f_0000 => false,
        _ => return None,
    };
    if word >> 28 == UNCONDITIONAL {
        return None;
    }
    let number = (word & 0xff).rotate_right(word >> 7 & 0x1e);
    Some(signed(number, add))
}

fn signed(number: u32, positive: bool) -> i64 {
    let number = i64::from(number);
    if positive { number } else { -number }
}

fn does(word: u32, at: u64) -> Does {
    let to = |distance| base(at).wrapping_add_signed(distance);
    if word == HINT || word.to_le_bytes() == NOP {
        return Does::Nothing;
    }
    let branch = branch(word).map(|distance| Does::Branch(to(distance)));
    let address = || address(word).map(|distance| Does::Address(to(distance)));
    let access = || access(word).map(|distance| Does::Access(to(distance)));
    branch
        .or_else(address)
        .or_else(access)
        .unwrap_or(Does::Other)
}

/// The type of the relocation for the operand of the instruction `word` that counts from
/// its address.
fn field(word: u32) -> Option<u32> {
    let call = word & 0x0100_0000 != 0 && word >> 28 == ALWAYS;
    let r_type = match does(word, 0) {
        Does::Branch(_) if call => elf::R_ARM_CALL,
        Does::Branch(_) => elf::R_ARM_JUMP24,
        Does::Access(_) => LOAD,
        Does::Address(_) => elf::R_ARM_ALU_PC_G0,
        Does::Nothing | Does::Other => return None,
    };
    Some(r_type.0)
}

/// Whether operands of this type count from [`AHEAD`] bytes behind their instruction.
fn is_ahead(r_type: u32) -> bool {
    [elf::R_ARM_CALL.0, elf::R_ARM_JUMP24.0].contains(&r_type)
}

/// The registers that an instruction loads from the address in `base`, if it is a load of
/// a word or of two, and is always executed or a jump.
fn reads(word: u32, base: u32) -> Option<[u32; 2]> {
    let to = register(word, 12);
    let always = word >> 28 == ALWAYS || to == PC;
    let one = word & 0x0c50_0000 == 0x0410_0000 && word & 0x0200_0010 != 0x0200_0010;
    let two = word & 0x0e10_00f0 == 0x0000_00d0;
    let keeps_base = word & 0x0120_0000 == 0x0100_0000;
    let loads = always && keeps_base && register(word, 16) == base;
    match (one, two) {
        (true, _) if loads => Some([to, to]),
        (_, true) if loads => Some([to, to + 1]),
        _ => None,
    }
}

impl Arch for Arm32 {
    fn machine(&self) -> Machine {
        Machine::Arm32
    }

    fn relocation(&self, r_type: u32) -> Option<&'static Relocation> {
        arm32::lookup(r_type)
    }

    fn pointer(&self) -> u32 {
        elf::R_ARM_ABS32.0
    }

    fn decode<'a>(&self, code: &'a [u8], at: u64) -> Box<dyn Iterator<Item = Instruction> + 'a> {
        let words = code.chunks(SIZE).zip((at..).step_by(SIZE));
        Box::new(words.map(|(word, start)| Instruction {
            start,
            end: start.wrapping_add(word.len() as u64),
            does: load(word).map_or(Does::Other, |word| does(word, start)),
        }))
    }

    fn text(&self, code: &[u8], _at: u64) -> String {
        let bytes = code.get(..SIZE).unwrap_or(code);
        if load(bytes) == Some(HINT) {
            // The decoder does not know it.
            return "nop".to_owned();
        }
        let decoded = InstDecoder::armv7().decode(&mut U8Reader::new(bytes)).ok();
        match decoded.filter(|decoded| decoded.opcode != Opcode::Invalid) {
            Some(decoded) if bytes.len() == SIZE => decoded.to_string(),
            _ => format!(".inst {}", super::hex(bytes)),
        }
    }

    fn clear_distance(&self, code: &mut Vec<u8>) {
        let is_branch = load(code).is_some_and(|word| branch(word).is_some());
        if let Some(field) = arm32::lookup(elf::R_ARM_CALL.0).filter(|_| is_branch) {
            field.erase(code);
        }
    }

    fn bias(&self, _instruction: &Instruction, _offset: u64, r_type: u32) -> i64 {
        match is_ahead(r_type) {
            true => -i64::from(AHEAD),
            false => 0,
        }
    }

    fn operand(&self, instruction: &Instruction, code: &[u8]) -> Option<Operand> {
        let r_type = field(load(code)?)?;
        Some(Operand {
            offset: instruction.start,
            r_type,
            bias: self.bias(instruction, instruction.start, r_type),
        })
    }

    /// A switch jumps to an entry of a table in the function. Other constants in it are
    /// read by instructions that replace the address.
    fn only_reads_there(&self, all: &[Instruction], at: usize, code: &[u8]) -> bool {
        let first = all.first().map_or(0, |first| first.start);
        let word = |instruction: &Instruction| {
            let offset = instruction.start.wrapping_sub(first);
            load(crate::object::slice(code, offset, SIZE as u64))
        };
        let Some(place) = all.get(at).and_then(word).map(|word| register(word, 12)) else {
            return false;
        };
        for instruction in all.iter().skip(at + 1).take(NEAR) {
            let Some(next) = word(instruction) else {
                return false;
            };
            if let Some(read) = reads(next, place) {
                return read.contains(&place) || read.contains(&PC);
            }
            let uses = [0, 8, 12, 16].map(|at| register(next, at)).contains(&place);
            // Several registers, or a jump.
            if uses || matches!(next >> 25 & 7, 4 | 5) {
                return false;
            }
        }
        false
    }

    fn call_through(&self, _code: &[u8], _offset: u64) -> Option<u64> {
        // The hypervisor does not change its calls.
        None
    }

    fn has(&self, table: Table) -> bool {
        super::arm::has(table)
    }

    fn entry_size(&self, table: Table) -> u64 {
        arm::entry_size(table)
    }

    fn compared_size(&self, table: Table) -> u64 {
        super::arm::compared_size(table)
    }

    fn uses_field(&self, table: Table, offset: u64) -> bool {
        super::arm::uses_field(table, offset)
    }

    fn read_entry(&self, table: Table, entry: &[u8], at: u64) -> Option<Entry> {
        arm::read(table, entry, at)
    }

    fn line_part(&self, _addend: i64) -> i64 {
        // It has a field of its own.
        0
    }

    fn only_line_differs(&self, difference: i64) -> bool {
        difference == 0
    }

    fn is_discarded(&self, name: &str) -> bool {
        name.starts_with(".ARM.ex")
    }

    fn has_anchors(&self) -> bool {
        true
    }

    fn is_foreign_code(&self, mark: &str) -> bool {
        mark == "$t" || mark.starts_with("$t.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// As GNU as encodes them at 0x1000.
    #[test]
    fn operands_that_count_from_the_instruction_are_known() {
        use Does::{Access, Address, Branch, Nothing, Other};
        let known = [
            (0xea00_0000, Branch(0x1008), Some(29)),  // b
            (0xeb00_0000, Branch(0x1008), Some(28)),  // bl
            (0x1a00_0000, Branch(0x1008), Some(29)),  // bne
            (0x0b00_0000, Branch(0x1008), Some(29)),  // bleq
            (0xeaff_fffd, Branch(0x0ffc), Some(29)),  // b, backwards
            (0xe59f_0008, Access(0x1010), Some(4)),   // ldr of a literal
            (0xe51f_0004, Access(0x1004), Some(4)),   // ldr, backwards
            (0xe1df_00b8, Access(0x1010), Some(4)),   // ldrh
            (0xe1cf_20d8, Access(0x1010), Some(4)),   // ldrd
            (0xed9f_0b02, Access(0x1010), Some(4)),   // vldr
            (0xe28f_9f5f, Address(0x1184), Some(58)), // add r9, pc, #380
            (0xe24f_9044, Address(0x0fc4), Some(58)), // sub r9, pc, #68
            (0xe320_f000, Nothing, None),             // nop
            (0xe1a0_0000, Nothing, None),             // mov r0, r0
            (0xfa00_0000, Other, None),               // blx, to Thumb code
            (0xf5df_f008, Access(0x1010), Some(4)),   // pld
            (0xf55f_f008, Access(0x1000), Some(4)),   // pld, backwards
            (0xf57f_f04e, Other, None),               // dsb st
            (0xf57f_f05b, Other, None),               // dmb ish
            (0xf57f_f06f, Other, None),               // isb
            (0xf57f_f01f, Other, None),               // clrex
            (0xf10c_0080, Other, None),               // cpsid i
            (0xf28f_0050, Other, None),               // vmov, of a vector
            (0xe591_0008, Other, None),               // ldr r0, [r1, #8]
            (0xe08f_f00c, Other, None),               // add pc, pc, ip
            (0x979f_f103, Other, None),               // ldrls pc, [pc, r3, lsl #2]
            (0xe12f_ff1e, Other, None),               // bx lr
            (0xe300_3000, Other, None),               // movw r3, #0
        ];
        for (word, does, r_type) in known {
            let bytes = code(&[word]);
            let decoded = Arm32.decode(&bytes, 0x1000).next().expect("one");
            assert_eq!(decoded.does, does, "{word:#x}");
            let operand = Arm32.operand(&decoded, &bytes);
            assert_eq!(operand.map(|operand| operand.r_type), r_type, "{word:#x}");
            let branches = matches!(does, Branch(_));
            let bias = operand.map(|operand| operand.bias).unwrap_or_default();
            assert_eq!(bias, if branches { -8 } else { 0 }, "{word:#x}");
        }
    }

    /// As gcc reads a constant of 64 bits, and clang writes a switch.
    #[test]
    fn tables_and_constants_of_a_function_are_no_stored_addresses() {
        let reads = |words: &[u32]| {
            let code = code(words);
            let all: Vec<Instruction> = Arm32.decode(&code, 0).collect();
            Arm32.only_reads_there(&all, 0, &code)
        };
        // add r9, pc, #380; ldrd r8, [r9]
        assert!(reads(&[0xe28f_9f5f, 0xe1c9_80d0]));
        // add r1, pc, #8; mov r0, r0; ldr pc, [r1, r0, lsl #2]
        assert!(reads(&[0xe28f_1008, 0xe1a0_0000, 0xe791_f100]));
        // add r1, pc, #8; ldr r1, [r1]
        assert!(reads(&[0xe28f_1008, 0xe591_1000]));
        // add r1, pc, #8; ldr r2, [r1]; str r1, [r0]
        assert!(!reads(&[0xe28f_1008, 0xe591_2000, 0xe580_1000]));
        // add r1, pc, #8; str r1, [r0]
        assert!(!reads(&[0xe28f_1008, 0xe580_1000]));
        // add r1, pc, #8; ldreq r1, [r1]; bx lr
        assert!(!reads(&[0xe28f_1008, 0x0591_1000, 0xe12f_ff1e]));
        // add r1, pc, #8; ldr r1, [r1, #4]!
        assert!(!reads(&[0xe28f_1008, 0xe5b1_1004]));
        // add r1, pc, #8; bl somewhere
        assert!(!reads(&[0xe28f_1008, 0xeb00_0000]));
        // add r1, pc, #8; pop {r4, pc}
        assert!(!reads(&[0xe28f_1008, 0xe8bd_8010]));
    }

    #[test]
    fn a_branch_without_its_distance() {
        let mut call = code(&[0xebff_fffe]);
        Arm32.clear_distance(&mut call);
        assert_eq!(call, code(&[0xeb00_0000]));
        let mut other = code(&[0xe591_0008]);
        Arm32.clear_distance(&mut other);
        assert_eq!(other, code(&[0xe591_0008]));
    }

    #[test]
    fn every_word_has_a_text() {
        let mut word = 1_u32;
        for _ in 0..200_000 {
            // A generator of numbers that is good enough.
            word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bytes = code(&[word]);
            assert!(!Arm32.text(&bytes, 0).is_empty(), "{word:#x}");
            let decoded = Arm32.decode(&bytes, 0).next().expect("one");
            Arm32.operand(&decoded, &bytes);
        }
        assert_eq!(Arm32.text(&[1, 2], 0), ".inst 0x0201");
    }
}
