// SPDX-License-Identifier: MIT OR Apache-2.0

//! Code of the payload that the hypervisor changes when it registers the payload:
//! alternatives, and indirect calls that become direct.
//!
//! The hypervisor's own code hits a BUG or follows a pointer blindly. All its
//! assumptions are checked here.

use super::tables::Table;
use super::{Loader, Placed};
use crate::format::{Bytes, Known};
use crate::problem::{Problems, SectionFault};
use crate::sort::{sort, sort_pairs};
use crate::x86_64::{Branch, displacement};
use crate::{Host, Region};
use alloc::vec::Vec;
use xsplice_abi::special::{self, Alternative};
use xsplice_fallible::{self as fallible, NoMemory};

/// Size of a RIP-relative indirect call.
const INDIRECT_SIZE: u8 = 6;

/// The problem with an entry, and the address or number concerned.
type Wrong = (&'static str, u64);

/// Code that an entry patches.
#[derive(Clone, Copy)]
struct Site {
    addr: u64,
    /// Length of the code, and including its padding.
    lengths: (u32, u32),
    index: usize,
}

impl Placed<'_> {
    /// Checks the two tables.
    #[inline(never)]
    pub(super) fn check_changed_code(
        &self,
        loader: &Loader<'_, impl Host>,
        problems: &mut Problems,
    ) -> Result<(), NoMemory> {
        let mut altered = Vec::new();
        if let Some(table) = self.table(Known::Alternatives, problems)
            && !table.bytes.is_empty()
            && let Some(replacements) = self.replacements(&table, problems)
        {
            altered = self.check_alternatives(loader, &table, &replacements, problems)?;
        }
        if let Some(table) = self.table(Known::CallSites, problems) {
            self.check_call_sites(loader, &table, &altered, problems)?;
        }
        Ok(())
    }

    /// The replacements, without which there are no alternatives.
    #[inline(never)]
    fn replacements(
        &self,
        table: &Table<'_, '_>,
        problems: &mut Problems,
    ) -> Option<Table<'_, '_>> {
        let missing = if self.image.text().len == 0 {
            "any text"
        } else if self.elf.section(Known::Replacements).is_none() {
            Known::Replacements.name()
        } else {
            return self.table(Known::Replacements, problems);
        };
        problems.section(table.section, SectionFault::AlternativesAlone { missing });
        None
    }

    /// Checks the alternatives; returns the code that they patch, sorted.
    #[inline(never)]
    fn check_alternatives(
        &self,
        loader: &Loader<'_, impl Host>,
        table: &Table<'_, '_>,
        replacements: &Table<'_, '_>,
        problems: &mut Problems,
    ) -> Result<Vec<Site>, NoMemory> {
        let mut sites = Vec::new();
        let expected = "a multiple of 14 (alternatives)";
        for (index, addr, bytes) in table.entries(Alternative::SIZE, expected, problems) {
            let Some(entry) = Alternative::read(bytes, addr) else {
                continue;
            };
            let wrong = self
                .check_lengths(replacements, &entry)
                .and_then(|()| self.check_entry(loader, &entry));
            if let Err((what, addr)) = wrong {
                table.push_wrong(index, what, addr, problems);
            }
            let site = Site {
                addr: entry.place,
                lengths: (entry.original_len.into(), entry.total_len()),
                index,
            };
            fallible::push(&mut sites, site)?;
        }
        check_order(table, &mut sites, problems);
        Ok(sites)
    }

    /// Whether code and replacement are where they should be, and fit.
    #[inline(never)]
    fn check_lengths(
        &self,
        replacements: &Table<'_, '_>,
        entry: &Alternative,
    ) -> Result<(), Wrong> {
        let total_len = entry.total_len();
        let repl_len = u64::from(entry.replacement_len);
        let repl_end = entry.replacement.checked_sub(replacements.addr);
        let repl_end = repl_end.and_then(|at| at.checked_add(repl_len));
        if !self.in_text(entry.place, total_len.into()) {
            Err(("its code is outside the payload's text", entry.place))
        } else if repl_end.is_none_or(|end| end > replacements.section.size) {
            let what = "its replacement is outside .altinstr_replacement";
            Err((what, entry.replacement))
        } else if repl_len > total_len.into() {
            Err(("its replacement is longer than its code", repl_len))
        } else if total_len > u8::MAX.into() {
            Err(("its code has more than 255 bytes", total_len.into()))
        } else {
            Ok(())
        }
    }

    /// Whether the hypervisor can use an entry with valid lengths.
    #[inline(never)]
    fn check_entry(
        &self,
        loader: &Loader<'_, impl Host>,
        entry: &Alternative,
    ) -> Result<(), Wrong> {
        let feature = entry.feature();
        if feature >= loader.host.limits().features {
            let what = "it is for a processor feature that this hypervisor does not know";
            Err((what, feature.into()))
        } else if entry.used != 0 {
            Err(("it is marked as applied already", entry.place))
        } else {
            self.check_branch(loader, entry)
        }
    }

    /// If the replacement is a branch, the hypervisor relocates it, or redirects it
    /// to the target of the original call's pointer. Checks that this is code.
    #[inline(never)]
    fn check_branch(
        &self,
        loader: &Loader<'_, impl Host>,
        entry: &Alternative,
    ) -> Result<(), Wrong> {
        let code = self
            .image
            .get(entry.replacement, usize::from(entry.replacement_len));
        let Some(branch) = code.and_then(Branch::direct) else {
            return Ok(());
        };
        let target = branch.target(entry.replacement);
        if target == entry.replacement {
            let always = loader.host.limits().always;
            let becomes_direct = entry.original_len >= INDIRECT_SIZE
                && always.is_some_and(|always| always == entry.condition);
            return if becomes_direct {
                self.check_pointer(loader, entry.place, branch.is_jump)
            } else {
                Err(("its replacement is a branch to itself", target))
            };
        }
        if !self.is_code(loader, target) {
            return Err(("its replacement branches to what is no code", target));
        }
        let reached = displacement(entry.place, target);
        let far = ("its replacement branches out of reach", target);
        reached.map(|_| ()).ok_or(far)
    }

    /// Whether the call (or jump) at `at` goes through a pointer to code. A null
    /// pointer becomes a trap.
    #[inline(never)]
    fn check_pointer(
        &self,
        loader: &Loader<'_, impl Host>,
        at: u64,
        is_jump: bool,
    ) -> Result<(), Wrong> {
        let code = self.image.get(at, INDIRECT_SIZE.into());
        let Some(branch) = code.and_then(|code| Branch::indirect(code, is_jump)) else {
            return Err(("it is for a call through a pointer, and there is none", at));
        };
        let slot = branch.target(at);
        if loader.host.region(slot) == Region::Init {
            return Err((
                "the pointer that it calls through is freed after boot",
                slot,
            ));
        }
        let mut pointer = [0; 8];
        match self.image.get(slot, pointer.len()) {
            Some(bytes) => pointer.copy_from_slice(bytes),
            None if loader.host.read(slot, &mut pointer) => {}
            None => return Err(("the pointer that it calls through cannot be read", slot)),
        }
        let target = u64::from_le_bytes(pointer);
        if target == 0 || self.is_code(loader, target) && displacement(at, target).is_some() {
            Ok(())
        } else {
            Err(("the pointer that it calls through leads to no code", target))
        }
    }

    #[inline(never)]
    fn check_call_sites(
        &self,
        loader: &Loader<'_, impl Host>,
        table: &Table<'_, '_>,
        altered: &[Site],
        problems: &mut Problems,
    ) -> Result<(), NoMemory> {
        if !table.bytes.is_empty() && !loader.host.limits().call_sites {
            problems.section(table.section, SectionFault::CallSites);
            return Ok(());
        }
        let mut sites = Vec::new();
        let expected = "a multiple of 4 (call sites)";
        for (index, addr, bytes) in
            table.entries(special::Table::CallSites.entry_size(), expected, problems)
        {
            let offset = Bytes(bytes).i32(0).unwrap_or(0);
            let at = addr.wrapping_add_signed(offset.into());
            let wrong = if self.in_text(at, INDIRECT_SIZE.into()) {
                self.check_pointer(loader, at, false)
            } else {
                Err(("it is outside the payload's text", at))
            };
            if let Err((what, addr)) = wrong {
                table.push_wrong(index, what, addr, problems);
            }
            fallible::push(&mut sites, (at, index as u64))?;
        }
        check_apart(table, &mut sites, altered, problems);
        Ok(())
    }

    /// Whether there is permanent code at `addr`.
    pub(super) fn is_code(&self, loader: &Loader<'_, impl Host>, addr: u64) -> bool {
        self.in_text(addr, 1) || loader.stack.region(loader.host, addr) == Region::Text
    }
}

