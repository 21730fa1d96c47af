// SPDX-License-Identifier: MIT OR Apache-2.0
//! x86-64.

use super::{Arch, Unsupported};
use crate::payload::Draft;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use object::Architecture;
use std::ops::Range;
use xsplice_abi::special::Entry;
use xsplice_abi::trampoline::{self, LANDING_PAD, LANDING_PAD_SIZE};
use xsplice_objdiff::arch::{self, Arch as Objects};
use xsplice_reloc::reloc::Relocation;
use xsplice_xen_image::Image;

#[derive(Debug)]
pub(super) struct X86_64;

impl Arch for X86_64 {
    fn objects(&self) -> &'static dyn Objects {
        &arch::X86_64
    }

    fn elf(&self) -> Architecture {
        Architecture::X86_64
    }

    fn padding(&self) -> &'static [u8] {
        // NOPs of one byte, so that the code can be disassembled.
        &[0x90]
    }

    fn trap(&self) -> &'static [u8] {
        // `ud2`
        &[0x0f, 0x0b]
    }

    fn least_alignment(&self) -> u64 {
        1
    }

    fn landing_pad(&self, code: &[u8]) -> u32 {
        match code.starts_with(&LANDING_PAD) {
            true => LANDING_PAD_SIZE.into(),
            false => 0,
        }
    }

    fn trampoline(&self, code: &[u8]) -> u64 {
        trampoline::needed(code).into()
    }

    fn uses(&self, at: u64, code: &[u8], target: &Range<u64>) -> Vec<(u64, bool)> {
        let mut found = Vec::new();
        let mut decoder = Decoder::with_ip(64, code, at, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            let use_ = refers(&instruction, target);
            found.extend(use_.map(|only_reads| (instruction.ip(), only_reads)));
        }
        found
    }

    fn refuses_entry(&self, _entry: &Entry, _hypervisor: &Image) -> Option<Unsupported> {
        None
    }

    fn locks_constants(&self) -> Option<Unsupported> {
        None
    }

    fn elf_flags(&self) -> u32 {
        0
    }

    fn section_alignment(&self) -> u64 {
        1
    }

    fn loses_addend(&self, _relocation: &Relocation) -> bool {
        false
    }

    fn route(&self, _draft: &mut Draft, _hypervisor: &Image) {
        // It gets all of them right.
    }
}

/// Whether an instruction refers to `target`, and if so, whether it only reads or
/// calls it.
fn refers(instruction: &Instruction, target: &Range<u64>) -> Option<bool> {
    let branches = instruction.is_call_near()
        || instruction.is_jmp_short_or_near()
        || instruction.is_jcc_short_or_near();
    if branches && target.contains(&instruction.near_branch_target()) {
        return Some(true);
    }
    if instruction.is_ip_rel_memory_operand()
        && target.contains(&instruction.ip_rel_memory_address())
    {
        let reads = matches!(
            instruction.mnemonic(),
            Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push | Mnemonic::Call | Mnemonic::Jmp
        );
        let written = instruction.op0_kind() == OpKind::Memory && !reads;
        return Some(!written && instruction.mnemonic() != Mnemonic::Lea);
    }
    let immediate = (0..instruction.op_count()).any(|operand| {
        instruction.op_kind(operand) == OpKind::Immediate64
            && target.contains(&instruction.immediate64())
    });
    immediate.then_some(false)
}
