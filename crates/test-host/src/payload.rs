// SPDX-License-Identifier: MIT OR Apache-2.0

//! Payloads, written section by section.

use crate::{OWN_ID, TARGET, XEN_ID};
use object::write::{Object, Relocation, SectionId, Symbol, SymbolId};
use object::{
    Architecture, BinaryFormat, Endianness, FileFlags, RelocationFlags, SectionFlags, SectionKind,
    SymbolFlags, SymbolKind, SymbolScope, elf,
};
use xsplice_abi::machine::{Machine, Width};
use xsplice_abi::note::build_id_note;
use xsplice_abi::payload::{Expectation, LivepatchFunc, PAYLOAD_VERSION, section};
use zerocopy::IntoBytes as _;

/// One function record.
pub struct Func {
    /// The record; its pointers are filled in by relocations.
    pub record: LivepatchFunc,
    /// The name by which the engine looks the old function up; when it is empty, the
    /// record needs an address.
    pub name: &'static str,
    /// Whether there is new code, and not no-ops.
    pub replaced: bool,
}

/// Replaces 32 bytes of `name` by the new code.
#[must_use]
pub fn func(name: &'static str) -> Func {
    let mut record = LivepatchFunc {
        version: PAYLOAD_VERSION,
        ..LivepatchFunc::default()
    };
    record.old_size.set(32);
    record.new_size.set(16);
    Func {
        record,
        name,
        replaced: true,
    }
}

impl Func {
    /// Changes the record.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut LivepatchFunc)) -> Self {
        change(&mut self.record);
        self
    }

    /// Makes the function no-ops.
    #[must_use]
    pub fn nop(mut self) -> Self {
        self.replaced = false;
        self
    }

    /// With what the function must begin with.
    ///
    /// # Panics
    /// If those are too many bytes.
    #[must_use]
    pub fn expecting(mut self, bytes: &[u8]) -> Self {
        self.record.expect = Expectation::new(bytes).unwrap();
        self
    }
}

/// A payload in the making.
pub struct Payload {
    /// The object file.
    pub object: Object<'static>,
    /// The section of the new code.
    pub text: SectionId,
    /// The symbol of the new code.
    pub new_code: SymbolId,
    machine: Machine,
}

/// The forms of payloads for a machine.
impl Payload {
    fn architecture(machine: Machine) -> Architecture {
        match machine {
            Machine::X86_64 => Architecture::X86_64,
            Machine::Arm64 => Architecture::Aarch64,
            Machine::Arm32 => Architecture::Arm,
        }
    }

    /// The relocation of a pointer.
    fn pointer(&self) -> u32 {
        match self.machine {
            Machine::X86_64 => 1,
            Machine::Arm64 => 257,
            Machine::Arm32 => 2,
        }
    }

    /// Whether relocations have their addends in the data that they change.
    fn addends_in_places(&self) -> bool {
        self.machine.has_addends_in_places()
    }

    /// The bytes of a record.
    fn bytes_of(&self, record: &LivepatchFunc) -> Vec<u8> {
        match self.machine.width() {
            Width::Bits64 => record.as_bytes().to_vec(),
            Width::Bits32 => record.narrow().unwrap().as_bytes().to_vec(),
        }
    }
}

impl Payload {
    /// Code for one new function, 16 bytes, and nothing else.
    pub fn bare() -> Self {
        Self::only(Machine::X86_64, &[0x90; 16])
    }

    /// A payload that replaces `target` by this code.
    pub fn with_code(code: &[u8]) -> Self {
        let mut payload = Self::only(Machine::X86_64, code);
        payload.notes(&XEN_ID, &OWN_ID);
        payload.functions(&[func("target")]);
        payload
    }

    /// A payload for ARM64 with this new code.
    pub fn arm64(code: &[u8], functions: &[Func]) -> Self {
        Self::arm(Machine::Arm64, code, functions)
    }

    /// A payload for ARM32 with this new code.
    pub fn arm32(code: &[u8], functions: &[Func]) -> Self {
        Self::arm(Machine::Arm32, code, functions)
    }

    fn arm(machine: Machine, code: &[u8], functions: &[Func]) -> Self {
        let mut payload = Self::only(machine, code);
        payload.notes(&XEN_ID, &OWN_ID);
        payload.functions(functions);
        payload
    }

    fn only(machine: Machine, code: &[u8]) -> Self {
        let architecture = Self::architecture(machine);
        let mut object = Object::new(BinaryFormat::Elf, architecture, Endianness::Little);
        if machine == Machine::Arm32 {
            object.flags = FileFlags::Elf {
                os_abi: elf::ELFOSABI_NONE,
                abi_version: 0,
                e_flags: elf::EF_ARM_EABI_VER5,
            };
        }
        let text = object.add_section(vec![], b".text.new".to_vec(), SectionKind::Text);
        object.append_section_data(text, code, 16);
        let new_code = symbol(&mut object, "new_code", Some((text, 0)));
        Self {
            object,
            text,
            new_code,
            machine,
        }
    }

    /// With the three notes that every payload has.
    pub fn new(functions: &[Func]) -> Self {
        Self::on(&XEN_ID, &OWN_ID, functions)
    }

