// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes a payload as an ELF file in Xen's live-patch format.

use crate::arch::Arch;
use crate::name::{plain, tagged};
use object::read::elf::{ElfFile, FileHeader};
use object::write::{Object, Relocation, SectionId, Symbol, SymbolId, SymbolSection};
use object::{
    BinaryFormat, Endianness, FileFlags, RelocationFlags, SectionFlags, SectionKind, SymbolFlags,
    SymbolKind, SymbolScope, elf,
};
use object::{Object as _, ObjectSection as _};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use xsplice_abi::machine::{Machine, Width};
use xsplice_abi::note::hex;
use xsplice_abi::payload as abi;
use xsplice_abi::payload::hook;
use xsplice_abi::preimage::{self, Preimage};
use xsplice_abi::record;
use xsplice_abi::special;
use xsplice_objdiff::SymbolName;
use xsplice_objdiff::arch::Arch as Objects;
use zerocopy::IntoBytes as _;

/// Alignment of a payload's memory, in bytes.
pub(crate) const PAGE: u64 = 4096;

/// A section of the payload.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Functions.
    Text,
    /// Code in a separate section: replacements of alternatives, fixups.
    Code(String),
    /// Read-only data.
    RoData,
    /// Strings.
    Strings,
    /// Variables with an initial value.
    Data,
    /// Zero-initialised variables.
    Bss,
    /// A table about code.
    Table(String),
    /// Pointers to hooks.
    Hooks(String),
}

impl Kind {
    /// The part for code from the section `name` of an object.
    pub(crate) fn named_code(name: &str) -> Self {
        if name.starts_with(".text") {
            Self::Text
        } else {
            Self::Code(name.to_owned())
        }
    }

    /// The part for entries of the table `name`.
    pub(crate) fn table(name: &str) -> Self {
        Self::Table(name.to_owned())
    }

    fn section(&self) -> (&str, SectionKind, elf::SectionFlags) {
        let (alloc, write, exec) = (elf::SHF_ALLOC, elf::SHF_WRITE, elf::SHF_EXECINSTR);
        match self {
            Self::Text => (".text", SectionKind::Text, alloc | exec),
            Self::Code(name) => (name, SectionKind::Text, alloc | exec),
            Self::RoData => (".rodata", SectionKind::ReadOnlyData, alloc),
            Self::Strings => (".rodata.str", SectionKind::ReadOnlyData, alloc),
            Self::Data => (".data", SectionKind::Data, alloc | write),
            Self::Bss => (".bss", SectionKind::UninitializedData, alloc | write),
            Self::Table(name) | Self::Hooks(name) => (name, SectionKind::ReadOnlyData, alloc),
        }
    }
}

/// A required alignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Align {
    /// At a multiple of this many bytes,
    pub multiple: u64,
    /// or this many after one.
    pub behind: u64,
}

impl Align {
    /// At a multiple of `bytes`.
    pub fn to(bytes: u64) -> Self {
        Self {
            multiple: bytes,
            behind: 0,
        }
    }

    /// The first such place at or after `offset`.
    pub(crate) fn next(self, offset: u64) -> u64 {
        let before = offset.saturating_sub(self.behind);
        before.next_multiple_of(self.multiple) + self.behind
    }
}

/// An unnamed constant.
#[derive(Debug)]
pub struct Content {
    /// Its part of the payload.
    pub kind: Kind,
    /// Its contents.
    pub bytes: Vec<u8>,
    /// Alignment in bytes.
    pub align: u64,
}

/// The target of a relocated field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reaches {
    /// An offset in another part of the payload.
    Part(Kind, i64),
    /// A symbol that the loader looks up by name, and an offset from it.
    Name(String, i64),
    /// A symbol at a proved address, and an offset from it.
    Address(String, u64, i64),
}

/// A relocated field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The part it is in.
    pub part: Kind,
    /// Its offset there.
    pub offset: u64,
    /// The relocation's type on the machine.
    pub r_type: u32,
    /// The addend.
    pub addend: i64,
    /// Its target.
    pub reaches: Reaches,
}

