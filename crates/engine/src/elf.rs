// SPDX-License-Identifier: MIT OR Apache-2.0

//! A bounds-checked reader of relocatable ELF files: no offset or size in the file is
//! trusted.

use crate::format::{Bytes, Known, MAX_SECTIONS, MAX_SIZE};
use crate::problem::{FileFault, Problems, SectionFault, SectionId, SymbolFault, text};
use alloc::vec::Vec;
use xsplice_abi::machine::Machine;
use xsplice_abi::payload::section;
use xsplice_abi::special::Special;
use xsplice_fallible as fallible;

pub(crate) const SHF_WRITE: u64 = 1;
pub(crate) const SHF_ALLOC: u64 = 2;
pub(crate) const SHF_EXECINSTR: u64 = 4;
pub(crate) const SHF_MERGE: u64 = 0x10;
pub(crate) const SHT_RELA: u32 = 4;
pub(crate) const SHT_REL: u32 = 9;
pub(crate) const SHT_NOTE: u32 = 7;
pub(crate) const SHN_UNDEF: u16 = 0;
pub(crate) const SHN_LORESERVE: u16 = 0xff00;
pub(crate) const SHN_ABS: u16 = 0xfff1;
pub(crate) const SHN_COMMON: u16 = 0xfff2;

const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
const SHT_NOBITS: u32 = 8;
const HEADER_SIZE: u64 = 64;
const SECTION_HEADER_SIZE: u16 = 64;
const SYMBOL_SIZE: usize = 24;
/// Limit for names. It exceeds any name that can be loaded, and keeps a file with
/// overlapping names from taking quadratic time.
const NAME_LIMIT: usize = 256;

/// One section, its contents checked to be in the file; by default the null section.
#[derive(Clone, Debug, Default)]
pub(crate) struct Section<'a> {
    pub(crate) index: usize,
    pub(crate) name: &'a [u8],
    pub(crate) known: Option<Known>,
    pub(crate) kind: u32,
    pub(crate) flags: u64,
    pub(crate) size: u64,
    pub(crate) link: u32,
    pub(crate) info: u32,
    pub(crate) align: u64,
    pub(crate) entry_size: u64,
    /// File offset of its contents.
    pub(crate) offset: usize,
    /// Contents; empty if the file has none.
    pub(crate) data: &'a [u8],
}

impl Section<'_> {
    pub(crate) fn allocated(&self) -> bool {
        self.flags & SHF_ALLOC != 0
    }

    pub(crate) fn id(&self) -> SectionId {
        self.into()
    }
}

/// One symbol, its name checked to be in the table.
#[derive(Clone, Debug)]
pub(crate) struct Symbol<'a> {
    /// The string table from its name on: not all names are needed.
    names: &'a [u8],
    pub(crate) section: u16,
    pub(crate) value: u64,
    pub(crate) size: u64,
}

/// The sections and symbols of a file; both have their null entry at index 0.
#[derive(Debug, Default)]
pub(crate) struct Elf<'a> {
    pub(crate) sections: Vec<Section<'a>>,
    pub(crate) symbols: Vec<Symbol<'a>>,
    pub(crate) symbol_table: usize,
    /// None until it is parsed.
    pub(crate) machine: Option<Machine>,
    /// The first section of each name, as in Xen's loader; 0 if there is none.
    firsts: [u16; Known::COUNT],
}

impl<'a> Elf<'a> {
    /// The first section of this name.
    pub(crate) fn section(&self, known: Known) -> Option<&Section<'a>> {
        let first = self.firsts.get(known.index()).filter(|first| **first != 0);
        self.sections.get(usize::from(*first?))
    }

    /// Parses `file` into an empty one. `None` if it cannot be loaded.
    pub(crate) fn parse(&mut self, file: &'a [u8], problems: &mut Problems) -> Option<()> {
        let header = header(file, problems)?;
        self.machine = Some(header.machine);
        self.sections = sections(file, &header, problems)?;
        let symbol_table = symbol_table(&self.sections, problems);
        let names = strings(&self.sections, usize::from(header.names), problems);
        let names = names?;
        self.symbol_table = symbol_table?;
        self.firsts = name_sections(file, &header, &mut self.sections, names, problems)?;
        let table = self.sections.get(self.symbol_table)?;
        let names = strings(&self.sections, usize::try_from(table.link).ok()?, problems)?;
        self.symbols = symbols(table, names, problems)?;
        (!problems.refused()).then_some(())
    }
}

