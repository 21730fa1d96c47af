// SPDX-License-Identifier: MIT OR Apache-2.0

//! A hypervisor image on disk.

use crate::limits;
use crate::surroundings::Surroundings;
use crate::window;
use object::read::elf::{ElfFile64, ElfSymbol64, FileHeader as _};
use object::{
    LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _, SectionFlags, SectionKind,
    SymbolKind, SymbolSection, elf,
};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::OnceLock;
use thiserror::Error;
use xsplice_abi::deny;
use xsplice_engine::{Limits, Region};

/// Why a file cannot serve as a hypervisor image.
#[derive(Debug, Error)]
pub enum Error {
    /// Not an ELF file, or a broken one.
    #[error("this is not a usable ELF image; pass the xen-syms file of the hypervisor")]
    Elf(#[from] object::Error),
    /// Another kind of ELF file.
    #[error(
        "this ELF file is not a linked x86-64 image; \
         pass the xen-syms file of the hypervisor, not the file that is booted"
    )]
    NotAnImage,
    /// The file was stripped.
    #[error("the image has no symbols; pass the xen-syms file that was not stripped")]
    NoSymbols,
    /// No build-id note.
    #[error("the image has no build-id, so payloads cannot be matched to it")]
    NoBuildId,
}

/// Contiguous memory of the hypervisor.
#[derive(Debug)]
struct Section {
    range: Range<u64>,
    region: Region,
    writable: bool,
    /// Contents, as far as the file has them.
    data: Vec<u8>,
}

/// Contiguous memory of a hypervisor.
#[derive(Clone, Debug)]
pub struct Part<'i> {
    /// Its addresses.
    pub range: Range<u64>,
    /// What it is.
    pub region: Region,
    /// Whether the hypervisor writes to it.
    pub writable: bool,
    /// Contents, as far as the image has them; zero after that.
    pub data: &'i [u8],
}

/// A hypervisor on disk.
#[derive(Debug)]
pub struct Image {
    build_id: Vec<u8>,
    symbols: HashMap<Vec<u8>, u64>,
    /// Ends and names of functions, by where they begin.
    functions: BTreeMap<u64, (u64, Vec<u8>)>,
    /// What begins in code, by where it does: as the running hypervisor knows it.
    text_symbols: BTreeMap<u64, Vec<String>>,
    sections: Vec<Section>,
    init: Range<u64>,
    /// Code on the ways into and out of the hypervisor.
    entry: Range<u64>,
    payload_area: Range<u64>,
    surroundings: OnceLock<Surroundings>,
    /// Where functions begin that must not be patched, and why.
    denied: OnceLock<BTreeMap<u64, &'static str>>,
    limits: OnceLock<Limits>,
    /// Sizes of variables that one file keeps to itself, by their plain names.
    sizes: HashMap<String, u64>,
}

/// The hypervisor's code and data lie in one gigabyte, payloads behind them.
const VIRTUAL_SIZE: u64 = 1 << 30;
const PAGE: u64 = 4096;

