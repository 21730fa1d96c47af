// SPDX-License-Identifier: MIT OR Apache-2.0

//! Performs relocations.

use super::boot::BootReference;
use super::resolve::Target;
use super::{Loader, Placed, Policy, Resolved};
use crate::Host;
use crate::arch::{Architecture, Write};
use crate::elf::{Elf, SHT_REL, SHT_RELA, Section, Symbol};
use crate::format::{Bytes, Known};
use crate::problem::{Problem, RelocationFault, SectionFault, text};
use alloc::boxed::Box;
use xsplice_abi::machine::Width;
use xsplice_fallible as fallible;
use xsplice_reloc::reloc::WriteError;

/// Sizes of `Elf64_Rela`, `Elf32_Rela` and `Elf32_Rel`.
const RELA_SIZE: usize = 24;
const RELA_SIZE_32: usize = 12;
const REL_SIZE_32: usize = 8;

/// A payload with every relocation performed.
#[derive(Debug)]
pub struct Relocated<'a>(pub(super) Box<Placed<'a>>);

impl<'a> Resolved<'a> {
    /// Performs the relocations of every section that is loaded.
    #[must_use]
    #[inline(never)]
    pub fn relocate(mut self, loader: &Loader<'_, impl Host>) -> Relocated<'a> {
        for index in 1..self.0.elf.sections.len() {
            let architecture = loader.host.architecture();
            self.0.relocate_section(architecture, index, loader.policy);
        }
        Relocated(self.0)
    }
}

impl Placed<'_> {
    fn relocate_section(&mut self, architecture: impl Architecture, index: usize, policy: Policy) {
        let Self {
            findings,
            elf,
            image,
            addresses,
            targets,
            boot_references,
            ..
        } = self;
        let problems = &mut findings.problems;
        let Some((section, target, base)) = table_of(elf, addresses, index) else {
            return;
        };
        if let Err(fault) = check(architecture, elf, section, target) {
            return problems.section(section, fault);
        }
        if section.size == 0 {
            return;
        }
        let size = usize::try_from(target.size).unwrap_or(0);
        let mut table = Table {
            architecture,
            elf,
            targets,
            section,
            target,
            base,
            fields: image.get_mut(base, size).unwrap_or_default(),
            policy,
        };
        let Ok(entry_size) = usize::try_from(section.entry_size) else {
            return;
        };
        for (index, record) in section.data.chunks_exact(entry_size).enumerate() {
            let Some(mut entry) = Entry::read(architecture, section.kind, record) else {
                return;
            };
            match table.perform(&mut entry) {
                Ok(None) => {}
                Ok(Some(addr)) => {
                    let reference = BootReference {
                        section: section.index,
                        index,
                        symbol: entry.symbol,
                        addr,
                        leads: addr.wrapping_add_signed(entry.addend),
                    };
                    problems.noted(fallible::push(boot_references, reference));
                }
                Err(fault) => problems.push(table.problem(index, &entry, fault)),
            }
            // The rest of a hostile file is not worth the time.
            if problems.more != 0 {
                return;
            }
        }
    }
}

/// The section `index`, if it has the relocations of a section that is loaded, with that
/// section and its address.
pub(super) fn table_of<'s, 'e>(
    elf: &'s Elf<'e>,
    addresses: &[Option<u64>],
    index: usize,
) -> Option<(&'s Section<'e>, &'s Section<'e>, u64)> {
    let section = elf.sections.get(index)?;
    if section.kind != SHT_RELA && section.kind != SHT_REL {
        return None;
    }
    let target = usize::try_from(section.info).ok()?;
    // Most of those that are not loaded are debugging information.
    let base = *addresses.get(target)?;
    Some((section, elf.sections.get(target)?, base?))
}

/// Checks the form of a section of relocations for `target`.
fn check(
    architecture: impl Architecture,
    elf: &Elf<'_>,
    section: &Section<'_>,
    target: &Section<'_>,
) -> Result<(), SectionFault> {
    let what = if usize::try_from(section.link) != Ok(elf.symbol_table) {
        "its symbol table is not that of the payload"
    } else if section.size == 0 {
        return Ok(());
    } else if section.kind == SHT_REL && !architecture.addends_in_places() {
        return Err(SectionFault::RelNotSupported);
    } else if target.known.is_some_and(Known::is_read_from_file) {
        "it would change what is read from the file"
    } else if section.entry_size < least(architecture, section.kind) as u64
        || !section.size.is_multiple_of(section.entry_size)
    {
        "its entries do not fill it"
    } else {
        return Ok(());
    };
    Err(SectionFault::Relocations { what })
}

/// Size of a record in a section of this kind.
fn least(architecture: impl Architecture, kind: u32) -> usize {
    match architecture.machine().width() {
        Width::Bits64 => RELA_SIZE,
        Width::Bits32 if kind == SHT_REL => REL_SIZE_32,
        Width::Bits32 => RELA_SIZE_32,
    }
}

struct Entry {
    offset: u64,
    r_type: u32,
    symbol: usize,
    addend: i64,
}

