// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a payload means to the hypervisor that loads it.

use object::LittleEndian;
use object::SectionIndex;
use object::elf::{self, FileHeader64, SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHN_ABS, SHN_UNDEF};
use object::elf::{SHT_NOBITS, SHT_RELA, STB_LOCAL, STT_FILE, STT_SECTION, SectionHeader64, Sym64};
use object::read::elf::{FileHeader as _, Rela as _, SectionHeader as _, Sym as _};
use object::read::elf::{SectionTable, SymbolTable};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

type Header = FileHeader64<LittleEndian>;
const ENDIAN: LittleEndian = LittleEndian;

/// The addresses of the hypervisor's symbols, under the names that it lists: local ones
/// with their file.
#[derive(Debug)]
pub struct Symbols(HashMap<String, u64>);

impl Symbols {
    /// Those of a `xen-syms`.
    ///
    /// # Errors
    /// If it is no ELF file.
    pub fn read(xen_syms: &[u8]) -> object::Result<Self> {
        let header = Header::parse(xen_syms)?;
        let sections = header.sections(ENDIAN, xen_syms)?;
        let table = sections.symbols(ENDIAN, xen_syms, object::elf::SHT_SYMTAB)?;
        let mut symbols = HashMap::new();
        let mut file = String::new();
        for symbol in table.iter() {
            let name = String::from_utf8_lossy(table.symbol_name(ENDIAN, symbol)?).into_owned();
            if symbol.st_type() == STT_FILE {
                file = name;
                continue;
            }
            if symbol.st_type() == STT_SECTION || symbol.st_shndx(ENDIAN) == SHN_UNDEF {
                continue;
            }
            let listed = match symbol.st_bind() {
                STB_LOCAL => format!("{file}#{name}"),
                _ => name,
            };
            symbols.entry(listed).or_insert(symbol.st_value(ENDIAN));
        }
        Ok(Self(symbols))
    }
}

/// What a field of a payload leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    /// A place of the payload: section and offset.
    Own(usize, u64),
    /// An address of the hypervisor.
    Address(u64),
    /// Something of a payload below.
    Below(String, i64),
}

/// A relocated field: its size, whether it is relative to its place, and its target.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    size: u8,
    relative: bool,
    target: Target,
}

impl Field {
    /// The places of the payload that it leads to.
    fn own(&self, part: &Part) -> Vec<(usize, u64)> {
        /// A bug frame has a line number above its distances.
        const DISTANCE: u64 = 0xff_ffff;
        let Target::Own(section, offset) = self.target else {
            return Vec::new();
        };
        match &part.role {
            Some((Role::BugFrames { .. }, _)) => vec![(section, offset & DISTANCE)],
            // It is relative to the end of the instruction, which is the end of the field
            // or of a constant behind it.
            None if self.relative && self.size == 4 && part.executable => [4, 5, 6, 8]
                .map(|more| (section, offset.wrapping_add(more)))
                .to_vec(),
            _ => vec![(section, offset)],
        }
    }
}

/// A section in memory.
#[derive(Debug)]
struct Part {
    /// What it is for the hypervisor, with its name.
    role: Option<(Role, String)>,
    writable: bool,
    executable: bool,
    alignment: u64,
    /// The contents, with zeros in place of fields.
    bytes: Vec<u8>,
    fields: BTreeMap<u64, Field>,
}

impl Part {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The address of the function that the record at `start` replaces.
    fn old(&self, start: u64) -> Option<Vec<u8>> {
        let at = usize::try_from(start + OLD).ok()?;
        let old = self.bytes.get(at..at + size_of::<u64>())?;
        old.iter().any(|&byte| byte != 0).then(|| old.to_vec())
    }

    /// Whether both have the same in `range`.
    fn agrees(&self, other: &Self, range: Range<u64>) -> bool {
        let bytes = |part: &Self| {
            let (start, end) = (usize::try_from(range.start), usize::try_from(range.end));
            part.bytes.get(start.ok()?..end.ok()?).map(<[u8]>::to_vec)
        };
        let fields = |part: &Self| -> Vec<(u64, Field)> {
            let fields = part.fields.range(range.clone());
            fields.map(|(&at, field)| (at, field.clone())).collect()
        };
        // The hypervisor copies tables, or does not care where they are.
        let memory = |part: &Self| match part.role {
            Some(_) => (false, false),
            None => (part.writable, part.executable),
        };
        // Code runs at any address.
        let free = self.role.is_some() || self.executable;
        let aligned = free || other.alignment.is_multiple_of(self.alignment);
        self.role == other.role
            && memory(self) == memory(other)
            && aligned
            && bytes(self).is_some()
            && bytes(self) == bytes(other)
            && fields(self) == fields(other)
    }
}

