//! A relocatable object file as sections, symbols and references.

use ::object::elf;
use ::object::read::elf::{ElfFile64, FileHeader, SectionHeader, Sym};
use ::object::{Endianness, Object as _, ObjectSection as _};
use iced_x86::{Decoder, DecoderOptions};
use std::collections::BTreeMap;

/// Why a file cannot be read as an x86-64 relocatable object.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The ELF structure is damaged.
    #[error("{file}: not a readable ELF object: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// What the ELF reader found.
        reason: String,
    },
    /// It is an ELF file of another kind.
    #[error(
        "{file}: expected an x86-64 relocatable object, found ELF type {e_type}, machine {e_machine}"
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
    #[error("{file}: relocation at {section}+{offset:#x} is out of bounds")]
    BadRelocation {
        /// The file.
        file: String,
        /// The section that is relocated.
        section: String,
        /// Offset in that section.
        offset: u64,
    },
}

/// What a section holds, as far as patching cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Code that stays in memory.
    Text,
    /// Code or data that is freed after boot, or only used while booting.
    Init,
    /// Read-only data.
    ReadOnly,
    /// Writable data, initialised.
    Data,
    /// Writable data, zero at start.
    Bss,
    /// A template that every CPU has a copy of.
    PerCpu,
    /// A table about other code: see [`crate::special`].
    Special,
    /// Not part of the linked hypervisor.
    Ignored,
}

/// One section.
#[derive(Debug, Clone)]
pub struct Section {
    /// Section name.
    pub name: String,
    /// What it holds.
    pub class: Class,
    /// Whether it is mergeable, and then the size of an entry (1 for strings).
    pub merge: Option<u64>,
    /// Contents; empty for sections without any in the file.
    pub data: Vec<u8>,
    /// Size in bytes.
    pub size: u64,
    /// Alignment in bytes.
    pub align: u64,
    /// Relocations in ascending order of offset.
    pub relocations: Vec<Relocation>,
}

/// One relocation, as the file has it, with the reference it stands for.
#[derive(Debug, Clone)]
pub struct Relocation {
    /// Offset of the field in its section.
    pub offset: u64,
    /// `R_X86_64_*`.
    pub r_type: u32,
    /// What the field leads to.
    pub reference: Reference,
}

/// What a relocated field leads to, without regard to how it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The thing referred to.
    pub target: Target,
    /// Offset in bytes from the start of the target.
    pub offset: i64,
    /// What is added to the target's address and offset to get the field's
    /// addend, for example -4 for the operand of a call.
    pub bias: i64,
}

/// The thing that a reference leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A named symbol of this object, by index.
    Symbol(usize),
    /// A symbol that another object defines.
    External(String),
    /// A place in a section that no named symbol covers.
    Anonymous(usize),
}

/// A named symbol that covers bytes of a section.
#[derive(Debug, Clone)]
pub struct Symbol {
    /// Name in this object.
    pub name: String,
    /// Index of its section in [`Object::sections`].
    pub section: usize,
    /// Offset in that section.
    pub offset: u64,
    /// Size in bytes, as the file says.
    pub size: u64,
    /// Bytes behind it that belong to it: code that inline assembly moves out
    /// of the way is put at the end of the function's section, where the size
    /// of the function does not count it.
    pub tail: u64,
    /// Whether other objects can refer to it.
    pub global: bool,
    /// Whether it is a function.
    pub function: bool,
}

impl Symbol {
    /// All bytes that belong to it.
    pub fn extent(&self) -> u64 {
        self.size.saturating_add(self.tail)
    }
}

/// A relocatable object file.
#[derive(Debug, Clone, Default)]
pub struct Object {
    /// The source file that its FILE symbol names.
    pub file: String,
    /// All sections, index 0 being the null section.
    pub sections: Vec<Section>,
    /// All named symbols that are defined here.
    pub symbols: Vec<Symbol>,
}

