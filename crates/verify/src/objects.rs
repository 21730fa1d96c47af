// SPDX-License-Identifier: MIT OR Apache-2.0
//! The relocations of the object that the patched hypervisor was linked from.
//!
//! A linked image only has addresses, and an address between two objects can mean the
//! end of one or the start of the other. The relocation shows which.

use crate::Unusable;
use crate::arch::{Arch, Part, Shape};
use crate::class::Class;
use crate::elf::Wide;
use crate::image::{Entity, EntityId, Image, Name};
use crate::tables;
use crate::unnamed;
use crate::witness::Reference;
use object::read::elf::{ElfFile64, SectionHeader as _};
use object::{
    Endianness, Object as _, ObjectSection, ObjectSymbol as _, RelocationFlags, RelocationTarget,
    SectionIndex, SymbolIndex, elf,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use xsplice_abi::special::Table;

/// The target of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meant {
    /// A symbol at this address.
    Symbol(u64),
    /// A symbol defined by the linker script.
    Marker(u64),
    /// The start of a section that has symbols.
    Section { start: u64, size: u64 },
    /// An unnamed constant.
    Constant(Extent),
}

/// The extent of an unnamed constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Up to its terminating zero.
    Text,
    /// At most this many bytes, up to the next one.
    AtMost(u64),
}

/// A relocated field.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) size: u8,
    /// Whether its value is relative to its own address.
    pub(crate) relative: bool,
    /// What it has of the address.
    pub(crate) part: Part,
    /// The index of the symbol and the distance from it, which both halves of an address have.
    pub(crate) key: (usize, i64),
    /// The address, if that is known before constants are merged.
    pub(crate) target: Option<u64>,
    pub(crate) meant: Meant,
    /// Whether the bytes there are accessed, rather than only their address taken.
    pub(crate) accessed: bool,
}

impl Field {
    /// Whether it may lead to the section that contains `address`.
    fn may_mean(&self, address: u64) -> bool {
        match self.meant {
            Meant::Section { start, size } => (start..start + size).contains(&address),
            _ => false,
        }
    }
}

/// The relocations of a hypervisor, by address of the field.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    fields: BTreeMap<u64, Field>,
    alignment: HashMap<EntityId, u64>,
    /// Those that share a section, so that their alignment can only be assumed.
    sharing: HashSet<EntityId>,
    /// Symbols without a size: each extends to the next name, or to the end of its
    /// section.
    pub(crate) stretches: BTreeMap<u64, u64>,
    /// The range of each section, and its name without a priority.
    sections: BTreeMap<u64, (u64, String)>,
    /// The size of each section without names.
    unnamed: BTreeMap<u64, u64>,
    /// Symbols defined by the linker script, by address.
    pub(crate) markers: BTreeMap<u64, Vec<Name>>,
    /// The size of each table in the objects.
    pub(crate) tables: BTreeMap<Table, u64>,
}

