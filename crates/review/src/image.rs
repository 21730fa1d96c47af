// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's file.

use crate::Error;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};
use object::read::elf::{ElfFile64, FileHeader as _};
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, elf};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// A linked hypervisor: names and bytes by address.
pub struct Image {
    addresses: HashMap<String, u64>,
    names: BTreeMap<u64, Named>,
    sections: Vec<Section>,
    /// What is freed after boot.
    init: Range<u64>,
}

/// What is called by a symbol.
struct Named {
    /// The symbol's name; for a local one behind that of its source file, as
    /// the hypervisor's own symbol table has it.
    name: String,
    /// Size in bytes; 0 if the symbol does not tell.
    size: u64,
}

struct Section {
    name: String,
    address: u64,
    data: Vec<u8>,
    executable: bool,
}

/// A place that leads to a function.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Use {
    /// The function or table that holds the place.
    pub user: String,
    /// Its address.
    #[serde(skip)]
    pub(crate) address: u64,
    /// Offset there in bytes.
    pub offset: u64,
    /// How it leads there.
    pub how: How,
}

/// How a place leads to a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// It calls it.
    Call,
    /// It jumps to it, as at the end of a function.
    Jump,
    /// It takes its address.
    Address,
    /// It is data that holds its address.
    Pointer,
}

impl Image {
    /// Reads a `xen-syms` file.
    ///
    /// # Errors
    /// If it is no linked x86-64 ELF file with symbols.
    pub fn read(data: &[u8]) -> Result<Self, Error> {
        let file = ElfFile64::<Endianness>::parse(data)?;
        let (header, endian) = (file.elf_header(), file.endian());
        if header.e_machine(endian) != elf::EM_X86_64 || header.e_type(endian) != elf::ET_EXEC {
            return Err(Error::WrongKind(
                "not a linked x86-64 image; pass the xen-syms file of the hypervisor".to_owned(),
            ));
        }
        let (mut addresses, mut names) = (HashMap::new(), BTreeMap::new());
        let mut source = "";
        for symbol in file.symbols() {
            let name = symbol.name()?;
            let kind = symbol.elf_symbol().st_type();
            if kind == elf::STT_FILE {
                source = name;
            }
            let in_section = symbol.section_index().is_some();
            if matches!(kind, elf::STT_FILE | elf::STT_SECTION) || !in_section {
                continue;
            }
            let full = if symbol.is_global() {
                addresses.insert(name.to_owned(), symbol.address());
                name.to_owned()
            } else {
                format!("{source}#{name}")
            };
            // Of several names for one place, that of the function is told.
            let function = kind == elf::STT_FUNC;
            let rank = (!function, !symbol.is_global(), full, symbol.size());
            names
                .entry(symbol.address())
                .and_modify(|told: &mut (bool, bool, String, u64)| {
                    if rank < *told {
                        told.clone_from(&rank);
                    }
                })
                .or_insert(rank);
        }
        if addresses.is_empty() {
            return Err(Error::WrongKind(
                "the image has no symbols; pass the xen-syms file that was not stripped".to_owned(),
            ));
        }
        let mut sections = Vec::new();
        for section in file.sections().filter(|section| section.address() != 0) {
            let flags = match section.flags() {
                object::SectionFlags::Elf { sh_flags, .. } => sh_flags,
                _ => elf::SectionFlags(0),
            };
            sections.push(Section {
                name: section.name()?.to_owned(),
                address: section.address(),
                data: section.data()?.to_vec(),
                executable: flags.contains(elf::SHF_EXECINSTR),
            });
        }
        let edge = |name| addresses.get(name).copied().unwrap_or(0);
        Ok(Self {
            init: edge("__init_begin")..edge("__init_end"),
            names: names
                .into_iter()
                .map(|(address, (_, _, name, size))| (address, Named { name, size }))
                .collect(),
            addresses,
            sections,
        })
    }

    /// The address of the global symbol `name`.
    pub(crate) fn address(&self, name: &str) -> Option<u64> {
        self.addresses.get(name).copied()
    }

