// SPDX-License-Identifier: MIT OR Apache-2.0
//! Applies a payload to a model of the hypervisor: laid out after it, linked with it.

use crate::Unusable;
use crate::class::Class;
use crate::elf::Wide;
use crate::image::{Image, Name, RawSymbol, Segment, addresses};
use crate::tables;
use object::read::elf::{ElfFile64, FileHeader as _, SectionHeader as _};
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags,
    RelocationTarget, SectionIndex, SymbolSection, elf,
};
use std::collections::{BTreeSet, HashMap};
use xsplice_abi::machine::Width;
use xsplice_abi::note::{hex, parse_build_id};
use xsplice_abi::payload::hook;
use xsplice_abi::payload::{LivepatchFunc, section as names};
use xsplice_abi::special::Table;

/// Alignment of a loaded payload; no section can have more.
const PAGE: u64 = 4096;
/// Size of the address space that the hypervisor and all payloads share.
const AREA: u64 = 1 << 30;

/// A function that a payload replaces.
#[derive(Debug, Clone)]
pub(crate) struct Replaced {
    pub(crate) name: String,
    /// The address of its name.
    name_at: u64,
    pub(crate) old: u64,
    pub(crate) old_size: u64,
    pub(crate) new: u64,
    pub(crate) new_size: u64,
}

impl Replaced {
    /// Finds the old function if the record only has its name, and its name if it has
    /// the address.
    fn look_up(&mut self, image: &Image) -> Result<(), String> {
        if self.old == 0 {
            let text = image.from(self.name_at).split(|&byte| byte == 0).next();
            let name = String::from_utf8_lossy(text.unwrap_or_default()).into_owned();
            let found = image.named(&name);
            self.old = found.ok_or_else(|| {
                format!("it replaces {name}, which neither the hypervisor nor a payload below has")
            })?;
        }
        let name = image.at.get(&self.old).and_then(|names| names.first());
        self.name = name.map_or_else(|| format!("{:#x}", self.old), Name::to_string);
        Ok(())
    }
}

/// The parts of a payload besides memory.
#[derive(Debug, Default)]
pub(crate) struct Brought {
    pub(crate) replaced: Vec<Replaced>,
    pub(crate) tables: Vec<(Table, u64, u64)>,
    /// Its hooks, with their stages.
    pub(crate) hooks: Vec<(String, u64)>,
    /// The targets of its relocations in it.
    pub(crate) starts: BTreeSet<u64>,
    /// The names of the sections that it was read from.
    sections: BTreeSet<String>,
}

/// Adds the payload `data` to `image`; `what` is for messages.
pub(crate) fn apply(image: &mut Image, what: &str, data: &[u8]) -> Result<Brought, Unusable> {
    let bad = |reason: &dyn std::fmt::Display| Unusable::new(what, reason);
    let file = Wide::of(data).map_err(|e| bad(&e))?;
    let elf = file.parse().map_err(|e| bad(&e))?;
    let machine = elf.elf_header().e_machine(elf.endian()).0;
    if machine != image.arch.machine().elf_number() {
        let hypervisor = image.arch.machine();
        return Err(bad(&format!(
            "it is for ELF machine number {machine}, and the hypervisor for {hypervisor}"
        )));
    }
    if let Some(wanted) = build_id(&elf, names::XEN_DEPENDS)
        && wanted != image.build_id
    {
        return Err(bad(&format!(
            "it is for the hypervisor with build-id {}, not for {}",
            hex(&wanted),
            hex(&image.build_id)
        )));
    }
    let mut linker = Linker {
        elf: &elf,
        // Each payload starts on a new page, away from the previous one.
        next: (image.end() + 1).next_multiple_of(1 << 16),
        bases: HashMap::new(),
    };
    let segments = linker.lay_out().map_err(|reason| bad(&reason))?;
    let mut memory = Vec::new();
    let mut brought = Brought::default();
    for (index, mut segment) in segments {
        let starts = linker
            .relocate(image, index, &mut segment)
            .map_err(|reason| bad(&reason))?;
        brought.starts.extend(starts);
        memory.push((index, segment));
    }
    let symbols = linker.symbols(image).map_err(|reason| bad(&reason))?;
    for (index, segment) in memory {
        let section = elf.section_by_index(index).map_err(|e| bad(&e))?;
        let name = section.name().map_err(|e| bad(&e))?;
        brought
            .read(name, &segment, image.width())
            .map_err(|reason| bad(&reason))?;
        image.add_segment(segment);
    }
    image.add_symbols(symbols);
    for replaced in &mut brought.replaced {
        replaced.look_up(image).map_err(|reason| bad(&reason))?;
    }
    Ok(brought)
}

