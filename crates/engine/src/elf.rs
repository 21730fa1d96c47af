// SPDX-License-Identifier: MIT OR Apache-2.0

//! A bounds-checked reader of relocatable ELF files: no offset or size in the file is
//! trusted.

use crate::arch::{Any, Architecture};
use crate::format::{Bytes, Known, MAX_SECTIONS, MAX_SIZE};
use crate::problem::{FileFault, Problems, SectionFault, SectionId, SymbolFault, text};
use alloc::vec::Vec;
use xsplice_abi::machine::{Machine, Width};
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
/// Size of `Elf64_Sym` and of `Elf32_Sym`.
const SYMBOL_SIZE: usize = 24;
const SYMBOL_SIZE_32: usize = 16;
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

    /// Where its entries are.
    pub(crate) fn records(&self) -> Records {
        Records {
            offset: self.offset as u64,
            entry: self.entry_size,
        }
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

/// Where records are in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Records {
    /// File offset of the first one.
    pub(crate) offset: u64,
    /// From each one to the next.
    pub(crate) entry: u64,
}

impl Records {
    /// Whether all of them are at multiples of `align`.
    pub(crate) fn are_aligned(self, align: u64) -> bool {
        self.offset.is_multiple_of(align) && self.entry.is_multiple_of(align)
    }
}

/// The sections and symbols of a file; both have their null entry at index 0.
#[derive(Debug, Default)]
pub(crate) struct Elf<'a> {
    pub(crate) sections: Vec<Section<'a>>,
    pub(crate) symbols: Vec<Symbol<'a>>,
    pub(crate) symbol_table: usize,
    /// The table of sections.
    pub(crate) headers: Records,
    /// The first section of each name, as in Xen's loader; 0 if there is none.
    firsts: [u16; Known::COUNT],
}

impl<'a> Elf<'a> {
    /// The first section of this name.
    pub(crate) fn section(&self, known: Known) -> Option<&Section<'a>> {
        let first = self.firsts.get(known.index()).filter(|first| **first != 0);
        self.sections.get(usize::from(*first?))
    }

    /// Parses `file` into an empty one. `None` if it cannot be loaded on this
    /// architecture. (A constant architecture leaves one width of fields.)
    pub(crate) fn parse(
        &mut self,
        architecture: impl Architecture,
        file: &'a [u8],
        problems: &mut Problems,
    ) -> Option<()> {
        let header = header(architecture, file, problems)?;
        self.headers = Records {
            offset: header.table,
            entry: header.entry_size.into(),
        };
        self.sections = sections(architecture, file, &header, problems)?;
        let symbol_table = symbol_table(architecture, &self.sections, problems);
        let names = strings(&self.sections, usize::from(header.names), problems);
        let names = names?;
        self.symbol_table = symbol_table?;
        self.firsts = name_sections(file, &header, &mut self.sections, names, problems)?;
        let table = self.sections.get(self.symbol_table)?;
        let names = strings(&self.sections, usize::try_from(table.link).ok()?, problems)?;
        self.symbols = symbols(architecture, table, names, problems)?;
        (!problems.refused()).then_some(())
    }
}

/// The architecture that a file is for; if that is not known, any of them, which refuses
/// it.
pub(crate) fn architecture_of(file: &[u8]) -> Any {
    machine(Bytes(file)).map_or(Any::X86_64, Any::of)
}

/// The sizes of the records of a file.
struct Sizes {
    header: u16,
    section: u16,
    symbol: usize,
}

const fn sizes(width: Width) -> Sizes {
    match width {
        Width::Bits32 => Sizes {
            header: 52,
            section: 40,
            symbol: SYMBOL_SIZE_32,
        },
        Width::Bits64 => Sizes {
            header: 64,
            section: 64,
            symbol: SYMBOL_SIZE,
        },
    }
}

/// Reads the fields of a record one after the other: their order is the same for both
/// widths.
struct Fields<'a> {
    bytes: Bytes<'a>,
    at: usize,
    width: Width,
}

impl Fields<'_> {
    #[inline(always)]
    fn skip(&mut self, bytes: usize) {
        self.at += bytes;
    }

    #[inline(always)]
    fn half(&mut self) -> Option<u16> {
        let value = self.bytes.u16(self.at);
        self.skip(2);
        value
    }

    #[inline(always)]
    fn word(&mut self) -> Option<u32> {
        let value = self.bytes.u32(self.at);
        self.skip(4);
        value
    }

    /// An address, an offset or a size.
    #[inline(always)]
    fn wide(&mut self) -> Option<u64> {
        let value = self.bytes.wide(self.at, self.width);
        self.skip(self.width.bytes());
        value
    }
}

