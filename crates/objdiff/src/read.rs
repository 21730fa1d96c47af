// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads an ELF file into an [`Object`].

use crate::arch::{self, Arch, Does, Instruction, Operand};
use crate::line::{LINES, NAMES};
use crate::object::{
    Class, Merge, Object, ReadError, Reference, Relocation, Section, SectionIx, Symbol, SymbolIx,
    Target,
};
use ::object::elf;
use ::object::elf::{FileHeader32, FileHeader64};
use ::object::read::elf::{ElfFile, FileHeader, SectionHeader, Sym};
use ::object::{Endianness, FileKind, Object as _, ObjectSection as _};
use index_vec::{IndexVec, index_vec};
use std::collections::BTreeMap;
use std::ops::Range;
use xsplice_abi::machine::Machine;
use xsplice_abi::special::{self, Special};

impl Object {
    /// Reads the object file `data`; `path` is for messages.
    ///
    /// # Errors
    /// If `data` is no relocatable ELF file for a known machine, or is damaged.
    pub fn read(path: &str, data: &[u8]) -> Result<Self, ReadError> {
        match FileKind::parse(data) {
            Ok(FileKind::Elf32) => Reader::<FileHeader32<_>>::new(path, data)?.read(),
            _ => Reader::<FileHeader64<_>>::new(path, data)?.read(),
        }
    }
}

/// Reads one ELF file.
struct Reader<'a, H: FileHeader<Endian = Endianness>> {
    path: &'a str,
    elf: ElfFile<'a, H>,
    arch: &'static dyn Arch,
}

impl<'a, H: FileHeader<Endian = Endianness>> Reader<'a, H> {
    fn new(path: &'a str, data: &'a [u8]) -> Result<Self, ReadError> {
        let elf = ElfFile::<H>::parse(data).map_err(|e| malformed(path, &e))?;
        let header = elf.elf_header();
        let (e_type, e_machine) = (header.e_type(elf.endian()), header.e_machine(elf.endian()));
        let arch = Machine::from_elf(e_machine.0).map(arch::of);
        match arch.filter(|_| e_type == elf::ET_REL) {
            Some(arch) => Ok(Self { path, elf, arch }),
            None => Err(ReadError::WrongKind {
                file: path.to_owned(),
                e_type: e_type.0,
                e_machine: e_machine.0,
            }),
        }
    }

    fn read(&self) -> Result<Object, ReadError> {
        let mut object = Object {
            sections: self.sections()?,
            ..Object::empty(self.arch)
        };
        let meaning = self.symbols(&mut object)?;
        add_tails(&mut object);
        add_labels(&mut object);
        object
            .index
            .add_symbols(object.sections.len(), &object.symbols);
        find_homes(&mut object);
        let sections = object.sections.indices();
        let references: Vec<Vec<Relocation>> = sections
            .map(|index| self.relocations(&object, &meaning, index))
            .collect::<Result<_, _>>()?;
        for (section, relocations) in object.sections.iter_mut().zip(references) {
            section.relocations = relocations;
        }
        object.index.add_pieces(&object.sections);
        Ok(object)
    }

