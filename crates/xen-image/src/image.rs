// SPDX-License-Identifier: MIT OR Apache-2.0
//! The file.

use crate::listed::{self, Misplaced};
use crate::{Binding, Kind, Section, Symbol};
use object::read::elf::{ElfFile, FileHeader, SectionHeader as _, Sym as _};
use object::{FileKind, LittleEndian, Object as _, ObjectSection as _, elf};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;
use xsplice_abi::machine::{Machine, Width};
use xsplice_abi::symbol::RuntimeName;

/// Why a file is not a linked hypervisor.
#[derive(Debug, Error)]
pub enum Error {
    /// Not an ELF file, or a damaged one.
    #[error("this is not a usable ELF image; pass the xen-syms file of the hypervisor")]
    Elf(#[from] object::Error),
    /// Another kind of ELF file.
    #[error(
        "this ELF file is not a linked image for x86-64, ARM64 or ARM32; \
         pass the xen-syms file of the hypervisor, not the file that boots"
    )]
    NotAnImage,
    /// The file was stripped.
    #[error("the image has no symbols; pass the unstripped xen-syms file")]
    NoSymbols,
    /// No build-id note.
    #[error(
        "the image has no build-id, so payloads cannot be matched to it; \
         link the hypervisor with --build-id"
    )]
    NoBuildId,
    /// A symbol of Xen's linker script is missing.
    #[error("the image has no symbol {0}: it is not a Xen hypervisor")]
    NoEdge(&'static str),
    /// Its own list of symbols, by which it links payloads, is not that of its last link.
    #[error(
        "the hypervisor's own list of symbols has {name} at {listed:#x}, and it is at \
         {address:#x}: payloads would be linked to other places; build the hypervisor with \
         --build-id in all its links"
    )]
    WrongList {
        /// The first symbol that differs.
        name: String,
        /// Where the list has it.
        listed: u64,
        /// Where it is.
        address: u64,
    },
}

/// A function that only a hypervisor with our core has.
const OUR_CORE: &str = "xsplice_text_write";

/// Index into the list of all symbols.
type Index = usize;

/// A linked hypervisor.
#[derive(Debug)]
pub struct Image {
    machine: Machine,
    build_id: Vec<u8>,
    compiler: String,
    sections: Vec<Section>,
    /// In the order of the file.
    symbols: Vec<Symbol>,
    by_name: HashMap<String, Vec<Index>>,
    /// Symbols with an address in memory, sorted by address.
    by_address: Vec<Index>,
    files: HashSet<Arc<str>>,
    init: Range<u64>,
}

impl Image {
    /// Reads a `xen-syms` file.
    ///
    /// # Errors
    /// [`enum@Error`] if the file is not a linked hypervisor for x86-64, ARM64 or ARM32
    /// with symbols and build-id.
    pub fn parse(file: &[u8]) -> Result<Self, Error> {
        match FileKind::parse(file)? {
            FileKind::Elf32 => Self::read::<elf::FileHeader32<LittleEndian>>(file, Width::Bits32),
            _ => Self::read::<elf::FileHeader64<LittleEndian>>(file, Width::Bits64),
        }
    }

    /// Reads a file with fields of this width.
    fn read<Header>(file: &[u8], width: Width) -> Result<Self, Error>
    where
        Header: FileHeader<Endian = LittleEndian>,
    {
        let elf = ElfFile::<Header>::parse(file)?;
        let (header, endian) = (elf.elf_header(), elf.endian());
        let machine = Machine::from_elf(header.e_machine(endian).0);
        let machine = machine.filter(|machine| machine.width() == width);
        let machine = machine.ok_or(Error::NotAnImage)?;
        if header.e_type(endian) != elf::ET_EXEC {
            return Err(Error::NotAnImage);
        }
        let build_id = elf.build_id()?.filter(|id| !id.is_empty());
        let build_id = build_id.ok_or(Error::NoBuildId)?.to_vec();
        let (symbols, files) = symbols(&elf)?;
        if symbols.is_empty() {
            return Err(Error::NoSymbols);
        }
        let mut by_name: HashMap<String, Vec<Index>> = HashMap::new();
        for (index, symbol) in symbols.iter().enumerate() {
            match by_name.get_mut(&symbol.name) {
                Some(all) => all.push(index),
                None => drop(by_name.insert(symbol.name.clone(), vec![index])),
            }
        }
        let places = symbols.iter().enumerate();
        let places = places.filter(|(_, symbol)| symbol.kind != Kind::Absolute);
        let mut by_address: Vec<Index> = places.map(|(index, _)| index).collect();
        by_address.sort_by_key(|&index| symbols[index].address);
        let mut image = Self {
            machine,
            build_id,
            compiler: String::new(),
            sections: Vec::new(),
            symbols,
            by_name,
            by_address,
            files,
            init: 0..0,
        };
        image.read_sections(&elf)?;
        image.init = image.edge("__init_begin")?..image.edge("__init_end")?;
        match listed::misplaced(&image) {
            None => Ok(image),
            Some(Misplaced {
                name,
                listed,
                address,
            }) => Err(Error::WrongList {
                name,
                listed,
                address,
            }),
        }
    }