/// Several entries for one address must cover the same bytes and be consecutive: the
/// hypervisor looks at the previous entry to see what was done there.
#[inline(never)]
fn check_order(table: &Table<'_, '_>, sites: &mut [Site], problems: &mut Problems) {
    sort(sites, |a, b| {
        a.addr < b.addr || a.addr == b.addr && a.index < b.index
    });
    for pair in sites.windows(2) {
        let [a, b] = pair else {
            continue;
        };
        let what = if a.addr == b.addr {
            let same = a.lengths == b.lengths && a.index + 1 == b.index;
            (!same).then_some("an entry for the same code has other lengths or is not next to it")
        } else {
            let overlap = b.addr - a.addr < u64::from(a.lengths.1);
            overlap.then_some("the code of another entry is a part of its code")
        };
        if let Some(what) = what {
            table.push_wrong(b.index, what, b.addr, problems);
        }
    }
}

/// Each call is changed at most once: after another entry or an alternative, the
/// hypervisor finds no call there. `altered` is sorted.
#[inline(never)]
fn check_apart(
    table: &Table<'_, '_>,
    sites: &mut [(u64, u64)],
    altered: &[Site],
    problems: &mut Problems,
) {
    sort_pairs(sites);
    let mut end = 0;
    for (at, index) in sites {
        let behind = at.saturating_add(INDIRECT_SIZE.into());
        let before = altered.partition_point(|site| site.addr < behind);
        let near = before.checked_sub(1).and_then(|near| altered.get(near));
        let over = |site: &Site| site.addr.saturating_add(site.lengths.1.into()) > *at;
        let what = if *at < end {
            Some("the code of another entry is a part of its code")
        } else {
            let is_altered = near.is_some_and(over);
            is_altered.then_some("an alternative goes over its code")
        };
        if let Some(what) = what {
            let index = usize::try_from(*index).unwrap_or(usize::MAX);
            table.push_wrong(index, what, *at, problems);
        }
        end = behind;
    }
}
