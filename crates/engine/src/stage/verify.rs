// SPDX-License-Identifier: MIT OR Apache-2.0

//! Verifies what the payload patches.

use super::function::{Function, check_all};
use super::resolve::Target;
use super::verified::{Contents, Verified};
use super::{Findings, Loader, Placed, Relocated};
use crate::Host;
use crate::arch::Instructions as _;
use crate::elf::{SHF_MERGE, SHF_WRITE};
use crate::format::{Known, MAX_IMAGE, MAX_NAME};
use crate::host::Symbol;
use crate::problem::{FileFault, Problems, Refusal, SectionFault, SymbolFault, printable, same};
use crate::sort::{sort, sort_pairs};
use alloc::string::String;
use alloc::vec::Vec;
use xsplice_abi::machine::Width;
use xsplice_abi::preimage;
use xsplice_fallible::{self as fallible, NoMemory};

impl<'a> Relocated<'a> {
    /// Checks what the payload patches, its hooks, its tables and its symbols.
    ///
    /// # Errors
    /// [`Refusal`] with every problem of this and of all stages before it.
    #[inline(never)]
    pub fn verify(self, loader: &Loader<'_, impl Host>) -> Result<Verified<'a>, Refusal> {
        let mut placed = self.0;
        let mut contents = Contents::boxed()?;
        contents.findings = core::mem::take(&mut placed.findings);
        placed.find_begins(loader.host.architecture().machine())?;
        let patches = placed.functions(loader, &mut contents)?;
        let hooked = placed.hooks(loader, &mut contents)?;
        let problems = &mut contents.findings.problems;
        if !patches && !hooked {
            problems.file(FileFault::NothingToDo);
        }
        if check_all(loader, &placed.image, &contents.functions, problems)? {
            placed.check_boot_references(loader, &contents.functions, problems)?;
        }
        contents.preimages = placed.preimages(problems)?;
        placed.check_changed_code(loader, problems)?;
        placed.check_bug_frames(loader, problems);
        placed.check_tables(loader, problems);
        placed.symbols(loader, &mut contents)?;
        let width = loader.host.architecture().machine().width();
        placed.fill_in_addresses(width, &contents.functions);
        if contents.findings.problems.refused() {
            return Err(contents.findings.refuse());
        }
        placed.finish(&mut contents)?;
        let image = placed.image;
        Ok(Verified { image, contents })
    }
}

impl<'a> Placed<'a> {
    /// Adds the data to keep of a valid payload.
    #[inline(never)]
    fn finish(&self, contents: &mut Contents<'_>) -> Result<(), NoMemory> {
        contents.tables = self.tables();
        contents.metadata = self.metadata()?;
        contents.writable_data = self.writable_data();
        contents.build_id = fallible::copy(self.build_id)?;
        contents.depends = fallible::copy(self.depends)?;
        Ok(())
    }

    /// Whether it has writable data, not counting its records.
    fn writable_data(&self) -> bool {
        self.elf.sections.iter().any(|section| {
            section.allocated()
                && section.flags & SHF_WRITE != 0
                && section.size != 0
                && section.known != Some(Known::Funcs)
        })
    }

    /// The preimage notes.
    #[inline(never)]
    fn preimages(&self, problems: &mut Problems) -> Result<Vec<u8>, NoMemory> {
        let Some(section) = self.elf.section(Known::Preimages) else {
            return Ok(Vec::new());
        };
        let mut covered = Vec::new();
        for note in preimage::notes(section.data) {
            let Some(note) = note else {
                problems.section(section, SectionFault::PreimageDamaged);
                return Ok(Vec::new());
            };
            fallible::push(&mut covered, (note.address, u64::from(note.size)))?;
        }
        sort_pairs(&mut covered);
        for pair in covered.windows(2) {
            let [(addr, size), (next, _)] = pair else {
                continue;
            };
            if next - addr < *size {
                let addr = *next;
                problems.section(section, SectionFault::PreimageOverlap { addr });
            }
        }
        let size = covered.iter().map(|(_, size)| size).sum();
        if size > MAX_IMAGE {
            let limit = MAX_IMAGE;
            problems.section(section, SectionFault::PreimageSize { size, limit });
        }
        fallible::copy(section.data)
    }

    /// Writes the resolved address into each record.
    #[inline(never)]
    fn fill_in_addresses(&mut self, width: Width, functions: &[Function]) {
        let funcs = self.elf.section(Known::Funcs);
        let Some((funcs, Some(Some(addr)))) =
            funcs.map(|funcs| (funcs, self.addresses.get(funcs.index)))
        else {
            return;
        };
        let table = self.image.get_mut(*addr, funcs.data.len());
        let table = table.unwrap_or_default();
        for function in functions {
            let place = function.index as usize * width.func_size() + width.old_addr_offset();
            if let Some(field) = table.get_mut(place..place + width.bytes())
                && let Some(addr) = function.old_addr.to_le_bytes().get(..width.bytes())
            {
                field.copy_from_slice(addr);
            }
        }
    }

