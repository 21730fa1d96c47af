// SPDX-License-Identifier: MIT OR Apache-2.0
//! An instruction as bytes and targets.

use crate::image::Image;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Formatter as _, GasFormatter, Instruction, OpKind,
};
use std::ops::Range;

/// An operand that refers to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Operand {
    /// Its bytes in the instruction.
    pub(crate) field: Range<usize>,
    pub(crate) target: u64,
    /// Number of bytes read or written there; 0 if unknown.
    pub(crate) accessed: u64,
    /// Whether it is the target of a jump or call.
    pub(crate) branch: bool,
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
                size if instruction.mnemonic() != iced_x86::Mnemonic::Lea => size as u64,
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
        self.instruction.mnemonic() == iced_x86::Mnemonic::Ud2
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
