// SPDX-License-Identifier: MIT OR Apache-2.0
//! ARM64.
//!
//! Instructions are decoded by `yaxpeax-arm`. Source of what is known about them
//! besides: Arm Architecture Reference Manual for A-profile.

use super::{Arch, Does, Instruction, Operand};
use object::elf;
use xsplice_abi::machine::Machine;
use xsplice_abi::special::{Entry, Table, arm};
use xsplice_reloc::reloc::{Relocation, aarch64};
use yaxpeax_arch::{Decoder as _, U8Reader};
use yaxpeax_arm::armv8::a64::{self, InstDecoder, Opcode};

/// Size of an instruction in bytes.
const SIZE: usize = 4;
/// Number of instructions in which a jump by a table computes its target.
const JUMP: usize = 6;

/// Its properties.
#[derive(Debug)]
pub struct Aarch64;

/// The instruction `word`, if it is one.
fn decode(word: &[u8]) -> Option<a64::Instruction> {
    let mut reader = U8Reader::new(word);
    InstDecoder::default().decode(&mut reader).ok()
}

/// The operand of an instruction that counts from its address, in bytes.
fn distance(decoded: &a64::Instruction) -> Option<i64> {
    decoded.operands.iter().find_map(|operand| match operand {
        a64::Operand::PCOffset(distance) => Some(*distance),
        _ => None,
    })
}

fn does(word: &[u8], at: u64) -> Does {
    let Some(decoded) = decode(word) else {
        return Does::Other;
    };
    let target = distance(&decoded).map(|distance| at.wrapping_add_signed(distance));
    match (decoded.opcode, target) {
        (Opcode::ADR, Some(target)) => Does::Address(target),
        // Of the page only; a relocation says the rest.
        (Opcode::ADRP, _) => Does::Other,
        (Opcode::LDR | Opcode::LDRSW | Opcode::PRFM, Some(target)) => Does::Access(target),
        (_, Some(target)) => Does::Branch(target),
        (Opcode::HINT, None) if word == xsplice_abi::trampoline::arm64::NOP => Does::Nothing,
        _ => Does::Other,
    }
}

/// The number of the register that an operand is.
fn register(operand: a64::Operand) -> Option<u16> {
    match operand {
        a64::Operand::Register(_, number)
        | a64::Operand::RegisterOrSP(_, number)
        | a64::Operand::RegShift(_, _, _, number) => Some(number),
        _ => None,
    }
}

impl Arch for Aarch64 {
    fn machine(&self) -> Machine {
        Machine::Arm64
    }