/// A function to replace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Func {
    /// Its name in the hypervisor.
    pub name: String,
    /// Its address in the hypervisor.
    pub old_address: u64,
    /// Its size there.
    pub old_size: u64,
    /// The part of the payload that has the new one, and the offset.
    pub new: (Kind, u64),
    /// Size of the new one.
    pub new_size: u64,
    /// The bytes that memory must have at its start; may be empty.
    pub expected: Vec<u8>,
    /// The preimage of the complete function, if known.
    pub preimage: Option<Preimage>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Part {
    data: Vec<u8>,
    size: u64,
    align: u64,
}

/// Something in a part that has a name.
#[derive(Debug)]
struct Named {
    part: Kind,
    offset: u64,
    name: String,
    size: u64,
    function: bool,
}

/// A payload under construction.
#[derive(Debug)]
pub struct Draft {
    arch: &'static dyn Arch,
    parts: BTreeMap<Kind, Part>,
    constants: HashMap<(Kind, Vec<u8>), u64>,
    names: Vec<Named>,
    /// Relocated fields.
    pub fields: Vec<Field>,
    /// Functions to replace.
    pub funcs: Vec<Func>,
}

/// Why a payload cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The ELF writer's error.
    #[error(transparent)]
    Elf(#[from] object::write::Error),
    /// The addend of a relocation is not in the place that it fills.
    #[error("the addend of the relocation at {offset:#x}: {why}")]
    Addend {
        /// Offset of the place in its section.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// A field would lose the distance from a symbol that is in a payload below.
    #[error(
        "it refers to {name}{distance:+}, which is in a payload below: the hypervisor's core leads \
         such a reference to {name} itself; give all patches to one build, to be used instead of \
         the payloads below"
    )]
    Distance {
        /// The symbol.
        name: String,
        /// How far behind its start.
        distance: i64,
    },
    /// The address of a function is none of this machine.
    #[error("{name} is at {address:#x}, which is no address of this machine")]
    Address {
        /// The function.
        name: String,
        /// Its address.
        address: u64,
    },
}

/// The identity of a payload and its dependencies.
#[derive(Debug)]
pub struct Identity<'a> {
    /// Build-id of the hypervisor.
    pub hypervisor: &'a [u8],
    /// Build-id that it depends on.
    pub depends: &'a [u8],
    /// `key=value` pairs that the hypervisor lists with the payload.
    pub metadata: &'a [(String, String)],
    /// The build record ([`xsplice_abi::record`]).
    pub record: &'a serde_json::Value,
}

impl Draft {
    /// An empty payload for `machine`.
    pub fn of(machine: Machine) -> Self {
        Self::new(crate::arch::of(machine))
    }

    /// An empty payload.
    pub(crate) fn new(arch: &'static dyn Arch) -> Self {
        Self {
            arch,
            parts: BTreeMap::new(),
            constants: HashMap::new(),
            names: Vec::new(),
            fields: Vec::new(),
            funcs: Vec::new(),
        }
    }

    /// Whether the payload is equivalent to `other`, apart from compiler-made numbers
    /// in names.
    pub(crate) fn does_the_same(&self, other: &Self) -> bool {
        let source_name = |name: &str| SymbolName::from(plain(name)).base().to_owned();
        let names = |draft: &Self| -> Vec<_> {
            let names = draft.names.iter();
            names
                .map(|n| (n.part.clone(), n.offset, source_name(&n.name), n.size))
                .collect()
        };
        self.parts == other.parts
            && self.fields == other.fields
            && self.funcs == other.funcs
            && names(self) == names(other)
    }

    /// Appends `data`; returns its offset in the part. Functions are placed where they meet
    /// no erratum of processors, if there is such a place.
    pub fn append(&mut self, kind: &Kind, data: &[u8], align: Align) -> u64 {
        let part = self.parts.entry(kind.clone()).or_default();
        let padding = match kind {
            Kind::Text | Kind::Code(_) => self.arch.padding(),
            _ => &[0],
        };
        part.align = part.align.max(align.multiple);
        let mut offset = align.next(part.size);
        if *kind == Kind::Text {
            // The hypervisor places them from the start of a page on.
            let places = (0..PAGE / align.multiple.max(1)).map(|n| offset + n * align.multiple);
            let mut safe = places.filter(|place| !self.arch.meets_erratum(data, *place));
            offset = safe.next().unwrap_or(offset);
        }
        let missing = usize::try_from(offset).unwrap_or(usize::MAX) - part.data.len();
        part.data.extend(padding.iter().cycle().take(missing));
        part.data.extend_from_slice(data);
        part.size = offset + data.len() as u64;
        offset
    }