impl Objects {
    /// Reads `prelink.o`, from which `image` was linked; `what` is for messages.
    pub(crate) fn read(image: &Image, what: &str, data: &[u8]) -> Result<Self, Unusable> {
        let file = Wide::of(data).map_err(|e| Unusable::new(what, &e))?;
        let elf = file.parse().map_err(|e| Unusable::new(what, &e))?;
        let placed = Placed::new(&elf, image).map_err(|e| Unusable::new(what, &e))?;
        let mut objects = Self::default();
        let mut mismatched = Vec::new();
        objects.markers = placed.markers(image);
        for section in elf.sections() {
            let name = section.name().map_err(|e| Unusable::new(what, &e))?;
            if let Some(table) = tables::of_section(name).map_err(|e| Unusable::new(what, &e))? {
                *objects.tables.entry(table).or_default() += section.size();
            }
            let index = section.index();
            let named = placed.bases.get(&index);
            let Some(&base) = named.or_else(|| placed.unnamed.get(&index)) else {
                continue;
            };
            if named.is_some() {
                let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
                let section = (section.size(), prefix.to_owned());
                objects.sections.insert(base, section);
            } else {
                objects.unnamed.insert(base, section.size());
            }
            for (offset, relocation) in section.relocations() {
                if let Some(field) = placed.field(&relocation) {
                    objects.fields.insert(base + offset, field);
                }
            }
            let contents = section.data().map_err(|e| Unusable::new(what, &e))?;
            let range = base..base + section.size();
            objects.add_stretches(image, placed.defined(section.index()), &range);
            if !objects.agrees(image, contents, &range) {
                if let Some(computed) = placed.unknown(&section) {
                    let why = format!(
                        "the linker script computes {computed}, which {name} consists of: this version of Xen is not known"
                    );
                    return Err(Unusable::new(what, &why));
                }
                mismatched.push(name);
            }
            let first = image
                .entities
                .partition_point(|entity| entity.address < range.start);
            let inside = image.entities[first..]
                .iter()
                .take_while(|entity| entity.address < range.end);
            let inside: Vec<_> = (first..).zip(inside).collect();
            let alone = inside.len() == 1;
            for (id, entity) in inside {
                // If objects share a section, each has its own alignment.
                let alignment = if alone {
                    section.align()
                } else {
                    objects.sharing.insert(id);
                    natural(entity)
                };
                objects.alignment.insert(id, alignment);
            }
        }
        if let [first, others @ ..] = &*mismatched {
            return Err(Unusable::new(
                what,
                &format!(
                    "its section {first} and {} others are not those of the hypervisor; is it from another build?",
                    others.len()
                ),
            ));
        }
        Ok(objects)
    }

