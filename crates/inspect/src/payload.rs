//! A payload as plain data.

use crate::Error;
use crate::elf::Elf;
use object::elf;
use serde::Serialize;
use xsplice_abi::note::parse_build_id;
use xsplice_abi::payload::{LivepatchFunc, section};
use xsplice_abi::preimage::{self, Preimage};
use zerocopy::FromBytes as _;

/// Everything that a payload says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Payload {
    /// Its own build-id in hexadecimal.
    pub build_id: Option<String>,
    /// Build-id of what it goes on top of.
    pub depends: Option<String>,
    /// Build-id of the hypervisor.
    pub xen_depends: Option<String>,
    /// `key=value` texts.
    pub metadata: Vec<String>,
    /// What it patches.
    pub functions: Vec<Function>,
    /// What the hypervisor calls at the stages of its life.
    pub hooks: Vec<Hook>,
    /// New functions and variables.
    pub new_symbols: Vec<String>,
    /// Symbols that the hypervisor or a payload below must have.
    pub needed_symbols: Vec<String>,
    /// Symbols given by address.
    pub absolute_symbols: Vec<Absolute>,
    /// Tables about its code, with how many entries each has.
    pub tables: Vec<Table>,
    /// All sections.
    pub sections: Vec<Section>,
    /// Whether the whole of each old function is hashed: how many are.
    pub preimages: usize,
}

/// One function that is patched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Function {
    /// Its name in the hypervisor.
    pub name: String,
    /// Its address in the hypervisor; 0 if the name is to be looked up.
    pub old_address: u64,
    /// Size in the hypervisor in bytes.
    pub old_size: u32,
    /// Size of the new code, or of what is made no-ops.
    pub new_size: u32,
    /// Where the new code is: section and offset; `None` for no-ops.
    pub new: Option<(String, u64)>,
    /// Bytes that must be at the old address, in hexadecimal.
    pub expected: Option<String>,
}

/// The hooks of one stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hook {
    /// `load`, `preapply`, and so on.
    pub stage: String,
    /// The functions that are called.
    pub functions: Vec<String>,
}

/// A symbol given by address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Absolute {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: u64,
}

/// A table about code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Its section.
    pub name: String,
    /// How many entries it has.
    pub entries: u64,
}

/// One section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// `A` allocated, `W` writable, `X` executable.
    pub flags: String,
    /// How many relocations it has.
    pub relocations: usize,
}

/// Size of the entries of each kind of table, by the start of the section name.
const TABLES: [(&str, u64); 3] = [
    (".altinstructions", 14),
    (".bug_frames", 8),
    (".ex_table", 8),
];
const HOOKS: &str = ".livepatch.hooks.";

impl Payload {
    /// Reads the payload `data`.
    ///
    /// # Errors
    /// If it is no relocatable x86-64 ELF file, or is damaged.
    pub fn read(data: &[u8]) -> Result<Self, Error> {
        let elf = Elf::read(data, &|_| None)?;
        let id = |name: &str| {
            let id = parse_build_id(&elf.section(name)?.data)?;
            Some(hex(id))
        };
        let texts = elf.section(section::MODINFO).map_or(&[][..], |s| &s.data);
        let texts = texts.split(|&b| b == 0).filter(|text| !text.is_empty());
        let names = |wanted: &dyn Fn(&crate::elf::Symbol) -> bool| -> Vec<String> {
            let all = elf
                .symbols
                .iter()
                .filter(|s| !s.name.is_empty() && wanted(s));
            all.map(|s| s.name.clone()).collect()
        };
        let functions = functions(&elf);
        let replaced = |symbol: &crate::elf::Symbol| {
            let place = functions.iter().filter_map(|(_, new)| *new);
            place.into_iter().any(|new| new == symbol.address)
        };
        let absolute = elf
            .symbols
            .iter()
            .filter(|s| s.absolute && !s.name.is_empty());
        let preimages = elf.section(preimage::SECTION).map(|s| &s.data);
        Ok(Self {
            build_id: id(section::BUILD_ID),
            depends: id(section::DEPENDS),
            xen_depends: id(section::XEN_DEPENDS),
            metadata: texts
                .map(|t| String::from_utf8_lossy(t).into_owned())
                .collect(),
            hooks: hooks(&elf),
            new_symbols: names(&|s| s.defined && s.size > 0 && !replaced(s)),
            needed_symbols: names(&|s| !s.defined && !s.absolute),
            absolute_symbols: absolute
                .map(|s| Absolute {
                    name: s.name.clone(),
                    address: s.address,
                })
                .collect(),
            tables: tables(&elf),
            sections: elf.sections.iter().map(describe).collect(),
            preimages: preimages
                .and_then(|data| Preimage::read_all(data))
                .map_or(0, |all| all.len()),
            functions: functions
                .into_iter()
                .map(|(function, _)| function)
                .collect(),
        })
    }
}

/// The functions, each with the address of its new code in the layout.
pub(crate) fn functions(elf: &Elf) -> Vec<(Function, Option<u64>)> {
    let data = elf.section(section::FUNCS).map_or(&[][..], |s| &s.data);
    let records = data.chunks_exact(size_of::<LivepatchFunc>());
    records
        .filter_map(|record| LivepatchFunc::read_from_bytes(record).ok())
        .map(|record| {
            let new = Some(record.new_addr.get()).filter(|&address| address != 0);
            let place = new.and_then(|address| {
                elf.sections.iter().find_map(|s| {
                    let offset = address.checked_sub(s.address)?;
                    (offset < s.size).then(|| (s.name.clone(), offset))
                })
            });
            let expected = record.expect.data.get(..record.expect.len());
            let function = Function {
                name: elf.string(record.name.get()).unwrap_or_default(),
                old_address: record.old_addr.get(),
                old_size: record.old_size.get(),
                new_size: record.new_size.get(),
                new: place,
                expected: expected.filter(|_| record.expect.enabled()).map(hex),
            };
            (function, new)
        })
        .collect()
}

fn hooks(elf: &Elf) -> Vec<Hook> {
    let sections = elf.sections.iter().filter_map(|section| {
        let stage = section.name.strip_prefix(HOOKS)?;
        let pointers = section.data.chunks_exact(8).filter_map(|pointer| {
            let address = u64::from_le_bytes(pointer.try_into().ok()?);
            Some(match elf.name(address) {
                Some((name, _)) => name.to_owned(),
                None => format!("{address:#x}"),
            })
        });
        Some(Hook {
            stage: stage.to_owned(),
            functions: pointers.collect(),
        })
    });
    sections.collect()
}

fn tables(elf: &Elf) -> Vec<Table> {
    let sections = elf.sections.iter().filter_map(|section| {
        let known = TABLES
            .iter()
            .find(|(start, _)| section.name.starts_with(start));
        known.map(|(_, size)| Table {
            name: section.name.clone(),
            entries: section.size / size,
        })
    });
    sections.collect()
}

fn describe(section: &crate::elf::Section) -> Section {
    let flag =
        |flag: elf::SectionFlags, letter: char| section.flags.contains(flag).then_some(letter);
    Section {
        name: section.name.clone(),
        size: section.size,
        flags: [
            flag(elf::SHF_ALLOC, 'A'),
            flag(elf::SHF_WRITE, 'W'),
            flag(elf::SHF_EXECINSTR, 'X'),
        ]
        .into_iter()
        .flatten()
        .collect(),
        relocations: section.relocations,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
