// SPDX-License-Identifier: MIT OR Apache-2.0
//! x86-64: an instruction is bytes and targets.

use super::{Arch, Operand, Shape};
use crate::image::{Entity, Image};
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Formatter as _, GasFormatter, Instruction, Mnemonic,
    OpKind,
};
use object::elf::{self, RelocationType};
use xsplice_abi::machine::Machine;
use xsplice_abi::special::{Entry, Table};
use xsplice_abi::trampoline;

/// x86-64.
#[derive(Debug)]
pub(crate) struct X86_64;

impl Arch for X86_64 {
    fn machine(&self) -> Machine {
        Machine::X86_64
    }

    fn entry_text(&self) -> Option<[&'static str; 2]> {
        Some(["_stextentry", "_etextentry"])
    }

    /// It begins in 16 bits.
    fn decodes_boot_code(&self) -> bool {
        false
    }

    fn has_writers(&self) -> bool {
        false
    }

    fn text(&self, image: &Image, address: u64) -> String {
        Code::at(image, address).map_or_else(String::new, |code| code.text())
    }

    fn takes_address(&self, image: &Image, entity: &Entity, address: u64) -> bool {
        let mut at = entity.address;
        let mut code = std::iter::from_fn(|| {
            let code = (at < entity.end()).then(|| Code::at(image, at)).flatten()?;
            at += code.len();
            Some(code)
        });
        code.any(|code| {
            let mut operands = code.operands.iter();
            operands.any(|o| !o.branch && o.target == address)
        })
    }

    fn padding(&self, data: &[u8], address: u64) -> Option<u64> {
        const PADDING: [u8; 3] = [0, 0x90, 0xcc];
        let mut decoder = Decoder::with_ip(64, data, address, DecoderOptions::NONE);
        let instruction = decoder.decode();
        match data.first() {
            Some(byte) if PADDING.contains(byte) => Some(1),
            Some(_) if instruction.mnemonic() == Mnemonic::Nop => Some(instruction.len() as u64),
            _ => None,
        }
    }

    fn is_trap(&self, code: &[u8]) -> bool {
        const UD2: [u8; 2] = [0x0f, 0x0b];
        let (traps, rest) = code.as_chunks::<2>();
        rest.is_empty() && traps.iter().all(|&code| code == UD2)
    }

    fn longest_jump(&self) -> u64 {
        (trampoline::SIZE + trampoline::LANDING_PAD_SIZE).into()
    }

    fn shape(&self, r_type: RelocationType) -> Option<Shape> {
        let (size, relative) = match r_type {
            elf::R_X86_64_64 => (8, false),
            elf::R_X86_64_PC64 => (8, true),
            elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => (4, true),
            elf::R_X86_64_32 | elf::R_X86_64_32S => (4, false),
            elf::R_X86_64_16 => (2, false),
            elf::R_X86_64_PC16 => (2, true),
            elf::R_X86_64_8 => (1, false),
            elf::R_X86_64_PC8 => (1, true),
            _ => return None,
        };
        // A relative field of an instruction is relative to the end of the field. One of
        // eight bytes is in data.
        let behind = if relative && size < 8 { 4 } else { 0 };
        Some(Shape::bytes(size, relative, behind))
    }

    fn computed<'a>(&self, name: &'a str) -> Option<(&'a str, u8)> {
        // Of interrupt descriptors, since 4.21: `arch/x86/include/asm/gen-idt.lds.h`.
        let name = name.strip_prefix("IDT_")?;
        let [low, high] = ["_ADDR1", "_ADDR2"].map(|end| name.strip_suffix(end));
        low.map(|name| (name, 0))
            .or_else(|| high.map(|name| (name, 16)))
    }

    fn relocate(
        &self,
        r_type: RelocationType,
        rest: &mut [u8],
        value: u64,
        place: u64,
    ) -> Result<(), String> {
        let relative = value.wrapping_sub(place);
        let bytes: &[u8] = match r_type {
            elf::R_X86_64_NONE => &[],
            elf::R_X86_64_64 => &value.to_le_bytes(),
            elf::R_X86_64_PC64 => &relative.to_le_bytes(),
            elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => &relative.to_le_bytes()[..4],
            elf::R_X86_64_32 | elf::R_X86_64_32S => &value.to_le_bytes()[..4],
            other => return Err(format!("relocation type {} is not known", other.0)),
        };
        let field = rest.get_mut(..bytes.len());
        let field = field.ok_or("a relocation lies outside of its section")?;
        field.copy_from_slice(bytes);
        Ok(())
    }

    fn entry_size(&self, table: Table) -> u64 {
        table.entry_size()
    }

    fn entry(&self, table: Table, entry: &[u8], at: u64) -> Option<Entry> {
        table.read(entry, at)
    }
}

/// A decoded instruction.
pub(crate) struct Code {
    pub(crate) bytes: Vec<u8>,
    pub(crate) operands: Vec<Operand>,
    instruction: Instruction,
}

impl Code {
    /// The instruction at `address`; `None` if there is none.
    pub(crate) fn at(image: &Image, address: u64) -> Option<Self> {
        let data = image.from(address);
        let mut decoder = Decoder::with_ip(64, data, address, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return None;
        }
        let offsets = decoder.get_constant_offsets(&instruction);
        let mut operands = Vec::new();
        let displacement = offsets.displacement_offset()
            ..offsets.displacement_offset() + offsets.displacement_size();
        let immediate =
            offsets.immediate_offset()..offsets.immediate_offset() + offsets.immediate_size();
        if is_branch(&instruction) {
            operands.push(Operand {
                field: immediate,
                target: instruction.near_branch_target(),
                accessed: 0,
                branch: true,
            });
        } else {
            let accessed = match instruction.memory_size().size() {
                size if instruction.mnemonic() != Mnemonic::Lea => size as u64,
                _ => 0,
            };
            let target = instruction.memory_displacement64();
            if instruction.is_ip_rel_memory_operand()
                || offsets.has_displacement() && image.spans(target)
            {
                operands.push(Operand {
                    field: displacement,
                    target,
                    accessed,
                    branch: false,
                });
            }
            operands.extend(
                constant(&instruction)
                    .filter(|&value| image.spans(value))
                    .map(|target| Operand {
                        field: immediate,
                        target,
                        accessed: 0,
                        branch: false,
                    }),
            );
        }
        Some(Self {
            bytes: data.get(..instruction.len())?.to_vec(),
            operands,
            instruction,
        })
    }

    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether execution does not continue after this instruction.
    pub(crate) fn ends(&self) -> bool {
        matches!(
            self.instruction.flow_control(),
            FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Return
        )
    }

    pub(crate) fn traps(&self) -> bool {
        self.instruction.mnemonic() == Mnemonic::Ud2
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let mut formatter = GasFormatter::new();
        formatter.options_mut().set_uppercase_hex(false);
        formatter.format(&self.instruction, &mut text);
        text
    }
}

fn is_branch(instruction: &Instruction) -> bool {
    matches!(
        instruction.op0_kind(),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
    )
}

fn constant(instruction: &Instruction) -> Option<u64> {
    let wide = [OpKind::Immediate64, OpKind::Immediate32to64];
    let mut operands =
        (0..instruction.op_count()).filter(|&n| wide.contains(&instruction.op_kind(n)));
    operands.next().map(|n| instruction.immediate(n))
}