    fn relocation(&self, r_type: u32) -> Option<&'static Relocation> {
        aarch64::lookup(r_type)
    }

    fn pointer(&self) -> u32 {
        elf::R_AARCH64_ABS64.0
    }

    fn decode<'a>(&self, code: &'a [u8], at: u64) -> Box<dyn Iterator<Item = Instruction> + 'a> {
        let words = code.chunks(SIZE).zip((at..).step_by(SIZE));
        Box::new(words.map(|(word, start)| Instruction {
            start,
            end: start.wrapping_add(word.len() as u64),
            does: does(word, start),
        }))
    }

    fn text(&self, code: &[u8], _at: u64) -> String {
        let word = code.get(..SIZE).unwrap_or(code);
        match decode(word) {
            Some(decoded) => decoded.to_string(),
            None => format!(".inst {}", super::hex(word)),
        }
    }

    fn clear_distance(&self, branch: &mut Vec<u8>) {
        if let Some(field) = field(branch).and_then(aarch64::lookup) {
            field.erase(branch);
        }
    }

    fn bias(&self, _instruction: &Instruction, _offset: u64, _r_type: u32) -> i64 {
        // Operands count from the start of their instruction, which is the field.
        0
    }

    fn operand(&self, instruction: &Instruction, code: &[u8]) -> Option<Operand> {
        let r_type = field(code.get(..SIZE)?)?;
        Some(Operand {
            offset: instruction.start,
            r_type,
            bias: 0,
        })
    }

    /// A switch adds an entry of a table to the address of one of its branches, and jumps
    /// there.
    fn only_reads_there(&self, all: &[Instruction], at: usize, code: &[u8]) -> bool {
        let first = all.first().map_or(0, |first| first.start);
        let decoded = |instruction: &Instruction| {
            let offset = instruction.start.wrapping_sub(first);
            decode(crate::object::slice(code, offset, SIZE as u64))
        };
        let Some(base) = all.get(at).and_then(decoded) else {
            return false;
        };
        let base = register(base.operands[0]);
        let mut sum = None;
        for instruction in all.iter().skip(at + 1).take(JUMP) {
            let Some(next) = decoded(instruction) else {
                return false;
            };
            let [to, from, ..] = next.operands.map(register);
            match next.opcode {
                Opcode::ADD if sum.is_none() && base.is_some() && from == base => sum = to,
                Opcode::BR => return sum.is_some() && to == sum,
                _ if sum.is_some() || to == base || from == base => return false,
                _ => {}
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
        name == ".eh_frame"
    }

    fn has_anchors(&self) -> bool {
        true
    }

    fn is_foreign_code(&self, _mark: &str) -> bool {
        false
    }
}

/// The type of the relocation for the operand of the instruction `word` that counts
/// from its address.
fn field(word: &[u8]) -> Option<u32> {
    let decoded = decode(word)?;
    distance(&decoded)?;
    let r_type = match decoded.opcode {
        Opcode::B => elf::R_AARCH64_JUMP26,
        Opcode::BL => elf::R_AARCH64_CALL26,
        Opcode::TBZ | Opcode::TBNZ => elf::R_AARCH64_TSTBR14,
        Opcode::ADR => elf::R_AARCH64_ADR_PREL_LO21,
        Opcode::ADRP => return None,
        Opcode::LDR | Opcode::LDRSW | Opcode::PRFM => elf::R_AARCH64_LD_PREL_LO19,
        // `b` with a condition, `cbz`, `cbnz`.
        _ => elf::R_AARCH64_CONDBR19,
    };
    Some(r_type.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn operands_that_count_from_the_instruction_are_known() {
        use Does::{Access, Address, Branch, Nothing, Other};
        let known = [
            (0x1400_0002, Branch(0x1008), Some(282)),  // b
            (0x9400_0002, Branch(0x1008), Some(283)),  // bl
            (0x5400_0041, Branch(0x1008), Some(280)),  // b.ne
            (0xb500_0041, Branch(0x1008), Some(280)),  // cbnz
            (0x3600_0041, Branch(0x1008), Some(279)),  // tbz
            (0x17ff_ffff, Branch(0x0ffc), Some(282)),  // b, backwards
            (0x3607_ffe1, Branch(0x0ffc), Some(279)),  // tbz, backwards
            (0x1000_0040, Address(0x1008), Some(274)), // adr
            (0x5800_0041, Access(0x1008), Some(273)),  // ldr of a literal
            (0x9000_0000, Other, None),                // adrp
            (0xd61f_0020, Other, None),                // br
            (0xd503_201f, Nothing, None),              // nop
            (0xd503_203f, Other, None),                // yield
            (0xffff_ffff, Other, None),                // no instruction
        ];
        for (word, does, r_type) in known {
            let bytes = code(&[word]);
            let decoded = Aarch64.decode(&bytes, 0x1000).next().expect("one");
            assert_eq!(decoded.does, does, "{word:#x}");
            let operand = Aarch64.operand(&decoded, &bytes);
            assert_eq!(operand.map(|operand| operand.r_type), r_type, "{word:#x}");
        }
    }

    /// As gcc writes a switch, and as it takes the address of a label.
    #[test]
    fn the_base_of_a_switch_is_no_stored_address() {
        let jumps = |words: &[u32]| {
            let code = code(words);
            let all: Vec<Instruction> = Aarch64.decode(&code, 0).collect();
            Aarch64.only_reads_there(&all, 0, &code)
        };
        // adr x0, 12; add x1, x0, w1, sxth #2; br x1
        assert!(jumps(&[0x1000_0060, 0x8b21_a801, 0xd61f_0020]));
        // adr x0, 12; add x1, x0, w1, sxth #2; br x2
        assert!(!jumps(&[0x1000_0060, 0x8b21_a801, 0xd61f_0040]));
        // adr x0, 12; str x0, [x1]; br x0
        assert!(!jumps(&[0x1000_0060, 0xf900_0020, 0xd61f_0000]));
        // adr x0, 12; ret
        assert!(!jumps(&[0x1000_0060, 0xd65f_03c0]));
    }

    #[test]
    fn every_word_has_a_text() {
        let mut word = 1_u32;
        for _ in 0..200_000 {
            // A generator of numbers that is good enough.
            word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bytes = code(&[word]);
            assert!(!Aarch64.text(&bytes, 0).is_empty(), "{word:#x}");
            let decoded = Aarch64.decode(&bytes, 0).next().expect("one");
            Aarch64.operand(&decoded, &bytes);
        }
        assert_eq!(Aarch64.text(&[1, 2], 0), ".inst 0x0201");
    }
}
