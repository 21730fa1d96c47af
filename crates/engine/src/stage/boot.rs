// SPDX-License-Identifier: MIT OR Apache-2.0

//! References to what is freed after boot.
//!
//! New code that leads there would find whatever the memory is used for now.
//! But code of a hypervisor may do so as well, under a condition that only holds
//! at boot, or because it needs the address and not what is there. A payload that
//! replaces such code does what was done before.

use super::function::Function;
use super::{Loader, Placed};
use crate::Host;
use crate::problem::{Problem, Problems, RelocationFault};
use crate::sort::sort;
use alloc::vec::Vec;
use xsplice_fallible::{self as fallible, NoMemory};

/// A relocated field that leads to what is freed after boot.
#[derive(Clone, Copy, Debug)]
pub(super) struct BootReference {
    /// The section of relocations, and the number of the one.
    pub(super) section: usize,
    pub(super) index: usize,
    /// Its symbol, and the address of that.
    pub(super) symbol: usize,
    pub(super) addr: u64,
    /// Symbol and addend. A displacement counts from the end of its instruction,
    /// so that this is some bytes before the place that is meant.
    pub(super) leads: u64,
}

/// From the displacement to the end of its instruction, at most: an operand of
/// four bytes may be between them. What differs by no more may mean the same.
const BEHIND: u64 = 4;

impl Placed<'_> {
    /// Refuses every reference to what is freed after boot, unless code that the
    /// payload replaces leads there too.
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
            each_value(loader, function, |value| places.mark(value));
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

/// Where references lead, each once and in order, and whether old code does too.
struct Places(Vec<(u64, bool)>);

impl Places {
    /// Of references in order.
    fn of(references: &[BootReference]) -> Result<Self, NoMemory> {
        let leads = references.iter().map(|reference| (reference.leads, false));
        let mut places = fallible::collect(leads)?;
        places.dedup();
        Ok(Self(places))
    }

    /// Marks what is near `value`: there are few places, however many references.
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

/// Calls `found` with whatever four bytes of the old function may stand for: an
/// address, or a displacement from where they are.
#[inline(never)]
fn each_value(loader: &Loader<'_, impl Host>, function: &Function, mut found: impl FnMut(u64)) {
    const FIELD: usize = 4;
    let mut buf = [0; 128];
    let mut at = function.old_addr;
    while let Ok(left) = usize::try_from(function.end().saturating_sub(at))
        && left >= FIELD
        && let Some(code) = buf.get_mut(..left.min(128))
        && loader.host.read(at, code)
    {
        for (place, field) in (at..).zip(code.windows(FIELD)) {
            let field = field.first_chunk().copied().unwrap_or_default();
            let value = i64::from(i32::from_le_bytes(field)).cast_unsigned();
            found(value);
            found(place.wrapping_add(value));
        }
        at += (code.len() - FIELD + 1) as u64;
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