    /// A payload with build-id `own` that depends on `depends`.
    pub fn on(depends: &[u8], own: &[u8], functions: &[Func]) -> Self {
        let mut payload = Self::bare();
        payload.notes(depends, own);
        payload.functions(functions);
        payload
    }

    fn notes(&mut self, depends: &[u8], own: &[u8]) {
        self.note(section::BUILD_ID, own);
        self.note(section::DEPENDS, depends);
        self.note(section::XEN_DEPENDS, &XEN_ID);
    }

    /// Adds hooks of one kind, all of them the new code.
    pub fn hooks(mut self, name: &str, count: u64) -> Self {
        let size = self.machine.width().bytes() as u64;
        let bytes = vec![0; usize::try_from(count * size).unwrap()];
        let section = self.section(name, SectionKind::ReadOnlyData, &bytes, size);
        let code = self.new_code;
        for index in 0..count {
            self.relocation(section, index * size, self.pointer(), code, 0);
        }
        self
    }

    /// Adds a build-id note.
    pub fn note(&mut self, name: &str, id: &[u8]) {
        self.section(name, SectionKind::ReadOnlyData, &build_id_note(id), 4);
    }

    /// Adds a section.
    pub fn section(&mut self, name: &str, kind: SectionKind, data: &[u8], align: u64) -> SectionId {
        let section = self
            .object
            .add_section(vec![], name.as_bytes().to_vec(), kind);
        self.object.append_section_data(section, data, align);
        section
    }

    /// Adds zeros that are not in the file.
    pub fn zeros(&mut self, size: u64) {
        let kind = SectionKind::UninitializedData;
        let section = self.object.add_section(vec![], b".bss".to_vec(), kind);
        self.object.append_section_bss(section, size, 64);
    }

    /// Adds a symbol; without a place, one of the hypervisor.
    pub fn symbol(&mut self, name: &str, place: Option<(SectionId, u64)>) -> SymbolId {
        symbol(&mut self.object, name, place)
    }

    /// Adds a symbol that is a number.
    pub fn absolute(&mut self, name: &str, value: u64) -> SymbolId {
        let symbol = symbol(&mut self.object, name, None);
        let written = self.object.symbol_mut(symbol);
        (written.section, written.value) = (object::write::SymbolSection::Absolute, value);
        symbol
    }

    /// Adds a relocation. On ARM32, an addend that is not zero goes into the place, which
    /// is data.
    ///
    /// # Panics
    /// If the section cannot have any.
    pub fn relocation(
        &mut self,
        section: SectionId,
        offset: u64,
        r_type: u32,
        symbol: SymbolId,
        mut addend: i64,
    ) {
        if self.addends_in_places() && addend != 0 {
            let data = self.object.section_mut(section).data_mut();
            let start = usize::try_from(offset).unwrap();
            let held = i32::try_from(std::mem::take(&mut addend)).unwrap();
            data[start..start + 4].copy_from_slice(&held.to_le_bytes());
        }
        let flags = RelocationFlags::Elf {
            r_type: elf::RelocationType(r_type),
        };
        let relocation = Relocation {
            offset,
            symbol,
            addend,
            flags,
        };
        self.object.add_relocation(section, relocation).unwrap();
    }

    /// Sets the flags of a section with contents.
    pub fn set_flags(&mut self, section: SectionId, flags: u64) {
        self.object.section_mut(section).flags = SectionFlags::Elf {
            sh_type: elf::SHT_PROGBITS,
            sh_flags: elf::SectionFlags(flags),
        };
    }

    /// The bytes of a record that has its old address.
    pub fn record(function: &Func) -> Vec<u8> {
        let mut record = function.record;
        record.old_addr.set(TARGET);
        record.as_bytes().to_vec()
    }

    fn functions(&mut self, functions: &[Func]) {
        if functions.is_empty() {
            return;
        }
        let strings = self.section(section::STRINGS, SectionKind::ReadOnlyData, b"", 1);
        let width = self.machine.width().bytes() as u64;
        let funcs = self.section(section::FUNCS, SectionKind::Data, b"", width);
        for function in functions {
            let record = self.bytes_of(&function.record);
            let at = self.object.append_section_data(funcs, &record, width);
            if !function.name.is_empty() {
                let bytes = [function.name.as_bytes(), b"\0"].concat();
                let offset = self.object.append_section_data(strings, &bytes, 1);
                let name = self.object.section_symbol(strings);
                self.relocation(funcs, at, self.pointer(), name, offset.cast_signed());
            }
            if function.replaced {
                self.relocation(funcs, at + width, self.pointer(), self.new_code, 0);
            }
        }
    }

    /// The file.
    ///
    /// # Panics
    /// If there is something in it that a file cannot have.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.object.write().unwrap()
    }
}

fn symbol(object: &mut Object<'_>, name: &str, place: Option<(SectionId, u64)>) -> SymbolId {
    let section = match place {
        Some((section, _)) => object::write::SymbolSection::Section(section),
        None => object::write::SymbolSection::Undefined,
    };
    object.add_symbol(Symbol {
        name: name.as_bytes().to_vec(),
        value: place.map_or(0, |(_, offset)| offset),
        size: 0,
        kind: SymbolKind::Text,
        scope: SymbolScope::Linkage,
        weak: false,
        section,
        flags: SymbolFlags::None,
    })
}