    fn sections(&self) -> Result<IndexVec<SectionIx, Section>, ReadError> {
        let endian = self.elf.endian();
        let mut sections = index_vec![no_section()];
        for section in self.elf.sections() {
            let header = section.elf_section_header();
            let flags = header.sh_flags(endian);
            let name = section
                .name()
                .map_err(|e| malformed(self.path, &e))?
                .to_owned();
            let no_bits = header.sh_type(endian) == elf::SHT_NOBITS;
            let unit = header.sh_entsize(endian).into().max(1);
            let merge = flags.contains(elf::SHF_MERGE).then(|| {
                if flags.contains(elf::SHF_STRINGS) {
                    Merge::Strings(unit)
                } else {
                    Merge::Constants(unit)
                }
            });
            sections.resize_with(section.index().0, no_section);
            let class = match self.arch.is_discarded(&name) {
                true => Class::Ignored,
                false => classify(&name, flags, no_bits),
            };
            let unknown = match Special::of(&name) {
                Some(Special::Table(table)) => !self.arch.has(table),
                Some(Special::Unknown) => true,
                Some(Special::Replacements) | None => false,
            };
            if class == Class::Special && unknown && section.size() > 0 {
                return Err(ReadError::UnknownTable {
                    file: self.path.to_owned(),
                    machine: self.arch.machine(),
                    section: name,
                });
            }
            let lines = name == LINES || NAMES.contains(&name.as_str());
            let wanted = lines || !name.starts_with(".debug");
            let data = section.data().map_err(|e| malformed(self.path, &e))?;
            sections.push(Section {
                class,
                home: name.clone(),
                name,
                merge,
                data: if wanted { data.to_vec() } else { Vec::new() },
                size: section.size(),
                align: section.align().max(1),
                relocations: Vec::new(),
                literals: Vec::new(),
            });
        }
        Ok(sections)
    }

    /// Fills in the symbols; returns the meaning of each ELF symbol.
    fn symbols(&self, object: &mut Object) -> Result<Vec<Meaning>, ReadError> {
        let endian = self.elf.endian();
        let table = self.elf.elf_symbol_table();
        let mut meaning = Vec::new();
        let mut marks: BTreeMap<SectionIx, BTreeMap<u64, bool>> = BTreeMap::new();
        for symbol in table.iter() {
            let name = table
                .symbol_name(endian, symbol)
                .map_err(|e| malformed(self.path, &e))?;
            let name = String::from_utf8_lossy(name);
            let section = SectionIx::from(usize::from(symbol.st_shndx(endian).0));
            let value = symbol.st_value(endian).into();
            let kind = symbol.st_type();
            if kind == elf::STT_FILE {
                object.file = name.clone().into_owned();
            }
            let defined = section != 0 && section < object.sections.len();
            let mark = self.arch.machine().is_mapping_symbol(name.as_bytes());
            if mark && self.arch.is_foreign_code(&name) {
                return Err(ReadError::ForeignCode {
                    file: self.path.to_owned(),
                    section: object.sections.get(section).map(|s| s.name.clone()),
                    offset: value,
                });
            }
            if mark && defined {
                let data = name.starts_with("$d");
                marks.entry(section).or_default().insert(value, data);
            }
            let named =
                kind != elf::STT_SECTION && !name.is_empty() && !name.starts_with(".L") && !mark;
            meaning.push(if defined && named {
                let symbol = object.symbols.push(Symbol {
                    global: symbol.st_bind() != elf::STB_LOCAL,
                    weak: symbol.st_bind() == elf::STB_WEAK,
                    function: kind == elf::STT_FUNC,
                    variable: kind == elf::STT_OBJECT,
                    name: name.into(),
                    section,
                    offset: value,
                    size: symbol.st_size(endian).into(),
                    tail: 0,
                });
                Meaning::Target(Target::Symbol(symbol))
            } else if defined {
                Meaning::Place {
                    section,
                    offset: value.cast_signed(),
                    exact: kind != elf::STT_SECTION,
                }
            } else {
                Meaning::Target(Target::External(name.into()))
            });
        }
        for (section, marks) in marks {
            let section = &mut object.sections[section];
            section.literals = literals(&marks, section.size);
        }
        Ok(meaning)
    }

