// SPDX-License-Identifier: MIT OR Apache-2.0

//! The starts of functions: a call must not lead into the middle of one.

use super::resolve::Target;
use super::tables::Table;
use super::{Loader, Placed};
use crate::Host;
use crate::arch::Instructions as _;
use crate::elf::SHF_EXECINSTR;
use crate::host::LandingPads;
use crate::problem::{EntryFault, Problems};
use crate::sort::sort_pairs;
use alloc::vec::Vec;
use xsplice_abi::machine::Machine;
use xsplice_fallible::{self as fallible, NoMemory};

/// The symbols in the payload's text, sorted, each with the end of the last function
/// that starts at or before it. Nothing is known about code without symbols.
#[derive(Debug, Default)]
pub(super) struct Begins(Vec<(u64, u64)>);

impl Begins {
    /// Whether a function may start at `addr`, with no other around it.
    fn contains(&self, addr: u64) -> bool {
        let known = self.0.partition_point(|(start, _)| *start < addr);
        let begins = self.0.get(known).is_some_and(|(start, _)| *start == addr);
        let before = known.checked_sub(1).and_then(|before| self.0.get(before));
        begins && before.is_none_or(|(_, end)| *end <= addr)
    }

    /// The end of the function that starts at `addr`; `addr` or less if it is unknown.
    pub(super) fn end_of(&self, addr: u64) -> u64 {
        let next = self.0.partition_point(|(start, _)| *start <= addr);
        let here = next.checked_sub(1).and_then(|here| self.0.get(here));
        here.map_or(addr, |(_, end)| *end)
    }
}

/// Why no instruction can be at `addr`, if so. A call there may change to another
/// instruction set.
pub(super) fn not_instruction(loader: &Loader<'_, impl Host>, addr: u64) -> Option<&'static str> {
    let unit = loader.host.architecture().unit();
    let aligned = addr.is_multiple_of(unit.into());
    (!aligned).then_some("no instruction can begin there")
}

impl Placed<'_> {
    /// Records the starts of functions; symbols must be resolved.
    #[inline(never)]
    pub(super) fn find_begins(&mut self, machine: Machine) -> Result<(), NoMemory> {
        let mut begins = Vec::new();
        for (section, address) in self.elf.sections.iter().zip(&self.addresses) {
            if let Some(addr) = address
                && section.flags & SHF_EXECINSTR != 0
            {
                fallible::push(&mut begins, (*addr, *addr))?;
            }
        }
        for (symbol, target) in self.elf.symbols.iter().zip(&self.targets) {
            if let Target::Address(addr) = *target
                && self.image.text().contains(addr, 1)
                && !symbol.name().is_empty()
                && !machine.is_mapping_symbol(symbol.name())
            {
                fallible::push(&mut begins, (addr, addr.saturating_add(symbol.size)))?;
            }
        }
        sort_pairs(&mut begins);
        let mut last = 0;
        for (_, end) in &mut begins {
            last = last.max(*end);
            *end = last;
        }
        self.begins = Begins(begins);
        Ok(())
    }

    /// Why there is no function at `addr`, if so.
    #[inline(never)]
    pub(super) fn not_function(
        &self,
        loader: &Loader<'_, impl Host>,
        addr: u64,
    ) -> Option<&'static str> {
        if let Some(what) = not_instruction(loader, addr) {
            return Some(what);
        }
        let begins = if self.image.text().contains(addr, 1) {
            self.begins.contains(addr)
        } else if self.is_code(loader, addr) {
            loader.host.function_at(addr).is_none_or(|at| at == addr)
        } else {
            return Some("it is not code");
        };
        (!begins).then_some("no function begins there")
    }

    /// Checks that an indirect call may lead to `addr`, which matters if the
    /// hypervisor uses landing pads.
    #[inline(never)]
    pub(super) fn check_landing(
        &self,
        loader: &Loader<'_, impl Host>,
        table: &Table<'_, '_>,
        (index, addr): (usize, u64),
        problems: &mut Problems,
    ) {
        let pads = loader.host.limits().landing_pads;
        if pads == LandingPads::Unused {
            return;
        }
        let mut first = [0; 4];
        let read = match self.image.get(addr, first.len()) {
            Some(bytes) => {
                first.copy_from_slice(bytes);
                true
            }
            None => loader.host.read(addr, &mut first),
        };
        if !read || !loader.host.architecture().is_landing_pad(first) {
            let checked = pads == LandingPads::Checked;
            let fault = EntryFault::NoLandingPad { addr, checked };
            problems.entry(table.section, index, fault);
        }
    }
}
