// SPDX-License-Identifier: MIT OR Apache-2.0

//! Fills in what depends on addresses.

use super::boot::BootReference;
use super::resolve::Target;
use super::{Loader, Placed, Policy, Resolved};
use crate::Host;
use crate::elf::{Elf, SHT_REL, SHT_RELA, Section};
use crate::format::Bytes;
use crate::image::Image;
use crate::problem::Problem;
use crate::x86_64::stock_relocation;
use alloc::boxed::Box;
use xsplice_link::reloc::{WriteError, x86_64};
use xsplice_memory as memory;

const RELA_SIZE: u64 = 24;

/// A payload with every relocation performed.
#[derive(Debug)]
pub struct Relocated<'a>(pub(super) Box<Placed<'a>>);

impl<'a> Resolved<'a> {
    /// Performs the relocations of every section that is loaded.
    #[must_use]
    #[inline(never)]
    pub fn relocate(mut self, loader: &Loader<'_, impl Host>) -> Relocated<'a> {
        for index in 1..self.0.elf.sections.len() {
            self.0.relocate_section(index, loader.policy);
        }
        Relocated(self.0)
    }
}

impl Placed<'_> {
    fn relocate_section(&mut self, index: usize, policy: Policy) {
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
        let Some(section) = elf.sections.get(index) else {
            return;
        };
        if section.kind != SHT_RELA && section.kind != SHT_REL {
            return;
        }
        // Relocations of what is not loaded, debugging information above all.
        let target = usize::try_from(section.info).unwrap_or(usize::MAX);
        let (Some(target), Some(Some(base))) = (elf.sections.get(target), addresses.get(target))
        else {
            return;
        };
        let mut broken = |what| {
            problems.push(Problem::RelocationSection {
                section: section.id(),
                what,
            });
        };
        if usize::try_from(section.link) != Ok(elf.symbol_table) {
            return broken("its symbol table is not that of the payload");
        }
        if section.size == 0 {
            return;
        }
        if section.kind == SHT_REL {
            return problems.push(Problem::RelNotSupported {
                section: section.id(),
            });
        }
        if section.entry_size < RELA_SIZE || section.size % section.entry_size != 0 {
            return broken("its entries do not fill it");
        }
        let (target, base) = (target.clone(), *base);
        let section = section.clone();
        let Ok(entry_size) = usize::try_from(section.entry_size) else {
            return;
        };
        for (index, record) in section.data.chunks_exact(entry_size).enumerate() {
            let record = Bytes(record);
            let (Some(offset), Some(r_type), Some(symbol), Some(addend)) =
                (record.u64(0), record.u32(8), record.u32(12), record.u64(16))
            else {
                return;
            };
            let relocation = Entry {
                index,
                offset,
                r_type,
                symbol,
                addend: addend.cast_signed(),
            };
            let performed = perform(
                elf,
                targets,
                image,
                &section,
                (&target, base),
                &relocation,
                policy,
            );
            match performed {
                Ok(None) => {}
                Ok(Some(reference)) => {
                    let noted = memory::push(boot_references, reference);
                    findings.problems.noted(noted);
                }
                Err(problem) => findings.problems.push(problem),
            }
            // The rest of a hostile file is not worth the time.
            if findings.problems.more != 0 {
                return;
            }
        }
    }
}

struct Entry {
    index: usize,
    offset: u64,
    r_type: u32,
    symbol: u32,
    addend: i64,
}

/// Writes one field. What it leads to, if that is freed after boot.
#[inline(never)]
fn perform(
    elf: &Elf<'_>,
    targets: &[Target],
    image: &mut Image,
    section: &Section<'_>,
    (target, base): (&Section<'_>, u64),
    entry: &Entry,
    policy: Policy,
) -> Result<Option<BootReference>, Problem> {
    let (index, offset, r_type) = (entry.index, entry.offset, entry.r_type);
    if entry.symbol == 0 {
        return Err(Problem::NoSymbol {
            section: section.id(),
            index,
        });
    }
    let number = usize::try_from(entry.symbol).unwrap_or(usize::MAX);
    let (Some(symbol), Some(value)) = (elf.symbols.get(number), targets.get(number)) else {
        return Err(Problem::SymbolIndex {
            section: section.id(),
            index,
            symbol: number,
            count: elf.symbols.len(),
        });
    };
    let symbol = || match elf.sections.get(usize::from(symbol.section)) {
        // A section's own symbol has no name.
        Some(section) if symbol.name.is_empty() => crate::problem::text(section.name),
        _ => symbol.text(),
    };
    let Some(relocation) = x86_64::lookup(r_type) else {
        return Err(Problem::UnknownRelocation {
            section: section.id(),
            index,
            r_type,
        });
    };
    let name = relocation.name;
    if policy == Policy::Stock && !stock_relocation(r_type) {
        let symbol = symbol();
        return Err(Problem::StockRelocation {
            section: section.id(),
            index,
            name,
            symbol,
        });
    }
    let past_end = || Problem::RelocationOffset {
        section: section.id(),
        index,
        name,
        offset,
        target: target.id(),
        size: target.size,
    };
    let end = offset.checked_add(relocation.size as u64);
    if relocation.size != 0 && end.is_none_or(|end| end > target.size) {
        return Err(past_end());
    }
    let mut boot_reference = None;
    let value = match *value {
        Target::Address(value) => value,
        // Whoever could not find it has said so.
        Target::Unknown => return Ok(None),
        Target::Ignored => {
            let symbol = symbol();
            return Err(Problem::IgnoredSymbol {
                section: section.id(),
                index,
                symbol,
            });
        }
        Target::Init(addr) => {
            boot_reference = Some(BootReference {
                section: section.index,
                index,
                symbol: number,
                addr,
                leads: addr.wrapping_add_signed(entry.addend),
            });
            addr
        }
    };
    if relocation.size == 0 {
        return Ok(boot_reference);
    }
    let place = base.wrapping_add(offset);
    let field = image.get_mut(place, relocation.size).ok_or_else(past_end)?;
    relocation
        .write(field, relocation.value(value, entry.addend, place))
        .map(|()| boot_reference)
        .map_err(|error| match error {
            WriteError::Overflow(overflow) => {
                let symbol = symbol();
                Problem::Overflow {
                    section: section.id(),
                    index,
                    offset,
                    symbol,
                    overflow,
                }
            }
            WriteError::OutOfBounds { .. } => past_end(),
        })
}
