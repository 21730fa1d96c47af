// SPDX-License-Identifier: MIT OR Apache-2.0
//! A linked hypervisor as named memory.

use crate::Unusable;
use crate::arch::{self, Arch};
use crate::class::{Borders, Class, SectionKind};
use crate::elf::Wide;
use object::elf;
use object::read::elf::{ElfFile64, SectionHeader as _, Sym};
use object::{Endianness, Object as _, ObjectSection as _};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use xsplice_abi::machine::{Machine, Width};
use xsplice_abi::payload::hook;
use xsplice_abi::suffix;
use xsplice_abi::symbol::RuntimeName;

/// A stretch of memory.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) address: u64,
    pub(crate) size: u64,
    /// May be shorter than `size`; the rest is zero.
    pub(crate) data: Vec<u8>,
    pub(crate) class: Class,
    /// Alignment of its start by the loader; 0 if the linker placed it.
    pub(crate) alignment: u64,
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
    /// Whether it is executed, unlike data among code.
    pub(crate) runs: bool,
}

impl Entity {
    pub(crate) fn end(&self) -> u64 {
        self.address.saturating_add(self.size)
    }

    /// Its name, for messages.
    pub(crate) fn name(&self) -> String {
        self.names.first().map_or_else(String::new, Name::to_string)
    }
}

/// A symbol's name and, if it is local, its file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Name {
    pub(crate) file: Option<String>,
    pub(crate) symbol: String,
}

impl Name {
    /// Without the number that the compiler appended.
    pub(crate) fn base(&self) -> &str {
        suffix::unnumbered(&self.symbol)
    }

    /// Whether the compiler gave it a number.
    pub(crate) fn is_numbered(&self) -> bool {
        self.base() != self.symbol
    }

    /// Whether both are the same name in the same file, apart from numbers.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        (&self.file, self.base()) == (&other.file, other.base())
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = RuntimeName {
            file: self.file.as_deref(),
            name: &self.symbol,
        };
        name.fmt(f)
    }
}

/// Why a hypervisor for another machine is not verified.
fn other_machine(number: u16) -> String {
    let machine = match Machine::from_elf(number) {
        Some(machine) => machine.to_string(),
        None => format!("ELF machine number {number}"),
    };
    format!("it is for {machine}, and this proof is only available for x86-64, ARM64 and ARM32")
}

/// A linked hypervisor, with payloads or without.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) arch: &'static dyn Arch,
    segments: Vec<Segment>,
    /// Sorted by address, without overlaps.
    pub(crate) entities: Vec<Entity>,
    pub(crate) names: HashMap<Name, u64>,
    /// Every name, by address.
    pub(crate) at: BTreeMap<u64, Vec<Name>>,
    /// Where code or data begins among code, and whether it is data, as far as marked.
    marks: BTreeMap<u64, bool>,
    pub(crate) build_id: Vec<u8>,
    /// Sections with pointers to hooks.
    pub(crate) hook_lists: Vec<(String, Range<u64>)>,
}