    /// Reserves zeroed memory; returns its offset.
    pub fn zeroes(&mut self, size: u64, align: Align) -> u64 {
        let part = self.parts.entry(Kind::Bss).or_default();
        part.align = part.align.max(align.multiple);
        let offset = align.next(part.size);
        part.size = offset + size;
        offset
    }

    /// Adds a constant, sharing equal ones; returns its place.
    pub fn constant(&mut self, content: &Content) -> (Kind, u64) {
        let key = (content.kind.clone(), content.bytes.clone());
        let at = match self.constants.get(&key) {
            Some(&at) => at,
            None => {
                let at = self.append(&content.kind, &content.bytes, Align::to(content.align));
                self.constants.insert(key, at);
                at
            }
        };
        (content.kind.clone(), at)
    }

    /// Adds a trap, one for each name; returns its offset in [`Kind::Text`].
    pub fn trap(&mut self, name: &str) -> u64 {
        if let Some(known) = self.names.iter().find(|other| other.name == name) {
            return known.offset;
        }
        let trap = self.arch.trap();
        let at = self.append(&Kind::Text, trap, Align::to(16));
        self.name(&(Kind::Text, at), name.to_owned(), trap.len() as u64, true);
        at
    }

    /// Adds a symbol.
    pub fn name(&mut self, at: &(Kind, u64), name: String, size: u64, function: bool) {
        self.names.push(Named {
            part: at.0.clone(),
            offset: at.1,
            name,
            size,
            function,
        });
    }

    /// The name of what is at `offset` of a part.
    pub(crate) fn name_of(&self, part: &Kind, offset: i64) -> String {
        let mut names = self.names.iter();
        let here = names.find(|n| n.part == *part && n.offset.cast_signed() == offset);
        here.map_or_else(
            || format!("{}{offset:+}", part.section().0),
            |named| named.name.clone(),
        )
    }

    /// Writes the payload. Its build-id is a hash of its contents, and so is the tag
    /// in the names of new symbols: every other payload has a different one.
    ///
    /// # Errors
    /// [`WriteError`] says why.
    pub fn write(&self, identity: &Identity) -> Result<Vec<u8>, WriteError> {
        let unnamed = self.write_with(identity, &[0; BUILD_ID_SIZE], "")?;
        let hash = Sha256::digest(&unnamed);
        self.write_with(identity, &hash[..BUILD_ID_SIZE], &hex(&hash[..TAG_SIZE]))
    }

    fn write_with(&self, identity: &Identity, id: &[u8], tag: &str) -> Result<Vec<u8>, WriteError> {
        let mut writer = Writer {
            object: Object::new(BinaryFormat::Elf, self.arch.elf(), Endianness::Little),
            arch: self.arch,
            places: HashMap::new(),
            sections: BTreeMap::new(),
            symbols: HashMap::new(),
        };
        writer.object.flags = FileFlags::Elf {
            os_abi: elf::ELFOSABI_NONE,
            abi_version: 0,
            e_flags: elf::FileFlags(self.arch.elf_flags()),
        };
        for (kind, part) in &self.parts {
            writer.add_part(kind, part);
        }
        for named in &self.names {
            writer.add_name(named, tag);
        }
        for field in &self.fields {
            let section = writer.sections[&field.part];
            writer.add_field(section, field)?;
        }
        writer.add_funcs(&self.funcs)?;
        writer.add_note(abi::section::DEPENDS, identity.depends);
        writer.add_note(abi::section::XEN_DEPENDS, identity.hypervisor);
        writer.add_note(abi::section::BUILD_ID, id);
        writer.add_metadata(identity.metadata);
        writer.add_preimages(&self.funcs);
        writer.add_unloaded_note(record::SECTION, &record::note(&identity.record.to_string()));
        let mut elf = writer.object.write()?;
        let objects = self.arch.objects();
        match objects.machine().width() {
            Width::Bits32 => set_entry_sizes::<elf::FileHeader32<Endianness>>(&mut elf, objects),
            Width::Bits64 => set_entry_sizes::<elf::FileHeader64<Endianness>>(&mut elf, objects),
        }
        Ok(elf)
    }
}

/// Length of the payload's build-id in bytes: that of the hypervisor's own.
const BUILD_ID_SIZE: usize = 20;