struct Header {
    machine: Machine,
    table: u64,
    entry_size: u16,
    count: u16,
    names: u16,
}

impl Header {
    fn section_header<'a>(&self, file: &'a [u8], index: usize) -> Option<Bytes<'a>> {
        let at = u64::from(self.entry_size).checked_mul(u64::try_from(index).ok()?)?;
        let at = self.table.checked_add(at)?;
        Bytes(file)
            .range(at, u64::from(SECTION_HEADER_SIZE))
            .map(Bytes)
    }
}

#[inline(never)]
fn header(file: &[u8], problems: &mut Problems) -> Option<Header> {
    let bytes = identify(file, problems)?;
    check_fields(bytes, problems)?;
    let header = Header {
        machine: machine(bytes)?,
        table: bytes.u64(40)?,
        entry_size: bytes.u16(58)?,
        count: bytes.u16(60)?,
        names: bytes.u16(62)?,
    };
    header.check(file.len() as u64, problems);
    (!problems.refused()).then_some(header)
}

/// The header of a file for a 64-bit machine: other classes have a different layout.
fn identify<'a>(file: &'a [u8], problems: &mut Problems) -> Option<Bytes<'a>> {
    let size = file.len() as u64;
    if size == 0 || size > MAX_SIZE {
        problems.file(FileFault::Size {
            size,
            limit: MAX_SIZE,
        });
        return None;
    }
    if !file.starts_with(b"\x7fELF") {
        problems.file(FileFault::NotElf);
        return None;
    }
    let Some(bytes) = Bytes(file).range(0, HEADER_SIZE).map(Bytes) else {
        problems.file(FileFault::HeaderCutOff { size: file.len() });
        return None;
    };
    let [class, data] = bytes.0.get(4..)?.first_chunk().copied()?;
    for (field, value, wanted) in [
        ("class", u16::from(class), 2),
        ("data encoding", u16::from(data), 1),
    ] {
        if value != wanted {
            let value = u64::from(value);
            problems.file(FileFault::Machine { field, value });
        }
    }
    if machine(bytes).is_none() {
        let value = bytes.u16(18)?.into();
        let field = "machine";
        problems.file(FileFault::Machine { field, value });
    }
    (!problems.refused()).then_some(bytes)
}

/// The machine of a file with this header.
fn machine(header: Bytes<'_>) -> Option<Machine> {
    Machine::from_elf(header.u16(18)?)
}

/// Checks the fields of a header that do not describe the section table.
fn check_fields(bytes: Bytes<'_>, problems: &mut Problems) -> Option<()> {
    let [version, os, abi_version] = bytes.0.get(6..)?.first_chunk().copied()?;
    let wide = |value| u64::from(bytes.u16(value).unwrap_or_default());
    let version_word = u64::from(bytes.u32(20)?);
    for (field, value, good, expected) in [
        ("e_ident version", u64::from(version), version == 1, "1"),
        ("e_version", version_word, version_word == 1, "1"),
        ("OS ABI", u64::from(os), os == 0 || os == 9, "0 or 9"),
        ("ABI version", u64::from(abi_version), abi_version == 0, "0"),
        ("e_type", wide(16), wide(16) == 1, "1 (relocatable)"),
        ("e_phnum", wide(56), wide(56) == 0, "0"),
    ] {
        if !good {
            problems.file(FileFault::Header {
                field,
                value,
                expected,
            });
        }
    }
    Some(())
}

