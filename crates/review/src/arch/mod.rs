// SPDX-License-Identifier: MIT OR Apache-2.0
//! What differs between the machines that payloads are for.

mod aarch64;
mod arm32;
mod x86_64;

use crate::compare::{Code, Names};
use crate::uses::How;
use std::fmt::Debug;
use std::ops::Range;
use xsplice_abi::machine::Machine;
use xsplice_abi::special::{Entry, Table};
use xsplice_reloc::reloc::Relocation;

/// The addresses of a payload: near enough to the hypervisor for every relocation, but
/// outside it.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Address of the first section.
    pub(crate) start: u64,
    /// The fake addresses of symbols that only the hypervisor defines.
    pub(crate) unknown: Range<u64>,
}

/// A reference in code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reference {
    /// The address of the instruction.
    pub(crate) place: u64,
    /// What it refers to.
    pub(crate) target: u64,
    /// How.
    pub(crate) how: How,
}

/// What differs between machines.
pub(crate) trait Arch: Debug + Sync {
    /// Where a payload is laid out, for a hypervisor that starts at `hypervisor`, if that
    /// is known.
    fn layout(&self, hypervisor: Option<u64>) -> Layout;

    /// The relocation of this type, if it is known.
    fn relocation(&self, r_type: u32) -> Option<&'static Relocation>;

    /// Size of an entry of a table about code.
    fn entry_size(&self, table: Table) -> u64;

    /// Reads the entry at `at`; `None` if it is cut short.
    fn read_entry(&self, table: Table, entry: &[u8], at: u64) -> Option<Entry>;

    /// The condition of an alternative in words.
    fn condition(&self, condition: u16) -> String;

    /// The instructions of the function `code` at `address`, with names of what they
    /// refer to.
    fn disassemble(&self, code: &[u8], address: u64, names: &Names) -> Vec<Code>;

    /// The references of the code at `address` to other code and to data.
    fn references(&self, code: &[u8], address: u64) -> Vec<Reference>;
}

/// The machine's properties.
pub(crate) fn of(machine: Machine) -> &'static dyn Arch {
    match machine {
        Machine::X86_64 => &x86_64::X86_64,
        Machine::Arm64 => &aarch64::Aarch64,
        Machine::Arm32 => &arm32::Arm32,
    }
}
