// SPDX-License-Identifier: MIT OR Apache-2.0

//! ARM64. Encodings: Arm Architecture Reference Manual for A-profile, "A64 instruction
//! set encoding".

mod instruction;
mod references;

use super::arm::alternatives::{self, Encoding};
use super::arm::{self, Branch, SIZE, pairs};
use super::{Entries, Frame, Instructions, Wrong};
use crate::Host;
use crate::stage::Code;
use core::ops::Range;
use xsplice_abi::machine::Machine;
use xsplice_abi::special::{Alternative, BugKind, arm::alternative};
use xsplice_abi::trampoline::arm64;
use xsplice_reloc::reloc::{Relocation, aarch64};

/// ARM64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aarch64;

impl Aarch64 {
    /// Size in bytes of the jump to a new function.
    pub const JUMP_SIZE: usize = arm64::SIZE as usize;
}

/// `R_AARCH64_NONE`.
const NONE: u32 = 0;
/// `R_AARCH64_LD_PREL_LO19`.
const LITERAL: u32 = 273;

impl Instructions for Aarch64 {
    fn machine(self) -> Machine {
        Machine::Arm64
    }

    fn window_size(self) -> Option<u64> {
        Some(arm::WINDOW)
    }

    fn jump_size(self) -> u8 {
        arm64::SIZE
    }

    fn unit(self) -> u32 {
        arm64::SIZE.into()
    }

    fn cleans_new_code(self) -> bool {
        true
    }

    fn patch_offset(self, _first: [u8; 4]) -> u32 {
        0
    }

    /// Xen is compiled without them.
    fn is_landing_pad(self, _first: [u8; 4]) -> bool {
        true
    }

    fn reaches(self, from: u64, to: u64) -> bool {
        arm64::branch(from, to).is_some()
    }

    fn jump(self, from: u64, to: u64, code: &mut [u8]) -> Option<()> {
        code.copy_from_slice(&arm64::branch(from, to)?);
        Some(())
    }

    fn nops(self, code: &mut [u8]) {
        arm::fill(code, arm64::NOP);
    }

    fn longest(self) -> u64 {
        SIZE as u64
    }

    fn across(self, code: &[u8], at: usize) -> Result<Option<(usize, usize)>, usize> {
        arm::across(code, at)
    }

    fn pair_across(self, host: &impl Host, start: u64, at: u64) -> Option<(u64, u64)> {
        pairs::across(host, start, at, instruction::step)
    }

    fn each_reference(self, host: &impl Host, range: Range<u64>, found: impl FnMut(u64)) {
        references::each(host, range, found);
    }

    fn relocation(self, r_type: u32) -> Option<&'static Relocation> {
        aarch64::lookup(r_type)
    }

    fn stock_lacks(self, r_type: u32) -> Option<&'static str> {
        match r_type {
            NONE => Some("it changes nothing: remove it from the payload"),
            LITERAL => Some("compile without literal pools"),
            _ => None,
        }
    }

    fn has_exceptions(self) -> bool {
        false
    }

    fn bug_frames(self) -> Entries {
        arm::BUG_FRAMES
    }

    fn bug_frame(self, kind: BugKind, rest: &[u8], at: u64) -> Option<Frame> {
        arm::bug_frame(kind, rest, at)
    }

    fn trap_size(self) -> u64 {
        SIZE as u64
    }

    fn alternatives(self) -> Entries {
        arm::ALTERNATIVES
    }

    fn alternative(self, entry: &[u8], at: u64) -> Option<Alternative> {
        alternative(entry, at)
    }

    #[inline(never)]
    fn check_alternative<H: Host>(
        self,
        code: &Code<'_, '_, H>,
        replacements: &Range<u64>,
        entry: &Alternative,
    ) -> Result<(), Wrong> {
        alternatives::check(self, code, replacements, entry)
    }

    /// ARM64 has no such table: its host does not announce one.
    fn check_call_site<H: Host>(self, _code: &Code<'_, '_, H>, at: u64) -> Result<(), Wrong> {
        Err(("ARM64 has no calls that become direct", at))
    }
}

impl Encoding for Aarch64 {
    fn branch(self, word: u32) -> Option<Branch> {
        instruction::branch(word)
    }

    fn depends_on_place(self, word: u32) -> bool {
        instruction::address(word, 0).is_some() || instruction::is_literal(word)
    }
}

#[cfg(test)]
mod tests {
    use super::{Aarch64, Instructions as _};

    #[test]
    fn jumps_reach_128_mebibytes() {
        let from = 0x20_0000;
        assert!(Aarch64.reaches(from, from + (128 << 20) - 4));
        assert!(!Aarch64.reaches(from, from + (128 << 20)));
        assert!(Aarch64.reaches(from + (128 << 20), from));
        assert!(!Aarch64.reaches(from + (128 << 20) + 4, from));
    }
}
