// SPDX-License-Identifier: MIT OR Apache-2.0

//! x86-64.

mod alternatives;
mod branch;
mod length;

use super::{Entries, Frame, Instructions, Wrong};
use crate::Host;
use crate::stage::Code;
use core::ops::Range;
use xsplice_abi::machine::Machine;
use xsplice_abi::special::{Alternative, BugFrame, BugKind};
use xsplice_abi::trampoline;
use xsplice_reloc::reloc::Relocation;
use xsplice_reloc::reloc::x86_64::{self, R_X86_64_64, R_X86_64_PC32, R_X86_64_PLT32};

/// x86-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct X86_64;

impl X86_64 {
    /// Size in bytes of the jump to a new function.
    pub const JUMP_SIZE: usize = trampoline::SIZE as usize;
}

/// Size of the instruction that marks a target of indirect branches.
const ENDBR_SIZE: u32 = trampoline::LANDING_PAD_SIZE as u32;

/// `endbr64`, inverted: as an immediate it would itself be a valid indirect branch
/// target.
const NOT_ENDBR: u32 = !u32::from_le_bytes(trampoline::LANDING_PAD);
/// What the hypervisor writes over an `endbr64` it disables; inverted too.
const NOT_ENDBR_DISABLED: u32 = !u32::from_le_bytes(trampoline::DISABLED_LANDING_PAD);

fn inverted(first: [u8; 4]) -> u32 {
    // Without the barrier, the compiler inverts the constants back.
    core::hint::black_box(!u32::from_le_bytes(first))
}

/// The displacement of a jump from `from` to `to`, if it fits.
fn displacement(from: u64, to: u64) -> Option<i32> {
    let next = from.wrapping_add(X86_64::JUMP_SIZE as u64);
    i32::try_from(to.wrapping_sub(next).cast_signed()).ok()
}