impl Image {
    /// Reads a `xen-syms` file.
    ///
    /// # Errors
    /// [`enum@Error`] when the file is no hypervisor image with symbols and build-id.
    pub fn parse(file: &[u8]) -> Result<Self, Error> {
        let file = ElfFile64::<LittleEndian>::parse(file)?;
        let (header, endian) = (file.elf_header(), file.endian());
        if header.e_machine(endian) != elf::EM_X86_64 || header.e_type(endian) != elf::ET_EXEC {
            return Err(Error::NotAnImage);
        }
        let build_id = file
            .build_id()?
            .filter(|id| !id.is_empty())
            .ok_or(Error::NoBuildId)?;
        let symbols = symbols(&file);
        if symbols.is_empty() {
            return Err(Error::NoSymbols);
        }

        let mut sections = Vec::new();
        for section in file.sections() {
            let SectionFlags::Elf { sh_flags, .. } = section.flags() else {
                continue;
            };
            let Some(end) = section.address().checked_add(section.size()) else {
                continue;
            };
            if sh_flags.0 & elf::SHF_ALLOC.0 == 0 || section.size() == 0 {
                continue;
            }
            let region = if section.name_bytes()?.starts_with(b".init") {
                Region::Init
            } else if sh_flags.0 & elf::SHF_EXECINSTR.0 != 0 {
                Region::Text
            } else {
                Region::Data
            };
            let data = match section.kind() {
                SectionKind::UninitializedData => Vec::new(),
                _ => section.data()?.to_vec(),
            };
            sections.push(Section {
                range: section.address()..end,
                region,
                writable: sh_flags.0 & elf::SHF_WRITE.0 != 0,
                data,
            });
        }
        let text = sections
            .iter()
            .filter(|section| section.region == Region::Text);
        let start = text.map(|section| section.range.start).min();
        let end = sections.iter().map(|section| section.range.end).max();
        let (Some(start), Some(end)) = (start, end) else {
            return Err(Error::NotAnImage);
        };
        let at = |name: &str| symbols.get(name.as_bytes()).copied();
        let limit = (start / VIRTUAL_SIZE * VIRTUAL_SIZE).saturating_add(VIRTUAL_SIZE);
        let area = at("__2M_rwdata_end").unwrap_or(end).max(end);
        let payload_area = area.checked_next_multiple_of(PAGE).unwrap_or(limit)..limit;
        let between = |begin, end| match (at(begin), at(end)) {
            (Some(begin), Some(end)) => begin..end,
            _ => 0..0,
        };
        let [entry, entry_end] = deny::ENTRY_EDGES;
        let (init, entry) = (
            between("__init_begin", "__init_end"),
            between(entry, entry_end),
        );
        let mut image = Self {
            build_id: build_id.to_vec(),
            symbols,
            functions: functions(&file),
            text_symbols: BTreeMap::new(),
            sections,
            init,
            entry,
            payload_area,
            surroundings: OnceLock::new(),
            denied: OnceLock::new(),
            limits: OnceLock::new(),
            sizes: sizes(&file),
        };
        image.text_symbols = image.begins_in_text(&file);
        Ok(image)
    }

    /// The hypervisor's build-id.
    #[must_use]
    pub fn build_id(&self) -> &[u8] {
        &self.build_id
    }