impl Entry {
    #[inline(always)]
    fn read(architecture: impl Architecture, kind: u32, record: &[u8]) -> Option<Self> {
        // Fixed-size arrays let the compiler drop bounds checks.
        match architecture.machine().width() {
            Width::Bits64 => {
                let record = Bytes(record.first_chunk::<RELA_SIZE>()?);
                Some(Self {
                    offset: record.u64(0)?,
                    r_type: record.u32(8)?,
                    symbol: usize::try_from(record.u32(12)?).ok()?,
                    addend: record.u64(16)?.cast_signed(),
                })
            }
            Width::Bits32 => {
                let info = Bytes(record).u32(4)?;
                Some(Self {
                    offset: Bytes(record).u32(0)?.into(),
                    r_type: info & 0xff,
                    symbol: usize::try_from(info >> 8).ok()?,
                    // Otherwise it is in the place.
                    addend: match kind {
                        SHT_RELA => Bytes(record).i32(8)?.into(),
                        _ => 0,
                    },
                })
            }
        }
    }
}

/// The relocations of one section.
struct Table<'a, 'e, A> {
    architecture: A,
    elf: &'a Elf<'e>,
    targets: &'a [Target],
    section: &'a Section<'e>,
    /// The section that they apply to, its address and its bytes.
    target: &'a Section<'e>,
    base: u64,
    fields: &'a mut [u8],
    policy: Policy,
}

impl<A: Architecture> Table<'_, '_, A> {
    /// Writes one field, and reads the addend if it is there. Returns the address of its
    /// symbol if that is freed after boot.
    fn perform(&mut self, entry: &mut Entry) -> Result<Option<u64>, RelocationFault> {
        if entry.symbol == 0 {
            return Err(RelocationFault::NoSymbol);
        }
        let target = self.targets.get(entry.symbol);
        let target = target.ok_or(RelocationFault::SymbolIndex {
            symbol: entry.symbol,
            count: self.elf.symbols.len(),
        })?;
        let relocation = self.architecture.relocation(entry.r_type);
        let relocation = relocation.ok_or(RelocationFault::Unknown {
            r_type: entry.r_type,
        })?;
        let name = relocation.name;
        if self.policy == Policy::Stock
            && let Some(advice) = self.architecture.stock_lacks(entry.r_type)
        {
            return Err(RelocationFault::Stock { name, advice });
        }
        if relocation.size == 0 {
            return match target {
                Target::Ignored => Err(RelocationFault::Ignored),
                Target::Init(addr) => Ok(Some(*addr)),
                Target::Address(_) | Target::Unknown => Ok(None),
            };
        }
        let start = usize::try_from(entry.offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(relocation.size);
        let field = self.fields.get_mut(start..end);
        let past_end = || RelocationFault::PastEnd {
            name,
            offset: entry.offset,
            target: self.target.index,
            size: self.target.size,
        };
        let field = field.ok_or_else(past_end)?;
        if self.architecture.addends_in_places() && self.section.kind == SHT_REL {
            entry.addend = relocation.addend(field).unwrap_or_default();
        }
        let (symbol, boot) = match *target {
            Target::Address(addr) => (addr, None),
            Target::Init(addr) => (addr, Some(addr)),
            // Already reported by `resolve`.
            Target::Unknown => return Ok(None),
            Target::Ignored => return Err(RelocationFault::Ignored),
        };
        let place = self.base.wrapping_add(entry.offset);
        let value = relocation.value(symbol, entry.addend, place);
        if self.policy == Policy::Stock
            && let Some(what) = self.architecture.stock_fault(
                relocation,
                &Write {
                    place,
                    addend: entry.addend,
                    value,
                    field: &*field,
                },
            )
        {
            let offset = entry.offset;
            return Err(RelocationFault::StockFault { name, offset, what });
        }
        match relocation.write(field, value) {
            Ok(()) => Ok(boot),
            Err(WriteError::Overflow(overflow)) => Err(RelocationFault::Overflow {
                offset: entry.offset,
                overflow,
            }),
            Err(WriteError::Thumb { name }) => Err(RelocationFault::Thumb {
                name,
                offset: entry.offset,
            }),
            Err(WriteError::OutOfBounds { .. }) => Err(past_end()),
        }
    }

    /// With the names that its message needs. There are many entries, and it is only
    /// found out for those that get one.
    #[inline(never)]
    fn problem(&self, index: usize, entry: &Entry, fault: RelocationFault) -> Problem {
        let symbol = self.elf.symbols.get(entry.symbol);
        let symbol = symbol.filter(|_| entry.symbol != 0);
        let holder = symbol.and_then(|symbol| {
            // A section's own symbol has no name.
            let holder = self.elf.sections.get(usize::from(symbol.section));
            holder.filter(|_| symbol.name().is_empty())
        });
        Problem::Relocation {
            section: self.section.id(),
            index,
            symbol: match holder {
                Some(holder) => text(holder.name),
                None => symbol.map(Symbol::text).unwrap_or_default(),
            },
            fault,
        }
    }
}
