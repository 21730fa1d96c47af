// SPDX-License-Identifier: MIT OR Apache-2.0
//! A linked hypervisor as memory with names.

use crate::Unusable;
use object::elf;
use object::read::elf::{ElfFile64, SectionHeader as _, Sym};
use object::{Endianness, Object as _, ObjectSection as _};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// What a piece of memory is to the running hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Code that is mapped whatever page tables are in use.
    EntryText,
    Text,
    InitText,
    ReadOnly,
    RoAfterInit,
    InitData,
    ReadMostly,
    Data,
    Bss,
    PerCpu,
    /// Code, constants and variables of a payload.
    PayloadText,
    PayloadReadOnly,
    PayloadData,
}

impl Class {
    pub(crate) fn is_code(self) -> bool {
        matches!(
            self,
            Self::Text | Self::EntryText | Self::InitText | Self::PayloadText
        )
    }

    /// Freed once the hypervisor has booted.
    pub(crate) fn is_init(self) -> bool {
        matches!(self, Self::InitText | Self::InitData)
    }

    pub(crate) fn is_payload(self) -> bool {
        matches!(
            self,
            Self::PayloadText | Self::PayloadReadOnly | Self::PayloadData
        )
    }

    /// What runs may change it: there is one of it, and it has a state.
    pub(crate) fn is_writable(self) -> bool {
        matches!(
            self,
            Self::ReadMostly | Self::Data | Self::Bss | Self::PerCpu | Self::PayloadData
        )
    }

    /// Whether what is in the patched hypervisor of this class can be `other`.
    pub(crate) fn allows(self, other: Self) -> bool {
        match other {
            Self::PayloadText => self == Self::Text,
            Self::PayloadReadOnly => self == Self::ReadOnly,
            Self::PayloadData => matches!(self, Self::ReadMostly | Self::Data | Self::Bss),
            _ => self == other,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::EntryText => "entry code",
            Self::Text => "code",
            Self::InitText => "boot-only code",
            Self::ReadOnly => "read-only data",
            Self::RoAfterInit => "data that is read-only after boot",
            Self::InitData => "boot-only data",
            Self::ReadMostly => "read-mostly data",
            Self::Data => "data",
            Self::Bss => "zero-initialised data",
            Self::PerCpu => "per-CPU data",
            Self::PayloadText => "the payload's code",
            Self::PayloadReadOnly => "the payload's read-only data",
            Self::PayloadData => "the payload's data",
        }
    }
}

/// A stretch of memory.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) address: u64,
    pub(crate) size: u64,
    /// Shorter than `size` where the rest is zero.
    pub(crate) data: Vec<u8>,
    pub(crate) class: Class,
}

impl Segment {
    fn range(&self) -> Range<u64> {
        self.address..self.address + self.size
    }
}

pub(crate) type EntityId = usize;

/// A function or an object with a size.
#[derive(Debug)]
pub(crate) struct Entity {
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) names: Vec<Name>,
    pub(crate) class: Class,
    /// Whether it is code that runs, and no data among code.
    pub(crate) runs: bool,
}

impl Entity {
    pub(crate) fn end(&self) -> u64 {
        self.address + self.size
    }

    /// Its name for people.
    pub(crate) fn name(&self) -> String {
        self.names.first().map_or_else(String::new, Name::to_string)
    }
}

/// A symbol's name and, if it is local, the file that it is local to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) file: Option<String>,
    pub(crate) symbol: String,
}

impl Name {
    /// The name in the source, without what the compiler appends to it.
    pub(crate) fn base(&self) -> &str {
        match self.symbol.rsplit_once('.') {
            Some((base, number))
                if !base.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) =>
            {
                base
            }
            _ => &self.symbol,
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{file}#{}", self.symbol),
            None => f.write_str(&self.symbol),
        }
    }
}

/// A linked hypervisor, with payloads or without.
#[derive(Debug)]
pub(crate) struct Image {
    segments: Vec<Segment>,
    /// In order of their addresses; none is within another.
    pub(crate) entities: Vec<Entity>,
    pub(crate) names: HashMap<Name, u64>,
    /// Every name, by address.
    pub(crate) at: BTreeMap<u64, Vec<Name>>,
    pub(crate) build_id: Vec<u8>,
}

/// A symbol as the file has it.
pub(crate) struct RawSymbol {
    pub(crate) name: Name,
    pub(crate) address: u64,
    pub(crate) size: u64,
    /// Whether the file says that it is data.
    pub(crate) data: bool,
}