/// A symbol in the file.
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
        let machine = crate::elf::machine(data).map_err(|e| bad(&e))?;
        let arch = Machine::from_elf(machine).and_then(arch::of);
        let arch = arch.ok_or_else(|| bad(&other_machine(machine)))?;
        let file = Wide::of(data).map_err(|e| bad(&e))?;
        let elf = file.parse().map_err(|e| bad(&e))?;
        let build_id = elf
            .build_id()
            .map_err(|e| bad(&e))?
            .unwrap_or_default()
            .to_vec();
        let symbols = symbols(&elf, arch.machine()).map_err(|e| bad(&e))?;
        let edge = |name: &str| {
            let mut named = symbols.iter().filter(|s| s.name.symbol == name);
            named
                .next()
                .map(|s| s.address)
                .ok_or_else(|| bad(&format!("it has no symbol {name}")))
        };
        let borders = Borders {
            entry: match arch.entry_text() {
                Some([start, end]) => edge(start)?..edge(end)?,
                None => 0..0,
            },
            init: edge("__init_begin")?..edge("__init_end")?,
            init_text: edge("_sinittext")?..edge("_einittext")?,
            ro_after_init: edge("__ro_after_init_start")?..edge("__ro_after_init_end")?,
            per_cpu: edge("__per_cpu_start")?..edge("__per_cpu_data_end")?,
        };
        let mut image = Self {
            arch,
            segments: Vec::new(),
            entities: Vec::new(),
            names: HashMap::new(),
            at: BTreeMap::new(),
            marks: marks(&elf, arch.machine()).map_err(|e| bad(&e))?,
            build_id,
            hook_lists: Vec::new(),
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
            if sizes.0.checked_add(sizes.1).is_none() {
                return Err(bad(&format!("{whole} does not fit into memory")));
            }
            if hook::stage(whole).is_some() {
                let range = sizes.0..sizes.0 + sizes.1;
                image.hook_lists.push((whole.to_owned(), range));
            }
            let kind = SectionKind {
                name: whole,
                writable: flags.contains(elf::SHF_WRITE),
                code: flags.contains(elf::SHF_EXECINSTR),
            };
            image.add_section(&kind, sizes, contents, &borders);
        }
        image.segments.sort_by_key(|segment| segment.address);
        image.add_symbols(symbols);
        Ok(image)
    }

    /// Splits a section where its class changes.
    fn add_section(
        &mut self,
        section: &SectionKind,
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
                class: borders.class(section, from),
                alignment: 0,
            });
        }
    }

    /// Adds memory after the existing segments.
    pub(crate) fn add_segment(&mut self, segment: Segment) {
        let at = self
            .segments
            .partition_point(|other| other.address < segment.address);
        self.segments.insert(at, segment);
    }

    /// Puts `bytes` at `address`, as far as there is memory.
    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) {
        let next = self
            .segments
            .partition_point(|segment| segment.address <= address);
        let Some(segment) = next.checked_sub(1).and_then(|at| self.segments.get_mut(at)) else {
            return;
        };
        let (Ok(size), Ok(from)) = (
            usize::try_from(segment.size),
            usize::try_from(address - segment.address),
        ) else {
            return;
        };
        // The file does not have all zeros.
        let end = from.saturating_add(bytes.len()).min(size);
        if segment.data.len() < end {
            segment.data.resize(end, 0);
        }
        if let Some(there) = segment.data.get_mut(from..end) {
            let (bytes, _) = bytes.split_at(there.len());
            there.copy_from_slice(bytes);
        }
    }

    /// Adds a variable at `place`, where nothing has a name.
    pub(crate) fn add_object(&mut self, place: Range<u64>, name: Name) {
        let Some(class) = self.class(place.start) else {
            return;
        };
        let names = self.at.entry(place.start).or_default();
        names.push(name.clone());
        let at = self.entities.partition_point(|e| e.address < place.start);
        self.entities.insert(
            at,
            Entity {
                address: place.start,
                size: place.end - place.start,
                names: vec![name],
                class,
                runs: false,
            },
        );
    }

    /// Adds symbols. One within another symbol is only a name.
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
            end = address.saturating_add(size);
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

    /// The width of its addresses.
    pub(crate) fn width(&self) -> Width {
        self.arch.machine().width()
    }

    /// The end of the last segment.
    pub(crate) fn end(&self) -> u64 {
        self.segments.last().map_or(0, |last| last.range().end)
    }

    /// Whether `value` looks like an address of the hypervisor.
    pub(crate) fn spans(&self, value: u64) -> bool {
        let first = self.segments.first().map_or(0, |first| first.address);
        (first..=self.end()).contains(&value)
    }

    /// Whether `address` is marked as data among code.
    pub(crate) fn is_marked_data(&self, address: u64) -> bool {
        let before = self.marks.range(..=address).next_back();
        before.is_some_and(|(_, data)| *data)
    }

    pub(crate) fn class(&self, address: u64) -> Option<Class> {
        self.segment(address).map(|segment| segment.class)
    }

    /// `address` modulo `alignment`; `None` if that depends on where a payload is
    /// loaded.
    pub(crate) fn modulo(&self, address: u64, alignment: u64) -> Option<u64> {
        let segment = self.segment(address)?;
        match segment.alignment {
            0 => Some(address % alignment),
            known if known >= alignment => Some((address - segment.address) % alignment),
            _ => None,
        }
    }

    /// The contents from `address` to the end of its segment.
    pub(crate) fn from(&self, address: u64) -> &[u8] {
        let tail = self.segment(address).and_then(|segment| {
            let offset = usize::try_from(address - segment.address).ok()?;
            segment.data.get(offset..)
        });
        tail.unwrap_or_default()
    }

    /// Whether nothing but padding is in `range`.
    pub(crate) fn is_padding(&self, range: Range<u64>) -> bool {
        let mut at = range.start;
        while at < range.end {
            if self.containing(at).is_some() {
                return false;
            }
            let Some(size) = self.arch.padding(self.from(at), at) else {
                return false;
            };
            at += size;
        }
        true
    }

    /// `size` bytes at `address`; `None` if some are missing.
    pub(crate) fn bytes(&self, address: u64, size: u64) -> Option<Vec<u8>> {
        let segment = self.segment(address)?;
        let end = address.checked_add(size)?;
        if end > segment.range().end {
            return None;
        }
        let size = usize::try_from(size).ok()?;
        let stored = self.from(address);
        let mut bytes = stored.get(..size).unwrap_or(stored).to_vec();
        bytes.resize(size, 0);
        Some(bytes)
    }

    /// The entity that contains `address`.
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

    /// The address of the symbol that the hypervisor lists as `name`, which for a
    /// local one starts with its file.
    pub(crate) fn named(&self, name: &str) -> Option<u64> {
        let parsed = RuntimeName::parse(name);
        let parsed = Name {
            file: parsed.file.map(str::to_owned),
            symbol: parsed.name.to_owned(),
        };
        let found = self.names.get(&parsed).copied();
        found.or_else(|| self.global(name))
    }

    /// A label for `address`: the name before it and the distance.
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

