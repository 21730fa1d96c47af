// SPDX-License-Identifier: MIT OR Apache-2.0
//! The linked hypervisor: `xen-syms` as bytes and symbols.

use crate::Refused;
use object::elf;
use object::read::elf::{ElfFile64, SectionHeader as _, Sym};
use object::{Endianness, Object as _, ObjectSection as _};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

/// A symbol of the hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSymbol {
    /// Virtual address.
    pub address: u64,
    /// Whether it is a function.
    pub function: bool,
    /// Size in bytes; 0 where the source gives none.
    pub size: u64,
    /// Whether a strong definition would have taken its place.
    pub weak: bool,
    /// For a local symbol, the source file of its FILE symbol.
    pub file: Option<String>,
}

/// The linked hypervisor.
#[derive(Debug)]
pub struct Image {
    files: BTreeSet<String>,
    symbols: HashMap<String, Vec<ImageSymbol>>,
    /// Every address that has a name, in order.
    named: Vec<u64>,
    /// Code and data that are freed after boot.
    init: Range<u64>,
    sections: Vec<(u64, Vec<u8>)>,
    /// Which of the sections consist of instructions.
    executable: Vec<bool>,
    /// Build-id of the hypervisor.
    pub build_id: Vec<u8>,
    /// The compiler's own words about itself, from `.comment`.
    pub compiler: String,
}

impl Image {
    /// Reads `xen-syms`; `path` is for messages.
    ///
    /// # Errors
    /// If it is no linked x86-64 ELF file with symbols and a build-id.
    pub fn read(path: &str, data: &[u8]) -> Result<Self, Refused> {
        let bad = |reason: &dyn std::fmt::Display| {
            Refused::one(path, format!("not a usable xen-syms: {reason}"))
        };
        let elf = ElfFile64::<Endianness>::parse(data).map_err(|e| bad(&e))?;
        let endian = elf.endian();
        let build_id = elf
            .build_id()
            .map_err(|e| bad(&e))?
            .ok_or_else(|| bad(&"it has no build-id note; was it built with --build-id?"))?
            .to_vec();
        let mut symbols: HashMap<String, Vec<ImageSymbol>> = HashMap::new();
        let table = elf.elf_symbol_table();
        let mut file = None;
        let mut files = BTreeSet::new();
        for symbol in table.iter() {
            let name = table.symbol_name(endian, symbol).map_err(|e| bad(&e))?;
            let name = String::from_utf8_lossy(name).into_owned();
            let kind = symbol.st_type();
            if kind == elf::STT_FILE {
                files.insert(name.clone());
                file = Some(name);
            } else if !name.is_empty() && symbol.st_shndx(endian) != elf::SHN_UNDEF {
                let local = symbol.st_bind() == elf::STB_LOCAL;
                symbols.entry(name).or_default().push(ImageSymbol {
                    address: symbol.st_value(endian),
                    function: kind == elf::STT_FUNC,
                    size: symbol.st_size(endian),
                    weak: symbol.st_bind() == elf::STB_WEAK,
                    file: file.clone().filter(|_| local),
                });
            }
        }
        if symbols.is_empty() {
            return Err(bad(&"it has no symbol table; use the unstripped file"));
        }
        let (mut sections, mut executable) = (Vec::new(), Vec::new());
        let mut compiler = String::new();
        for section in elf.sections() {
            let contents = section.data().map_err(|e| bad(&e))?;
            if section.address() != 0 && !contents.is_empty() {
                let flags = section.elf_section_header().sh_flags(endian);
                executable.push(flags.contains(elf::SHF_EXECINSTR));
                sections.push((section.address(), contents.to_vec()));
            } else if section.name() == Ok(".comment") {
                compiler = comment(contents);
            }
        }
        let mut named: Vec<u64> = symbols.values().flatten().map(|s| s.address).collect();
        named.sort_unstable();
        named.dedup();
        let edge = |name: &str| symbols.get(name).and_then(|all| all.first());
        let init = match (edge("__init_begin"), edge("__init_end")) {
            (Some(begin), Some(end)) => begin.address..end.address,
            _ => return Err(bad(&"it lacks __init_begin or __init_end")),
        };
        Ok(Self {
            files,
            symbols,
            named,
            init,
            sections,
            executable,
            build_id,
            compiler,
        })
    }

    /// Whether the object of the source `file` was linked.
    pub fn has_file(&self, file: &str) -> bool {
        self.files.contains(file)
    }

    /// The address of the global symbol `name`.
    pub fn global(&self, name: &str) -> Option<u64> {
        let mut all = self.symbols.get(name)?.iter().filter(|s| s.file.is_none());
        all.next().map(|s| s.address)
    }

    /// Whether the global symbol `name` is a weak one; `None` if there is none.
    pub fn global_is_weak(&self, name: &str) -> Option<bool> {
        let mut all = self.symbols.get(name)?.iter().filter(|s| s.file.is_none());
        all.next().map(|s| s.weak)
    }