impl Image {
    /// Reads a linked hypervisor; `what` is for messages.
    pub(crate) fn read(what: &str, data: &[u8]) -> Result<Self, Unusable> {
        let bad = |reason: &dyn std::fmt::Display| Unusable::new(what, reason);
        let elf = ElfFile64::<Endianness>::parse(data).map_err(|e| bad(&e))?;
        let build_id = elf
            .build_id()
            .map_err(|e| bad(&e))?
            .unwrap_or_default()
            .to_vec();
        let symbols = symbols(&elf).map_err(|e| bad(&e))?;
        let edge = |name: &str| {
            let mut named = symbols.iter().filter(|s| s.name.symbol == name);
            named
                .next()
                .map(|s| s.address)
                .ok_or_else(|| bad(&format!("it has no symbol {name}")))
        };
        let borders = Borders {
            entry: edge("_stextentry")?..edge("_etextentry")?,
            init: edge("__init_begin")?..edge("__init_end")?,
            ro_after_init: edge("__ro_after_init_start")?..edge("__ro_after_init_end")?,
            per_cpu: edge("__per_cpu_start")?..edge("__per_cpu_data_end")?,
        };
        let mut image = Self {
            segments: Vec::new(),
            entities: Vec::new(),
            names: HashMap::new(),
            at: BTreeMap::new(),
            build_id,
        };
        for section in elf.sections() {
            let header = section.elf_section_header();
            let flags = header.sh_flags(elf.endian());
            if section.address() == 0 || !flags.contains(elf::SHF_ALLOC) {
                continue;
            }
            let contents = section.data().map_err(|e| bad(&e))?;
            let whole = section.name().map_err(|e| bad(&e))?;
            let sizes = (section.address(), section.size());
            image.add_section(whole, sizes, contents, &borders);
        }
        image.segments.sort_by_key(|segment| segment.address);
        image.add_symbols(symbols);
        Ok(image)
    }

    /// Cuts a section where its class changes.
    fn add_section(
        &mut self,
        name: &str,
        (address, size): (u64, u64),
        contents: &[u8],
        borders: &Borders,
    ) {
        let end = address + size;
        let mut cuts = vec![address, end];
        cuts.extend(borders.all().filter(|cut| (address..end).contains(cut)));
        cuts.sort_unstable();
        cuts.dedup();
        for pair in cuts.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let part = |at: u64| usize::try_from(at - address).unwrap_or(usize::MAX);
            let data = contents.get(part(from)..part(to).min(contents.len()));
            self.segments.push(Segment {
                address: from,
                size: to - from,
                data: data.unwrap_or_default().to_vec(),
                class: borders.class(name, from),
            });
        }
    }

    /// Adds memory behind what is there.
    pub(crate) fn add_segment(&mut self, segment: Segment) {
        let at = self
            .segments
            .partition_point(|other| other.address < segment.address);
        self.segments.insert(at, segment);
    }

    /// Names memory. What lies within another symbol is only a name.
    pub(crate) fn add_symbols(&mut self, symbols: Vec<RawSymbol>) {
        let mut sized: BTreeMap<u64, (u64, Vec<Name>, bool)> = BTreeMap::new();
        for symbol in symbols {
            self.names
                .entry(symbol.name.clone())
                .or_insert(symbol.address);
            let at = self.at.entry(symbol.address).or_default();
            at.push(symbol.name.clone());
            if symbol.size != 0 {
                let entry = sized.entry(symbol.address).or_default();
                entry.0 = entry.0.max(symbol.size);
                entry.1.push(symbol.name);
                entry.2 |= symbol.data;
            }
        }
        let mut end = 0;
        for (address, (size, mut names, data)) in sized {
            let Some(class) = self.class(address).filter(|_| address >= end) else {
                continue;
            };
            end = address + size;
            names.sort();
            self.entities.push(Entity {
                address,
                size,
                names,
                class,
                runs: class.is_code() && !data,
            });
        }
        self.entities.sort_by_key(|entity| entity.address);
    }

    pub(crate) fn segment(&self, address: u64) -> Option<&Segment> {
        let next = self
            .segments
            .partition_point(|segment| segment.address <= address);
        let segment = self.segments.get(next.checked_sub(1)?)?;
        segment.range().contains(&address).then_some(segment)
    }

    /// The first address behind everything.
    pub(crate) fn end(&self) -> u64 {
        self.segments.last().map_or(0, |last| last.range().end)
    }

    /// Whether `value` looks like an address of the hypervisor.
    pub(crate) fn spans(&self, value: u64) -> bool {
        let first = self.segments.first().map_or(0, |first| first.address);
        (first..=self.end()).contains(&value)
    }

    pub(crate) fn class(&self, address: u64) -> Option<Class> {
        self.segment(address).map(|segment| segment.class)
    }

    /// What the file has from `address` to the end of that stretch of memory.
    pub(crate) fn from(&self, address: u64) -> &[u8] {
        let tail = self.segment(address).and_then(|segment| {
            let offset = usize::try_from(address - segment.address).ok()?;
            segment.data.get(offset..)
        });
        tail.unwrap_or_default()
    }

    /// `size` bytes at `address`; `None` if they are not all there.
    pub(crate) fn bytes(&self, address: u64, size: u64) -> Option<Vec<u8>> {
        let segment = self.segment(address)?;
        let end = address.checked_add(size)?;
        if end > segment.range().end {
            return None;
        }
        let mut bytes = self.from(address).to_vec();
        bytes.resize(usize::try_from(size).ok()?, 0);
        Some(bytes)
    }

    /// The entity that has `address` in it.
    pub(crate) fn containing(&self, address: u64) -> Option<EntityId> {
        let next = self
            .entities
            .partition_point(|entity| entity.address <= address);
        let id = next.checked_sub(1)?;
        (address < self.entities[id].end()).then_some(id)
    }

    /// The entity that starts at `address`.
    pub(crate) fn starting_at(&self, address: u64) -> Option<EntityId> {
        let id = self
            .entities
            .binary_search_by_key(&address, |entity| entity.address);
        id.ok()
    }

    /// The address of the global symbol `name`.
    pub(crate) fn global(&self, name: &str) -> Option<u64> {
        let name = Name {
            file: None,
            symbol: name.to_owned(),
        };
        self.names.get(&name).copied()
    }

    /// The place at `address` for people: the name before it and how far.
    pub(crate) fn place(&self, address: u64) -> String {
        if let Some(id) = self.containing(address) {
            let entity = &self.entities[id];
            return match address - entity.address {
                0 => entity.name(),
                offset => format!("{}+{offset:#x}", entity.name()),
            };
        }
        let class = self.class(address).map_or("no memory", Class::name);
        match self.at.range(..=address).next_back() {
            Some((&at, names)) if at == address => {
                names.first().map_or_else(String::new, Name::to_string)
            }
            _ => format!("{address:#x} ({class})"),
        }
    }
}