    #[inline(never)]
    fn metadata(&self) -> Result<Vec<String>, NoMemory> {
        let strings = self
            .elf
            .section(Known::ModInfo)
            .map_or(&b""[..], |section| section.data);
        let mut metadata = Vec::new();
        for string in strings.split(|byte| *byte == 0) {
            if !string.is_empty() {
                fallible::push(&mut metadata, printable(string)?)?;
            }
        }
        Ok(metadata)
    }

    /// The symbols in loaded sections, and those that later payloads can refer to,
    /// whose names must be new.
    #[inline(never)]
    fn symbols(
        &self,
        loader: &Loader<'_, impl Host>,
        contents: &mut Contents<'a>,
    ) -> Result<(), NoMemory> {
        let Contents {
            findings: Findings { problems, .. },
            functions,
            symbols,
            new_symbols,
            ..
        } = contents;
        let architecture = loader.host.architecture();
        let machine = architecture.machine();
        let mut replacements = Vec::new();
        let mut next = functions.iter().peekable();
        *symbols = fallible::with_room(self.elf.symbols.len())?;
        for (index, (symbol, target)) in self.elf.symbols.iter().zip(&self.targets).enumerate() {
            let (Some(section), &Target::Address(addr)) =
                (self.elf.sections.get(usize::from(symbol.section)), target)
            else {
                continue;
            };
            if index == 0 || !section.allocated() {
                continue;
            }
            let name = symbol.name();
            if architecture.is_foreign_code(name) {
                problems.symbol(index, symbol, SymbolFault::ForeignCode);
            }
            // A linker would have dropped labels of merged strings.
            let label = section.flags & SHF_MERGE != 0 && name.starts_with(b".L");
            let hidden = machine.is_mapping_symbol(name);
            if name.is_empty() || label || hidden {
                continue;
            }
            let length = name.len();
            if length > MAX_NAME {
                let limit = MAX_NAME;
                problems.symbol(index, symbol, SymbolFault::TooLong { length, limit });
            }
            // New functions and their symbols mostly come in the same order.
            let expected = next.next_if(|function| function.new_addr == addr);
            let new = expected.is_none() && !is_replacement(addr, functions, &mut replacements)?;
            let shown = Symbol {
                name,
                addr,
                size: symbol.size,
                new,
            };
            fallible::push(symbols, shown)?;
            if !new {
                continue;
            }
            match self.owner(loader, name) {
                // Otherwise, it may be the code of a function that was refused.
                Some(owner) if self.all_are_known(machine.width(), functions) => {
                    let owner = same(owner);
                    problems.symbol(index, symbol, SymbolFault::Duplicate { owner });
                }
                Some(_) => {}
                None => new_symbols.add(name, addr)?,
            }
        }
        Ok(())
    }
}

impl Placed<'_> {
    /// Whether `functions` are all that the payload has records of: none was refused.
    fn all_are_known(&self, width: Width, functions: &[Function]) -> bool {
        let records = self.elf.section(Known::Funcs);
        let size = records.map_or(0, |records| records.size);
        size == (functions.len() * width.func_size()) as u64
    }

    /// What already has a symbol of this name, if the payload can be applied beside it.
    fn owner<'l>(&self, loader: &'l Loader<'_, impl Host>, name: &[u8]) -> Option<&'l str> {
        if loader.host.lookup_symbol(name).unwrap_or(0) != 0 {
            return Some("the hypervisor");
        }
        let (owner, _) = loader.stack.symbol(name)?;
        // It depends on the hypervisor while there is a stack: only a replace can
        // apply it, and then payloads with the same names are gone.
        let only_replaces = self.depends == loader.host.build_id() && loader.stack.top().is_some();
        let owner = loader.stack.get(owner).filter(|_| !only_replaces)?;
        Some(&owner.name)
    }
}

/// Whether one of the `functions` is replaced by the code at that address. `sorted`
/// is filled on first use, which is rare.
#[inline(never)]
fn is_replacement(
    addr: u64,
    functions: &[Function],
    sorted: &mut Vec<u64>,
) -> Result<bool, NoMemory> {
    if sorted.is_empty() {
        *sorted = fallible::collect(functions.iter().map(|function| function.new_addr))?;
        sort(sorted, |a, b| a < b);
    }
    Ok(sorted.binary_search(&addr).is_ok())
}
