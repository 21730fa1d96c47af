// SPDX-License-Identifier: MIT OR Apache-2.0
//! A relocatable object file as sections, symbols and references.

use crate::arch::{Arch, Does};
use crate::name::SymbolName;
use index_vec::{IndexVec, define_index_type, index_vec};
use std::ops::Range;
use xsplice_abi::machine::Machine;
use xsplice_abi::symbol::RuntimeName;

define_index_type! {
    /// A symbol of an [`Object`].
    pub struct SymbolIx = u32;
}

define_index_type! {
    /// A section of an [`Object`].
    pub struct SectionIx = u32;
}

/// Why a file cannot be read as a relocatable object.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The ELF structure is damaged.
    #[error("{file}: not a readable ELF object: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// The ELF reader's error.
        reason: String,
    },
    /// It is an ELF file of another kind.
    #[error(
        "{file}: expected a relocatable object for x86-64, ARM64 or ARM32, found ELF type {e_type}, \
         machine {e_machine}"
    )]
    WrongKind {
        /// The file.
        file: String,
        /// `e_type` of the header.
        e_type: u16,
        /// `e_machine` of the header.
        e_machine: u16,
    },
    /// A relocation lies outside its section or names no symbol.
    #[error(
        "{file}: the relocation at {section}+{offset:#x} is damaged: it lies outside of its \
         section or names no symbol; compile the file again"
    )]
    BadRelocation {
        /// The file.
        file: String,
        /// The section that is relocated.
        section: String,
        /// Offset in that section.
        offset: u64,
    },
    /// It has a table about code with an unknown form of entries: they can neither be
    /// compared nor carried.
    #[error(
        "{file}: {section} is a table about code of a kind that is not known for {machine}: what \
         it says of a function would be missing from the payload"
    )]
    UnknownTable {
        /// The file.
        file: String,
        /// What it is for.
        machine: Machine,
        /// The table.
        section: String,
    },
    /// It has code in an instruction set that the hypervisor does not use.
    #[error(
        "{file}: {} has Thumb code at {offset:#x}, which the hypervisor does not run: compile \
         with `-marm`",
        section.as_deref().unwrap_or("it")
    )]
    ForeignCode {
        /// The file.
        file: String,
        /// The section, if it is known.
        section: Option<String>,
        /// Offset in that section.
        offset: u64,
    },
    /// Code refers to a place outside of its function by a distance that no relocation
    /// can describe.
    #[error(
        "{file}: the instruction at {section}+{offset:#x} reads, or takes the address of, a place \
         outside of its function that is so near that no relocation describes it: let the \
         function have its constants within its size (`.ltorg`)"
    )]
    Unnamed {
        /// The file.
        file: String,
        /// The section of the code.
        section: String,
        /// Offset in that section.
        offset: u64,
    },
    /// A relocation names a section that several variables share, and the one it
    /// means is unknown.
    #[error(
        "{file}: it is unclear which variable of {shared} is meant at {section}+{offset:#x}; \
         give the variable of the patch a section of its own"
    )]
    Doubtful {
        /// The file.
        file: String,
        /// The section that several variables share.
        shared: String,
        /// The section that is relocated.
        section: String,
        /// Offset in that section.
        offset: u64,
    },
}

/// The kind of a section's contents, as far as it matters to patching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Permanent code.
    Text,
    /// Code or data that is freed after boot, or only used during boot.
    Init,
    /// Read-only data.
    ReadOnly,
    /// Writable data, initialised.
    Data,
    /// Writable data, zero at start.
    Bss,
    /// A template of the per-CPU areas.
    PerCpu,
    /// A table about other code: see [`crate::special`].
    Special,
    /// Not part of the linked hypervisor.
    Ignored,
}

/// How the linker may merge a section's contents with those of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// Zero-terminated strings of characters of this size in bytes.
    Strings(u64),
    /// Constants of this size in bytes.
    Constants(u64),
}

/// One section.
#[derive(Debug, Clone)]
pub struct Section {
    /// Section name.
    pub name: String,
    /// Its kind.
    pub class: Class,
    /// The name without the symbol that the compiler made the section for: sections
    /// with the same home have the same placement.
    pub home: String,
    /// What it consists of, if it is mergeable.
    pub merge: Option<Merge>,
    /// Contents; empty for sections without any in the file, and for debugging
    /// information other than source lines.
    pub data: Vec<u8>,
    /// Size in bytes.
    pub size: u64,
    /// Alignment in bytes.
    pub align: u64,
    /// Relocations in ascending order of offset.
    pub relocations: Vec<Relocation>,
    /// The ranges of code that hold data, as far as the file says so.
    pub(crate) literals: Vec<Range<u64>>,
}