    /// Resolves fields that lead to a section of several variables to the variable in
    /// `meant`, if it is there.
    pub(crate) fn tell<'a>(
        &mut self,
        image: &Image,
        meant: impl IntoIterator<Item = &'a Reference>,
    ) {
        for Reference { from, offset, to } in meant {
            let (Some(from), Some(&to)) = (image.names.get(from), image.names.get(to)) else {
                continue;
            };
            let field = self.fields.get_mut(&from.wrapping_add(*offset));
            if let Some(field) = field.filter(|field| field.may_mean(to)) {
                field.meant = Meant::Symbol(to);
            }
        }
    }

    /// Adds symbols without a size; `names` are the addresses of the section's names.
    fn add_stretches(&mut self, image: &Image, names: &BTreeSet<u64>, range: &Range<u64>) {
        for &start in names {
            if image.containing(start).is_some() {
                continue;
            }
            let name = names.range(start + 1..).next().copied();
            let first = image.entities.partition_point(|e| e.address <= start);
            let entity = image.entities.get(first).map(|e| e.address);
            let ends = [name, entity, Some(range.end)];
            let end = ends.into_iter().flatten().min().unwrap_or(range.end);
            if start < end {
                self.stretches.insert(start, end - start);
            }
        }
    }

    /// Memory between symbols of the linker script that differ only in `start` and
    /// `end`, such as `__start_schedulers_array` and `__end_schedulers_array`, and
    /// that comes from few kinds of sections: an array, whose order and length
    /// matter.
    pub(crate) fn arrays(&self) -> Vec<Range<u64>> {
        const KINDS: usize = 4;
        // On ARM: `_splatform` and `_eplatform`.
        let ends = |stem: &str| match stem.strip_prefix("_s") {
            Some(name) if !stem.contains("start") => [format!("_e{name}"), String::new()],
            _ => ["end", "stop"].map(|end| stem.replacen("start", end, 1)),
        };
        let names = self.markers.iter();
        let names = names.flat_map(|(&at, names)| names.iter().map(move |name| (name, at)));
        let places: HashMap<&str, u64> = names.map(|(n, at)| (n.symbol.as_str(), at)).collect();
        let starts = places.iter();
        let starts = starts.filter(|(name, _)| name.contains("start") || name.starts_with("_s"));
        let ranges = starts.filter_map(|(name, &start)| {
            let end = ends(name)
                .iter()
                .find_map(|end| places.get(end.as_str()).copied())?;
            let inside = self.sections.range(start..end.max(start));
            let kinds: BTreeSet<&str> = inside.map(|(_, (_, name))| name.as_str()).collect();
            (1..=KINDS).contains(&kinds.len()).then_some(start..end)
        });
        ranges.collect()
    }

    /// Whether the image has `contents` at `range`, apart from relocated fields.
    fn agrees(&self, image: &Image, contents: &[u8], range: &Range<u64>) -> bool {
        let Some(mut linked) = image.bytes(range.start, contents.len() as u64) else {
            return false;
        };
        let mut contents = contents.to_vec();
        for (at, field) in self.fields(range.clone()) {
            let from = usize::try_from(at - range.start).unwrap_or(usize::MAX);
            for bytes in [&mut linked, &mut contents] {
                let to = (from + usize::from(field.size)).min(bytes.len());
                if let Some(bytes) = bytes.get_mut(from..to) {
                    bytes.fill(0);
                }
            }
        }
        linked == contents
    }

    /// The start of the section without names that contains `address`.
    pub(crate) fn unnamed(&self, address: u64) -> Option<u64> {
        let (&start, size) = self.unnamed.range(..=address).next_back()?;
        (address - start < *size).then_some(start)
    }

    /// Whether `range` is the unnamed end of a section.
    pub(crate) fn is_behind(&self, image: &Image, range: &Range<u64>) -> bool {
        let section = self.sections.range(..range.start).next_back();
        let end = section.map(|(start, (size, _))| start + size);
        let named = image.at.range(range.start..).next();
        let named = named.is_some_and(|(&at, _)| at < range.end);
        range.start < range.end && end == Some(range.end) && !named
    }

    /// Whether any field outside boot-only memory leads into `range`, or to its
    /// section.
    pub(crate) fn is_used(&self, image: &Image, range: &Range<u64>) -> bool {
        let leads = |field: &Field| match field.meant {
            Meant::Symbol(address) => range.contains(&address),
            Meant::Section { start, size } => start < range.end && range.start < start + size,
            Meant::Marker(_) | Meant::Constant(_) => false,
        };
        let stays = |at: u64| !image.class(at).is_some_and(Class::is_init);
        let mut fields = self.fields.iter();
        fields.any(|(&at, field)| leads(field) && stays(at))
    }

    /// The relocated fields in `range`.
    pub(crate) fn fields(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &Field)> {
        self.fields.range(range).map(|(&at, field)| (at, field))
    }

    pub(crate) fn field(&self, at: u64) -> Option<&Field> {
        self.fields.get(&at)
    }

    /// Whether the entity comes from the objects: the list of all symbols is added to them
    /// when the hypervisor is linked.
    pub(crate) fn has(&self, entity: &Entity) -> bool {
        let section = self.sections.range(..=entity.address).next_back();
        section.is_some_and(|(start, (size, _))| entity.address - start < *size)
    }

    /// Whether the entity shares its section with others, so that its alignment is only
    /// assumed.
    pub(crate) fn shares_section(&self, entity: EntityId) -> bool {
        self.sharing.contains(&entity)
    }

    /// The required alignment of the entity.
    pub(crate) fn alignment(&self, entity: EntityId) -> u64 {
        self.alignment.get(&entity).copied().unwrap_or(1).max(1)
    }
}