    /// Everything that is in memory when the hypervisor runs.
    pub fn sections(&self) -> impl Iterator<Item = Part<'_>> {
        self.sections.iter().map(|section| Part {
            range: section.range.clone(),
            region: section.region,
            writable: section.writable,
            data: &section.data,
        })
    }

    /// The address of the symbol that the running hypervisor knows as `name`.
    #[must_use]
    pub fn lookup_symbol(&self, name: &[u8]) -> Option<u64> {
        self.symbols.get(name).copied()
    }

    /// Where the function begins that `addr` is in, with what is behind it, as far
    /// as the running hypervisor knows: its symbols have no sizes there.
    #[must_use]
    pub fn function_at(&self, addr: u64) -> Option<u64> {
        if self.region(addr) != Region::Text {
            return None;
        }
        let (start, _) = self.text_symbols.range(..=addr).next_back()?;
        Some(*start)
    }

    /// Whether a function of known size begins at `addr`.
    pub(crate) fn is_function(&self, addr: u64) -> bool {
        self.functions.contains_key(&addr)
    }

    /// The code of the function that begins at `addr`.
    pub(crate) fn code(&self, addr: u64) -> Option<Vec<u8>> {
        let (end, _) = self.functions.get(&addr)?;
        let mut code = vec![0; usize::try_from(end - addr).ok()?];
        self.read(addr, &mut code).then_some(code)
    }

    /// Address and name of everything that begins in code.
    pub fn text_symbols(&self) -> impl Iterator<Item = (u64, &str)> {
        let all = self.text_symbols.iter();
        all.flat_map(|(addr, names)| names.iter().map(|name| (*addr, name.as_str())))
    }

    /// Why code in `range` must not be patched, if so: the first reason that one of
    /// the functions in it has.
    #[must_use]
    pub fn denied(&self, range: Range<u64>) -> Option<&'static str> {
        if range.start < self.entry.end && self.entry.start < range.end {
            return Some(deny::ENTRY);
        }
        let start = self.function_at(range.start).unwrap_or(range.start);
        let denied = self.denied.get_or_init(|| window::of(self));
        let mut inside = denied.range(start..range.end.max(start));
        inside.next().map(|(_, why)| *why)
    }

    fn begins_in_text(&self, file: &ElfFile64<'_, LittleEndian>) -> BTreeMap<u64, Vec<String>> {
        let mut found = BTreeMap::<u64, Vec<String>>::new();
        for symbol in file.symbols().filter(counts) {
            let addr = symbol.address();
            if self.region(addr) == Region::Text
                && let Ok(name) = symbol.name()
            {
                found.entry(addr).or_default().push(name.to_owned());
            }
        }
        found
    }

    /// What `addr` belongs to.
    #[must_use]
    pub fn region(&self, addr: u64) -> Region {
        if self.init.contains(&addr) {
            return Region::Init;
        }
        let section = self
            .sections
            .iter()
            .find(|section| section.range.contains(&addr));
        section.map_or(Region::Outside, |section| section.region)
    }

    /// Fills `buf` with the bytes at `addr`; false when they are not all there.
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        let bytes = self.sections.iter().find_map(|section| {
            let start = usize::try_from(addr.checked_sub(section.range.start)?).ok()?;
            section.data.get(start..start.checked_add(buf.len())?)
        });
        if let Some(bytes) = bytes {
            buf.copy_from_slice(bytes);
        }
        bytes.is_some()
    }

    /// What the hypervisor itself does with its functions. The whole image is
    /// looked through for it, once.
    pub(crate) fn surroundings(&self) -> &Surroundings {
        self.surroundings.get_or_init(|| Surroundings::of(self))
    }

    /// What the hypervisor takes for granted of payloads.
    #[must_use]
    pub fn limits(&self) -> Limits {
        *self.limits.get_or_init(|| limits::of(self))
    }

    /// The size of the variable `name`.
    pub(crate) fn size_of(&self, name: &str) -> Option<u64> {
        self.sizes.get(name).copied()
    }

    /// The addresses at which payloads are placed; the start is page-aligned.
    pub(crate) fn payload_area(&self) -> Range<u64> {
        self.payload_area.clone()
    }
}

/// The symbols under the names that the hypervisor's own table has for them:
/// global ones plainly, local ones behind the name of their file.
fn symbols(file: &ElfFile64<'_, LittleEndian>) -> HashMap<Vec<u8>, u64> {
    let mut symbols = HashMap::new();
    let mut source: &[u8] = b"";
    for symbol in file.symbols() {
        let Ok(name) = symbol.name_bytes() else {
            continue;
        };
        if symbol.kind() == SymbolKind::File {
            source = name;
        } else if counts(&symbol) {
            let local = symbol.is_local() && !source.is_empty();
            let name = if local {
                [source, b"#", name].concat()
            } else {
                name.to_vec()
            };
            symbols.entry(name).or_insert(symbol.address());
        }
    }
    symbols
}

/// The functions that have a size.
fn functions(file: &ElfFile64<'_, LittleEndian>) -> BTreeMap<u64, (u64, Vec<u8>)> {
    let functions = file
        .symbols()
        .filter(|symbol| counts(symbol) && symbol.kind() == SymbolKind::Text && symbol.size() != 0);
    functions
        .map(|symbol| {
            let (start, name) = (symbol.address(), symbol.name_bytes().unwrap_or_default());
            let end = start.saturating_add(symbol.size());
            (start, (end, name.to_vec()))
        })
        .collect()
}

fn sizes(file: &ElfFile64<'_, LittleEndian>) -> HashMap<String, u64> {
    let variables = file
        .symbols()
        .filter(|symbol| counts(symbol) && symbol.kind() == SymbolKind::Data && symbol.size() != 0);
    let named =
        variables.filter_map(|symbol| Some((symbol.name().ok()?.to_owned(), symbol.size())));
    named.collect()
}

fn counts(symbol: &ElfSymbol64<'_, '_, LittleEndian>) -> bool {
    matches!(symbol.section(), SymbolSection::Section(_)) && symbol.kind() != SymbolKind::Section
}
