// SPDX-License-Identifier: MIT OR Apache-2.0
//! What differs between machines: instructions, relocations, and the hypervisor's tables.

mod aarch64;
mod arm32;
mod x86_64;

pub(crate) use x86_64::Code;

use crate::image::{Entity, Image};
use object::elf::RelocationType;
use std::fmt::Debug;
use std::ops::Range;
use xsplice_abi::machine::Machine;
use xsplice_abi::special::{BugKind, Entry, Table, arm};

/// Size in bytes of an instruction that is one word.
pub(crate) const WORD: usize = 4;

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

impl Operand {
    /// That of an instruction that is one word.
    pub(crate) const fn of_word(target: u64, accessed: u64, branch: bool) -> Self {
        Self {
            field: 0..WORD,
            target,
            accessed,
            branch,
        }
    }
}

/// The part of an instruction that leads to an address, if the instruction is one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bits {
    /// Those in the word.
    pub(crate) mask: u32,
    /// The address, its upper part, or its rest.
    pub(crate) value: u64,
    /// Number of bytes read or written there; 0 if none are.
    pub(crate) accessed: u64,
    pub(crate) branch: bool,
}

/// A machine whose instructions are words.
pub(crate) trait Words {
    /// The operand of an instruction at `at` that has `part` of an address.
    fn operand(&self, word: u32, at: u64, part: Part) -> Option<Bits>;

    /// Whether the instruction cannot be compared unless it has an operand.
    fn is_incomplete(&self, word: u32) -> bool;

    /// Whether execution does not continue after it.
    fn ends(&self, word: u32) -> bool;

    /// Whether it is a trap.
    fn traps(&self, word: u32) -> bool;

    /// The bits of an address that its rest has.
    fn rest(&self) -> u64;

    /// Where the code at `address` leads to, if that is all that it does.
    fn veneer(&self, _image: &Image, _address: u64) -> Option<u64> {
        None
    }
}

/// The word at `address`; `None` if there is none.
pub(crate) fn word(image: &Image, address: u64) -> Option<u32> {
    let bytes = image.from(address).first_chunk();
    bytes.map(|bytes| u32::from_le_bytes(*bytes))
}

/// What the word at `address` has of an address, if it has `part` of one.
pub(crate) fn part(image: &Image, address: u64, part: Part) -> Option<u64> {
    let words = image.arch.words()?;
    let bits = words.operand(word(image, address)?, address, part)?;
    Some(bits.value)
}

/// Whether all of `code` is traps.
fn only_traps(words: &dyn Words, code: &[u8]) -> bool {
    let (all, rest) = code.as_chunks::<WORD>();
    let mut all = all.iter().map(|word| u32::from_le_bytes(*word));
    rest.is_empty() && all.all(|word| words.traps(word))
}

/// A machine.
pub(crate) trait Arch: Debug + Sync {
    /// Which one.
    fn machine(&self) -> Machine;

    /// Its instructions, if they are words.
    fn words(&self) -> Option<&'static dyn Words> {
        None
    }

    /// The symbols at the edges of the code that is mapped in all page tables.
    fn entry_text(&self) -> Option<[&'static str; 2]>;

    /// Whether all boot code without a size can be decoded.
    fn decodes_boot_code(&self) -> bool;

    /// Whether an alternative without a replacement has a function that writes it.
    fn has_writers(&self) -> bool;

    /// The instruction at `address`, as text.
    fn text(&self, image: &Image, address: u64) -> String;

    /// Whether the code of `entity` has `address` anywhere except in jumps and calls.
    fn takes_address(&self, image: &Image, entity: &Entity, address: u64) -> bool;

    /// Size of the padding among code that `data`, at `address`, begins with.
    fn padding(&self, data: &[u8], address: u64) -> Option<u64>;

    /// Whether all of `code` is traps, which the generator puts in place of freed code.
    fn is_trap(&self, code: &[u8]) -> bool;

    /// The most bytes that a jump to a replacement takes, with what comes before it.
    fn longest_jump(&self) -> u64;

    /// The field that a relocation of this type fills; `None` if none is known.
    fn shape(&self, r_type: RelocationType) -> Option<Shape>;

    /// The symbol of whose address the linker script makes `name` the 16 bits from a bit
    /// on, and that bit.
    fn computed<'a>(&self, _name: &'a str) -> Option<(&'a str, u8)> {
        None
    }

    /// Fills the field at the start of `rest`, which is at `place`, with what leads to
    /// `value`.
    fn relocate(
        &self,
        r_type: RelocationType,
        rest: &mut [u8],
        value: u64,
        place: u64,
    ) -> Result<(), String>;

    /// Size of an entry of a table.
    fn entry_size(&self, table: Table) -> u64;

    /// Reads the entry of a table that is at `at`.
    fn entry(&self, table: Table, entry: &[u8], at: u64) -> Option<Entry>;
}

/// The form of a relocated field.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Its size in bytes.
    pub(crate) size: u8,
    /// Whether its value is relative to its own address.
    pub(crate) relative: bool,
    /// How far behind the field what it is relative to is, if it is in an instruction.
    pub(crate) behind: u64,
    /// What it has of the address.
    pub(crate) part: Part,
}

/// What a field has of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it, in bytes of its own.
    Bytes,
    /// All of it, in an instruction that is one word.
    Word,
    /// Its upper part, in such an instruction: on ARM64 its page.
    Upper,
    /// What comes to its upper part, in such an instruction.
    Rest,
    /// The 16 bits from this one on of the distance to it, in such an instruction.
    Distance(u8),
    /// The 16 bits from this one on, which the linker script computes.
    Computed(u8),
}

impl Shape {
    /// That of `part` of an address in an instruction that is one word.
    const fn word(part: Part) -> Self {
        Self {
            size: 4,
            relative: matches!(part, Part::Word | Part::Distance(_)),
            behind: 0,
            part,
        }
    }

    const fn bytes(size: u8, relative: bool, behind: u64) -> Self {
        Self {
            size,
            relative,
            behind,
            part: Part::Bytes,
        }
    }
}

/// Why a field cannot be filled.
fn out_of_reach(r_type: RelocationType) -> String {
    let number = r_type.0;
    format!(
        "this proof does not know relocations of type {number}, or this one cannot lead that far"
    )
}

/// An entry of a table on ARM. Only an assertion has a message; without one, the field leads
/// behind the name of the file, and nothing reads it.
fn arm_entry(table: Table, entry: &[u8], at: u64) -> Option<Entry> {
    Some(match arm::read(table, entry, at)? {
        Entry::BugFrame { kind, frame, .. } if kind != BugKind::Assert => Entry::BugFrame {
            kind,
            frame,
            message: None,
        },
        other => other,
    })
}

/// What is known of a machine; `None` if that is nothing.
pub(crate) fn of(machine: Machine) -> Option<&'static dyn Arch> {
    match machine {
        Machine::X86_64 => Some(&x86_64::X86_64),
        Machine::Arm64 => Some(&aarch64::Aarch64),
        Machine::Arm32 => Some(&arm32::Arm32),
    }
}