    fn read_sections<Header>(&mut self, elf: &ElfFile<'_, Header>) -> Result<(), Error>
    where
        Header: FileHeader<Endian = LittleEndian>,
    {
        for section in elf.sections() {
            let flags = section.elf_section_header().sh_flags(elf.endian());
            let data = section.data()?;
            if !flags.contains(elf::SHF_ALLOC) {
                if section.name_bytes()? == b".comment" {
                    self.compiler = crate::compiler(data);
                }
                continue;
            }
            let end = section.address().checked_add(section.size());
            let range = section.address()..end.ok_or(Error::NotAnImage)?;
            if !range.is_empty() {
                self.sections.push(Section {
                    name: section.name()?.to_owned(),
                    range,
                    executable: flags.contains(elf::SHF_EXECINSTR),
                    writable: flags.contains(elf::SHF_WRITE),
                    data: data.to_vec(),
                });
            }
        }
        Ok(())
    }

    fn edge(&self, name: &'static str) -> Result<u64, Error> {
        self.address_of(name).ok_or(Error::NoEdge(name))
    }

    /// The machine that it is for.
    #[must_use]
    pub const fn machine(&self) -> Machine {
        self.machine
    }

    /// Whether it has our live-patch core, and not Xen's own.
    #[must_use]
    pub fn has_our_core(&self) -> bool {
        self.global(OUR_CORE).is_some()
    }

    /// The hypervisor's build-id.
    #[must_use]
    pub fn build_id(&self) -> &[u8] {
        &self.build_id
    }

    /// The compiler's identification string; empty if there is none.
    #[must_use]
    pub fn compiler(&self) -> &str {
        &self.compiler
    }

    /// The sections that are in memory while the hypervisor runs.
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The section that holds `address`.
    #[must_use]
    pub fn section(&self, address: u64) -> Option<&Section> {
        let mut all = self.sections.iter();
        all.find(|section| section.range.contains(&address))
    }

    /// Whether the object of the source `file` was linked.
    #[must_use]
    pub fn has_file(&self, file: &str) -> bool {
        self.files.contains(file)
    }

    /// Whether the memory at `address` is freed after boot.
    #[must_use]
    pub fn is_init(&self, address: u64) -> bool {
        self.init.contains(&address)
    }

    /// All symbols named `name` in the source.
    pub fn all_named<'i>(&'i self, name: &str) -> impl Iterator<Item = &'i Symbol> + use<'i> {
        let all = self.by_name.get(name).map_or(&[][..], Vec::as_slice);
        all.iter().map(|&index| &self.symbols[index])
    }

    /// The global symbol `name`.
    #[must_use]
    pub fn global(&self, name: &str) -> Option<&Symbol> {
        self.all_named(name).find(|symbol| !symbol.is_local())
    }

    /// The address of the global symbol `name`.
    #[must_use]
    pub fn address_of(&self, name: &str) -> Option<u64> {
        self.global(name).map(|symbol| symbol.address)
    }

    /// All local symbols `name` of the source `file`.
    #[must_use]
    pub fn locals(&self, file: &str, name: &str) -> Vec<&Symbol> {
        self.all_named(name)
            .filter(|symbol| symbol.file.as_deref() == Some(file))
            .collect()
    }

    /// The symbols that the running hypervisor knows as `name` ([`Symbol::full_name`]).
    #[must_use]
    pub fn known_as(&self, name: &str) -> Vec<&Symbol> {
        let RuntimeName { file, name } = RuntimeName::parse(name);
        match file {
            Some(file) => self.locals(file, name),
            None => self.all_named(name).filter(|s| s.file.is_none()).collect(),
        }
    }

