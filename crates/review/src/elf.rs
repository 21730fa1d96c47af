// SPDX-License-Identifier: MIT OR Apache-2.0
//! A payload's sections, laid out at fake addresses and relocated, so that every
//! field can be followed as in the hypervisor.

use crate::Error;
use crate::arch::{self, Arch, Layout};
use object::read::elf::{ElfFile, FileHeader, Sym as _};
use object::{Endianness, FileKind, Object as _, ObjectSection as _, ObjectSymbol as _, elf};
use std::collections::BTreeMap;
use xsplice_abi::machine::{Machine, Width};

/// Distance of the fake addresses of symbols that only the hypervisor defines, in bytes.
const APART: u64 = 8;
/// Size limit of a section in the layout, in bytes.
const LARGEST: u64 = 1 << 24;

/// One section, laid out and relocated.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) flags: elf::SectionFlags,
    pub(crate) fields: Vec<Field>,
}

/// One relocated field of a section.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) offset: u64,
    /// Type of the relocation, as the ABI document names it.
    pub(crate) kind: String,
    /// The symbol, or its section if it has no name.
    pub(crate) symbol: String,
    pub(crate) addend: i64,
}

/// A symbol with its address in this layout.
#[derive(Debug)]
pub(crate) struct Symbol {
    pub(crate) name: String,
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) function: bool,
    pub(crate) global: bool,
    pub(crate) place: Place,
}

/// Where a symbol is defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the payload.
    Here,
    /// Its value is its address.
    Absolute,
    /// In the hypervisor, or in a payload below.
    Elsewhere,
    /// Not a location: an STT_FILE, STT_SECTION or mapping symbol.
    Nowhere,
}

/// The whole file.
#[derive(Debug)]
pub(crate) struct Elf {
    pub(crate) arch: &'static dyn Arch,
    /// The width of its pointers.
    pub(crate) width: Width,
    layout: Layout,
    pub(crate) sections: Vec<Section>,
    pub(crate) symbols: Vec<Symbol>,
}

impl Elf {
    /// Reads `data`; `known` returns addresses of the hypervisor's symbols.
    pub(crate) fn read(data: &[u8], known: &dyn Fn(&str) -> Option<u64>) -> Result<Self, Error> {
        match FileKind::parse(data)? {
            FileKind::Elf32 => {
                Self::of_width::<elf::FileHeader32<Endianness>>(data, Width::Bits32, known)
            }
            _ => Self::of_width::<elf::FileHeader64<Endianness>>(data, Width::Bits64, known),
        }
    }

    fn of_width<Header>(
        data: &[u8],
        width: Width,
        known: &dyn Fn(&str) -> Option<u64>,
    ) -> Result<Self, Error>
    where
        Header: FileHeader<Endian = Endianness>,
    {
        let file = ElfFile::<Header>::parse(data)?;
        let header = file.elf_header();
        let (kind, number) = (
            header.e_type(file.endian()),
            header.e_machine(file.endian()),
        );
        let machine = Machine::from_elf(number.0).filter(|machine| machine.width() == width);
        let Some(machine) = machine.filter(|_| kind == elf::ET_REL) else {
            let machines =
                Machine::ALL.map(|machine| format!("{machine} ({})", machine.elf_number()));
            return Err(Error::WrongKind(format!(
                "not a payload, which is a relocatable ELF file (type {}) for {}: its type is {}, its \
                 machine {}",
                elf::ET_REL.0,
                machines.join(", "),
                kind.0,
                number.0
            )));
        };
        let arch = arch::of(machine);
        let layout = arch.layout(known("_start"));
        let mut sections = lay_out(&file, layout.start)?;
        let symbols = symbols(&file, machine, &sections, layout.unknown.start, known);
        for (index, section) in &mut sections {
            let Ok(from) = file.section_by_index(object::SectionIndex(*index)) else {
                continue;
            };
            for (offset, relocation) in from.relocations() {
                relocate(arch, section, (offset, &relocation), &symbols);
            }
        }
        Ok(Self {
            arch,
            width,
            layout,
            sections: sections.into_values().collect(),
            symbols: symbols.into_values().collect(),
        })
    }

    pub(crate) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// The section that holds `address`, and the offset there.
    pub(crate) fn place(&self, address: u64) -> Option<(&str, u64)> {
        self.sections.iter().find_map(|section| {
            let offset = address.checked_sub(section.address)?;
            (offset < section.size).then_some((section.name.as_str(), offset))
        })
    }

    /// The symbol behind the fake `address`, which is looked up when the payload is
    /// loaded.
    pub(crate) fn needed(&self, address: u64) -> Option<&str> {
        let mut all = self.symbols.iter();
        let symbol = all.find(|s| s.place == Place::Elsewhere && s.address == address);
        symbol.map(|symbol| symbol.name.as_str())
    }

    /// Whether `address` is the fake address of an unknown symbol.
    pub(crate) fn is_unknown(&self, address: u64) -> bool {
        self.layout.unknown.contains(&address)
    }

    /// Whether `address` is in code of the payload.
    pub(crate) fn is_code(&self, address: u64) -> bool {
        self.sections.iter().any(|section| {
            let end = section.address.saturating_add(section.size);
            section.flags.contains(elf::SHF_EXECINSTR) && (section.address..end).contains(&address)
        })
    }