impl Object {
    /// Reads the object file `data`; `path` is for messages.
    ///
    /// # Errors
    /// If `data` is no x86-64 relocatable ELF file or is damaged.
    pub fn read(path: &str, data: &[u8]) -> Result<Self, ReadError> {
        Reader::new(path, data)?.read()
    }

    /// The symbol that covers `offset` in `section`.
    pub fn symbol_at(&self, section: usize, offset: u64) -> Option<usize> {
        let covering = self.symbols.iter().enumerate().filter(|(_, s)| {
            s.section == section
                && (s.offset == offset
                    || (s.offset..s.offset.saturating_add(s.extent())).contains(&offset))
        });
        // A label within a function is no place of its own.
        covering
            .min_by_key(|(_, s)| std::cmp::Reverse(s.extent()))
            .map(|(index, _)| index)
    }

    /// The bytes of a symbol; empty if its section has none in the file.
    pub fn bytes(&self, symbol: &Symbol) -> &[u8] {
        slice(
            &self.sections[symbol.section].data,
            symbol.offset,
            symbol.extent(),
        )
    }

    /// The relocations within `size` bytes from `offset` of a section.
    pub fn relocations(&self, section: usize, offset: u64, size: u64) -> &[Relocation] {
        let all = &self.sections[section].relocations;
        let start = all.partition_point(|r| r.offset < offset);
        let end = all.partition_point(|r| r.offset < offset.saturating_add(size));
        &all[start..end]
    }

    /// The text of the string that starts at `offset` of a string section.
    pub fn string(&self, section: usize, offset: i64) -> Option<&[u8]> {
        let data = self.sections[section]
            .data
            .get(usize::try_from(offset).ok()?..)?;
        Some(&data[..=data.iter().position(|&b| b == 0)?])
    }

    /// A label for messages: `name`, or section and offset of what has none.
    pub fn label(&self, target: &Target) -> String {
        match target {
            Target::Symbol(index) => self.symbols[*index].name.clone(),
            Target::External(name) => name.clone(),
            Target::Anonymous(section) => self.sections[*section].name.clone(),
        }
    }
}

/// `size` bytes of `data` from `offset`, or nothing if they are not all there.
pub(crate) fn slice(data: &[u8], offset: u64, size: u64) -> &[u8] {
    let range = usize::try_from(offset).ok().zip(usize::try_from(size).ok());
    range
        .and_then(|(start, len)| data.get(start..start.checked_add(len)?))
        .unwrap_or_default()
}

struct Reader<'a> {
    path: &'a str,
    elf: ElfFile64<'a, Endianness>,
}

impl<'a> Reader<'a> {
    fn new(path: &'a str, data: &'a [u8]) -> Result<Self, ReadError> {
        let elf = ElfFile64::parse(data).map_err(|e| malformed(path, &e))?;
        let header = elf.elf_header();
        let (e_type, e_machine) = (header.e_type(elf.endian()), header.e_machine(elf.endian()));
        if e_type != elf::ET_REL || e_machine != elf::EM_X86_64 {
            return Err(ReadError::WrongKind {
                file: path.to_owned(),
                e_type: e_type.0,
                e_machine: e_machine.0,
            });
        }
        Ok(Self { path, elf })
    }

    fn read(&self) -> Result<Object, ReadError> {
        let mut object = Object {
            file: String::new(),
            sections: self.sections()?,
            symbols: Vec::new(),
        };
        let named = self.symbols(&mut object)?;
        add_tails(&mut object);
        let references: Vec<Vec<Relocation>> = (0..object.sections.len())
            .map(|index| self.relocations(&object, &named, index))
            .collect::<Result<_, _>>()?;
        for (section, relocations) in object.sections.iter_mut().zip(references) {
            section.relocations = relocations;
        }
        Ok(object)
    }

