// SPDX-License-Identifier: MIT OR Apache-2.0

//! ARM32. Encodings: Arm Architecture Reference Manual, ARMv7-A and ARMv7-R edition, "ARM
//! Instruction Set Encoding".
//!
//! Xen runs no Thumb code. Compilers put tables between the instructions of a function.

mod instruction;
mod references;

use super::arm::alternatives::{self, Encoding};
use super::arm::{self, Branch, SIZE, pairs};
use super::{Entries, Frame, Instructions, Write, Wrong};
use crate::Host;
use crate::format::Bytes;
use crate::stage::Code;
use core::ops::Range;
use xsplice_abi::machine::Machine;
use xsplice_abi::special::{Alternative, BugKind, arm::alternative};
use xsplice_abi::trampoline::arm32;
use xsplice_reloc::reloc::{Field, Relocation, arm32 as relocations};

/// ARM32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arm32;

impl Arm32 {
    /// Size in bytes of the jump to a new function.
    pub const JUMP_SIZE: usize = arm32::SIZE as usize;
}

/// `R_ARM_MOVW_PREL_NC` and `R_ARM_MOVT_PREL`.
const UNKNOWN_TO_XEN: [u32; 2] = [45, 46];
/// `EF_ARM_EABI_MASK`, and version 5 in it.
const EABI: (u32, u32) = (0xff00_0000, 0x0500_0000);

impl Instructions for Arm32 {
    fn machine(self) -> Machine {
        Machine::Arm32
    }

    fn wrong_flags(self, flags: u32) -> Option<&'static str> {
        let (mask, version) = EABI;
        (flags & mask != version).then_some("those of the EABI, version 5 (0x5000000)")
    }

    fn window_size(self) -> Option<u64> {
        Some(arm::WINDOW)
    }

    fn jump_size(self) -> u8 {
        arm32::SIZE
    }

    fn unit(self) -> u32 {
        arm32::SIZE.into()
    }

    fn cleans_new_code(self) -> bool {
        true
    }

    fn patch_offset(self, _first: [u8; 4]) -> u32 {
        0
    }

    /// ARM32 has none.
    fn is_landing_pad(self, _first: [u8; 4]) -> bool {
        true
    }

    fn reaches(self, from: u64, to: u64) -> bool {
        arm32::branch(from, to).is_some()
    }

    fn jump(self, from: u64, to: u64, code: &mut [u8]) -> Option<()> {
        code.copy_from_slice(&arm32::branch(from, to)?);
        Some(())
    }

    fn nops(self, code: &mut [u8]) {
        arm::fill(code, arm32::NOP);
    }

    fn longest(self) -> u64 {
        SIZE as u64
    }

    fn across(self, code: &[u8], at: usize) -> Result<Option<(usize, usize)>, usize> {
        arm::across(code, at)
    }

    /// Behind an instruction that another need not follow.
    fn may_be_data(self, code: &[u8]) -> Option<usize> {
        let mut words = code.chunks_exact(SIZE);
        let last = words.position(|word| Bytes(word).u32(0).is_some_and(instruction::may_end))?;
        Some((last + 1) * SIZE).filter(|behind| *behind < code.len())
    }

    fn pair_across(self, host: &impl Host, start: u64, at: u64) -> Option<(u64, u64)> {
        pairs::across(host, start, at, instruction::step)
    }

    fn each_reference(self, host: &impl Host, range: Range<u64>, found: impl FnMut(u64)) {
        references::each(host, range, found);
    }

    fn relocation(self, r_type: u32) -> Option<&'static Relocation> {
        relocations::lookup(r_type)
    }

    fn stock_lacks(self, r_type: u32) -> Option<&'static str> {
        let performed = !UNKNOWN_TO_XEN.contains(&r_type);
        (!performed).then_some("compile without addresses relative to movw and movt")
    }

    /// It writes words, and clears fields only if the addend is not zero. Its mask for
    /// distances lacks a bit, and of the addends of halves it does no more than that.
    fn stock_fault(self, relocation: &Relocation, write: &Write<'_>) -> Option<&'static str> {
        let Write {
            place,
            addend,
            value,
            field,
        } = *write;
        match relocation.field {
            _ if !place.is_multiple_of(self.word_alignment()) => {
                Some("crashes the host, because the place is no multiple of 4: align the pointer")
            }
            Field::Branch if value & SIZE as u64 != 0 => Some(
                "lets the branch lead 4 bytes too low, because its distance is no multiple of 8",
            ),
            Field::Half { .. } if addend != 0 => Some("leaves out the addend"),
            Field::Branch | Field::Half { .. }
                if addend == 0 && relocation.read(field) != Some(0) =>
            {
                Some("mixes the value with what is in the place, because the addend is 0")
            }
            _ => None,
        }
    }

    /// It reads words, which must be aligned.
    fn word_alignment(self) -> u64 {
        4
    }

    /// `$t`, with which Thumb code begins.
    fn is_foreign_code(self, symbol: &[u8]) -> bool {
        matches!(symbol, b"$t" | [b'$', b't', b'.', ..])
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

    /// ARM32 has no such table: its host does not announce one.
    fn check_call_site<H: Host>(self, _code: &Code<'_, '_, H>, at: u64) -> Result<(), Wrong> {
        Err(("ARM32 has no calls that become direct", at))
    }
}

impl Encoding for Arm32 {
    fn branch(self, word: u32) -> Option<Branch> {
        instruction::branch(word)
    }

    fn depends_on_place(self, word: u32) -> bool {
        instruction::uses_own_address(word)
    }
}

#[cfg(test)]
mod tests {
    use super::{Arm32, Instructions as _};

    #[test]
    fn jumps_reach_32_mebibytes() {
        let from = 0x20_0000;
        let limit = 32 << 20;
        assert!(Arm32.reaches(from, from + limit + 4));
        assert!(!Arm32.reaches(from, from + limit + 8));
        assert!(Arm32.reaches(from + limit, from + 8));
        assert!(!Arm32.reaches(from + limit, from + 4));
    }

    #[test]
    fn data_may_follow_what_ends_a_path() {
        // mov r0, #17; bx lr; and then a table.
        let code = [0xe3a0_0011_u32, 0xe12f_ff1e, 0x0020_0100].map(u32::to_le_bytes);
        let code = code.as_flattened();
        for (len, data) in [(0, None), (4, None), (8, None), (9, Some(8)), (12, Some(8))] {
            assert_eq!(Arm32.may_be_data(&code[..len]), data, "{len} bytes");
        }
    }
}