    /// A label for `address`: a symbol, or a section and an offset.
    pub(crate) fn label(&self, address: u64) -> Option<String> {
        let (name, offset) = self.name(address).or_else(|| self.place(address))?;
        Some(match offset {
            0 => name.to_owned(),
            offset => format!("{name}+{offset:#x}"),
        })
    }

    /// The bytes from `address` to the end of its section.
    pub(crate) fn bytes(&self, address: u64) -> Option<&[u8]> {
        self.sections.iter().find_map(|section| {
            let offset = address.checked_sub(section.address)?;
            let bytes = section.data.get(usize::try_from(offset).ok()?..)?;
            (!bytes.is_empty()).then_some(bytes)
        })
    }

    /// The string at `address`, without its terminating zero.
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
            named && symbol.place != Place::Nowhere && (symbol.address..end).contains(&address)
        });
        covering
            .map(|symbol| (symbol.name.as_str(), address - symbol.address))
            .next()
    }
}

fn lay_out<Header>(file: &ElfFile<Header>, start: u64) -> Result<BTreeMap<usize, Section>, Error>
where
    Header: FileHeader<Endian = Endianness>,
{
    let mut sections = BTreeMap::new();
    let mut next = start;
    for section in file.sections() {
        let flags = match section.flags() {
            object::SectionFlags::Elf { sh_flags, .. } => sh_flags,
            _ => elf::SectionFlags(0),
        };
        let align = section.align().clamp(1, 4096);
        next = next.next_multiple_of(align.next_power_of_two());
        // Sizes come from the file: an absurd one must not blow up the layout.
        let size = section.size().min(LARGEST);
        sections.insert(
            section.index().0,
            Section {
                name: section.name()?.to_owned(),
                address: next,
                size: section.size(),
                data: section.data()?.to_vec(),
                flags,
                fields: Vec::new(),
            },
        );
        next = next.saturating_add(size);
    }
    Ok(sections)
}

fn symbols<Header>(
    file: &ElfFile<Header>,
    machine: Machine,
    sections: &BTreeMap<usize, Section>,
    unknown: u64,
    known: &dyn Fn(&str) -> Option<u64>,
) -> BTreeMap<usize, Symbol>
where
    Header: FileHeader<Endian = Endianness>,
{
    let mut symbols = BTreeMap::new();
    for symbol in file.symbols() {
        let section = symbol.section_index().and_then(|i| sections.get(&i.0));
        let place = match symbol.elf_symbol().st_type() {
            elf::STT_FILE | elf::STT_SECTION => Place::Nowhere,
            _ if symbol
                .name_bytes()
                .is_ok_and(|name| machine.is_mapping_symbol(name)) =>
            {
                Place::Nowhere
            }
            _ if section.is_some() => Place::Here,
            _ if symbol.elf_symbol().st_shndx(file.endian()) == elf::SHN_ABS => Place::Absolute,
            _ => Place::Elsewhere,
        };
        let name = match (symbol.name(), section) {
            (Ok(""), Some(section)) => section.name.clone(),
            (name, _) => name.unwrap_or_default().to_owned(),
        };
        let unknown = unknown.wrapping_add((symbol.index().0 as u64).wrapping_mul(APART));
        let address = match section {
            Some(section) => section.address.wrapping_add(symbol.address()),
            None if place == Place::Absolute => symbol.address(),
            None => known(&name).unwrap_or(unknown),
        };
        symbols.insert(
            symbol.index().0,
            Symbol {
                name,
                address,
                size: symbol.size(),
                function: symbol.elf_symbol().st_type() == elf::STT_FUNC,
                global: symbol.is_global(),
                place,
            },
        );
    }
    symbols
}

fn relocate(
    arch: &dyn Arch,
    section: &mut Section,
    (offset, relocation): (u64, &object::Relocation),
    symbols: &BTreeMap<usize, Symbol>,
) {
    let object::RelocationFlags::Elf { r_type } = relocation.flags() else {
        return;
    };
    let symbol = match relocation.target() {
        object::RelocationTarget::Symbol(index) => symbols.get(&index.0),
        _ => None,
    };
    let kind = arch.relocation(r_type.0);
    let place = usize::try_from(offset).ok();
    let addend = match kind {
        Some(kind) if relocation.has_implicit_addend() => {
            let held = place.and_then(|place| section.data.get(place..));
            held.and_then(|held| kind.addend(held)).unwrap_or_default()
        }
        _ => relocation.addend(),
    };
    section.fields.push(Field {
        offset,
        kind: kind.map_or_else(|| format!("type {}", r_type.0), |kind| kind.name.to_owned()),
        symbol: symbol.map(|s| s.name.clone()).unwrap_or_default(),
        addend,
    });
    let (Some(kind), Some(symbol)) = (kind, symbol) else {
        return;
    };
    let value = kind.value(symbol.address, addend, section.address.wrapping_add(offset));
    if let Some(field) = place.and_then(|place| section.data.get_mut(place..)) {
        // `xsplice check` refuses values that do not fit; here the field just stays
        // unchanged.
        let _ = kind.write(field, value);
    }
}