/// Length of the tag in bytes; names have two digits for each.
const TAG_SIZE: usize = 4;

struct Writer<'a> {
    object: Object<'a>,
    arch: &'static dyn Arch,
    /// Symbols without a name for places in sections.
    places: HashMap<(SectionId, u64), SymbolId>,
    sections: BTreeMap<Kind, SectionId>,
    symbols: HashMap<String, SymbolId>,
}

impl Writer<'_> {
    fn section(&mut self, name: &str, kind: SectionKind, flags: elf::SectionFlags) -> SectionId {
        let id = self
            .object
            .add_section(Vec::new(), name.as_bytes().to_vec(), kind);
        let sh_type = match kind {
            SectionKind::UninitializedData => elf::SHT_NOBITS,
            SectionKind::Note => elf::SHT_NOTE,
            _ => elf::SHT_PROGBITS,
        };
        self.object.section_mut(id).flags = SectionFlags::Elf {
            sh_type,
            sh_flags: flags,
        };
        id
    }

    fn add_part(&mut self, kind: &Kind, part: &Part) {
        let (name, section_kind, flags) = kind.section();
        let id = self.section(name, section_kind, flags);
        if *kind == Kind::Bss {
            self.object.append_section_bss(id, part.size, part.align);
        } else {
            let least = match kind {
                Kind::Text | Kind::Code(_) => self.arch.section_alignment(),
                _ => 1,
            };
            self.object
                .append_section_data(id, &part.data, part.align.max(least));
        }
        self.sections.insert(kind.clone(), id);
    }

    fn add_name(&mut self, named: &Named, tag: &str) {
        self.object.add_symbol(Symbol {
            name: tagged(&named.name, tag).into_bytes(),
            value: named.offset,
            size: named.size,
            kind: if named.function {
                SymbolKind::Text
            } else {
                SymbolKind::Data
            },
            scope: SymbolScope::Compilation,
            weak: false,
            section: SymbolSection::Section(self.sections[&named.part]),
            flags: SymbolFlags::None,
        });
    }

    fn hypervisor_symbol(&mut self, name: &str, address: Option<u64>) -> SymbolId {
        if let Some(&id) = self.symbols.get(name) {
            return id;
        }
        let id = self.object.add_symbol(Symbol {
            name: name.as_bytes().to_vec(),
            value: address.unwrap_or(0),
            size: 0,
            kind: if address.is_some() {
                SymbolKind::Data
            } else {
                SymbolKind::Unknown
            },
            scope: if address.is_some() {
                SymbolScope::Compilation
            } else {
                SymbolScope::Unknown
            },
            weak: false,
            section: if address.is_some() {
                SymbolSection::Absolute
            } else {
                SymbolSection::Undefined
            },
            flags: SymbolFlags::None,
        });
        self.symbols.insert(name.to_owned(), id);
        id
    }

    /// The symbol of a place in a section, for fields that lose their addend. Without a
    /// name, it is none of the payload's symbols.
    fn place(&mut self, section: SectionId, offset: u64) -> SymbolId {
        let object = &mut self.object;
        let symbol = || Symbol {
            name: Vec::new(),
            value: offset,
            size: 0,
            kind: SymbolKind::Label,
            scope: SymbolScope::Compilation,
            weak: false,
            section: SymbolSection::Section(section),
            flags: SymbolFlags::None,
        };
        let known = self.places.entry((section, offset));
        *known.or_insert_with(|| object.add_symbol(symbol()))
    }

    fn add_field(&mut self, section: SectionId, field: &Field) -> Result<(), WriteError> {
        let relocation = self.arch.objects().relocation(field.r_type);
        let loses = relocation.is_some_and(|relocation| self.arch.loses_addend(relocation));
        let (symbol, offset) = match &field.reaches {
            Reaches::Part(kind, offset) if loses && *offset != 0 => {
                (self.place(self.sections[kind], offset.cast_unsigned()), 0)
            }
            Reaches::Part(kind, offset) => {
                (self.object.section_symbol(self.sections[kind]), *offset)
            }
            Reaches::Name(name, distance) if loses && *distance != 0 => {
                let (name, distance) = (name.clone(), *distance);
                return Err(WriteError::Distance { name, distance });
            }
            Reaches::Name(name, offset) => (self.hypervisor_symbol(name, None), *offset),
            Reaches::Address(name, address, offset) => {
                (self.hypervisor_symbol(name, Some(*address)), *offset)
            }
        };
        let place = (section, field.offset);
        self.relocate(place, field.r_type, (symbol, offset + field.addend))
    }

    /// Lets the field at an offset of a section lead to a symbol plus an addend.
    fn relocate(
        &mut self,
        (section, offset): (SectionId, u64),
        r_type: u32,
        (symbol, addend): (SymbolId, i64),
    ) -> Result<(), WriteError> {
        let machine = self.arch.objects().machine();
        let addend = match machine.has_addends_in_places() {
            true => {
                self.store_addend((section, offset), r_type, addend)?;
                0
            }
            false => addend,
        };
        let relocation = Relocation {
            offset,
            symbol,
            addend,
            flags: RelocationFlags::Elf {
                r_type: elf::RelocationType(r_type),
            },
        };
        Ok(self.object.add_relocation(section, relocation)?)
    }

    /// Writes an addend to the place of its relocation.
    fn store_addend(
        &mut self,
        (section, offset): (SectionId, u64),
        r_type: u32,
        addend: i64,
    ) -> Result<(), WriteError> {
        let cannot = |why: String| WriteError::Addend { offset, why };
        let relocation = self.arch.objects().relocation(r_type);
        let relocation =
            relocation.ok_or_else(|| cannot(format!("its type, {r_type}, is unknown")))?;
        let data = self.object.section_mut(section).data_mut();
        let place = usize::try_from(offset)
            .ok()
            .and_then(|at| data.get_mut(at..));
        let place = place.ok_or_else(|| cannot("it is outside of its section".to_owned()))?;
        let wrote = relocation.write(place, addend.cast_unsigned());
        wrote.map_err(|error| cannot(error.to_string()))?;
        match relocation.addend(place) {
            Some(held) if held == addend => Ok(()),
            _ => Err(cannot(format!("{addend:#x} does not fit"))),
        }
    }

    /// `.livepatch.funcs` and the names that it points to.
    fn add_funcs(&mut self, funcs: &[Func]) -> Result<(), WriteError> {
        if funcs.is_empty() {
            return Ok(());
        }
        let (alloc, write) = (elf::SHF_ALLOC, elf::SHF_WRITE);
        let strings = self.section(abi::section::STRINGS, SectionKind::ReadOnlyData, alloc);
        let table = self.section(abi::section::FUNCS, SectionKind::Data, alloc | write);
        let name_symbol = self.object.section_symbol(strings);
        for func in funcs {
            let mut name = func.name.clone().into_bytes();
            name.push(0);
            let name_at = self.object.append_section_data(strings, &name, 1);
            let record = abi::LivepatchFunc {
                old_addr: func.old_address.into(),
                new_size: u32::try_from(func.new_size).unwrap_or(u32::MAX).into(),
                old_size: u32::try_from(func.old_size).unwrap_or(u32::MAX).into(),
                version: abi::PAYLOAD_VERSION,
                expect: abi::Expectation::new(&func.expected).unwrap_or_default(),
                ..Default::default()
            };
            let width = self.arch.objects().machine().width();
            let record = record_bytes(&record, width).ok_or_else(|| {
                let (name, address) = (func.name.clone(), func.old_address);
                WriteError::Address { name, address }
            })?;
            let at = self
                .object
                .append_section_data(table, &record, width.bytes() as u64);
            let new = self.object.section_symbol(self.sections[&func.new.0]);
            let pointer = self.arch.objects().pointer();
            let second = at + width.bytes() as u64;
            for (at, (symbol, addend)) in
                [(at, (name_symbol, name_at)), (second, (new, func.new.1))]
            {
                self.relocate((table, at), pointer, (symbol, addend.cast_signed()))?;
            }
        }
        Ok(())
    }

    fn add_note(&mut self, name: &str, id: &[u8]) {
        let section = self.section(name, SectionKind::Note, elf::SHF_ALLOC);
        self.object
            .append_section_data(section, &xsplice_abi::note::build_id_note(id), 4);
    }

    fn add_preimages(&mut self, funcs: &[Func]) {
        let mut notes = Vec::new();
        for preimage in funcs.iter().filter_map(|func| func.preimage.as_ref()) {
            preimage.append_to(&mut notes);
        }
        if !notes.is_empty() {
            self.add_unloaded_note(preimage::SECTION, &notes);
        }
    }

    /// An unmodified hypervisor ignores sections that are not loaded.
    fn add_unloaded_note(&mut self, name: &str, notes: &[u8]) {
        let section = self.section(name, SectionKind::Note, elf::SectionFlags(0));
        self.object.append_section_data(section, notes, 4);
    }

    fn add_metadata(&mut self, metadata: &[(String, String)]) {
        if metadata.is_empty() {
            return;
        }
        let text: String = metadata.iter().map(|(k, v)| format!("{k}={v}\0")).collect();
        let section = self.section(
            abi::section::MODINFO,
            SectionKind::ReadOnlyData,
            elf::SHF_ALLOC,
        );
        self.object.append_section_data(section, text.as_bytes(), 1);
    }
}

