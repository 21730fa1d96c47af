// SPDX-License-Identifier: MIT OR Apache-2.0

//! An architecture that is chosen when the program runs.

use super::{Aarch64, Arm32, Entries, Frame, Instructions, Write, Wrong, X86_64};
use crate::Host;
use crate::stage::Code;
use core::ops::Range;
use xsplice_abi::machine::Machine;
use xsplice_abi::special::{Alternative, BugKind};
use xsplice_reloc::reloc::Relocation;

/// One of the architectures, for hosts that are not hypervisors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Any {
    /// x86-64.
    X86_64,
    /// ARM64.
    Aarch64,
    /// ARM32.
    Arm32,
}

impl Any {
    /// The architecture of a machine.
    #[must_use]
    pub const fn of(machine: Machine) -> Self {
        match machine {
            Machine::X86_64 => Self::X86_64,
            Machine::Arm64 => Self::Aarch64,
            Machine::Arm32 => Self::Arm32,
        }
    }
}

/// What the chosen one says.
macro_rules! ask {
    ($any:ident, $arch:ident => $answer:expr) => {
        match $any {
            Any::X86_64 => {
                let $arch = X86_64;
                $answer
            }
            Any::Aarch64 => {
                let $arch = Aarch64;
                $answer
            }
            Any::Arm32 => {
                let $arch = Arm32;
                $answer
            }
        }
    };
}

impl Instructions for Any {
    fn machine(self) -> Machine {
        ask!(self, arch => arch.machine())
    }

    fn wrong_flags(self, flags: u32) -> Option<&'static str> {
        ask!(self, arch => arch.wrong_flags(flags))
    }

    fn window_size(self) -> Option<u64> {
        ask!(self, arch => arch.window_size())
    }

    fn jump_size(self) -> u8 {
        ask!(self, arch => arch.jump_size())
    }

    fn unit(self) -> u32 {
        ask!(self, arch => arch.unit())
    }

    fn cleans_new_code(self) -> bool {
        ask!(self, arch => arch.cleans_new_code())
    }

    fn patch_offset(self, first: [u8; 4]) -> u32 {
        ask!(self, arch => arch.patch_offset(first))
    }

    fn is_landing_pad(self, first: [u8; 4]) -> bool {
        ask!(self, arch => arch.is_landing_pad(first))
    }

    fn reaches(self, from: u64, to: u64) -> bool {
        ask!(self, arch => arch.reaches(from, to))
    }

    fn jump(self, from: u64, to: u64, code: &mut [u8]) -> Option<()> {
        ask!(self, arch => arch.jump(from, to, code))
    }

    fn nops(self, code: &mut [u8]) {
        ask!(self, arch => arch.nops(code));
    }

    fn longest(self) -> u64 {
        ask!(self, arch => arch.longest())
    }

    fn across(self, code: &[u8], at: usize) -> Result<Option<(usize, usize)>, usize> {
        ask!(self, arch => arch.across(code, at))
    }

    fn may_be_data(self, code: &[u8]) -> Option<usize> {
        ask!(self, arch => arch.may_be_data(code))
    }

    fn pair_across(self, host: &impl Host, start: u64, at: u64) -> Option<(u64, u64)> {
        ask!(self, arch => arch.pair_across(host, start, at))
    }

    fn each_reference(self, host: &impl Host, range: Range<u64>, found: impl FnMut(u64)) {
        ask!(self, arch => arch.each_reference(host, range, found));
    }

    fn relocation(self, r_type: u32) -> Option<&'static Relocation> {
        ask!(self, arch => arch.relocation(r_type))
    }

    fn addends_in_places(self) -> bool {
        ask!(self, arch => arch.addends_in_places())
    }

    fn stock_lacks(self, r_type: u32) -> Option<&'static str> {
        ask!(self, arch => arch.stock_lacks(r_type))
    }

    fn stock_fault(self, relocation: &Relocation, write: &Write<'_>) -> Option<&'static str> {
        ask!(self, arch => arch.stock_fault(relocation, write))
    }

    fn word_alignment(self) -> u64 {
        ask!(self, arch => arch.word_alignment())
    }

    fn is_foreign_code(self, symbol: &[u8]) -> bool {
        ask!(self, arch => arch.is_foreign_code(symbol))
    }

    fn has_exceptions(self) -> bool {
        ask!(self, arch => arch.has_exceptions())
    }

    fn bug_frames(self) -> Entries {
        ask!(self, arch => arch.bug_frames())
    }

    fn bug_frame(self, kind: BugKind, rest: &[u8], at: u64) -> Option<Frame> {
        ask!(self, arch => arch.bug_frame(kind, rest, at))
    }

    fn trap_size(self) -> u64 {
        ask!(self, arch => arch.trap_size())
    }

    fn alternatives(self) -> Entries {
        ask!(self, arch => arch.alternatives())
    }

    fn alternative(self, entry: &[u8], at: u64) -> Option<Alternative> {
        ask!(self, arch => arch.alternative(entry, at))
    }

    fn check_alternative<H: Host>(
        self,
        code: &Code<'_, '_, H>,
        replacements: &Range<u64>,
        entry: &Alternative,
    ) -> Result<(), Wrong> {
        ask!(self, arch => arch.check_alternative(code, replacements, entry))
    }

    fn check_call_site<H: Host>(self, code: &Code<'_, '_, H>, at: u64) -> Result<(), Wrong> {
        ask!(self, arch => arch.check_call_site(code, at))
    }
}