    fn relocations(
        &self,
        object: &Object,
        meaning: &[Meaning],
        index: SectionIx,
    ) -> Result<Vec<Relocation>, ReadError> {
        let section = &object.sections[index];
        if section.class == Class::Ignored && section.name != LINES {
            return Ok(Vec::new());
        }
        let Ok(elf_section) = self
            .elf
            .section_by_index(::object::SectionIndex(index.index()))
        else {
            return Ok(Vec::new());
        };
        let mut fields: Vec<_> = elf_section.relocations().collect();
        fields.sort_by_key(|&(offset, _)| offset);
        let code = if section.is_code() {
            Code::decode(object, index, fields.iter().map(|&(offset, _)| offset))
        } else {
            Code::default()
        };
        let bias_of = crate::special::bias(self.arch, &section.name);
        let is_used = |offset: u64| {
            special::table(&section.name).is_none_or(|table| {
                let offset = offset % self.arch.entry_size(table);
                self.arch.uses_field(table, offset)
            })
        };
        let mut relocations = Vec::with_capacity(fields.len());
        for (at, (offset, relocation)) in fields.into_iter().enumerate() {
            if !is_used(offset) {
                continue;
            }
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
            let meant = meaning.get(symbol.0).ok_or_else(bad)?;
            let addend = match relocation.has_implicit_addend() {
                true => self
                    .held_addend(section, offset, r_type.0)
                    .ok_or_else(bad)?,
                false => relocation.addend(),
            };
            let user = code.users.get(at).copied().flatten();
            let bias = user.map_or(0, |user| self.arch.bias(&user, offset, r_type.0))
                + bias_of.as_ref().map_or(0, |bias| bias(offset, addend));
            relocations.push(Relocation {
                offset,
                r_type: r_type.0,
                branch: user.is_some_and(|user| user.branch_target().is_some()),
                inferred: matches!(meant, Meaning::Place { .. }),
                reference: meant.reference(object, addend, bias),
            });
        }
        let unknown = |field: &&Relocation| self.arch.relocation(field.r_type).is_none();
        if let Some(field) = code.branches.iter().find(unknown) {
            return Err(ReadError::Unnamed {
                file: self.path.to_owned(),
                section: section.name.clone(),
                offset: field.offset,
            });
        }
        if !code.branches.is_empty() {
            relocations.extend(code.branches);
            relocations.sort_by_key(|r| r.offset);
        }
        Ok(relocations)
    }
}

impl<H: FileHeader<Endian = Endianness>> Reader<'_, H> {
    /// The addend that the place of a relocation has.
    fn held_addend(&self, section: &Section, offset: u64, r_type: u32) -> Option<i64> {
        let place = section.data.get(usize::try_from(offset).ok()?..)?;
        // The contents of a place of an unknown type are not known either.
        self.arch.relocation(r_type)?.addend(place)
    }
}

/// The meaning of an ELF symbol.
enum Meaning {
    /// A symbol of this or another object.
    Target(Target),
    /// A place without a name.
    Place {
        section: SectionIx,
        offset: i64,
        /// Whether it is a label, not the section as a whole.
        exact: bool,
    },
}

impl Meaning {
    /// The reference of a field with this addend, of which `bias` is no offset.
    fn reference(&self, object: &Object, addend: i64, bias: i64) -> Reference {
        match *self {
            Self::Target(ref target) => Reference {
                target: target.clone(),
                offset: addend.wrapping_sub(bias),
                bias,
            },
            // A field may point before or after a string, but mean it.
            Self::Place {
                section,
                offset,
                exact: true,
            } if object.sections[section].merge.is_some() => Reference {
                target: Target::Anonymous(section),
                offset,
                bias: addend,
            },
            Self::Place {
                section, offset, ..
            } => {
                let offset = offset.wrapping_add(addend).wrapping_sub(bias);
                settle(object, section, offset, bias)
            }
        }
    }
}

/// Determines the home of each section.
fn find_homes(object: &mut Object) {
    let sections = object.sections.iter_enumerated();
    let homes: Vec<String> = sections
        .map(|(index, section)| {
            let symbols = object.symbols_in(index);
            let names = symbols.map(|index| &object.symbols[index].name);
            crate::placement::home(&section.name, names)
        })
        .collect();
    for (section, home) in object.sections.iter_mut().zip(homes) {
        section.home = home;
    }
}