/// A payload as it is in memory.
#[derive(Debug)]
pub struct Meaning {
    parts: BTreeMap<usize, Part>,
    /// Its functions and objects: section, start and size.
    entities: Vec<(usize, u64, u64)>,
}

impl Meaning {
    /// Of a payload for the hypervisor with these `symbols`.
    ///
    /// # Errors
    /// If it has none: then no hypervisor loads it.
    pub fn of(payload: &[u8], symbols: &Symbols) -> Result<Self, String> {
        Loading::new(payload, symbols)
            .map_err(|e| e.to_string())?
            .meaning()
    }

    /// The records of replaced functions: the section, and the start of each.
    fn records(&self) -> impl Iterator<Item = (&Part, u64)> {
        let parts = self.parts.values();
        let parts = parts.filter(|part| {
            let role = part.role.as_ref().map(|(role, _)| *role);
            role == Some(Role::Records)
        });
        parts.flat_map(|part| {
            let starts = (0..part.size()).step_by(104);
            starts.map(move |start| (part, start))
        })
    }

    /// The addresses of the functions of the hypervisor that it replaces.
    fn replaces(&self) -> Vec<Vec<u8>> {
        self.records()
            .filter_map(|(part, start)| part.old(start))
            .collect()
    }
}

/// Where a record of a replaced function has the addresses of the new and the old code.
const NEW: u64 = 8;
const OLD: u64 = 16;

/// What the hypervisor looks for in a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Records,
    Hooks,
    BugFrames { size: u64 },
    Exceptions,
    Alternatives,
}

impl Role {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            ".livepatch.funcs" => Self::Records,
            ".bug_frames.0" | ".bug_frames.1" | ".bug_frames.2" => Self::BugFrames { size: 8 },
            ".bug_frames.3" => Self::BugFrames { size: 16 },
            ".ex_table" => Self::Exceptions,
            ".altinstructions" => Self::Alternatives,
            name if name.starts_with(".livepatch.hooks.") => Self::Hooks,
            _ => return None,
        })
    }

    /// Size of an entry.
    fn size(self) -> u64 {
        match self {
            Self::Records => 104,
            Self::BugFrames { size } => size,
            Self::Alternatives => 14,
            Self::Hooks | Self::Exceptions => 8,
        }
    }

    /// Whether an entry is about other code, whose field is the first.
    fn is_about_code(self) -> bool {
        !matches!(self, Self::Records | Self::Hooks)
    }

    /// The bytes of an entry that the hypervisor uses.
    fn used(self) -> Range<u64> {
        match self {
            // New and old address, sizes and version. The hypervisor checks what it
            // expects to find, and overwrites the rest. The name is for messages, as the
            // address is there.
            Self::Records => NEW..33,
            _ => 0..self.size(),
        }
    }
}

/// What of a good payload the hypervisor uses: all that the functions and hooks lead to.
#[derive(Debug)]
pub struct Used<'a> {
    meaning: &'a Meaning,
    /// Ranges of sections.
    ranges: BTreeSet<(usize, u64, u64)>,
    /// Entities that a payload above replaces.
    replaced: Vec<(usize, u64)>,
}

impl<'a> Used<'a> {
    /// Of `meaning`, with the payload `above` on top of it.
    pub fn new(meaning: &'a Meaning, above: Option<&Meaning>) -> Self {
        let again: Vec<Vec<u8>> = above.iter().flat_map(|above| above.replaces()).collect();
        let replaced = meaning.records().filter_map(|(part, start)| {
            let old = part.old(start).filter(|old| again.contains(old));
            old.and(part.fields.get(&(start + NEW)))
        });
        let replaced = replaced.filter_map(|field| match field.target {
            Target::Own(section, offset) => Some((section, offset)),
            _ => None,
        });
        let mut used = Self {
            meaning,
            ranges: BTreeSet::new(),
            replaced: replaced.collect(),
        };
        for (&section, part) in &meaning.parts {
            let role = part.role.as_ref().map(|(role, _)| *role);
            if let Some(role) = role.filter(|role| !role.is_about_code()) {
                for start in (0..part.size()).step_by(usize::try_from(role.size()).unwrap_or(1)) {
                    let range = role.used();
                    used.add(section, start + range.start..start + range.end);
                }
            }
        }
        used
    }

