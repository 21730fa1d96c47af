// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the payload patches, and whether it can.

use super::function::{Record, check_all};
use super::resolve::Target;
use super::verified::{Contents, Verified};
use super::{Loader, Placed, Relocated};
use crate::Host;
use crate::elf::{SHF_MERGE, SHF_WRITE};
use crate::format::{MAX_IMAGE, MAX_NAME};
use crate::host::Symbol;
use crate::problem::{Problem, Problems, Refusal, text};
use crate::stack::Hooks;
use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::mem::offset_of;
use xsplice_abi::payload::{LivepatchFunc, section};
use xsplice_abi::preimage::{self, Preimage};

impl Relocated<'_> {
    /// Checks what the payload patches, its hooks, its tables and its symbols.
    ///
    /// # Errors
    /// [`Refusal`] with every problem of this and of all stages before it.
    #[inline(never)]
    pub fn verify(self, loader: &Loader<'_, impl Host>) -> Result<Verified, Refusal> {
        let mut placed = self.0;
        let mut problems = core::mem::take(&mut placed.findings.problems);
        let mut uses = core::mem::take(&mut placed.findings.uses);
        let records = placed.functions(loader, &mut uses, &mut problems);
        let mut hooks = Hooks::default();
        let hooked = placed.hooks(loader, &mut hooks, &mut uses, &mut problems);
        if records.is_none() && !hooked {
            problems.push_nothing_to_do();
        }
        let records = records.unwrap_or_default();
        check_all(loader, &records, &mut problems);
        placed.check_boot_references(loader, &records, &mut problems);
        let preimages = placed.preimages(&mut problems);
        placed.check_tables(&mut problems);
        let (symbols, new_symbols) = placed.symbols(loader, &records, &mut problems);
        placed.fill_in_addresses(&records);
        let refused = problems.refused();
        (placed.findings.problems, placed.findings.uses) = (problems, uses);
        if refused {
            return Err(placed.findings.refuse());
        }
        Ok(placed.finish(records, (preimages, hooks), (symbols, new_symbols)))
    }
}

impl Placed<'_> {
    /// What is to be kept of a payload that is good.
    #[inline(never)]
    fn finish(
        self: Box<Self>,
        records: Vec<Record>,
        (preimages, hooks): (Vec<Preimage>, Hooks),
        (symbols, new_symbols): (Vec<Symbol>, BTreeMap<Vec<u8>, u64>),
    ) -> Verified {
        let (functions, expectations) = records
            .into_iter()
            .map(|record| (record.function, record.expectation))
            .unzip();
        Verified(Box::new(Contents {
            tables: self.tables(),
            metadata: self.metadata(),
            writable_data: self.writable_data(),
            build_id: self.build_id.to_owned(),
            depends: self.depends.to_owned(),
            findings: self.findings,
            image: self.image,
            functions,
            expectations,
            preimages,
            hooks,
            symbols,
            new_symbols,
        }))
    }

    /// Whether it has data that it could change; its records do not count.
    fn writable_data(&self) -> bool {
        self.elf.sections.iter().any(|section| {
            section.allocated()
                && section.flags & SHF_WRITE != 0
                && section.size != 0
                && section.name != section::FUNCS.as_bytes()
        })
    }

    /// What the old functions must be, as the preimage notes say.
    #[inline(never)]
    fn preimages(&self, problems: &mut Problems) -> Vec<Preimage> {
        let Some(section) = self.elf.section(preimage::SECTION) else {
            return Vec::new();
        };
        let section_id = || section.id();
        let Some(notes) = Preimage::read_all(section.data) else {
            let section = section_id();
            problems.push(Problem::PreimageDamaged { section });
            return Vec::new();
        };
        let size = notes.iter().map(|note| u64::from(note.size)).sum();
        if size > MAX_IMAGE {
            let (section, limit) = (section_id(), MAX_IMAGE);
            problems.push(Problem::PreimageSize {
                section,
                size,
                limit,
            });
        }
        notes
    }

    /// Writes into each record the address that its name was found at.
    #[inline(never)]
    fn fill_in_addresses(&mut self, records: &[Record]) {
        const OLD_ADDR: u64 = offset_of!(LivepatchFunc, old_addr) as u64;
        for record in records {
            let place = record.addr.wrapping_add(OLD_ADDR);
            if let Some(field) = self.image.get_mut(place, 8) {
                field.copy_from_slice(&record.function.old_addr.to_le_bytes());
            }
        }
    }

    #[inline(never)]
    fn metadata(&self) -> Vec<String> {
        let strings = self
            .elf
            .section(section::MODINFO)
            .map_or(&b""[..], |section| section.data);
        strings
            .split(|byte| *byte == 0)
            .filter(|string| !string.is_empty())
            .map(text)
            .collect()
    }

    /// The symbols in sections that are loaded, and those of them that later
    /// payloads can refer to. Their names must be new.
    #[inline(never)]
    fn symbols(
        &self,
        loader: &Loader<'_, impl Host>,
        records: &[Record],
        problems: &mut Problems,
    ) -> (Vec<Symbol>, BTreeMap<Vec<u8>, u64>) {
        let mut replaced = BTreeSet::new();
        replaced.extend(records.iter().map(|record| record.function.new_addr));
        // On top of nothing, while there is something: only replace applies it,
        // and then what has the same name is gone.
        let only_replaces = self.depends == loader.host.build_id() && loader.stack.top().is_some();
        let (mut symbols, mut new_symbols) = (Vec::new(), BTreeMap::new());
        for (index, (symbol, target)) in self.elf.symbols.iter().zip(&self.targets).enumerate() {
            let (Some(section), &Target::Address(addr)) =
                (self.elf.sections.get(usize::from(symbol.section)), target)
            else {
                continue;
            };
            // Labels of merged strings are what a linker would have dropped.
            let label = section.flags & SHF_MERGE != 0 && symbol.name.starts_with(b".L");
            if index == 0 || !section.allocated() || symbol.name.is_empty() || label {
                continue;
            }
            let length = symbol.name.len();
            if length > MAX_NAME {
                let (symbol, limit) = (symbol.text(), MAX_NAME);
                problems.push(Problem::LongSymbol {
                    index,
                    symbol,
                    length,
                    limit,
                });
            }
            let new = !replaced.contains(&addr);
            symbols.push(Symbol {
                name: symbol.text(),
                addr,
                size: symbol.size,
                new,
            });
            if !new {
                continue;
            }
            let owner = match loader.host.lookup_symbol(symbol.name) {
                Some(found) if found != 0 => Some("the hypervisor".to_owned()),
                _ if only_replaces => None,
                _ => loader
                    .stack
                    .symbol(symbol.name)
                    .and_then(|(owner, _)| Some(loader.stack.get(owner)?.name.clone())),
            };
            match owner {
                Some(owner) => {
                    let symbol = symbol.text();
                    problems.push(Problem::DuplicateSymbol {
                        index,
                        symbol,
                        owner,
                    });
                }
                None => {
                    new_symbols.entry(symbol.name.to_vec()).or_insert(addr);
                }
            }
        }
        (symbols, new_symbols)
    }
}
