//! A payload's sections at made-up addresses, so that every field can be
//! followed as the hypervisor would.

use crate::Error;
use object::read::elf::{ElfFile64, FileHeader as _, Sym as _};
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, elf};
use std::collections::BTreeMap;
use xsplice_link::reloc::x86_64;

/// Where the first section is put: near enough to Xen for every relocation, and
/// apart from it.
const START: u64 = 0xffff_82d0_7000_0000;
/// Symbols that only the hypervisor knows stand here, one each eight bytes.
const UNKNOWN: u64 = 0xffff_82d0_7800_0000;

/// One section, laid out and relocated.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) flags: elf::SectionFlags,
    pub(crate) relocations: usize,
}

/// One symbol at the address it has in this layout.
#[derive(Debug)]
pub(crate) struct Symbol {
    pub(crate) name: String,
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) defined: bool,
    pub(crate) absolute: bool,
}

/// The whole file.
#[derive(Debug)]
pub(crate) struct Elf {
    pub(crate) sections: Vec<Section>,
    pub(crate) symbols: Vec<Symbol>,
}

impl Elf {
    /// Reads `data`; `known` gives the hypervisor's symbols an address.
    pub(crate) fn read(data: &[u8], known: &dyn Fn(&str) -> Option<u64>) -> Result<Self, Error> {
        let file = ElfFile64::<Endianness>::parse(data)?;
        let header = file.elf_header();
        let (kind, machine) = (
            header.e_type(file.endian()),
            header.e_machine(file.endian()),
        );
        if machine != elf::EM_X86_64 || kind != elf::ET_REL {
            return Err(Error::WrongKind(format!(
                "no payload for x86-64: ELF type {}, machine {} (expected {}, {})",
                kind.0,
                machine.0,
                elf::ET_REL.0,
                elf::EM_X86_64.0
            )));
        }
        let mut sections = lay_out(&file)?;
        let symbols = symbols(&file, &sections, known);
        for (index, section) in &mut sections {
            let Ok(from) = file.section_by_index(object::SectionIndex(*index)) else {
                continue;
            };
            for (offset, relocation) in from.relocations() {
                section.relocations += 1;
                relocate(section, offset, &relocation, &symbols);
            }
        }
        Ok(Self {
            sections: sections.into_values().collect(),
            symbols: symbols.into_values().collect(),
        })
    }

    pub(crate) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// The bytes from `address` to the end of its section.
    pub(crate) fn bytes(&self, address: u64) -> Option<&[u8]> {
        self.sections.iter().find_map(|section| {
            let offset = address.checked_sub(section.address)?;
            let bytes = section.data.get(usize::try_from(offset).ok()?..)?;
            (!bytes.is_empty()).then_some(bytes)
        })
    }

    /// The text at `address`, without its terminating zero.
    pub(crate) fn string(&self, address: u64) -> Option<String> {
        let bytes = self.bytes(address)?;
        let end = bytes.iter().position(|&b| b == 0)?;
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    /// The name of the symbol that covers `address`, and the distance from it.
    pub(crate) fn name(&self, address: u64) -> Option<(&str, u64)> {
        let covering = self.symbols.iter().filter(|symbol| {
            let end = symbol.address.saturating_add(symbol.size.max(1));
            let named = !symbol.name.is_empty() && !symbol.name.starts_with(".L");
            named && (symbol.address..end).contains(&address)
        });
        covering
            .map(|symbol| (symbol.name.as_str(), address - symbol.address))
            .next()
    }
}

fn lay_out(file: &ElfFile64<Endianness>) -> Result<BTreeMap<usize, Section>, Error> {
    let mut sections = BTreeMap::new();
    let mut next = START;
    for section in file.sections() {
        let flags = match section.flags() {
            object::SectionFlags::Elf { sh_flags, .. } => sh_flags,
            _ => elf::SectionFlags(0),
        };
        let align = section.align().clamp(1, 4096);
        next = next.next_multiple_of(align.next_power_of_two());
        // Sizes are the file's own words: a wild one must not lay out wildly.
        let size = section.size().min(1 << 24);
        sections.insert(
            section.index().0,
            Section {
                name: section.name()?.to_owned(),
                address: next,
                size: section.size(),
                data: section.data()?.to_vec(),
                flags,
                relocations: 0,
            },
        );
        next = next.saturating_add(size);
    }
    Ok(sections)
}

fn symbols(
    file: &ElfFile64<Endianness>,
    sections: &BTreeMap<usize, Section>,
    known: &dyn Fn(&str) -> Option<u64>,
) -> BTreeMap<usize, Symbol> {
    let mut symbols = BTreeMap::new();
    for symbol in file.symbols() {
        let name = symbol.name().unwrap_or_default().to_owned();
        let place = symbol.section_index().and_then(|i| sections.get(&i.0));
        let absolute = symbol.elf_symbol().st_shndx(file.endian()) == elf::SHN_ABS;
        let address = match place {
            Some(section) => section.address.wrapping_add(symbol.address()),
            None if absolute => symbol.address(),
            None => known(&name).unwrap_or(UNKNOWN + 8 * symbol.index().0 as u64),
        };
        symbols.insert(
            symbol.index().0,
            Symbol {
                name,
                address,
                size: symbol.size(),
                defined: place.is_some(),
                absolute,
            },
        );
    }
    symbols
}

fn relocate(
    section: &mut Section,
    offset: u64,
    relocation: &object::Relocation,
    symbols: &BTreeMap<usize, Symbol>,
) {
    let (object::RelocationFlags::Elf { r_type }, object::RelocationTarget::Symbol(symbol)) =
        (relocation.flags(), relocation.target())
    else {
        return;
    };
    let (Some(kind), Some(symbol)) = (x86_64::lookup(r_type.0), symbols.get(&symbol.0)) else {
        return;
    };
    let place = section.address.wrapping_add(offset);
    let value = kind.value(symbol.address, relocation.addend(), place);
    let field = usize::try_from(offset)
        .ok()
        .and_then(|offset| section.data.get_mut(offset..));
    if let Some(field) = field {
        // A value that does not fit is for the check to refuse; here the field
        // only stays what it was.
        let _ = kind.write(field, value);
    }
}