/// Where the classes of memory begin and end within sections.
struct Borders {
    entry: Range<u64>,
    init: Range<u64>,
    ro_after_init: Range<u64>,
    per_cpu: Range<u64>,
}

impl Borders {
    fn all(&self) -> impl Iterator<Item = u64> {
        let all = [&self.entry, &self.init, &self.ro_after_init, &self.per_cpu];
        all.map(|range| [range.start, range.end])
            .into_iter()
            .flatten()
    }

    fn class(&self, section: &str, address: u64) -> Class {
        if self.init.contains(&address) {
            return if section == ".init.text" {
                Class::InitText
            } else {
                Class::InitData
            };
        }
        match section {
            ".text" if self.entry.contains(&address) => Class::EntryText,
            ".text" => Class::Text,
            _ if self.ro_after_init.contains(&address) => Class::RoAfterInit,
            _ if self.per_cpu.contains(&address) => Class::PerCpu,
            ".data.read_mostly" => Class::ReadMostly,
            ".data" => Class::Data,
            ".bss" => Class::Bss,
            _ => Class::ReadOnly,
        }
    }
}

fn symbols(elf: &ElfFile64<'_, Endianness>) -> object::Result<Vec<RawSymbol>> {
    let endian = elf.endian();
    let table = elf.elf_symbol_table();
    let mut symbols = Vec::new();
    let mut file = None;
    for symbol in table.iter() {
        let name = String::from_utf8_lossy(table.symbol_name(endian, symbol)?).into_owned();
        let kind = symbol.st_type();
        if kind == elf::STT_FILE {
            file = Some(name);
            continue;
        }
        let section = symbol.st_shndx(endian);
        let nowhere = section == elf::SHN_UNDEF || section == elf::SHN_ABS;
        if nowhere || kind == elf::STT_SECTION || name.is_empty() {
            continue;
        }
        let local = symbol.st_bind() == elf::STB_LOCAL;
        symbols.push(RawSymbol {
            name: Name {
                file: file.clone().filter(|_| local),
                symbol: name,
            },
            address: symbol.st_value(endian),
            size: symbol.st_size(endian),
            data: kind == elf::STT_OBJECT,
        });
    }
    Ok(symbols)
}