/// The no-ops of 1 to 8 bytes that Intel's and AMD's manuals recommend.
const NOPS: [&[u8]; 8] = [
    &[0x90],
    &[0x66, 0x90],
    &[0x0f, 0x1f, 0x00],
    &[0x0f, 0x1f, 0x40, 0x00],
    &[0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
    &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
];

impl Instructions for X86_64 {
    fn machine(self) -> Machine {
        Machine::X86_64
    }

    fn window_size(self) -> Option<u64> {
        None
    }

    fn jump_size(self) -> u8 {
        trampoline::SIZE
    }

    fn unit(self) -> u32 {
        1
    }

    fn cleans_new_code(self) -> bool {
        false
    }

    /// After a leading `endbr64`.
    fn patch_offset(self, first: [u8; 4]) -> u32 {
        if self.is_landing_pad(first) || inverted(first) == NOT_ENDBR_DISABLED {
            ENDBR_SIZE
        } else {
            0
        }
    }

    fn is_landing_pad(self, first: [u8; 4]) -> bool {
        inverted(first) == NOT_ENDBR
    }

    fn reaches(self, from: u64, to: u64) -> bool {
        displacement(from, to).is_some()
    }

    fn jump(self, from: u64, to: u64, code: &mut [u8]) -> Option<()> {
        let [a, b, c, d] = displacement(from, to)?.to_le_bytes();
        code.copy_from_slice(&[trampoline::OPCODE, a, b, c, d]);
        Some(())
    }

    /// As few as possible.
    fn nops(self, code: &mut [u8]) {
        for chunk in code.chunks_mut(NOPS.len()) {
            let nop = chunk.len().checked_sub(1).and_then(|at| NOPS.get(at));
            chunk.copy_from_slice(nop.unwrap_or(&&[][..]));
        }
    }

    fn longest(self) -> u64 {
        length::LONGEST as u64
    }

    fn across(self, code: &[u8], at: usize) -> Result<Option<(usize, usize)>, usize> {
        length::across(code, at)
    }

    /// An instruction has all of an address.
    fn pair_across(self, _host: &impl Host, _start: u64, _at: u64) -> Option<(u64, u64)> {
        None
    }

    /// Each interpretation of any four bytes: an address, or a displacement.
    fn each_reference(self, host: &impl Host, range: Range<u64>, mut found: impl FnMut(u64)) {
        const FIELD: usize = 4;
        let mut buf = [0; 128];
        let mut at = range.start;
        while let Ok(left) = usize::try_from(range.end.saturating_sub(at))
            && left >= FIELD
            && let Some(code) = buf.get_mut(..left.min(128))
            && host.read(at, code)
        {
            for (place, field) in (at..).zip(code.windows(FIELD)) {
                let field = field.first_chunk().copied().unwrap_or_default();
                let value = i64::from(i32::from_le_bytes(field)).cast_unsigned();
                found(value);
                found(place.wrapping_add(value));
            }
            at += (code.len() - FIELD + 1) as u64;
        }
    }

    fn relocation(self, r_type: u32) -> Option<&'static Relocation> {
        x86_64::lookup(r_type)
    }

    fn stock_lacks(self, r_type: u32) -> Option<&'static str> {
        let performed = matches!(r_type, 0 | R_X86_64_64 | R_X86_64_PC32 | R_X86_64_PLT32);
        (!performed).then_some("only R_X86_64_64, PC32 and PLT32")
    }

    fn has_exceptions(self) -> bool {
        true
    }

    fn bug_frames(self) -> Entries {
        Entries {
            size: BugFrame::SIZE,
            expected: "a multiple of 8 (bug frames)",
        }
    }

    fn bug_frame(self, kind: BugKind, rest: &[u8], at: u64) -> Option<Frame> {
        let frame = BugFrame::read(rest, at)?;
        // The second half of an assertion with a message refers to no code.
        if kind == BugKind::Assert && frame.place == at {
            return None;
        }
        let calls = kind == BugKind::Call;
        Some(Frame {
            place: frame.place,
            function: calls.then_some(frame.pointer),
            file: (!calls).then_some(frame.pointer),
            // Of one that is cut off, nothing can be read.
            message: (kind == BugKind::Assert)
                .then(|| BugFrame::message(rest, at).unwrap_or_default()),
        })
    }

    fn trap_size(self) -> u64 {
        2
    }

    fn alternatives(self) -> Entries {
        Entries {
            size: Alternative::SIZE,
            expected: "a multiple of 14 (alternatives)",
        }
    }

    fn alternative(self, entry: &[u8], at: u64) -> Option<Alternative> {
        Alternative::read(entry, at)
    }

    #[inline(never)]
    fn check_alternative<H: Host>(
        self,
        code: &Code<'_, '_, H>,
        replacements: &Range<u64>,
        entry: &Alternative,
    ) -> Result<(), Wrong> {
        alternatives::check(code, replacements, entry)
    }

    #[inline(never)]
    fn check_call_site<H: Host>(self, code: &Code<'_, '_, H>, at: u64) -> Result<(), Wrong> {
        alternatives::check_pointer(code, at, false)
    }
}

#[cfg(test)]
mod tests {
    use super::{Instructions as _, X86_64, displacement};

    #[test]
    fn patches_go_behind_endbr() {
        assert_eq!(X86_64.patch_offset([0xf3, 0x0f, 0x1e, 0xfa]), 4);
        assert_eq!(X86_64.patch_offset([0x66, 0x0f, 0x1f, 0x01]), 4);
        assert_eq!(X86_64.patch_offset([0x55, 0x48, 0x89, 0xe5]), 0);
    }

    #[test]
    fn jumps_reach_two_gigabytes() {
        let from = 0xffff_82d0_4020_0000_u64;
        assert_eq!(displacement(from, from + 5), Some(0));
        assert_eq!(displacement(from, from + 5 + 0x7fff_ffff), Some(i32::MAX));
        assert_eq!(displacement(from, from + 5 + 0x8000_0000), None);
        assert_eq!(displacement(from, from + 5 - 0x8000_0000), Some(i32::MIN));
        assert_eq!(displacement(from, from + 4 - 0x8000_0000), None);
    }
}
