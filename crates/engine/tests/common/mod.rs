//! A made-up hypervisor, and payloads for it written section by section.
#![allow(dead_code, reason = "each test program uses a part of this module")]

use object::write::{Object, Relocation, SectionId, Symbol, SymbolId};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SectionFlags, SectionKind,
    SymbolFlags, SymbolKind, SymbolScope, elf,
};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::LazyLock;
use xsplice_abi::note::build_id_note;
use xsplice_abi::payload::{Expectation, LivepatchFunc, PAYLOAD_VERSION, section};
use xsplice_engine::{Host, Loader, Policy, Refusal, Region, Stack, Verified};
use zerocopy::IntoBytes as _;

pub(crate) const TEXT: u64 = 0xffff_82d0_4020_0000;
pub(crate) const TARGET: u64 = TEXT + 0x100;
pub(crate) const ENDBR_TARGET: u64 = TEXT + 0x200;
pub(crate) const INIT: u64 = TEXT + 0x10000;
pub(crate) const PAYLOADS: u64 = TEXT + 0x20000;
pub(crate) const XEN_ID: [u8; 20] = [0x11; 20];
pub(crate) const OWN_ID: [u8; 20] = [0x22; 20];

/// One page of text, one of init text, a little room for payloads.
pub(crate) struct Hypervisor {
    text: Vec<u8>,
    symbols: HashMap<&'static [u8], u64>,
}

impl Hypervisor {
    pub(crate) fn new() -> Self {
        let mut text = vec![0xcc; 0x1000];
        text[0x200..0x204].copy_from_slice(&[0xf3, 0x0f, 0x1e, 0xfa]);
        let symbols = HashMap::from([
            (&b"target"[..], TARGET),
            (b"file.c#local", TEXT + 0x180),
            (b"endbr_target", ENDBR_TARGET),
            (b"at_boot", INIT),
        ]);
        Self { text, symbols }
    }
}

impl Host for Hypervisor {
    fn build_id(&self) -> &[u8] {
        &XEN_ID
    }

    fn lookup_symbol(&self, name: &[u8]) -> Option<u64> {
        self.symbols.get(name).copied()
    }

    fn region(&self, addr: u64) -> Region {
        match addr {
            TEXT..0xffff_82d0_4020_1000 => Region::Text,
            INIT..0xffff_82d0_4021_1000 => Region::Init,
            _ => Region::Outside,
        }
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        let start = addr
            .checked_sub(TEXT)
            .and_then(|at| usize::try_from(at).ok());
        let bytes = start.and_then(|at| self.text.get(at..at.checked_add(buf.len())?));
        if let Some(bytes) = bytes {
            buf.copy_from_slice(bytes);
        }
        bytes.is_some()
    }

    fn payload_area(&self) -> Range<u64> {
        PAYLOADS..PAYLOADS + (8 << 20)
    }
}

pub(crate) fn load_on(stack: &Stack, file: &[u8]) -> Result<Verified, Refusal> {
    static HOST: LazyLock<Hypervisor> = LazyLock::new(Hypervisor::new);
    Loader {
        host: &*HOST,
        stack,
        policy: Policy::Stock,
    }
    .load("test", file)
}

pub(crate) fn load(file: &[u8]) -> Result<Verified, Refusal> {
    load_on(&Stack::new(), file)
}

/// One function record; `old_addr` 0 and a name is how it is looked up.
pub(crate) struct Func {
    pub(crate) record: LivepatchFunc,
    pub(crate) name: &'static str,
    pub(crate) replaced: bool,
}

pub(crate) fn func(name: &'static str) -> Func {
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
    pub(crate) fn with(mut self, change: impl FnOnce(&mut LivepatchFunc)) -> Self {
        change(&mut self.record);
        self
    }

    pub(crate) fn nop(mut self) -> Self {
        self.replaced = false;
        self
    }

    pub(crate) fn expecting(mut self, bytes: &[u8]) -> Self {
        self.record.expect = Expectation::new(bytes).unwrap();
        self
    }
}

/// A payload in the making.
pub(crate) struct Payload {
    pub(crate) object: Object<'static>,
    pub(crate) text: SectionId,
    pub(crate) new_code: SymbolId,
}

impl Payload {
    /// Code for one new function, 16 bytes, and nothing else.
    pub(crate) fn bare() -> Self {
        let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        let text = object.add_section(vec![], b".text.new".to_vec(), SectionKind::Text);
        object.append_section_data(text, &[0x90; 16], 16);
        let new_code = symbol(&mut object, "new_code", Some((text, 0)));
        Self {
            object,
            text,
            new_code,
        }
    }

    /// With the three notes that every payload has.
    pub(crate) fn new(functions: &[Func]) -> Self {
        let mut payload = Self::bare();
        payload.note(section::BUILD_ID, &OWN_ID);
        payload.note(section::DEPENDS, &XEN_ID);
        payload.note(section::XEN_DEPENDS, &XEN_ID);
        payload.functions(functions);
        payload
    }

    pub(crate) fn note(&mut self, name: &str, id: &[u8]) {
        self.section(name, SectionKind::ReadOnlyData, &build_id_note(id), 4);
    }

    pub(crate) fn section(
        &mut self,
        name: &str,
        kind: SectionKind,
        data: &[u8],
        align: u64,
    ) -> SectionId {
        let section = self
            .object
            .add_section(vec![], name.as_bytes().to_vec(), kind);
        self.object.append_section_data(section, data, align);
        section
    }

    pub(crate) fn symbol(&mut self, name: &str, place: Option<(SectionId, u64)>) -> SymbolId {
        symbol(&mut self.object, name, place)
    }

    pub(crate) fn relocation(
        &mut self,
        section: SectionId,
        offset: u64,
        r_type: u32,
        symbol: SymbolId,
        addend: i64,
    ) {
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

    pub(crate) fn set_flags(&mut self, section: SectionId, flags: u64) {
        self.object.section_mut(section).flags = SectionFlags::Elf {
            sh_type: elf::SHT_PROGBITS,
            sh_flags: elf::SectionFlags(flags),
        };
    }

    /// The bytes of a record that has its old address.
    pub(crate) fn record(function: &Func) -> Vec<u8> {
        let mut record = function.record;
        record.old_addr.set(TARGET);
        record.as_bytes().to_vec()
    }

    fn functions(&mut self, functions: &[Func]) {
        if functions.is_empty() {
            return;
        }
        let strings = self.section(section::STRINGS, SectionKind::ReadOnlyData, b"", 1);
        let funcs = self.section(section::FUNCS, SectionKind::Data, b"", 8);
        for function in functions {
            let at = self
                .object
                .append_section_data(funcs, function.record.as_bytes(), 8);
            if !function.name.is_empty() {
                let bytes = [function.name.as_bytes(), b"\0"].concat();
                let offset = self.object.append_section_data(strings, &bytes, 1);
                let name = self.object.section_symbol(strings);
                self.relocation(funcs, at, 1, name, offset.cast_signed());
            }
            if function.replaced {
                self.relocation(funcs, at + 8, 1, self.new_code, 0);
            }
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
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