fn build_id(elf: &ElfFile64<'_, Endianness>, section: &str) -> Option<Vec<u8>> {
    let note = elf.section_by_name(section)?.data().ok()?;
    parse_build_id(note).map(<[u8]>::to_vec)
}

impl Brought {
    fn read(&mut self, name: &str, segment: &Segment, width: Width) -> Result<(), String> {
        if name == names::FUNCS {
            for record in segment.data.chunks(width.func_size()) {
                let record = LivepatchFunc::read(record, width);
                let record = record.ok_or_else(|| format!("{name} ends within a record"))?;
                self.replaced.push(replaced(&record));
            }
        } else if let Some(stage) = hook::stage(name) {
            let hooks = addresses(&segment.data, width);
            self.hooks
                .extend(hooks.map(|hook| (stage.to_owned(), hook)));
        } else if let Some(table) = tables::of_section(name)? {
            self.tables.push((table, segment.address, segment.size));
        } else {
            return Ok(());
        }
        // A hypervisor looks for it by its name, and finds one.
        match self.sections.insert(name.to_owned()) {
            true => Ok(()),
            false => Err(format!("{name} is there twice")),
        }
    }
}

fn replaced(func: &LivepatchFunc) -> Replaced {
    Replaced {
        name: String::new(),
        name_at: func.name.get(),
        old: func.old_addr.get(),
        old_size: func.old_size.get().into(),
        new: func.new_addr.get(),
        new_size: func.new_size.get().into(),
    }
}

struct Linker<'a> {
    elf: &'a ElfFile64<'a, Endianness>,
    next: u64,
    bases: HashMap<SectionIndex, u64>,
}

