// SPDX-License-Identifier: MIT OR Apache-2.0
//! A payload's code and data, from its file.

use index_vec::{IndexVec, define_index_type};
use object::read::elf::{ElfFile, FileHeader, Sym as _};
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};
use std::collections::HashMap;
use xsplice_abi::machine::Width;
use xsplice_abi::payload::{LivepatchFunc, section};
use xsplice_objdiff::arch::Arch;

/// A place that a payload refers to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// In the payload itself: section and offset.
    Here(usize, i64),
    /// A symbol that the loader looks up by name, and an offset.
    Name(String, i64),
    /// An address in the hypervisor.
    Address(u64),
}

impl Place {
    /// The place plus this many bytes.
    fn plus(&self, bytes: i64) -> Self {
        match self {
            Self::Here(section, at) => Self::Here(*section, at.wrapping_add(bytes)),
            Self::Name(name, at) => Self::Name(name.clone(), at.wrapping_add(bytes)),
            Self::Address(at) => Self::Address(at.wrapping_add_signed(bytes)),
        }
    }
}

/// A relocated field.
#[derive(Debug)]
pub(crate) struct Field {
    /// Offset in its section.
    pub(crate) offset: u64,
    /// The number of its type, of the machine's.
    pub(crate) r_type: u32,
    /// The place of the relocation's symbol.
    base: Place,
    addend: i64,
}

impl Field {
    /// Its target; `bias` is the part of the addend that is not an offset.
    pub(crate) fn leads_to(&self, bias: i64) -> Place {
        self.base.plus(self.addend.wrapping_sub(bias))
    }
}

/// A section of a payload.
#[derive(Debug, Default)]
pub(crate) struct Section {
    /// Empty for zero-initialised memory.
    pub(crate) data: Vec<u8>,
    /// In ascending order of offset.
    fields: Vec<Field>,
}

define_index_type! {
    /// Something that a payload defines.
    pub(crate) struct CopyIx = u32;
}

/// Something that a payload defines.
#[derive(Debug)]
pub(crate) struct Symbol {
    pub(crate) name: String,
    pub(crate) section: usize,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// A function that a payload replaces.
#[derive(Debug)]
pub(crate) struct Record {
    /// The place of the new one in the payload.
    pub(crate) new: Place,
    /// The old function.
    pub(crate) old: Place,
}

/// The contents of a payload.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) sections: Vec<Section>,
    pub(crate) symbols: IndexVec<CopyIx, Symbol>,
    pub(crate) records: Vec<Record>,
}

/// The addend that the place of a relocation has.
fn held_addend(arch: &dyn Arch, data: &[u8], offset: u64, r_type: u32) -> Result<i64, String> {
    let place = usize::try_from(offset).ok().and_then(|at| data.get(at..));
    let addend = place.and_then(|place| arch.relocation(r_type)?.addend(place));
    addend.ok_or_else(|| format!("a relocation at {offset:#x} is of an unknown kind"))
}

impl Contents {
    /// Reads `file`, which is for the machine `arch`.
    ///
    /// # Errors
    /// If the file is damaged, in words.
    pub(crate) fn read<H: FileHeader<Endian = Endianness>>(
        file: &ElfFile<'_, H>,
        arch: &dyn Arch,
    ) -> Result<Self, String> {
        let endian = file.endian();
        let mut symbols = IndexVec::new();
        let mut stands_for = HashMap::new();
        for symbol in file.symbols() {
            let name = symbol.name().map_err(|e| e.to_string())?.to_owned();
            let (value, index) = (symbol.address(), symbol.section_index());
            let place = match index {
                Some(section) => Place::Here(section.0, value.cast_signed()),
                None if symbol.is_undefined() => Place::Name(name.clone(), 0),
                None => Place::Address(value),
            };
            stands_for.insert(symbol.index(), place);
            let size = symbol.elf_symbol().st_size(endian).into();
            if let Some(section) = index.filter(|_| size > 0 && !name.is_empty()) {
                symbols.push(Symbol {
                    name,
                    section: section.0,
                    offset: value,
                    size,
                });
            }
        }
        let mut sections = Vec::new();
        for section in file.sections() {
            let data = section.data().map_err(|e| e.to_string())?;
            let mut fields = Vec::new();
            for (offset, relocation) in section.relocations() {
                let (RelocationTarget::Symbol(symbol), object::RelocationFlags::Elf { r_type }) =
                    (relocation.target(), relocation.flags())
                else {
                    return Err(format!("a relocation at {offset:#x} is of an unknown kind"));
                };
                let addend = match relocation.has_implicit_addend() {
                    true => held_addend(arch, data, offset, r_type.0)?,
                    false => relocation.addend(),
                };
                fields.push(Field {
                    offset,
                    r_type: r_type.0,
                    base: stands_for
                        .get(&symbol)
                        .cloned()
                        .ok_or("a relocation has no symbol")?,
                    addend,
                });
            }
            fields.sort_by_key(|field| field.offset);
            sections.resize_with(section.index().0, Section::default);
            sections.push(Section {
                data: data.to_vec(),
                fields,
            });
        }
        let mut contents = Self {
            sections,
            symbols,
            records: Vec::new(),
        };
        if let Some(table) = file.section_by_name(section::FUNCS) {
            let width = match file.is_64() {
                true => Width::Bits64,
                false => Width::Bits32,
            };
            contents.records = contents.read_records(table.index().0, width)?;
        }
        Ok(contents)
    }

    fn read_records(&self, table: usize, width: Width) -> Result<Vec<Record>, String> {
        let (size, pointer) = (width.func_size(), width.bytes() as u64);
        let records = self.sections[table].data.chunks_exact(size).enumerate();
        let read = records.map(|(index, bytes)| {
            let record = LivepatchFunc::read(bytes, width)?;
            let at = (index * size) as u64;
            let leads_to = |at| Some(self.fields(table, at, pointer).first()?.leads_to(0));
            let old = match record.old_addr.get() {
                0 => Place::Name(self.text(&leads_to(at)?)?, 0),
                address => Place::Address(address),
            };
            let new = leads_to(at + pointer)?;
            Some(Record { new, old })
        });
        let all: Option<Vec<Record>> = read.collect();
        all.ok_or_else(|| format!("{} is damaged", section::FUNCS))
    }

    /// The zero-terminated string at a place.
    fn text(&self, place: &Place) -> Option<String> {
        let bytes = self.bytes(place)?;
        let end = bytes.iter().position(|&byte| byte == 0)?;
        String::from_utf8(bytes.get(..end)?.to_vec()).ok()
    }

    /// The payload's bytes from a place on.
    pub(crate) fn bytes(&self, place: &Place) -> Option<&[u8]> {
        let &Place::Here(section, offset) = place else {
            return None;
        };
        self.sections
            .get(section)?
            .data
            .get(usize::try_from(offset).ok()?..)
    }

    /// The relocated fields in `size` bytes from `offset` of a section.
    pub(crate) fn fields(&self, section: usize, offset: u64, size: u64) -> &[Field] {
        let Some(section) = self.sections.get(section) else {
            return &[];
        };
        let all = &section.fields;
        let start = all.partition_point(|field| field.offset < offset);
        let end = all.partition_point(|field| field.offset < offset.saturating_add(size));
        &all[start..end]
    }
}
