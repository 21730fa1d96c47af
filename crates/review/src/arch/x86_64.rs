// SPDX-License-Identifier: MIT OR Apache-2.0
//! x86-64.

use super::{Arch, Layout, Reference};
use crate::compare::{Code, Names};
use crate::uses::How;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Formatter, GasFormatter, Instruction, Mnemonic, OpKind,
};
use xsplice_abi::special::{Entry, Table};
use xsplice_reloc::reloc::{Relocation, x86_64};

#[derive(Debug)]
pub(super) struct X86_64;

impl Arch for X86_64 {
    fn layout(&self, _hypervisor: Option<u64>) -> Layout {
        // Where Xen is does not depend on its version.
        Layout {
            start: 0xffff_82d0_7000_0000,
            unknown: 0xffff_82d0_7800_0000..0xffff_82d0_8000_0000,
        }
    }

    fn relocation(&self, r_type: u32) -> Option<&'static Relocation> {
        x86_64::lookup(r_type)
    }

    fn entry_size(&self, table: Table) -> u64 {
        table.entry_size()
    }

    fn read_entry(&self, table: Table, entry: &[u8], at: u64) -> Option<Entry> {
        table.read(entry, at)
    }

    fn condition(&self, condition: u16) -> String {
        format!("{}*32+{}", condition / 32, condition % 32)
    }

    fn disassemble(&self, code: &[u8], address: u64, names: &Names) -> Vec<Code> {
        let own = address..address.saturating_add(code.len() as u64);
        let mut formatter = GasFormatter::new();
        let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
        let instructions = decoder.iter();
        instructions
            .map(|instruction| {
                let (mut text, mut inner) = (String::new(), None);
                formatter.format_mnemonic(&instruction, &mut text);
                let mut leads_to = Vec::new();
                let mut name = |address: u64| {
                    let name = names.name(address);
                    leads_to.push(name.full);
                    name.short
                };
                for number in 0..formatter.operand_count(&instruction) {
                    text.push_str(if number == 0 { " " } else { "," });
                    let operand = formatter.get_instruction_operand(&instruction, number);
                    let kind = operand
                        .ok()
                        .flatten()
                        .map(|index| instruction.op_kind(index));
                    match kind {
                        Some(OpKind::NearBranch64) => {
                            let target = instruction.near_branch_target();
                            if own.contains(&target) {
                                inner = Some(target - address);
                            } else {
                                text.push_str(&name(target));
                            }
                        }
                        Some(OpKind::Memory) if instruction.is_ip_rel_memory_operand() => {
                            text.push_str(&name(instruction.ip_rel_memory_address()));
                            text.push_str("(%rip)");
                        }
                        // Formatting an operand that exists cannot fail.
                        _ => drop(formatter.format_operand(&instruction, &mut text, number)),
                    }
                }
                // No-ops of any length are padding.
                let shape = match instruction.mnemonic() {
                    Mnemonic::Nop => "nop".to_owned(),
                    _ => format!("{text} {}", leads_to.join(" ")),
                };
                if let Some(target) = inner {
                    text.push_str(&format!("+{target:#x}"));
                }
                Code {
                    offset: instruction.ip().wrapping_sub(address),
                    text,
                    inner,
                    shape,
                }
            })
            .collect()
    }

    fn references(&self, code: &[u8], address: u64) -> Vec<Reference> {
        let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
        let all = decoder.iter().filter_map(|instruction| {
            let (target, how) = leads_to(&instruction)?;
            Some(Reference {
                place: instruction.ip(),
                target,
                how,
            })
        });
        all.collect()
    }
}

fn leads_to(instruction: &Instruction) -> Option<(u64, How)> {
    let target = instruction.near_branch_target();
    match instruction.flow_control() {
        FlowControl::Call if target != 0 => Some((target, How::Call)),
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch if target != 0 => {
            Some((target, How::Jump))
        }
        _ if instruction.is_ip_rel_memory_operand() => {
            Some((instruction.ip_rel_memory_address(), How::Address))
        }
        _ => None,
    }
}