    /// The bytes from `address` to the end of its section.
    pub(crate) fn bytes(&self, address: u64) -> Option<&[u8]> {
        self.sections.iter().find_map(|section| {
            let offset = usize::try_from(address.checked_sub(section.address)?).ok()?;
            section.data.get(offset..).filter(|data| !data.is_empty())
        })
    }

    fn section(&self, address: u64) -> Option<&Section> {
        self.sections.iter().find(|section| {
            let end = section.address.saturating_add(section.data.len() as u64);
            (section.address..end).contains(&address)
        })
    }

    /// The section that holds `address`, and the offset there.
    pub(crate) fn place(&self, address: u64) -> Option<(&str, u64)> {
        let section = self.section(address)?;
        Some((&section.name, address - section.address))
    }

    /// The symbol that covers `address`, and the distance from it. Code without
    /// a size, as in assembly, reaches to the next symbol.
    pub(crate) fn name(&self, address: u64) -> Option<(&str, u64)> {
        let section = self.section(address)?;
        let (start, named) = self.names.range(section.address..=address).next_back()?;
        let offset = address - start;
        let covers = section.executable || offset < named.size.max(1);
        covers.then_some((named.name.as_str(), offset))
    }

    /// The places outside of it that lead to each of `functions`, given by
    /// address and size; in order. Code that is freed after boot is left out.
    ///
    /// Calls through a register are not seen, but what loads the register is.
    pub fn uses(&self, functions: &[(u64, u64)]) -> Vec<Vec<Use>> {
        let wanted: HashMap<u64, usize> = functions
            .iter()
            .enumerate()
            .map(|(index, (address, _))| (*address, index))
            .collect();
        let mut uses = vec![Vec::new(); functions.len()];
        let mut add = |target: u64, place: u64, how: How| {
            let Some(&index) = wanted.get(&target) else {
                return;
            };
            let (start, size) = functions[index];
            let within = place >= start && place - start < size;
            if let Some((user, offset)) = self.name(place).or_else(|| self.place(place))
                && !within
                && !self.init.contains(&place)
            {
                let user = user.to_owned();
                uses[index].push(Use {
                    user,
                    address: place - offset,
                    offset,
                    how,
                });
            }
        };
        for section in &self.sections {
            if section.executable {
                self.scan_code(section, &mut add);
            } else {
                for (at, word) in section.data.as_chunks::<8>().0.iter().enumerate() {
                    let place = section.address.wrapping_add(8 * at as u64);
                    add(u64::from_le_bytes(*word), place, How::Pointer);
                }
            }
        }
        uses.iter_mut().for_each(|uses| uses.sort());
        uses
    }

    /// Decodes from each symbol to the next, so that data between functions
    /// confuses nothing behind it.
    fn scan_code(&self, section: &Section, add: &mut dyn FnMut(u64, u64, How)) {
        let end = section.address.saturating_add(section.data.len() as u64);
        let starts: Vec<u64> = self
            .names
            .range(section.address..end)
            .map(|(start, _)| *start)
            .chain([end])
            .collect();
        for piece in starts.windows(2) {
            let offset = |address: u64| usize::try_from(address - section.address).ok();
            let code = offset(piece[0])
                .zip(offset(piece[1]))
                .and_then(|(from, to)| section.data.get(from..to));
            let mut decoder =
                Decoder::with_ip(64, code.unwrap_or_default(), piece[0], DecoderOptions::NONE);
            for instruction in &mut decoder {
                if let Some((target, how)) = leads_to(&instruction) {
                    add(target, instruction.ip(), how);
                }
            }
        }
    }
}

fn leads_to(instruction: &Instruction) -> Option<(u64, How)> {
    let target = instruction.near_branch_target();
    match instruction.flow_control() {
        FlowControl::Call if target != 0 => Some((target, How::Call)),
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch if target != 0 => {
            Some((target, How::Jump))
        }
        _ if instruction.is_ip_rel_memory_operand() => {
            Some((instruction.ip_rel_memory_address(), How::Address))
        }
        _ => None,
    }
}