impl Section {
    /// Whether it consists of instructions.
    pub(crate) fn is_code(&self) -> bool {
        let text = self.name.contains("text") || self.name == ".fixup";
        text && matches!(self.class, Class::Text | Class::Init)
            || self.name == xsplice_abi::special::REPLACEMENTS
    }

    /// Whether it is what GCC's undefined-behaviour sanitizer hands to
    /// its handlers: the place in the source, in which a handler notes that it has
    /// reported it, and the types. A copy works as well, at the cost of a repeated
    /// report.
    pub fn is_sanitizer_record(&self) -> bool {
        const ENDS: [&str; 2] = ["..Lubsan_data", "..Lubsan_type"];
        let name = self.name.trim_end_matches(|c: char| c.is_ascii_digit());
        self.class == Class::Data
            && name.len() < self.name.len()
            && ENDS.iter().any(|end| name.ends_with(end))
    }
}

/// A relocation in the file, with its reference.
#[derive(Debug, Clone)]
pub struct Relocation {
    /// Offset of the field in its section.
    pub offset: u64,
    /// The type; what it means depends on the machine.
    pub r_type: u32,
    /// Whether it is the operand of a call or jump; everything else takes the address
    /// of its target, or accesses it.
    pub branch: bool,
    /// Whether the file names only the section of the target: then the symbol is
    /// inferred from the offset.
    pub inferred: bool,
    /// Its reference.
    pub reference: Reference,
}

/// The target of a relocated field, independent of its encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The target.
    pub target: Target,
    /// Offset in bytes from the start of the target.
    pub offset: i64,
    /// The rest of the field's addend besides the offset, for example -4 for the
    /// operand of a call.
    pub bias: i64,
}

/// The target of a reference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A named symbol of this object.
    Symbol(SymbolIx),
    /// A symbol that another object defines.
    External(SymbolName),
    /// A place in a section that no named symbol covers.
    Anonymous(SectionIx),
}

/// Bytes of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The section.
    pub section: SectionIx,
    /// Offset of the first one.
    pub offset: u64,
    /// How many they are.
    pub size: u64,
}

impl Span {
    /// The offset behind the last one.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.size)
    }
}

/// A named symbol that covers bytes of a section.
#[derive(Debug, Clone)]
pub struct Symbol {
    /// Name in this object.
    pub name: SymbolName,
    /// Its section.
    pub section: SectionIx,
    /// Offset in that section.
    pub offset: u64,
    /// Size in bytes, according to the file.
    pub size: u64,
    /// Bytes after it that belong to it: out-of-line code of inline assembly is at
    /// the end of the function's section, outside the function's size. For a label in
    /// hand-written assembly, which has no size, everything up to the next symbol.
    pub tail: u64,
    /// Whether other objects can refer to it.
    pub global: bool,
    /// Whether a definition in another object overrides it.
    pub weak: bool,
    /// Whether it is a function.
    pub function: bool,
    /// Whether it is a variable or constant; labels are neither this nor a function.
    pub variable: bool,
}

impl Symbol {
    /// Whether it is a label for bytes whose end is only known from the next symbol.
    pub fn is_label(&self) -> bool {
        self.size == 0 && self.tail > 0
    }

    /// Number of all bytes that belong to it.
    pub fn extent(&self) -> u64 {
        self.size.saturating_add(self.tail)
    }

    /// All bytes that belong to it.
    pub fn span(&self) -> Span {
        self.first(self.extent())
    }

    /// Its first `size` bytes.
    pub fn first(&self, size: u64) -> Span {
        Span {
            section: self.section,
            offset: self.offset,
            size,
        }
    }

    /// Whether it is an alias of `other` in the same object.
    pub fn is_at(&self, other: &Self) -> bool {
        (self.section, self.offset, self.size) == (other.section, other.offset, other.size)
    }

    /// The end in its section of the bytes that belong to it.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.extent())
    }
}

/// A relocatable object file.
#[derive(Debug, Clone)]
pub struct Object {
    /// The machine that it is for.
    pub arch: &'static dyn Arch,
    /// The source file that its FILE symbol names.
    pub file: String,
    /// All sections, index 0 being the null section.
    pub sections: IndexVec<SectionIx, Section>,
    /// All named symbols that are defined here.
    pub symbols: IndexVec<SymbolIx, Symbol>,
    pub(crate) index: Index,
}