    /// The symbol that the running hypervisor knows as `name`, if it has just one.
    #[must_use]
    pub fn only_known_as(&self, name: &str) -> Option<&Symbol> {
        match self.known_as(name).as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    /// The symbols that begin in `range`, in the order of addresses.
    pub fn starting_in(&self, range: Range<u64>) -> impl Iterator<Item = &Symbol> {
        let before = |address| {
            self.by_address
                .partition_point(|&index| self.symbols[index].address < address)
        };
        let first = before(range.start);
        let found = &self.by_address[first..before(range.end).max(first)];
        found.iter().map(|&index| &self.symbols[index])
    }

    /// The symbols that begin at `address`.
    pub fn starting_at(&self, address: u64) -> impl Iterator<Item = &Symbol> {
        self.starting_in(address..address.saturating_add(1))
    }

    /// The function at `address`.
    #[must_use]
    pub fn function_at(&self, address: u64) -> Option<&Symbol> {
        self.symbol_before(address)
            .filter(|symbol| symbol.is_function() && symbol.address == address)
    }

    /// The symbol that best names `address`: the last one at or before it, preferring
    /// functions over data and global over local symbols.
    #[must_use]
    pub fn symbol_before(&self, address: u64) -> Option<&Symbol> {
        let behind = self
            .by_address
            .partition_point(|&index| self.symbols[index].address <= address);
        let last = self.by_address.get(behind.checked_sub(1)?)?;
        self.starting_at(self.symbols[*last].address)
            .min_by_key(|symbol| (!symbol.is_function(), symbol.is_local(), symbol.full_name()))
    }

    /// The start of the first symbol at or after `address`.
    #[must_use]
    pub fn start_from(&self, address: u64) -> Option<u64> {
        self.starting_in(address..u64::MAX)
            .next()
            .map(|symbol| symbol.address)
    }

    /// `size` bytes at `address`, if the file has them.
    #[must_use]
    pub fn bytes(&self, address: u64, size: u64) -> Option<&[u8]> {
        self.tail(address)?.get(..usize::try_from(size).ok()?)
    }

    /// The bytes from `address` to the end of its section, as far as the file has
    /// them.
    #[must_use]
    pub fn tail(&self, address: u64) -> Option<&[u8]> {
        let tails = self.sections.iter().filter_map(|s| s.tail(address));
        tails.into_iter().find(|tail| !tail.is_empty())
    }

    /// The code, in pieces that start at symbols, so that data before a piece cannot
    /// derail its decoding.
    pub fn code(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let sections = self.sections.iter().filter(|section| section.executable);
        sections.flat_map(|section| {
            let end = section.range.start + section.data.len() as u64;
            let mut starts: Vec<u64> = self
                .starting_in(section.range.start..end)
                .map(|symbol| symbol.address)
                .collect();
            starts.dedup();
            let ends = starts.clone().into_iter().skip(1).chain([end]);
            let pieces = starts.into_iter().zip(ends);
            pieces.filter_map(|(from, to)| Some((from, self.bytes(from, to - from)?)))
        })
    }

    /// Address and contents of everything that is not code.
    pub fn data(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let sections = self.sections.iter().filter(|section| !section.executable);
        sections.map(|section| (section.range.start, section.data.as_slice()))
    }
}

/// The defined symbols with names that the hypervisor knows, and the source files.
fn symbols<Header>(elf: &ElfFile<'_, Header>) -> Result<(Vec<Symbol>, HashSet<Arc<str>>), Error>
where
    Header: FileHeader<Endian = LittleEndian>,
{
    let (endian, table) = (elf.endian(), elf.elf_symbol_table());
    let (mut symbols, mut files) = (Vec::new(), HashSet::new());
    let mut file: Option<Arc<str>> = None;
    for symbol in table.iter() {
        let name = table.symbol_name(endian, symbol)?;
        let name = String::from_utf8_lossy(name);
        let kind = match (symbol.st_type(), symbol.st_shndx(endian)) {
            (elf::STT_FILE, _) => {
                // Symbols made by the linker follow a FILE symbol without a name.
                file = (!name.is_empty()).then(|| Arc::from(name.as_ref()));
                files.extend(file.clone());
                continue;
            }
            (elf::STT_SECTION, _) | (_, elf::SHN_UNDEF) => continue,
            // Those that begin with `$`, Xen leaves out of its table, not only the mapping
            // symbols of ARM.
            _ if name.is_empty() || name.starts_with('$') => continue,
            (_, elf::SHN_ABS) => Kind::Absolute,
            (elf::STT_FUNC, _) => Kind::Function,
            (elf::STT_OBJECT, _) => Kind::Data,
            _ => Kind::Untyped,
        };
        let binding = match symbol.st_bind() {
            elf::STB_LOCAL => Binding::Local,
            elf::STB_WEAK => Binding::Weak,
            _ => Binding::Global,
        };
        symbols.push(Symbol {
            name: name.into_owned(),
            address: symbol.st_value(endian).into(),
            size: symbol.st_size(endian).into(),
            kind,
            binding,
            file: file.clone().filter(|_| binding == Binding::Local),
        });
    }
    Ok((symbols, files))
}