/// The addresses of `width` that `data` is full of.
pub(crate) fn addresses(data: &[u8], width: Width) -> impl Iterator<Item = u64> {
    data.chunks_exact(width.bytes())
        .filter_map(move |address| width.read(address))
}

/// The places of mapping symbols, and whether data begins there. A function begins with code:
/// our core's object has no mapping symbols among its code, and what is linked before it may
/// end with one for data.
fn marks(elf: &ElfFile64<'_, Endianness>, machine: Machine) -> object::Result<BTreeMap<u64, bool>> {
    let endian = elf.endian();
    let table = elf.elf_symbol_table();
    let mut marks = BTreeMap::new();
    for symbol in table.iter() {
        let name = table.symbol_name(endian, symbol)?;
        if machine.is_mapping_symbol(name) {
            marks.insert(symbol.st_value(endian), name.starts_with(b"$d"));
        }
    }
    for symbol in table.iter().filter(|s| s.st_type() == elf::STT_FUNC) {
        marks.insert(symbol.st_value(endian), false);
    }
    Ok(marks)
}

fn symbols(elf: &ElfFile64<'_, Endianness>, machine: Machine) -> object::Result<Vec<RawSymbol>> {
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
        let nowhere = nowhere || machine.is_mapping_symbol(name.as_bytes());
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

#[cfg(test)]
mod tests {
    use super::*;
    use object::write::Object;
    use object::{Architecture, BinaryFormat};

    #[test]
    fn the_reason_names_a_machine_whose_files_have_32_bits() {
        let file = Object::new(
            BinaryFormat::Elf,
            Architecture::I386,
            object::Endianness::Little,
        );
        let file = file.write().expect("an ELF file");
        let Err(reason) = Image::read("xen-syms", &file) else {
            panic!("it is read");
        };
        let reason = reason.to_string();
        assert!(
            reason.contains("it is for ELF machine number 3,"),
            "{reason}"
        );
    }
}
