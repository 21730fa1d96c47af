// SPDX-License-Identifier: MIT OR Apache-2.0

//! References to memory that is freed after boot.
//!
//! New code that uses it would find whatever the memory is used for now. But the
//! hypervisor's own code may have such references too, under a condition that only
//! holds at boot, or because it needs only the address. A payload that replaces such
//! code may keep them.

use super::function::Function;
use super::{Loader, Placed};
use crate::Host;
use crate::arch::Instructions as _;
use crate::problem::{Problem, Problems, RelocationFault};
use crate::sort::sort;
use alloc::vec::Vec;
use xsplice_fallible::{self as fallible, NoMemory};

/// A relocated field that refers to memory freed after boot.
#[derive(Clone, Copy, Debug)]
pub(super) struct BootReference {
    /// The relocation section, and the index in it.
    pub(super) section: usize,
    pub(super) index: usize,
    /// Its symbol, and the address of that.
    pub(super) symbol: usize,
    pub(super) addr: u64,
    /// Symbol plus addend. A displacement counts from the end of its instruction, so
    /// this is a few bytes before the actual target.
    pub(super) leads: u64,
}

/// Most bytes between the displacement and the end of its instruction: a four-byte
/// operand. Values that differ by no more may mean the same.
const BEHIND: u64 = 4;

impl Placed<'_> {
    /// Refuses every reference to memory freed after boot, unless replaced code has
    /// it too.
    #[inline(never)]
    pub(super) fn check_boot_references(
        &mut self,
        loader: &Loader<'_, impl Host>,
        functions: &[Function],
        problems: &mut Problems,
    ) -> Result<(), NoMemory> {
        let references = &mut self.boot_references;
        if references.is_empty() {
            return Ok(());
        }
        sort(references, |a, b| a.leads < b.leads);
        let mut places = Places::of(references)?;
        for function in functions {
            let code = function.old_addr..function.end();
            let architecture = loader.host.architecture();
            architecture.each_reference(loader.host, code, |value| places.mark(value));
        }
        for reference in &self.boot_references {
            let (Some(section), Some(symbol)) = (
                self.elf.sections.get(reference.section),
                self.elf.symbols.get(reference.symbol),
            ) else {
                continue;
            };
            if !places.is_marked(reference.leads) {
                problems.push(Problem::Relocation {
                    section: section.id(),
                    index: reference.index,
                    symbol: symbol.text(),
                    fault: RelocationFault::Init {
                        addr: reference.addr,
                    },
                });
            }
        }
        Ok(())
    }
}

/// The targets of references, sorted and unique, and whether old code has them too.
struct Places(Vec<(u64, bool)>);

impl Places {
    /// Of references in order.
    fn of(references: &[BootReference]) -> Result<Self, NoMemory> {
        let leads = references.iter().map(|reference| (reference.leads, false));
        let mut places = fallible::collect(leads)?;
        places.dedup();
        Ok(Self(places))
    }

    /// Marks targets near `value`: there are few targets, however many references.
    fn mark(&mut self, value: u64) {
        let first = value.saturating_sub(BEHIND);
        let start = self.0.partition_point(|(leads, _)| *leads < first);
        let near = self.0.iter_mut().skip(start);
        for (_, marked) in near.take_while(|(leads, _)| *leads <= value.saturating_add(BEHIND)) {
            *marked = true;
        }
    }

    fn is_marked(&self, leads: u64) -> bool {
        let found = self.0.binary_search_by_key(&leads, |(leads, _)| *leads);
        found.is_ok_and(|at| self.0.get(at).is_some_and(|(_, marked)| *marked))
    }
}

#[cfg(test)]
mod tests {
    use super::{BootReference, Places};

    #[test]
    fn many_references_to_one_place_are_one_place() {
        let reference = |leads| BootReference {
            section: 1,
            index: 0,
            symbol: 1,
            addr: leads,
            leads,
        };
        let references = [100, 100, 100, 103, 105, 105, 200].map(reference);
        let mut places = Places::of(&references).unwrap();
        assert_eq!(places.0.len(), 4);
        places.mark(100);
        let marked = [100, 103, 105, 200].map(|leads| places.is_marked(leads));
        assert_eq!(marked, [true, true, false, false]);
    }
}