struct Header {
    table: u64,
    entry_size: u16,
    count: u16,
    names: u16,
}

impl Header {
    #[inline(always)]
    fn section_header<'a>(&self, width: Width, file: &'a [u8], index: usize) -> Option<Bytes<'a>> {
        let at = u64::from(self.entry_size).checked_mul(u64::try_from(index).ok()?)?;
        let at = self.table.checked_add(at)?;
        Bytes(file)
            .range(at, u64::from(sizes(width).section))
            .map(Bytes)
    }

    /// The offset of a section's name, which is the first field of both widths.
    fn name_of(&self, file: &[u8], index: usize) -> Option<u32> {
        self.section_header(Width::Bits32, file, index)?.u32(0)
    }

    /// Checks that the section table is in the file.
    #[inline(always)]
    fn check(&self, width: Width, size: u64, problems: &mut Problems) {
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
        } else if self.entry_size < sizes(width).section {
            bad_table("its entries are too small", entry_size);
        } else if (size - self.table) / entry_size < count {
            bad_table("it ends past the end of the file", self.table);
        }
    }
}

#[inline(never)]
fn header(architecture: impl Architecture, file: &[u8], problems: &mut Problems) -> Option<Header> {
    let bytes = identify(architecture, file, problems)?;
    let width = architecture.machine().width();
    // After what all classes have in common: e_ident, e_type, e_machine and e_version.
    let mut fields = Fields {
        bytes,
        at: 24,
        width,
    };
    let _entry = fields.wide()?;
    let _programs = fields.wide()?;
    let table = fields.wide()?;
    let flags = fields.word()?;
    // e_ehsize and e_phentsize.
    fields.skip(4);
    let programs = fields.half()?;
    check_fields(bytes, programs, problems)?;
    if let Some(expected) = architecture.wrong_flags(flags) {
        problems.file(FileFault::Header {
            field: "e_flags",
            value: flags.into(),
            expected,
        });
    }
    let header = Header {
        table,
        entry_size: fields.half()?,
        count: fields.half()?,
        names: fields.half()?,
    };
    header.check(width, file.len() as u64, problems);
    (!problems.refused()).then_some(header)
}

/// The header of a file for this architecture: other classes have a different layout.
fn identify<'a>(
    architecture: impl Architecture,
    file: &'a [u8],
    problems: &mut Problems,
) -> Option<Bytes<'a>> {
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
    let takes = architecture.machine();
    let width = takes.width();
    let whole = sizes(width).header;
    let Some(bytes) = Bytes(file).range(0, whole.into()).map(Bytes) else {
        problems.file(FileFault::HeaderCutOff {
            size: file.len(),
            whole: whole.into(),
        });
        return None;
    };
    let [class, data] = bytes.0.get(4..)?.first_chunk().copied()?;
    let wanted = match width {
        Width::Bits32 => 1,
        Width::Bits64 => 2,
    };
    match machine(bytes) {
        Some(machine) if machine != takes => {
            problems.file(FileFault::OtherMachine { machine, takes });
        }
        known => {
            let number = known.is_none().then_some(bytes.u16(18)?);
            for (field, value, right) in [
                ("class", class.into(), class == wanted),
                ("data encoding", data.into(), data == 1),
                ("machine", number.unwrap_or_default(), known.is_some()),
            ] {
                if !right {
                    let value = u64::from(value);
                    problems.file(FileFault::Machine { field, value });
                }
            }
        }
    }
    (!problems.refused()).then_some(bytes)
}

/// The machine of a file with this header.
fn machine(header: Bytes<'_>) -> Option<Machine> {
    Machine::from_elf(header.u16(18)?)
}