/// Indices for frequent lookups.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    /// For each section, its symbols by offset, each with the furthest end so far.
    symbols: IndexVec<SectionIx, Vec<(SymbolIx, u64)>>,
    /// For each section, the places without a name that something refers to.
    pieces: IndexVec<SectionIx, Vec<u64>>,
}

impl Index {
    /// Indexes each section's symbols.
    pub(crate) fn add_symbols(&mut self, sections: usize, symbols: &IndexVec<SymbolIx, Symbol>) {
        self.symbols = index_vec![Vec::new(); sections];
        for (index, symbol) in symbols.iter_enumerated() {
            self.symbols[symbol.section].push((index, 0));
        }
        for section in &mut self.symbols {
            section.sort_by_key(|&(index, _)| symbols[index].offset);
            let mut furthest = 0;
            for (index, reach) in section {
                furthest = symbols[*index].end().max(furthest);
                *reach = furthest;
            }
        }
    }

    /// Indexes the referenced places in each section.
    pub(crate) fn add_pieces(&mut self, sections: &IndexVec<SectionIx, Section>) {
        self.pieces = index_vec![Vec::new(); sections.len()];
        for reference in sections
            .iter()
            .flat_map(|s| &s.relocations)
            .map(|r| &r.reference)
        {
            if let Target::Anonymous(section) = reference.target
                && let Ok(start) = u64::try_from(reference.offset)
            {
                self.pieces[section].push(start);
            }
        }
        for starts in &mut self.pieces {
            starts.sort_unstable();
            starts.dedup();
        }
    }
}

impl Object {
    /// An object without contents.
    pub fn empty(arch: &'static dyn Arch) -> Self {
        Self {
            arch,
            file: String::new(),
            sections: IndexVec::new(),
            symbols: IndexVec::new(),
            index: Index::default(),
        }
    }

    /// The machine that it is for.
    pub fn machine(&self) -> Machine {
        self.arch.machine()
    }

    /// Size in bytes of the place that a relocation of type `r_type` fills.
    pub fn width(&self, r_type: u32) -> usize {
        // The types that the table of x86-64 does not have are the GOT's, of four bytes.
        self.arch
            .relocation(r_type)
            .map_or(4, |relocation| relocation.size)
    }

    /// Clears what the relocations of `span` fill in, in `bytes`, which are, or replace,
    /// those of `span`.
    pub fn clear_fields(&self, span: Span, bytes: &mut [u8]) {
        for field in self.relocations(span) {
            let start = usize::try_from(field.offset - span.offset).unwrap_or(usize::MAX);
            let Some(place) = bytes.get_mut(start..) else {
                continue;
            };
            match self.arch.relocation(field.r_type) {
                Some(relocation) if relocation.size <= place.len() => relocation.erase(place),
                _ => place
                    .iter_mut()
                    .take(self.width(field.r_type))
                    .for_each(|byte| *byte = 0),
            }
        }
    }

    /// The symbol that covers `offset` in `section`.
    pub fn symbol_at(&self, section: SectionIx, offset: u64) -> Option<SymbolIx> {
        let here = self.index.symbols.get(section)?;
        let behind = here.partition_point(|&(index, _)| self.symbols[index].offset <= offset);
        let near = here[..behind].iter().rev();
        // If the furthest end so far is before this, so are all earlier ones.
        near.take_while(|&&(index, reach)| reach > offset || self.symbols[index].offset == offset)
            .map(|&(index, _)| index)
            .filter(|&index| {
                let symbol = &self.symbols[index];
                symbol.offset == offset || symbol.end() > offset
            })
            // A label within a function is not a separate place.
            .max_by_key(|&index| (self.symbols[index].extent(), std::cmp::Reverse(index)))
    }

    /// A name for `offset` in `section`: of the symbol there, or of the section.
    pub fn name_at(&self, section: SectionIx, offset: u64) -> &str {
        let symbol = self.symbol_at(section, offset);
        symbol.map_or(&self.sections[section].name, |index| {
            &self.symbols[index].name
        })
    }

    /// The symbols of a section by offset.
    pub(crate) fn symbols_in(&self, section: SectionIx) -> impl Iterator<Item = SymbolIx> {
        let here = self.index.symbols.get(section).map(Vec::as_slice);
        here.unwrap_or_default().iter().map(|&(index, _)| index)
    }