    fn sections(&self) -> Result<Vec<Section>, ReadError> {
        let endian = self.elf.endian();
        let mut sections = vec![no_section()];
        for section in self.elf.sections() {
            let header = section.elf_section_header();
            let flags = header.sh_flags(endian);
            let name = section
                .name()
                .map_err(|e| malformed(self.path, &e))?
                .to_owned();
            let no_bits = header.sh_type(endian) == elf::SHT_NOBITS;
            let merge = (flags.contains(elf::SHF_MERGE)).then(|| header.sh_entsize(endian).max(1));
            sections.resize_with(section.index().0, no_section);
            sections.push(Section {
                class: classify(&name, flags, no_bits),
                name,
                merge,
                data: section
                    .data()
                    .map_err(|e| malformed(self.path, &e))?
                    .to_vec(),
                size: section.size(),
                align: section.align().max(1),
                relocations: Vec::new(),
            });
        }
        Ok(sections)
    }

    /// Fills in the symbols; returns for each ELF symbol what it stands for.
    fn symbols(&self, object: &mut Object) -> Result<Vec<(Target, i64)>, ReadError> {
        let endian = self.elf.endian();
        let table = self.elf.elf_symbol_table();
        let mut meaning = Vec::new();
        for symbol in table.iter() {
            let name = table
                .symbol_name(endian, symbol)
                .map_err(|e| malformed(self.path, &e))?;
            let name = String::from_utf8_lossy(name).into_owned();
            let shndx = usize::from(symbol.st_shndx(endian).0);
            let value = symbol.st_value(endian);
            let kind = symbol.st_type();
            if kind == elf::STT_FILE {
                object.file.clone_from(&name);
            }
            let defined = shndx != 0 && shndx < object.sections.len();
            let named = kind != elf::STT_SECTION && !name.is_empty() && !name.starts_with(".L");
            meaning.push(if defined && named {
                object.symbols.push(Symbol {
                    global: symbol.st_bind() != elf::STB_LOCAL,
                    function: kind == elf::STT_FUNC,
                    name,
                    section: shndx,
                    offset: value,
                    size: symbol.st_size(endian),
                    tail: 0,
                });
                (Target::Symbol(object.symbols.len() - 1), 0)
            } else if defined {
                (Target::Anonymous(shndx), value.cast_signed())
            } else {
                (Target::External(name), 0)
            });
        }
        Ok(meaning)
    }

    fn relocations(
        &self,
        object: &Object,
        meaning: &[(Target, i64)],
        index: usize,
    ) -> Result<Vec<Relocation>, ReadError> {
        let section = &object.sections[index];
        let Ok(elf_section) = self.elf.section_by_index(::object::SectionIndex(index)) else {
            return Ok(Vec::new());
        };
        let ends = match section.class {
            Class::Special | Class::Ignored => BTreeMap::new(),
            _ if is_code(section) => instruction_ends(&section.data),
            _ => BTreeMap::new(),
        };
        let mut relocations = Vec::new();
        for (offset, relocation) in elf_section.relocations() {
            let bad = || ReadError::BadRelocation {
                file: self.path.to_owned(),
                section: section.name.clone(),
                offset,
            };
            let ::object::RelocationFlags::Elf { r_type } = relocation.flags() else {
                return Err(bad());
            };
            let ::object::RelocationTarget::Symbol(symbol) = relocation.target() else {
                return Err(bad());
            };
            let (target, base) = meaning.get(symbol.0).cloned().ok_or_else(bad)?;
            let bias = match r_type {
                elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 | elf::R_X86_64_PC8 => {
                    match ends.range(..=offset).next_back() {
                        Some((_, &end)) if end > offset => -(end - offset).cast_signed(),
                        _ => 0,
                    }
                }
                _ => 0,
            };
            let bias = bias + crate::special::bias(&section.name, offset, relocation.addend());
            let offset_in_base = base.wrapping_add(relocation.addend()).wrapping_sub(bias);
            let (target, target_offset) = settle(object, target, offset_in_base);
            relocations.push(Relocation {
                offset,
                r_type: r_type.0,
                reference: Reference {
                    target,
                    offset: target_offset,
                    bias,
                },
            });
        }
        relocations.sort_by_key(|r| r.offset);
        Ok(relocations)
    }
}