    /// Adds a range, and all that it leads to.
    fn add(&mut self, section: usize, range: Range<u64>) {
        if !self.ranges.insert((section, range.start, range.end)) {
            return;
        }
        let meaning = self.meaning;
        let part = &meaning.parts[&section];
        for (_, field) in part.fields.range(range.clone()) {
            for (to, offset) in field.own(part) {
                self.reach(to, offset);
            }
        }
        for (&table, part) in &meaning.parts {
            let Some((role, _)) = part.role.as_ref().filter(|(role, _)| role.is_about_code())
            else {
                continue;
            };
            for start in (0..part.size()).step_by(usize::try_from(role.size()).unwrap_or(1)) {
                let place = part.fields.get(&start).map(|field| field.own(part));
                let about = place.into_iter().flatten();
                if about
                    .into_iter()
                    .any(|(to, at)| to == section && range.contains(&at))
                {
                    self.add_entry(table, *role, start);
                }
            }
        }
    }

    /// Adds an entry about code that is used.
    fn add_entry(&mut self, table: usize, role: Role, start: u64) {
        let part = &self.meaning.parts[&table];
        if role != Role::Alternatives {
            return self.add(table, start..start + role.size());
        }
        let length = part.bytes[usize::try_from(start).unwrap_or(0) + 11];
        // Without a replacement it does not matter where that is.
        let replacement = part.fields.get(&(start + 4)).map(|field| field.own(part));
        for (to, at) in replacement.into_iter().flatten().filter(|_| length != 0) {
            self.ranges.insert((table, start + 4, start + 8));
            self.add(to, at..at + u64::from(length));
        }
        self.ranges.insert((table, start, start + 4));
        self.ranges.insert((table, start + 8, start + role.size()));
    }

    /// Adds what is at a place: a function, an object, or what lies before the next
    /// place that anything leads to.
    fn reach(&mut self, section: usize, offset: u64) {
        let part = &self.meaning.parts[&section];
        if offset >= part.size() || part.role.is_some() {
            return;
        }
        let mut entities = self.meaning.entities.iter();
        let within = entities
            .find(|&&(of, start, size)| of == section && (start..start + size).contains(&offset));
        if let Some(&(_, start, size)) = within {
            if !self.replaced.contains(&(section, start)) {
                self.add(section, start..start + size);
            }
            return;
        }
        let fields = self.meaning.parts.values();
        let leads = fields.flat_map(|part| part.fields.values().flat_map(|field| field.own(part)));
        let starts = self
            .meaning
            .entities
            .iter()
            .map(|&(of, start, _)| (of, start));
        let cuts = leads
            .chain(starts)
            .filter(|&(of, at)| of == section && at > offset);
        let end = cuts.map(|(_, at)| at).min().unwrap_or(part.size());
        self.add(section, offset..end.min(part.size()));
    }

    /// Whether a damaged payload has all of it, and no more.
    #[must_use]
    pub fn is_in(&self, damaged: &Meaning) -> bool {
        self.ranges.iter().all(|&(section, start, end)| {
            let ours = &self.meaning.parts[&section];
            let theirs = damaged.parts.get(&section);
            theirs.is_some_and(|theirs| ours.agrees(theirs, start..end))
        }) && damaged.parts.iter().all(|(section, theirs)| {
            // No more entries.
            let ours = self.meaning.parts.get(section);
            theirs.role.is_none()
                || ours.is_some_and(|ours| ours.role == theirs.role && ours.size() >= theirs.size())
        })
    }
}

struct Loading<'a> {
    payload: &'a [u8],
    symbols: &'a Symbols,
    sections: SectionTable<'a, Header>,
    table: SymbolTable<'a, Header>,
}

impl<'a> Loading<'a> {
    fn new(payload: &'a [u8], symbols: &'a Symbols) -> object::Result<Self> {
        let header = Header::parse(payload)?;
        let sections = header.sections(ENDIAN, payload)?;
        Ok(Self {
            payload,
            symbols,
            table: sections.symbols(ENDIAN, payload, object::elf::SHT_SYMTAB)?,
            sections,
        })
    }