/// The object's sections at their addresses in the image.
struct Placed<'a> {
    arch: &'static dyn Arch,
    elf: &'a ElfFile64<'a, Endianness>,
    bases: HashMap<SectionIndex, u64>,
    /// Those of sections without names.
    unnamed: HashMap<SectionIndex, u64>,
    names: HashMap<SymbolIndex, u64>,
    /// The address, and the bit of it from which on a symbol is 16 bits of it.
    computed: HashMap<SymbolIndex, (u64, u8)>,
    /// The starts of unnamed constants in a section.
    starts: HashMap<SectionIndex, BTreeSet<u64>>,
    /// The addresses of a section's names in the image.
    defined: HashMap<SectionIndex, BTreeSet<u64>>,
}

impl<'a> Placed<'a> {
    fn new(elf: &'a ElfFile64<'a, Endianness>, image: &Image) -> object::Result<Self> {
        let mut placed = Self {
            arch: image.arch,
            elf,
            bases: HashMap::new(),
            unnamed: HashMap::new(),
            names: HashMap::new(),
            computed: HashMap::new(),
            starts: HashMap::new(),
            defined: HashMap::new(),
        };
        let mut file = None;
        for symbol in elf.symbols() {
            let raw = symbol.elf_symbol();
            let symbol_name = symbol.name()?.to_owned();
            if raw.st_type() == elf::STT_FILE {
                file = Some(symbol_name);
                continue;
            }
            if image
                .arch
                .machine()
                .is_mapping_symbol(symbol_name.as_bytes())
            {
                continue;
            }
            let local = raw.st_bind() == elf::STB_LOCAL;
            let name = Name {
                file: file.clone().filter(|_| local),
                symbol: symbol_name,
            };
            let Some(&address) = image.names.get(&name) else {
                let computed = image.arch.computed(&name.symbol);
                let computed = computed.filter(|_| symbol.is_undefined());
                if let Some((of, bit)) = computed
                    && let Some(address) = image.global(of)
                {
                    placed.computed.insert(symbol.index(), (address, bit));
                }
                continue;
            };
            placed.names.insert(symbol.index(), address);
            if let Some(section) = symbol.section_index() {
                let base = address.wrapping_sub(symbol.address());
                placed.bases.entry(section).or_insert(base);
                placed.defined.entry(section).or_default().insert(address);
            }
        }
        placed.unnamed = unnamed::find(elf, image, &placed.bases);
        for section in elf.sections() {
            for (_, relocation) in section.relocations() {
                if let Some((section, offset)) = placed.nameless(&relocation) {
                    placed.starts.entry(section).or_default().insert(offset);
                }
            }
        }
        Ok(placed)
    }

    fn defined(&self, section: SectionIndex) -> &BTreeSet<u64> {
        static NONE: BTreeSet<u64> = BTreeSet::new();
        self.defined.get(&section).unwrap_or(&NONE)
    }

    /// Symbols that the objects use and the linker script defines.
    fn markers(&self, image: &Image) -> BTreeMap<u64, Vec<Name>> {
        let undefined = self.elf.symbols().filter(|symbol| symbol.is_undefined());
        let mut markers: BTreeMap<u64, Vec<Name>> = BTreeMap::new();
        for symbol in undefined {
            let name = Name {
                file: None,
                symbol: symbol.name().unwrap_or_default().to_owned(),
            };
            if let Some(&address) = image.names.get(&name) {
                markers.entry(address).or_default().push(name);
            }
        }
        markers
    }

