// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes a payload as an ELF file in Xen's live-patch format.

use crate::arch::Arch;
use crate::name::{plain, tagged};
use object::read::elf::FileHeader as _;
use object::write::{Object, Relocation, SectionId, Symbol, SymbolId, SymbolSection};
use object::{
    BinaryFormat, Endianness, RelocationFlags, SectionFlags, SectionKind, SymbolFlags, SymbolKind,
    SymbolScope, elf,
};
use object::{Object as _, ObjectSection as _};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use xsplice_abi::machine::Machine;
use xsplice_abi::note::hex;
use xsplice_abi::payload as abi;
use xsplice_abi::payload::hook;
use xsplice_abi::preimage::{self, Preimage};
use xsplice_abi::record;
use xsplice_abi::special;
use xsplice_objdiff::SymbolName;

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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    ///
    /// # Errors
    /// Why there are no payloads for it.
    pub fn of(machine: Machine) -> Result<Self, String> {
        crate::arch::of(machine).map(Self::new)
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

    /// Writes the payload. Its build-id is a hash of its contents, and so is the tag
    /// in the names of new symbols: every other payload has a different one.
    ///
    /// # Errors
    /// The ELF writer's error.
    pub fn write(&self, identity: &Identity) -> Result<Vec<u8>, object::write::Error> {
        let unnamed = self.write_with(identity, &[0; BUILD_ID_SIZE], "")?;
        let hash = Sha256::digest(&unnamed);
        self.write_with(identity, &hash[..BUILD_ID_SIZE], &hex(&hash[..TAG_SIZE]))
    }

    fn write_with(
        &self,
        identity: &Identity,
        id: &[u8],
        tag: &str,
    ) -> Result<Vec<u8>, object::write::Error> {
        let mut writer = Writer {
            object: Object::new(BinaryFormat::Elf, self.arch.elf(), Endianness::Little),
            pointer: self.arch.objects().pointer(),
            sections: BTreeMap::new(),
            symbols: HashMap::new(),
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
        set_entry_sizes(&mut elf, |table| self.arch.objects().entry_size(table));
        Ok(elf)
    }
}

/// Length of the payload's build-id in bytes: that of the hypervisor's own.
const BUILD_ID_SIZE: usize = 20;

/// Length of the tag in bytes; names have two digits for each.
const TAG_SIZE: usize = 4;

struct Writer<'a> {
    object: Object<'a>,
    /// The type of the relocation for a pointer.
    pointer: u32,
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
            self.object
                .append_section_data(id, &part.data, part.align.max(1));
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

    fn add_field(&mut self, section: SectionId, field: &Field) -> Result<(), object::write::Error> {
        let (symbol, offset) = match &field.reaches {
            Reaches::Part(kind, offset) => {
                (self.object.section_symbol(self.sections[kind]), *offset)
            }
            Reaches::Name(name, offset) => (self.hypervisor_symbol(name, None), *offset),
            Reaches::Address(name, address, offset) => {
                (self.hypervisor_symbol(name, Some(*address)), *offset)
            }
        };
        let r_type = elf::RelocationType(field.r_type);
        let relocation = Relocation {
            offset: field.offset,
            symbol,
            addend: offset + field.addend,
            flags: RelocationFlags::Elf { r_type },
        };
        self.object.add_relocation(section, relocation)
    }

    /// Lets the eight bytes at `offset` of `section` point to `symbol` plus `addend`.
    fn add_pointer(
        &mut self,
        (section, offset): (SectionId, u64),
        (symbol, addend): (SymbolId, u64),
    ) -> Result<(), object::write::Error> {
        let relocation = Relocation {
            offset,
            symbol,
            addend: addend.cast_signed(),
            flags: RelocationFlags::Elf {
                r_type: elf::RelocationType(self.pointer),
            },
        };
        self.object.add_relocation(section, relocation)
    }

    /// `.livepatch.funcs` and the names that it points to.
    fn add_funcs(&mut self, funcs: &[Func]) -> Result<(), object::write::Error> {
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
            let bytes = zerocopy::IntoBytes::as_bytes(&record);
            let at = self.object.append_section_data(table, bytes, 8);
            let new = self.object.section_symbol(self.sections[&func.new.0]);
            self.add_pointer((table, at), (name_symbol, name_at))?;
            self.add_pointer((table, at + 8), (new, func.new.1))?;
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

/// Sets the entry size in the section header of every table.
fn set_entry_sizes(elf: &mut [u8], size_of_entry: impl Fn(special::Table) -> u64) {
    const HEADER_SIZE: usize = size_of::<elf::SectionHeader64<Endianness>>();
    const ENTRY_SIZE: usize = 56;
    let Ok(file) = object::read::elf::ElfFile64::<Endianness>::parse(&*elf) else {
        return;
    };
    let Ok(table) = usize::try_from(file.elf_header().e_shoff(file.endian())) else {
        return;
    };
    let mut sizes = Vec::new();
    for section in file.sections() {
        let name = section.name().unwrap_or_default();
        let size = match name {
            abi::section::FUNCS => Some(size_of::<abi::LivepatchFunc>() as u64),
            _ if hook::stage(name).is_some() => Some(hook::POINTER_SIZE),
            _ => special::table(name).map(&size_of_entry),
        };
        sizes.extend(size.map(|size| (section.index().0, size)));
    }
    for (index, size) in sizes {
        let at = table + index * HEADER_SIZE + ENTRY_SIZE;
        if let Some(field) = elf.get_mut(at..at + 8) {
            field.copy_from_slice(&size.to_le_bytes());
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
        let mut draft = Draft::of(machine).expect("a machine for payloads");
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
        let mut draft = Draft::of(Machine::Arm64).expect("a machine for payloads");
        let code = [vec![0; 0xff8], sequence()].concat();
        assert_eq!(draft.append(&Kind::Text, &code, Align::to(4096)), 0);
        assert_eq!(draft.append(&Kind::Text, &code, Align::to(4096)), 0x2000);
        assert_eq!(draft.append(&Kind::Text, &code, Align::to(16)), 0x3010);
    }
}