/// A record for a machine with such addresses; `None` if one does not fit.
fn record_bytes(record: &abi::LivepatchFunc, width: Width) -> Option<Vec<u8>> {
    match width {
        Width::Bits32 => Some(record.narrow()?.as_bytes().to_vec()),
        Width::Bits64 => Some(record.as_bytes().to_vec()),
    }
}

/// Sets the entry size in the section header of every table.
fn set_entry_sizes<H: FileHeader<Endian = Endianness>>(elf: &mut [u8], objects: &dyn Objects) {
    let Ok(file) = ElfFile::<H>::parse(&*elf) else {
        return;
    };
    let Ok(table) = usize::try_from(file.elf_header().e_shoff(file.endian()).into()) else {
        return;
    };
    let width = objects.machine().width();
    let mut sizes = Vec::new();
    for section in file.sections() {
        let name = section.name().unwrap_or_default();
        let size = match name {
            abi::section::FUNCS => Some(width.func_size() as u64),
            _ if hook::stage(name).is_some() => Some(width.bytes() as u64),
            _ => special::table(name).map(|table| objects.entry_size(table)),
        };
        sizes.extend(size.map(|size| (section.index().0, size)));
    }
    // The last field of a header is as wide as an address.
    let (header, field) = (size_of::<H::SectionHeader>(), width.bytes());
    for (index, size) in sizes {
        let end = table + (index + 1) * header;
        if let Some(place) = elf.get_mut(end - field..end) {
            place.copy_from_slice(&size.to_le_bytes()[..field]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Align, Draft, Kind};
    use xsplice_abi::machine::Machine;

    /// `adrp x0`, `ldr x1, [x2]`, `ldr x3, [x0]`: erratum 843419.
    fn sequence() -> Vec<u8> {
        let words: [u32; 3] = [0x9000_0000, 0xf940_0041, 0xf940_0003];
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    /// Where the sequence goes if it is needed behind `before` bytes.
    fn placed(machine: Machine, kind: &Kind, before: usize, align: u64) -> u64 {
        let mut draft = Draft::of(machine);
        draft.append(kind, &vec![0; before], Align::to(4));
        draft.append(kind, &sequence(), Align::to(align))
    }

    #[test]
    fn functions_are_placed_where_they_meet_no_erratum() {
        let arm64 = |before, align| placed(Machine::Arm64, &Kind::Text, before, align);
        for (before, align, at) in [
            (0xff4, 4, 0xff4),
            (0xff8, 4, 0x1000),
            (0xffc, 4, 0x1000),
            (0xff1, 8, 0x1000),
            (0x2ff8, 4, 0x3000),
            (0x1000, 4, 0x1000),
        ] {
            assert_eq!(arm64(before, align), at, "{before:#x} {align}");
        }
        // Everywhere else, it does not matter.
        assert_eq!(placed(Machine::Arm64, &Kind::RoData, 0xff8, 4), 0xff8);
        assert_eq!(placed(Machine::X86_64, &Kind::Text, 0xff8, 4), 0xff8);
    }

    #[test]
    fn without_such_a_place_they_stay_where_they_fit_first() {
        let mut draft = Draft::of(Machine::Arm64);
        let code = [vec![0; 0xff8], sequence()].concat();
        assert_eq!(draft.append(&Kind::Text, &code, Align::to(4096)), 0);
        assert_eq!(draft.append(&Kind::Text, &code, Align::to(4096)), 0x2000);
        assert_eq!(draft.append(&Kind::Text, &code, Align::to(16)), 0x3010);
    }
}