    /// The places of a section that have no name and that something refers to,
    /// in order.
    pub(crate) fn pieces_in(&self, section: SectionIx) -> &[u64] {
        self.index
            .pieces
            .get(section)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// The bytes of `span`; empty if its section has none in the file.
    pub fn bytes(&self, span: Span) -> &[u8] {
        slice(&self.sections[span.section].data, span.offset, span.size)
    }

    /// The relocations within `span`.
    pub fn relocations(&self, span: Span) -> &[Relocation] {
        let all = &self.sections[span.section].relocations;
        let start = all.partition_point(|r| r.offset < span.offset);
        let end = all.partition_point(|r| r.offset < span.end());
        &all[start..end]
    }

    /// The first byte of `symbol` that differs from `other`, outside of relocated
    /// fields.
    pub fn first_difference(&self, symbol: &Symbol, other: &[u8]) -> Option<usize> {
        let mut ours = self.bytes(symbol.span()).to_vec();
        let mut theirs = other.get(..ours.len()).unwrap_or(other).to_vec();
        self.clear_fields(symbol.span(), &mut ours);
        self.clear_fields(symbol.span(), &mut theirs);
        let mut places = 0..ours.len();
        places.find(|&at| theirs.get(at) != Some(&ours[at]))
    }

    /// The name by which the hypervisor's own symbol table knows a symbol.
    pub fn runtime_name(&self, index: SymbolIx) -> RuntimeName<'_> {
        let symbol = &self.symbols[index];
        RuntimeName {
            file: (!symbol.global).then_some(self.file.as_str()),
            name: &symbol.name,
        }
    }

    /// What refers to the start of the function at `index`, with the section that it
    /// is in; tables about code do not count.
    pub fn uses(&self, index: SymbolIx) -> impl Iterator<Item = (SectionIx, &Relocation)> {
        let function = &self.symbols[index];
        let sections = self.sections.iter_enumerated();
        let code_and_data = sections
            .filter(|(_, section)| !matches!(section.class, Class::Special | Class::Ignored));
        code_and_data.flat_map(move |(at, section)| {
            let uses = section.relocations.iter().filter(move |relocation| {
                let reference = &relocation.reference;
                let same = |other: SymbolIx| self.symbols[other].is_at(function);
                reference.offset == 0
                    && matches!(reference.target, Target::Symbol(other) if same(other))
            });
            uses.map(move |relocation| (at, relocation))
        })
    }

    /// The element of a mergeable section at `offset`, and the offset within it: the
    /// rest of a string with its terminating zero, or a complete constant.
    pub fn merged(&self, section: SectionIx, offset: i64) -> Option<(&[u8], u64)> {
        let data = self.sections[section].data.as_slice();
        let offset = usize::try_from(offset).ok()?;
        match self.sections[section].merge? {
            Merge::Strings(unit) => {
                let text = data.get(offset..)?;
                let unit = usize::try_from(unit).ok()?;
                let mut characters = text.chunks_exact(unit);
                let length = characters.position(|c| c.iter().all(|&b| b == 0))?;
                Some((text.get(..(length + 1) * unit)?, 0))
            }
            Merge::Constants(size) => {
                let size = usize::try_from(size).ok()?;
                let start = offset - offset % size;
                let constant = data.get(start..start.checked_add(size)?)?;
                Some((constant, (offset % size) as u64))
            }
        }
    }

    /// A label for messages: `name`, or section and offset if it has none.
    pub fn label(&self, target: &Target) -> String {
        match target {
            Target::Symbol(index) => self.symbols[*index].name.to_string(),
            Target::External(name) => name.to_string(),
            Target::Anonymous(section) => self.sections[*section].name.clone(),
        }
    }
}

/// `size` bytes of `data` from `offset`, or nothing if some are missing.
pub(crate) fn slice(data: &[u8], offset: u64, size: u64) -> &[u8] {
    let range = usize::try_from(offset).ok().zip(usize::try_from(size).ok());
    range
        .and_then(|(start, len)| data.get(start..start.checked_add(len)?))
        .unwrap_or_default()
}

/// How many bytes of a symbol matter: behind a label, not the padding in front
/// of the next one.
pub(crate) fn significant(object: &Object, symbol: &Symbol) -> u64 {
    let class = object.sections[symbol.section].class;
    if !symbol.is_label() || !matches!(class, Class::Text | Class::Init) {
        return symbol.extent();
    }
    let code = object.arch.decode(object.bytes(symbol.span()), 0);
    let last = code
        .filter(|instruction| instruction.does != Does::Nothing)
        .last();
    last.map_or(0, |instruction| instruction.end)
}
