// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds references in the linked hypervisor, which the affected objects alone do not
//! show.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use std::ops::Range;
use xsplice_xen_image::Image;

/// Size of an address in data in bytes.
const POINTER: usize = 8;

/// A reference to a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Use {
    /// The address of the reference.
    pub(crate) place: u64,
    /// The name of the symbol that contains it.
    pub(crate) user: String,
    /// Whether it only reads or calls.
    pub(crate) only_reads: bool,
}

/// All references into `target`: instructions with its address, and pointers in data.
pub(crate) fn uses(image: &Image, target: &Range<u64>) -> Vec<Use> {
    let mut found = Vec::new();
    let mut add = |place, only_reads| {
        let user = image
            .symbol_before(place)
            .map_or_else(String::new, |symbol| symbol.name.clone());
        found.push(Use {
            place,
            user,
            only_reads,
        });
    };
    for (address, code) in image.code() {
        let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if let Some(only_reads) = refers(&instruction, target) {
                add(instruction.ip(), only_reads);
            }
        }
    }
    for (address, data) in image.data() {
        // A section may start between two words.
        let skip = usize::try_from(address.wrapping_neg() % POINTER as u64).unwrap_or(0);
        let words = data.get(skip..).unwrap_or_default().chunks_exact(POINTER);
        for (word, place) in words.zip((address + skip as u64..).step_by(POINTER)) {
            let word = word.try_into().map_or(0, u64::from_le_bytes);
            if target.contains(&word) {
                add(place, false);
            }
        }
    }
    found
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