impl Header {
    /// Checks that the section table is in the file.
    fn check(&self, size: u64, problems: &mut Problems) {
        let mut bad_table = |what, value| problems.file(FileFault::SectionTable { what, value });
        if self.names == SHN_UNDEF {
            bad_table("the index of the section of names is undefined", 0);
        }
        // As in Xen, this is checked before the position of the table.
        if self.count >= MAX_SECTIONS {
            problems.file(FileFault::TooManySections {
                count: self.count,
                limit: MAX_SECTIONS,
            });
        }
        let mut bad_table = |what, value| problems.file(FileFault::SectionTable { what, value });
        if self.names >= self.count {
            bad_table("the section of names does not exist", u64::from(self.names));
        }
        let (entry_size, count) = (u64::from(self.entry_size), u64::from(self.count));
        if self.table >= size {
            bad_table("it begins past the end of the file", self.table);
        } else if self.entry_size < SECTION_HEADER_SIZE {
            bad_table("its entries are too small", entry_size);
        } else if (size - self.table) / entry_size < count {
            bad_table("it ends past the end of the file", self.table);
        }
    }
}

#[inline(never)]
fn sections<'a>(
    file: &'a [u8],
    header: &Header,
    problems: &mut Problems,
) -> Option<Vec<Section<'a>>> {
    let mut sections = problems.noted(fallible::with_room(usize::from(header.count)))?;
    problems.noted(fallible::push(&mut sections, Section::default()))?;
    let mut in_file = 0;
    for index in 1..usize::from(header.count) {
        let bytes = header.section_header(file, index)?;
        problems.noted(fallible::push(&mut sections, Section::default()))?;
        let section = sections.last_mut()?;
        section.index = index;
        section.read(bytes, file, problems)?;
        in_file += section.data.len() as u64;
    }
    let size = file.len() as u64;
    if in_file > size {
        problems.file(FileFault::SectionsOverlap {
            size: in_file,
            file: size,
        });
    }
    (!problems.refused()).then_some(sections)
}

impl<'a> Section<'a> {
    /// Reads the section whose header is `bytes`, but for its name. (In place: the stack
    /// is deep here.)
    fn read(&mut self, bytes: Bytes<'_>, file: &'a [u8], problems: &mut Problems) -> Option<()> {
        let (addr, offset) = (bytes.u64(16)?, bytes.u64(24)?);
        self.kind = bytes.u32(4)?;
        self.flags = bytes.u64(8)?;
        self.size = bytes.u64(32)?;
        self.link = bytes.u32(40)?;
        self.info = bytes.u32(44)?;
        self.align = bytes.u64(48)?;
        self.entry_size = bytes.u64(56)?;
        self.offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let (size, align) = (self.size, self.align);
        let data = match self.kind {
            SHT_NOBITS => Some(&b""[..]),
            _ => Bytes(file).range(offset, size),
        };
        match data {
            Some(data) if offset >= HEADER_SIZE => self.data = data,
            _ => {
                let file = file.len();
                problems.section(self, SectionFault::Bounds { offset, size, file });
            }
        }
        if align != 0 && !align.is_power_of_two() {
            problems.section(self, SectionFault::Alignment { align });
        } else if align != 0 && addr % align != 0 {
            problems.section(self, SectionFault::Address { addr, align });
        }
        if self.kind == SHT_NOBITS && self.flags & (SHF_WRITE | SHF_ALLOC) != 0 && size > MAX_SIZE {
            let limit = MAX_SIZE;
            problems.section(self, SectionFault::TooLarge { size, limit });
        }
        Some(())
    }
}