    /// A symbol that `section` refers to and that has no place: the linker script
    /// computes its value.
    fn unknown(&self, section: &impl ObjectSection<'a>) -> Option<&'a str> {
        section.relocations().find_map(|(_, relocation)| {
            let RelocationTarget::Symbol(index) = relocation.target() else {
                return None;
            };
            let symbol = self.elf.symbol_by_index(index).ok()?;
            let known = self.names.contains_key(&index) || self.computed.contains_key(&index);
            let unknown = symbol.is_undefined() && !known;
            symbol.name().ok().filter(|_| unknown)
        })
    }

    /// Section and offset of the unnamed constant that the relocation refers to.
    fn nameless(&self, relocation: &object::Relocation) -> Option<(SectionIndex, u64)> {
        let RelocationTarget::Symbol(index) = relocation.target() else {
            return None;
        };
        if self.names.contains_key(&index) {
            return None;
        }
        let symbol = self.elf.symbol_by_index(index).ok()?;
        let section = symbol.section_index()?;
        if self.bases.contains_key(&section) {
            return None;
        }
        let shape = self.shape(relocation)?;
        let offset = symbol.address().wrapping_add_signed(relocation.addend());
        Some((section, offset.wrapping_add(shape.behind)))
    }

    fn field(&self, relocation: &object::Relocation) -> Option<Field> {
        let Shape {
            size,
            relative,
            part,
            ..
        } = self.shape(relocation)?;
        let RelocationTarget::Symbol(index) = relocation.target() else {
            return None;
        };
        if let Some(&(address, bit)) = self.computed.get(&index)
            && relocation.addend() == 0
        {
            return Some(Field {
                size,
                relative: false,
                part: Part::Computed(bit),
                key: (index.0, relocation.addend()),
                target: Some(address),
                meant: Meant::Symbol(address),
                accessed: false,
            });
        }
        let meant = match self.names.get(&index) {
            Some(&address) => {
                let symbol = self.elf.symbol_by_index(index).ok()?;
                if symbol.is_undefined() {
                    Meant::Marker(address)
                } else {
                    Meant::Symbol(address)
                }
            }
            None => self.meant(index, relocation)?,
        };
        let addend = relocation.addend();
        let start = match meant {
            Meant::Symbol(start) | Meant::Marker(start) => Some(start),
            Meant::Section { start, .. } => {
                let symbol = self.elf.symbol_by_index(index).ok()?;
                Some(start.wrapping_add(symbol.address()))
            }
            Meant::Constant(_) => {
                let symbol = self.elf.symbol_by_index(index).ok()?;
                let start = self.unnamed.get(&symbol.section_index()?);
                start.map(|start| start.wrapping_add(symbol.address()))
            }
        };
        Some(Field {
            size,
            relative,
            part,
            key: (index.0, addend),
            target: start.map(|start| start.wrapping_add_signed(addend)),
            meant,
            accessed: false,
        })
    }

    fn shape(&self, relocation: &object::Relocation) -> Option<Shape> {
        let RelocationFlags::Elf { r_type } = relocation.flags() else {
            return None;
        };
        self.arch.shape(r_type)
    }

    fn meant(&self, index: SymbolIndex, relocation: &object::Relocation) -> Option<Meant> {
        let symbol = self.elf.symbol_by_index(index).ok()?;
        let section = self.elf.section_by_index(symbol.section_index()?).ok()?;
        if let Some(&start) = self.bases.get(&section.index()) {
            let size = section.size();
            return Some(Meant::Section { start, size });
        }
        let header = section.elf_section_header();
        let flags = header.sh_flags(self.elf.endian());
        let has = |flag: elf::SectionFlags| flags.contains(flag);
        let extent = if has(elf::SHF_STRINGS) {
            Extent::Text
        } else if has(elf::SHF_MERGE) {
            Extent::AtMost(header.sh_entsize(self.elf.endian()))
        } else {
            let (section_index, offset) = self.nameless(relocation)?;
            let starts = self.starts.get(&section_index)?;
            let next = starts.range(offset + 1..).next().copied();
            Extent::AtMost(next.unwrap_or(section.size()).saturating_sub(offset))
        };
        Some(Meant::Constant(extent))
    }
}

/// The natural alignment of a number or pointer of the object's size, if its address
/// has it.
fn natural(entity: &Entity) -> u64 {
    const WIDEST: u64 = 8;
    let number = entity.size.is_power_of_two() && entity.size <= WIDEST;
    let aligned = number && entity.address.is_multiple_of(entity.size);
    if aligned { entity.size } else { 1 }
}