    /// Whether the global symbol `name` is a function.
    pub fn is_function(&self, name: &str) -> bool {
        self.symbols
            .get(name)
            .is_some_and(|all| all.iter().any(|s| s.file.is_none() && s.function))
    }

    /// Every symbol `name` that the source `file` keeps to itself.
    pub fn locals(&self, file: &str, name: &str) -> Vec<&ImageSymbol> {
        let all = self.symbols.get(name).map_or(&[][..], Vec::as_slice);
        all.iter()
            .filter(|s| s.file.as_deref() == Some(file))
            .collect()
    }

    /// The address of `name`, written as the hypervisor writes it: `FILE#NAME`
    /// for a local symbol; none if it has several of this name.
    pub fn named(&self, name: &str) -> Option<u64> {
        match name.split_once('#') {
            Some((file, name)) => match self.locals(file, name).as_slice() {
                [only] => Some(only.address),
                _ => None,
            },
            None => self.global(name),
        }
    }

    /// The function at `address`: its name as the hypervisor writes it, and its
    /// size.
    pub fn function_at(&self, address: u64) -> Option<(String, u64)> {
        let all = self
            .symbols
            .iter()
            .flat_map(|(name, all)| all.iter().map(move |s| (name, s)));
        let here = all.filter(|(_, symbol)| symbol.function && symbol.address == address);
        let named = here.map(|(name, symbol)| match &symbol.file {
            Some(file) => (format!("{file}#{name}"), symbol.size),
            None => (name.clone(), symbol.size),
        });
        named.min()
    }

    /// Whether what is at `address` is freed after boot.
    pub fn is_init(&self, address: u64) -> bool {
        self.init.contains(&address)
    }

    /// How many bytes from `address` on are nothing but padding up to the next
    /// place that has a name: whole instructions without effect, or traps.
    pub fn padding(&self, address: u64) -> u64 {
        let next = self.named.partition_point(|&named| named < address);
        let size = self.named.get(next).map_or(0, |named| named - address);
        let code = self.bytes(address, size).unwrap_or_default();
        let mut decoder = iced_x86::Decoder::new(64, code, iced_x86::DecoderOptions::NONE);
        let only_padding = decoder.iter().all(|instruction| {
            matches!(
                instruction.mnemonic(),
                iced_x86::Mnemonic::Nop | iced_x86::Mnemonic::Int3
            )
        });
        if only_padding { code.len() as u64 } else { 0 }
    }

    /// `size` bytes at `address`, if the file has them.
    pub fn bytes(&self, address: u64, size: u64) -> Option<&[u8]> {
        let tail = self.from(address)?;
        tail.get(..usize::try_from(size).ok()?)
    }

    /// The name of what is at `address`: of the symbol before it.
    pub fn name_at(&self, address: u64) -> Option<&str> {
        let behind = self.named.partition_point(|&named| named <= address);
        let start = *self.named.get(behind.checked_sub(1)?)?;
        let all = self.symbols.iter();
        let here = all.filter(|(_, symbols)| symbols.iter().any(|s| s.address == start));
        here.map(|(name, _)| name.as_str()).min()
    }

    /// The code, in pieces that each begin at a symbol.
    pub(crate) fn code(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let sections = self.sections.iter().zip(&self.executable);
        let sections = sections.filter(|&(_, &executable)| executable);
        sections.flat_map(|((start, data), _)| {
            let end = start + data.len() as u64;
            let first = self.named.partition_point(|named| named < start);
            let last = self.named.partition_point(|named| *named < end);
            let edges = self.named[first..last].iter().copied();
            let next = edges.clone().skip(1).chain([end]);
            edges.zip(next).filter_map(|(from, to)| {
                let data = self.bytes(from, to - from)?;
                Some((from, data))
            })
        })
    }

    /// The sections that are not code.
    pub(crate) fn data(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let sections = self.sections.iter().zip(&self.executable);
        sections
            .filter(|&(_, &executable)| !executable)
            .map(|((start, data), _)| (*start, data.as_slice()))
    }

    fn from(&self, address: u64) -> Option<&[u8]> {
        self.sections.iter().find_map(|(start, data)| {
            data.get(usize::try_from(address.checked_sub(*start)?).ok()?..)
        })
    }
}

/// The compiler's own words about itself in an object.
pub(crate) fn compiler(object: &xsplice_objdiff::Object) -> Option<String> {
    let mut sections = object.sections.iter();
    let section = sections.find(|section| section.name == ".comment")?;
    Some(comment(&section.data))
}

/// The first text of a `.comment` section.
fn comment(data: &[u8]) -> String {
    let texts = data.split(|&b| b == 0).filter(|t| !t.is_empty());
    texts
        .map(String::from_utf8_lossy)
        .next()
        .unwrap_or_default()
        .into_owned()
}