#[inline(never)]
fn symbol_table(sections: &[Section<'_>], problems: &mut Problems) -> Option<usize> {
    let mut tables = sections.iter().filter(|section| section.kind == SHT_SYMTAB);
    let Some(table) = tables.next() else {
        problems.file(FileFault::NoSymbolTable);
        return None;
    };
    for second in tables {
        problems.section(second, SectionFault::SecondSymbolTable);
    }
    let (entry, size) = (table.entry_size, table.size);
    if size == 0 || entry < SYMBOL_SIZE as u64 || size % entry != 0 {
        problems.section(table, SectionFault::SymbolTable { entry, size });
        return None;
    }
    Some(table.index)
}

/// The contents of section `index`, which must be a table of strings.
fn strings<'a>(
    sections: &[Section<'a>],
    index: usize,
    problems: &mut Problems,
) -> Option<&'a [u8]> {
    let Some(section) = sections.get(index) else {
        let value = u64::try_from(index).ok()?;
        problems.file(FileFault::SectionTable {
            what: "a table of strings does not exist",
            value,
        });
        return None;
    };
    let what = if section.kind != SHT_STRTAB {
        "it has another type"
    } else if section.data.first() != Some(&0) {
        "it does not begin with the empty string"
    } else if section.data.last() != Some(&0) {
        "its last string does not end"
    } else {
        return Some(section.data);
    };
    problems.section(section, SectionFault::Strings { what });
    None
}

/// Sets the names of sections, and records the first one of each known name. (Not
/// inlined: the caller's stack is deep.)
#[inline(never)]
fn name_sections<'a>(
    file: &[u8],
    header: &Header,
    sections: &mut [Section<'a>],
    names: &'a [u8],
    problems: &mut Problems,
) -> Option<[u16; Known::COUNT]> {
    let mut firsts = [0; Known::COUNT];
    for (index, section) in (0..).zip(sections).skip(1) {
        let header = header.section_header(file, section.index)?;
        let offset = header.u32(0)?;
        let at = usize::try_from(offset).ok();
        let Some(name) = at.and_then(|at| Bytes(names).c_str(at, NAME_LIMIT)) else {
            problems.section(section, SectionFault::Name { offset });
            continue;
        };
        section.name = name;
        section.known = Known::of(name);
        if section.known.is_none() && section.allocated() && section.size != 0 && is_table(name) {
            problems.section(section, SectionFault::UnknownTable);
        }
        let first = section.known;
        let first = first.and_then(|known| firsts.get_mut(known.index()));
        if let Some(first @ 0) = first {
            *first = index;
        }
    }
    Some(firsts)
}

/// Whether the hypervisor uses a section of this name.
fn is_table(name: &[u8]) -> bool {
    Special::of(name).is_some() || name.starts_with(section::HOOKS.as_bytes())
}

/// The symbols of a table, whose names are in `names`.
#[inline(never)]
fn symbols<'a>(
    table: &Section<'a>,
    names: &'a [u8],
    problems: &mut Problems,
) -> Option<Vec<Symbol<'a>>> {
    let entry = usize::try_from(table.entry_size).ok()?;
    let count = table.data.len().checked_div(entry)?;
    let mut symbols = problems.noted(fallible::with_room(count))?;
    for (index, record) in table.data.chunks_exact(entry).enumerate() {
        // A fixed-size array lets the compiler drop bounds checks.
        let record = Bytes(record.first_chunk::<SYMBOL_SIZE>()?);
        let offset = record.u32(0)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let names = names.get(start..).unwrap_or_default();
        let symbol = Symbol {
            names,
            section: record.u16(6)?,
            value: record.u64(8)?,
            size: record.u64(16)?,
        };
        if names.is_empty() && index != 0 {
            problems.symbol(index, &symbol, SymbolFault::Name { offset });
        }
        problems.noted(fallible::push(&mut symbols, symbol))?;
    }
    Some(symbols)
}

impl<'a> Symbol<'a> {
    /// Its name, truncated to the limit.
    pub(crate) fn name(&self) -> &'a [u8] {
        let names = self.names.get(..NAME_LIMIT).unwrap_or(self.names);
        Bytes(names).c_str(0, NAME_LIMIT).unwrap_or(names)
    }

    pub(crate) fn text(&self) -> alloc::string::String {
        text(self.name())
    }
}