impl Linker<'_> {
    fn lay_out(&mut self) -> Result<Vec<(SectionIndex, Segment)>, String> {
        let mut segments = Vec::new();
        for section in self.elf.sections() {
            let header = section.elf_section_header();
            let flags = header.sh_flags(self.elf.endian());
            let has = |flag: elf::SectionFlags| flags.contains(flag);
            if !has(elf::SHF_ALLOC) {
                continue;
            }
            let class = match (has(elf::SHF_EXECINSTR), has(elf::SHF_WRITE)) {
                (true, _) => Class::PayloadText,
                (false, true) => Class::PayloadData,
                (false, false) => Class::PayloadReadOnly,
            };
            let address = self.next.checked_next_multiple_of(section.align().max(1));
            let end = address.and_then(|address| address.checked_add(section.size()));
            let (Some(address), Some(end)) = (address, end.filter(|_| section.size() <= AREA))
            else {
                let name = section.name().unwrap_or_default();
                return Err(format!(
                    "{name} does not fit into the hypervisor's address space"
                ));
            };
            // A gap, so that the end of one is not the start of another.
            self.next = end.saturating_add(16);
            self.bases.insert(section.index(), address);
            if section.size() == 0 {
                continue;
            }
            let segment = Segment {
                address,
                size: section.size(),
                data: section.data().map_err(|e| e.to_string())?.to_vec(),
                class,
                alignment: section.align().clamp(1, PAGE),
            };
            segments.push((section.index(), segment));
        }
        Ok(segments)
    }

    fn relocate(
        &self,
        image: &Image,
        index: SectionIndex,
        segment: &mut Segment,
    ) -> Result<Vec<u64>, String> {
        let mut starts = Vec::new();
        let section = self
            .elf
            .section_by_index(index)
            .map_err(|e| e.to_string())?;
        for (offset, relocation) in section.relocations() {
            let RelocationFlags::Elf { r_type } = relocation.flags() else {
                return Err("a relocation is not of ELF's kinds".to_owned());
            };
            if r_type.0 == 0 {
                continue;
            }
            let RelocationTarget::Symbol(symbol) = relocation.target() else {
                return Err("a relocation has no symbol".to_owned());
            };
            let target = self.address(image, symbol)?;
            let value = target.wrapping_add_signed(relocation.addend());
            let place = segment.address.wrapping_add(offset);
            let behind = image.arch.shape(r_type).map_or(0, |shape| shape.behind);
            starts.push(value.wrapping_add(behind));
            let at = usize::try_from(offset).unwrap_or(usize::MAX);
            let rest = segment.data.get_mut(at..);
            let rest = rest.ok_or("a relocation lies outside of its section")?;
            let relocated = image.arch.relocate(r_type, rest, value, place);
            relocated.map_err(|reason| {
                let name = section.name().unwrap_or_default();
                format!("{name}+{offset:#x}: {reason}")
            })?;
        }
        Ok(starts)
    }

    fn address(&self, image: &Image, symbol: object::SymbolIndex) -> Result<u64, String> {
        let symbol = self
            .elf
            .symbol_by_index(symbol)
            .map_err(|e| e.to_string())?;
        match symbol.section() {
            SymbolSection::Absolute => Ok(symbol.address()),
            SymbolSection::Section(index) => {
                let base = self.bases.get(&index);
                let base = base.ok_or("a relocation leads to what is not loaded")?;
                Ok(base.wrapping_add(symbol.address()))
            }
            _ => {
                let name = symbol.name().map_err(|e| e.to_string())?;
                image.named(name).ok_or_else(|| {
                    format!("{name} is neither in the hypervisor nor in a payload below")
                })
            }
        }
    }

    fn symbols(&self, image: &Image) -> Result<Vec<RawSymbol>, String> {
        let mut symbols = Vec::new();
        for symbol in self.elf.symbols() {
            let Some((index, base)) = symbol
                .section_index()
                .and_then(|index| Some((index, self.bases.get(&index)?)))
            else {
                continue;
            };
            let name = symbol.name().map_err(|e| e.to_string())?;
            let section = self.elf.section_by_index(index);
            let room = section.map_err(|e| e.to_string())?.size();
            let end = symbol.address().checked_add(symbol.size());
            if end.is_none_or(|end| end > room) {
                return Err(format!("{name} is not within its section"));
            }
            let mapping = image.arch.machine().is_mapping_symbol(name.as_bytes());
            if !name.is_empty() && !mapping {
                symbols.push(RawSymbol {
                    name: Name {
                        file: None,
                        symbol: name.to_owned(),
                    },
                    address: base + symbol.address(),
                    size: symbol.size(),
                    data: symbol.kind() == object::SymbolKind::Data,
                });
            }
        }
        Ok(symbols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_by_its_name_is_there_once() {
        let segment = Segment {
            address: PAGE,
            size: 8,
            data: vec![0; 8],
            class: Class::PayloadReadOnly,
            alignment: 8,
        };
        let mut brought = Brought::default();
        let mut read = |name: &str| brought.read(name, &segment, Width::Bits64);
        for name in [".altinstructions", ".bug_frames.0", ".livepatch.hooks.load"] {
            assert_eq!(read(name), Ok(()));
            assert_eq!(read(name), Err(format!("{name} is there twice")));
        }
        // Code and data are found by their symbols.
        assert_eq!((read(".data"), read(".data")), (Ok(()), Ok(())));
    }
}