/// Gives the end of every section that holds a single function to it.
fn add_tails(object: &mut Object) {
    let mut functions: BTreeMap<usize, Option<(u64, u64)>> = BTreeMap::new();
    for symbol in object.symbols.iter().filter(|s| s.function && s.size > 0) {
        let place = (symbol.offset, symbol.size);
        functions
            .entry(symbol.section)
            .and_modify(|only| *only = only.filter(|&other| other == place))
            .or_insert(Some(place));
    }
    for symbol in &mut object.symbols {
        if let Some(Some(place)) = functions.get(&symbol.section)
            && *place == (symbol.offset, symbol.size)
        {
            let end = symbol.offset.saturating_add(symbol.size);
            symbol.tail = object.sections[symbol.section].size.saturating_sub(end);
        }
    }
}

/// Names the symbol that a place in a section belongs to.
fn settle(object: &Object, target: Target, offset: i64) -> (Target, i64) {
    let Target::Anonymous(section) = target else {
        return (target, offset);
    };
    let covering = u64::try_from(offset)
        .ok()
        .and_then(|at| object.symbol_at(section, at));
    // Code that walks an array may hold a pointer before or behind it.
    let nearest = || {
        let all = object.symbols.iter().enumerate();
        let mut here = all.filter(|(_, s)| s.section == section);
        let end = object.sections[section].size.cast_signed();
        let found = if offset < 0 {
            here.min_by_key(|(_, s)| s.offset)
        } else if offset >= end {
            here.max_by_key(|(_, s)| s.offset)
        } else {
            here.next().filter(|_| here.next().is_none())
        };
        found.map(|(index, _)| index)
    };
    match covering.or_else(nearest) {
        Some(index) => {
            let start = object.symbols[index].offset.cast_signed();
            (Target::Symbol(index), offset.wrapping_sub(start))
        }
        None => (Target::Anonymous(section), offset),
    }
}

/// Where each instruction of `code` ends, by where it starts.
fn instruction_ends(code: &[u8]) -> BTreeMap<u64, u64> {
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    let mut ends = BTreeMap::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        ends.insert(instruction.ip(), instruction.next_ip());
    }
    ends
}

fn is_code(section: &Section) -> bool {
    matches!(section.class, Class::Text | Class::Init)
        && (section.name.contains("text") || section.name == ".fixup")
}

/// Fills the place of a section that is not read.
fn no_section() -> Section {
    Section {
        name: String::new(),
        class: Class::Ignored,
        merge: None,
        data: Vec::new(),
        size: 0,
        align: 1,
        relocations: Vec::new(),
    }
}

fn classify(name: &str, flags: elf::SectionFlags, no_bits: bool) -> Class {
    if !flags.contains(elf::SHF_ALLOC) || name.starts_with(".discard") || name.starts_with(".note")
    {
        Class::Ignored
    } else if crate::special::is_table(name) || name == ".altinstr_replacement" {
        Class::Special
    } else if name.starts_with(".init")
        || name.starts_with(".exit")
        || name.starts_with(".trampoline")
        || name == ".reloc"
    {
        Class::Init
    } else if name.contains(".percpu") {
        Class::PerCpu
    } else if flags.contains(elf::SHF_EXECINSTR) {
        Class::Text
    } else if no_bits {
        Class::Bss
    } else if !flags.contains(elf::SHF_WRITE) || name.starts_with(".data.rel.ro") {
        Class::ReadOnly
    } else {
        Class::Data
    }
}

fn malformed(path: &str, error: &dyn std::fmt::Display) -> ReadError {
    ReadError::Malformed {
        file: path.to_owned(),
        reason: error.to_string(),
    }
}