/// Gives a label without a size everything up to the next symbol.
fn add_labels(object: &mut Object) {
    let mut starts: BTreeMap<SectionIx, Vec<u64>> = BTreeMap::new();
    let mut covered: BTreeMap<SectionIx, Vec<(u64, u64)>> = BTreeMap::new();
    for symbol in &object.symbols {
        starts
            .entry(symbol.section)
            .or_default()
            .push(symbol.offset);
        if symbol.extent() > 0 {
            let sized = covered.entry(symbol.section).or_default();
            sized.push((symbol.offset, symbol.end()));
        }
    }
    starts.values_mut().for_each(|s| s.sort_unstable());
    for symbol in &mut object.symbols {
        let within = |&(start, end): &(u64, u64)| (start..end).contains(&symbol.offset);
        let sized = covered.get(&symbol.section).map(Vec::as_slice);
        if symbol.size > 0 || symbol.variable || sized.unwrap_or_default().iter().any(within) {
            continue;
        }
        let starts = &starts[&symbol.section];
        let next = starts.get(starts.partition_point(|&s| s <= symbol.offset));
        let end = object.sections[symbol.section].size;
        symbol.tail = next
            .map_or(end, |&next| next.min(end))
            .saturating_sub(symbol.offset);
    }
}

/// Gives a function that is alone in its section everything up to the section's end.
fn add_tails(object: &mut Object) {
    let mut functions: BTreeMap<SectionIx, Option<(u64, u64)>> = BTreeMap::new();
    for symbol in object.symbols.iter().filter(|s| s.function && s.size > 0) {
        let place = (symbol.offset, symbol.size);
        functions
            .entry(symbol.section)
            .and_modify(|only| *only = only.filter(|&other| other == place))
            .or_insert(Some(place));
    }
    // In hand-written assembly, other code may follow that has no size. In a section that
    // the compiler made for the function, all labels are the function's.
    let shared = object.symbols.iter().filter(|symbol| {
        let section = &object.sections[symbol.section];
        let only = functions.get(&symbol.section).copied().flatten();
        let outside = only.is_some_and(|(start, size)| {
            !(start..start.saturating_add(size)).contains(&symbol.offset)
        });
        outside && section.class == Class::Text && !is_of_one(object, symbol.section)
    });
    let shared: Vec<SectionIx> = shared.map(|symbol| symbol.section).collect();
    for section in shared {
        functions.remove(&section);
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

/// Whether the compiler made a section for one function.
fn is_of_one(object: &Object, index: SectionIx) -> bool {
    let name = &object.sections[index].name;
    let mut here = object.symbols.iter().filter(|s| s.section == index);
    here.any(|s| s.function && name.ends_with(&format!(".{}", s.name)))
}

/// Determines the symbol that a place in a section belongs to.
fn settle(object: &Object, section: SectionIx, offset: i64, bias: i64) -> Reference {
    let covering = u64::try_from(offset)
        .ok()
        .and_then(|at| object.symbol_at(section, at));
    // Code that walks an array may hold a pointer before or after it.
    let nearest = || {
        let mut here = object.symbols_in(section);
        let end = object.sections[section].size.cast_signed();
        if offset < 0 {
            here.next()
        } else if offset >= end {
            here.max_by_key(|&index| object.symbols[index].offset)
        } else {
            here.next().filter(|_| here.next().is_none())
        }
    };
    let (target, offset) = match covering.or_else(nearest) {
        Some(index) => {
            let start = object.symbols[index].offset.cast_signed();
            (Target::Symbol(index), offset.wrapping_sub(start))
        }
        None => (Target::Anonymous(section), offset),
    };
    Reference {
        target,
        offset,
        bias,
    }
}

/// The ranges of a section of `size` bytes that are data, given where data (`true`) and
/// code begin.
fn literals(marks: &BTreeMap<u64, bool>, size: u64) -> Vec<Range<u64>> {
    let starts = marks.iter();
    let ends = marks.keys().skip(1).copied().chain([size]);
    let ranges = starts.zip(ends).filter(|((_, data), _)| **data);
    ranges.map(|((start, _), end)| *start..end).collect()
}

/// Information from the instructions of a section.
#[derive(Default)]
struct Code {
    /// For each relocated field, its instruction.
    users: Vec<Option<Instruction>>,
    /// The operands that lead out of their symbol to another place in the same section:
    /// the assembler knows the distance and emits no relocation.
    branches: Vec<Relocation>,
}

impl Code {
    /// Decodes the section at `index`, whose relocated fields are at `fields`,
    /// sorted.
    fn decode(
        object: &Object,
        index: SectionIx,
        fields: impl ExactSizeIterator<Item = u64>,
    ) -> Self {
        let several = object.symbols_in(index).nth(1).is_some();
        let mut code = Self {
            users: Vec::with_capacity(fields.len()),
            branches: Vec::new(),
        };
        let mut fields = fields.peekable();
        let section = &object.sections[index];
        let mut instructions = object.arch.decode(&section.data, 0);
        while (several || fields.peek().is_some())
            && let Some(instruction) = instructions.next()
        {
            let before = code.users.len();
            let mut literals = section.literals.iter();
            let is_data = literals.any(|range| range.contains(&instruction.start));
            while fields.next_if(|&field| field < instruction.end).is_some() {
                code.users.push((!is_data).then_some(instruction));
            }
            if several && code.users.len() == before && !is_data {
                code.branches.extend(leads_out(object, index, &instruction));
            }
        }
        code
    }
}

/// What holds `offset` of a section: a symbol, or the bytes without one from an offset on,
/// such as a literal pool behind the last function that uses it.
fn holder(object: &Object, section: SectionIx, offset: u64) -> Result<SymbolIx, u64> {
    object.symbol_at(section, offset).ok_or_else(|| {
        let symbols = object
            .symbols_in(section)
            .map(|index| &object.symbols[index]);
        let before = symbols.filter(|symbol| symbol.offset <= offset);
        before.map(Symbol::end).max().unwrap_or(0)
    })
}

/// The operand of `instruction`, if it leads to another symbol, or to bytes without one.
fn leads_out(object: &Object, section: SectionIx, instruction: &Instruction) -> Option<Relocation> {
    let rest = object.sections[section]
        .data
        .get(usize::try_from(instruction.start).ok()?..)?;
    let Operand {
        offset,
        r_type,
        bias,
    } = object.arch.operand(instruction, rest)?;
    let target = match instruction.does {
        Does::Branch(target) | Does::Address(target) | Does::Access(target) => target,
        Does::Nothing | Does::Other => return None,
    };
    if target > object.sections[section].size {
        return None;
    }
    let from = holder(object, section, instruction.start);
    let to = holder(object, section, target);
    (from != to).then(|| Relocation {
        offset,
        r_type,
        branch: instruction.branch_target().is_some(),
        inferred: true,
        reference: settle(object, section, target.cast_signed(), bias),
    })
}

/// A placeholder for a section that is not read.
fn no_section() -> Section {
    Section {
        name: String::new(),
        home: String::new(),
        class: Class::Ignored,
        merge: None,
        data: Vec::new(),
        size: 0,
        align: 1,
        relocations: Vec::new(),
        literals: Vec::new(),
    }
}

fn classify(name: &str, flags: elf::SectionFlags, no_bits: bool) -> Class {
    if !flags.contains(elf::SHF_ALLOC) || name.starts_with(".discard") || name.starts_with(".note")
    {
        Class::Ignored
    } else if Special::of(name).is_some() {
        Class::Special
    } else if name.starts_with(".init")
        || name.starts_with(".exit")
        || name.starts_with(".trampoline")
        || name == ".reloc"
    {
        Class::Init
    } else if [".bss.percpu", ".data.percpu"].iter().any(|start| {
        let rest = name.strip_prefix(start);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }) {
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