/// Checks the fields of a header that do not describe the section table.
fn check_fields(bytes: Bytes<'_>, programs: u16, problems: &mut Problems) -> Option<()> {
    let [version, os, abi_version] = bytes.0.get(6..)?.first_chunk().copied()?;
    let kind = u64::from(bytes.u16(16)?);
    let version_word = u64::from(bytes.u32(20)?);
    for (field, value, good, expected) in [
        ("e_ident version", u64::from(version), version == 1, "1"),
        ("e_version", version_word, version_word == 1, "1"),
        ("OS ABI", u64::from(os), os == 0 || os == 9, "0 or 9"),
        ("ABI version", u64::from(abi_version), abi_version == 0, "0"),
        ("e_type", kind, kind == 1, "1 (relocatable)"),
        ("e_phnum", programs.into(), programs == 0, "0"),
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

#[inline(never)]
fn sections<'a>(
    architecture: impl Architecture,
    file: &'a [u8],
    header: &Header,
    problems: &mut Problems,
) -> Option<Vec<Section<'a>>> {
    let width = architecture.machine().width();
    let mut sections = problems.noted(fallible::with_room(usize::from(header.count)))?;
    problems.noted(fallible::push(&mut sections, Section::default()))?;
    let mut in_file = 0;
    for index in 1..usize::from(header.count) {
        let bytes = header.section_header(width, file, index)?;
        problems.noted(fallible::push(&mut sections, Section::default()))?;
        let section = sections.last_mut()?;
        section.index = index;
        section.read(width, bytes, file, problems)?;
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
    #[inline(always)]
    fn read(
        &mut self,
        width: Width,
        bytes: Bytes<'_>,
        file: &'a [u8],
        problems: &mut Problems,
    ) -> Option<()> {
        // Behind the name.
        let mut fields = Fields {
            bytes,
            at: 4,
            width,
        };
        self.kind = fields.word()?;
        self.flags = fields.wide()?;
        let (addr, offset) = (fields.wide()?, fields.wide()?);
        self.size = fields.wide()?;
        self.link = fields.word()?;
        self.info = fields.word()?;
        self.align = fields.wide()?;
        self.entry_size = fields.wide()?;
        self.offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let (size, align) = (self.size, self.align);
        let data = match self.kind {
            SHT_NOBITS => Some(&b""[..]),
            _ => Bytes(file).range(offset, size),
        };
        match data {
            Some(data) if offset >= sizes(width).header.into() => self.data = data,
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
fn symbol_table(
    architecture: impl Architecture,
    sections: &[Section<'_>],
    problems: &mut Problems,
) -> Option<usize> {
    let mut tables = sections.iter().filter(|section| section.kind == SHT_SYMTAB);
    let Some(table) = tables.next() else {
        problems.file(FileFault::NoSymbolTable);
        return None;
    };
    for second in tables {
        problems.section(second, SectionFault::SecondSymbolTable);
    }
    let (entry, size) = (table.entry_size, table.size);
    let least = sizes(architecture.machine().width()).symbol;
    if size == 0 || entry < least as u64 || size % entry != 0 {
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
        let offset = header.name_of(file, section.index)?;
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
    architecture: impl Architecture,
    table: &Section<'a>,
    names: &'a [u8],
    problems: &mut Problems,
) -> Option<Vec<Symbol<'a>>> {
    let width = architecture.machine().width();
    let entry = usize::try_from(table.entry_size).ok()?;
    let count = table.data.len().checked_div(entry)?;
    let mut symbols = problems.noted(fallible::with_room(count))?;
    for (index, record) in table.data.chunks_exact(entry).enumerate() {
        let (offset, mut symbol) = Symbol::read(width, record)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        symbol.names = names.get(start..).unwrap_or_default();
        if symbol.names.is_empty() && index != 0 {
            problems.symbol(index, &symbol, SymbolFault::Name { offset });
        }
        problems.noted(fallible::push(&mut symbols, symbol))?;
    }
    Some(symbols)
}

impl<'a> Symbol<'a> {
    /// The offset of its name, and the rest.
    #[inline(always)]
    fn read(width: Width, record: &[u8]) -> Option<(u32, Self)> {
        // Fixed-size arrays let the compiler drop bounds checks.
        let (name, section, value, size) = match width {
            Width::Bits64 => {
                let record = Bytes(record.first_chunk::<SYMBOL_SIZE>()?);
                let (value, size) = (record.u64(8)?, record.u64(16)?);
                (record.u32(0)?, record.u16(6)?, value, size)
            }
            Width::Bits32 => {
                let record = Bytes(record.first_chunk::<SYMBOL_SIZE_32>()?);
                let (value, size) = (record.u32(4)?.into(), record.u32(8)?.into());
                (record.u32(0)?, record.u16(14)?, value, size)
            }
        };
        let symbol = Self {
            names: b"",
            section,
            value,
            size,
        };
        Some((name, symbol))
    }

    /// Its name, truncated to the limit.
    pub(crate) fn name(&self) -> &'a [u8] {
        let names = self.names.get(..NAME_LIMIT).unwrap_or(self.names);
        Bytes(names).c_str(0, NAME_LIMIT).unwrap_or(names)
    }

    pub(crate) fn text(&self) -> alloc::string::String {
        text(self.name())
    }
}