    fn meaning(&self) -> Result<Meaning, String> {
        let mut parts = BTreeMap::new();
        for (index, section) in self.sections.enumerate() {
            let part = self.part(section).map_err(|e| e.to_string())?;
            parts.extend(part.map(|part| (index.0, part)));
        }
        for section in self
            .sections
            .iter()
            .filter(|s| s.sh_type(ENDIAN) == SHT_RELA)
        {
            let of = section.info_link(ENDIAN).0;
            if let Some(part) = parts.get_mut(&of) {
                self.relocate(section, part)?;
            }
        }
        let mut meaning = Meaning {
            parts,
            entities: Vec::new(),
        };
        for symbol in self.table.iter() {
            let section = usize::from(symbol.st_shndx(ENDIAN).0);
            let (start, size) = (symbol.st_value(ENDIAN), symbol.st_size(ENDIAN));
            if size != 0 && meaning.parts.contains_key(&section) {
                meaning.entities.push((section, start, size));
            }
        }
        Ok(meaning)
    }

    fn part(&self, section: &SectionHeader64<LittleEndian>) -> object::Result<Option<Part>> {
        let flags = section.sh_flags(ENDIAN);
        if !flags.contains(SHF_ALLOC) {
            return Ok(None);
        }
        let name = self.sections.section_name(ENDIAN, section)?;
        let name = String::from_utf8_lossy(name).into_owned();
        let mut bytes = section.data(ENDIAN, self.payload)?.to_vec();
        if section.sh_type(ENDIAN) == SHT_NOBITS {
            bytes = vec![0; usize::try_from(section.sh_size(ENDIAN)).unwrap_or(0)];
        }
        Ok(Some(Part {
            role: Role::of(&name).map(|role| (role, name)),
            writable: flags.contains(SHF_WRITE),
            executable: flags.contains(SHF_EXECINSTR),
            alignment: section.sh_addralign(ENDIAN).max(1),
            bytes,
            fields: BTreeMap::new(),
        }))
    }

    fn relocate(
        &self,
        section: &SectionHeader64<LittleEndian>,
        part: &mut Part,
    ) -> Result<(), String> {
        let relocations = section
            .rela(ENDIAN, self.payload)
            .map_err(|e| e.to_string())?;
        for relocation in relocations.into_iter().flat_map(|(all, _)| all) {
            let at = relocation.r_offset(ENDIAN);
            let (size, relative) = match relocation.r_type(ENDIAN, false) {
                elf::R_X86_64_NONE => continue,
                elf::R_X86_64_64 => (8_u8, false),
                elf::R_X86_64_PC64 => (8, true),
                elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => (4, true),
                elf::R_X86_64_32 | elf::R_X86_64_32S => (4, false),
                other => return Err(format!("relocation type {other:?}")),
            };
            let symbol = relocation
                .symbol(ENDIAN, false)
                .ok_or("a relocation has no symbol")?;
            let symbol = self.table.symbol(symbol).map_err(|e| e.to_string())?;
            let target = self.target(symbol, relocation.r_addend(ENDIAN))?;
            let start = usize::try_from(at).map_err(|e| e.to_string())?;
            let end = start.checked_add(size.into());
            let field = end.and_then(|end| part.bytes.get_mut(start..end));
            field
                .ok_or("a relocation is outside of its section")?
                .fill(0);
            part.fields.insert(
                at,
                Field {
                    size,
                    relative,
                    target,
                },
            );
        }
        Ok(())
    }

    fn target(&self, symbol: &Sym64<LittleEndian>, addend: i64) -> Result<Target, String> {
        let value = symbol.st_value(ENDIAN).wrapping_add_signed(addend);
        let index = symbol.st_shndx(ENDIAN);
        if index == SHN_ABS {
            return Ok(Target::Address(value));
        }
        if index == SHN_UNDEF {
            let name = self
                .table
                .symbol_name(ENDIAN, symbol)
                .map_err(|e| e.to_string())?;
            let name = String::from_utf8_lossy(name).into_owned();
            return Ok(match self.symbols.0.get(&name) {
                Some(address) => Target::Address(address.wrapping_add_signed(addend)),
                None => Target::Below(name, addend),
            });
        }
        let index = usize::from(index.0);
        let section = self
            .sections
            .section(SectionIndex(index))
            .map_err(|e| e.to_string())?;
        if !section.sh_flags(ENDIAN).contains(SHF_ALLOC) {
            return Err("a relocation leads to what is not loaded".to_owned());
        }
        Ok(Target::Own(index, value))
    }
}
