// SPDX-License-Identifier: MIT OR Apache-2.0
//! x86-64.

use super::{Arch, Does, Instruction, Operand};
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter, Mnemonic};
use object::elf;
use xsplice_abi::machine::Machine;
use xsplice_abi::special::{BugFrame, Entry, Table, displacement};
use xsplice_reloc::reloc::{Relocation, x86_64};

/// Its properties.
#[derive(Debug)]
pub struct X86_64;

fn instruction(decoded: &iced_x86::Instruction) -> Instruction {
    let branch =
        decoded.is_jcc_short_or_near() || decoded.is_jmp_short_or_near() || decoded.is_call_near();
    let does = if branch {
        Does::Branch(decoded.near_branch_target())
    } else if decoded.is_ip_rel_memory_operand() {
        let address = decoded.ip_rel_memory_address();
        match decoded.mnemonic() {
            Mnemonic::Lea => Does::Address(address),
            Mnemonic::Nop => Does::Nothing,
            _ => Does::Access(address),
        }
    } else if matches!(decoded.mnemonic(), Mnemonic::Nop | Mnemonic::Int3) {
        Does::Nothing
    } else {
        Does::Other
    };
    Instruction {
        start: decoded.ip(),
        end: decoded.next_ip(),
        does,
    }
}

fn decoder(code: &[u8], at: u64) -> Decoder<'_> {
    Decoder::with_ip(64, code, at, DecoderOptions::NONE)
}

impl Arch for X86_64 {
    fn machine(&self) -> Machine {
        Machine::X86_64
    }

    fn relocation(&self, r_type: u32) -> Option<&'static Relocation> {
        x86_64::lookup(r_type)
    }

    fn pointer(&self) -> u32 {
        elf::R_X86_64_64.0
    }

    fn decode<'a>(&self, code: &'a [u8], at: u64) -> Box<dyn Iterator<Item = Instruction> + 'a> {
        let mut decoder = decoder(code, at);
        let mut decoded = iced_x86::Instruction::default();
        Box::new(std::iter::from_fn(move || {
            decoder.can_decode().then(|| {
                decoder.decode_out(&mut decoded);
                instruction(&decoded)
            })
        }))
    }

    fn text(&self, code: &[u8], at: u64) -> String {
        let decoded = decoder(code, at).decode();
        let mut text = String::new();
        let mut formatter = GasFormatter::new();
        formatter.options_mut().set_rip_relative_addresses(true);
        formatter.format(&decoded, &mut text);
        text
    }

    fn clear_distance(&self, branch: &mut Vec<u8>) {
        let opcode = if branch.len() > 4 {
            branch.len() - 4
        } else {
            1
        };
        branch.truncate(opcode);
    }

    /// A pc-relative operand counts from the end of the instruction.
    fn bias(&self, instruction: &Instruction, offset: u64, r_type: u32) -> i64 {
        match elf::RelocationType(r_type) {
            elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 | elf::R_X86_64_PC8 => {
                -(instruction.end - offset).cast_signed()
            }
            _ => 0,
        }
    }

    fn operand(&self, instruction: &Instruction, code: &[u8]) -> Option<Operand> {
        instruction.branch_target()?;
        let decoded = decoder(code, instruction.start).decode();
        let (width, r_type) = if decoded.is_jcc_short() || decoded.is_jmp_short() {
            (1, elf::R_X86_64_PC8)
        } else {
            (4, elf::R_X86_64_PC32)
        };
        Some(Operand {
            offset: instruction.end - width,
            r_type: r_type.0,
            bias: -width.cast_signed(),
        })
    }

    fn only_reads_there(&self, _all: &[Instruction], _at: usize, _code: &[u8]) -> bool {
        // Jumps by a table do not compute the address of code.
        false
    }

    fn call_through(&self, code: &[u8], offset: u64) -> Option<u64> {
        const THROUGH_POINTER: [[u8; 2]; 2] = [[0xff, 0x15], [0xff, 0x25]];
        let start = offset.checked_sub(2)?;
        let opcode = crate::object::slice(code, start, 2);
        let through = THROUGH_POINTER.iter().any(|call| opcode == call);
        through.then_some(start)
    }

    fn has(&self, _table: Table) -> bool {
        true
    }

    fn entry_size(&self, table: Table) -> u64 {
        table.entry_size()
    }

    fn compared_size(&self, table: Table) -> u64 {
        // The line is in the addends of two fields.
        table.entry_size()
    }

    fn uses_field(&self, _table: Table, _offset: u64) -> bool {
        true
    }

    fn read_entry(&self, table: Table, entry: &[u8], at: u64) -> Option<Entry> {
        table.read(entry, at)
    }

    fn line_part(&self, addend: i64) -> i64 {
        addend.wrapping_sub(displacement(addend))
    }

    fn only_line_differs(&self, difference: i64) -> bool {
        difference.trailing_zeros() >= BugFrame::LINE_SHIFT
    }

    fn is_discarded(&self, _name: &str) -> bool {
        false
    }

    fn has_anchors(&self) -> bool {
        false
    }

    fn is_foreign_code(&self, _mark: &str) -> bool {
        false
    }
}
