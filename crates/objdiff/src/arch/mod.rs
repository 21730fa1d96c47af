// SPDX-License-Identifier: MIT OR Apache-2.0
//! What differs between the machines that objects are for.

mod aarch64;
mod arm;
mod arm32;
mod x86_64;

pub use aarch64::Aarch64;
pub use arm32::Arm32;
pub use x86_64::X86_64;

use std::fmt::Debug;
use xsplice_abi::machine::Machine;
use xsplice_abi::special::{Entry, Table};
use xsplice_reloc::reloc::Relocation;

/// An instruction, as far as a comparison needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Its address.
    pub start: u64,
    /// The address after it.
    pub end: u64,
    /// What it does.
    pub does: Does,
}

/// What an instruction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// It jumps to, or calls, this address.
    Branch(u64),
    /// It computes this address from its own.
    Address(u64),
    /// It reads from, or writes to, this address, which it computes from its own.
    Access(u64),
    /// Nothing: padding. Traps that compilers put between functions count too.
    Nothing,
    /// Anything else.
    Other,
}

impl Instruction {
    /// The target of a direct call or jump.
    pub fn branch_target(&self) -> Option<u64> {
        match self.does {
            Does::Branch(target) => Some(target),
            Does::Address(_) | Does::Access(_) | Does::Nothing | Does::Other => None,
        }
    }

    /// Whether the byte at `address` is a part of it.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// A field of an instruction that leads to a place: what the assembler fills in, where
/// it knows the distance, and describes by a relocation otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operand {
    /// Offset of the field in the code.
    pub offset: u64,
    /// The type of the relocation.
    pub r_type: u32,
    /// The addend of a relocation for the start of a symbol.
    pub bias: i64,
}

/// What differs between machines.
pub trait Arch: Debug + Sync {
    /// The machine.
    fn machine(&self) -> Machine;

    /// The relocation of this type, if it is known.
    fn relocation(&self, r_type: u32) -> Option<&'static Relocation>;

    /// The type of the relocation for an address in data.
    fn pointer(&self) -> u32;

    /// The instructions of `code`, the first of which is at `at`. Bytes that are no
    /// instruction are one that does something else.
    fn decode<'a>(&self, code: &'a [u8], at: u64) -> Box<dyn Iterator<Item = Instruction> + 'a>;

    /// The instruction at the start of `code`, which is at `at`, in words.
    fn text(&self, code: &[u8], at: u64) -> String;

    /// Clears the distance in the bytes of a direct branch.
    fn clear_distance(&self, branch: &mut Vec<u8>);

    /// The part of the addend of a relocation at `offset`, of an operand of
    /// `instruction`, that is no offset.
    fn bias(&self, instruction: &Instruction, offset: u64, r_type: u32) -> i64;

    /// The field of the first instruction in `code` that leads to a place, given the
    /// decoded `instruction`.
    fn operand(&self, instruction: &Instruction, code: &[u8]) -> Option<Operand>;

    /// Whether the function with this `code`, decoded as `all`, uses the address that the
    /// instruction at `at` computes only to jump, or to read a constant.
    fn only_reads_there(&self, all: &[Instruction], at: usize, code: &[u8]) -> bool;

    /// Whether the field at `offset` of `code` is the pointer of an indirect call or jump
    /// that the hypervisor makes direct where a table says so; if so, the offset of the
    /// instruction.
    fn call_through(&self, code: &[u8], offset: u64) -> Option<u64>;

    /// Whether the hypervisor has this kind of table about code.
    fn has(&self, table: Table) -> bool;

    /// Size of an entry in bytes.
    fn entry_size(&self, table: Table) -> u64;

    /// How many bytes of an entry say something about the code, apart from its line.
    fn compared_size(&self, table: Table) -> u64;

    /// Whether the hypervisor uses the field at this offset of an entry.
    fn uses_field(&self, table: Table, offset: u64) -> bool;

    /// Reads the entry at `at`; `None` if it is cut short.
    fn read_entry(&self, table: Table, entry: &[u8], at: u64) -> Option<Entry>;

    /// The part of `addend` that is a line number, in a field of a bug frame.
    fn line_part(&self, addend: i64) -> i64;

    /// Whether two addends of fields of bug frames differ only by a line number.
    fn only_line_differs(&self, difference: i64) -> bool;

    /// Whether the linker leaves out the section `name`.
    fn is_discarded(&self, name: &str) -> bool;

    /// Whether compilers may refer to one variable by the distance from another one
    /// that shares its section.
    fn has_anchors(&self) -> bool;

    /// Whether a mapping symbol of this name marks code in an instruction set that the
    /// hypervisor does not use.
    fn is_foreign_code(&self, mark: &str) -> bool;
}

/// The machine's properties.
pub fn of(machine: Machine) -> &'static dyn Arch {
    match machine {
        Machine::X86_64 => &X86_64,
        Machine::Arm64 => &Aarch64,
        Machine::Arm32 => &Arm32,
    }
}

fn hex(bytes: &[u8]) -> String {
    let word = bytes.iter().rev();
    word.fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}
