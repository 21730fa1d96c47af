// SPDX-License-Identifier: MIT OR Apache-2.0

//! Code of the payload that the hypervisor changes when it registers the payload:
//! alternatives, and indirect calls that become direct.
//!
//! The hypervisor's own code hits a BUG or follows a pointer blindly. All its
//! assumptions are checked here.

use super::tables::Table;
use super::{Loader, Placed};
use crate::arch::{Entries, Instructions as _};
use crate::format::{Bytes, Known};
use crate::problem::{Problems, SectionFault};
use crate::sort::{sort, sort_pairs};
use crate::{Host, Limits, Region};
use alloc::vec::Vec;
use xsplice_abi::special::{self, CALL_SITE_SIZE};
use xsplice_fallible::{self as fallible, NoMemory};

/// A payload's code, and what it may lead to.
pub struct Code<'c, 'a, H> {
    placed: &'c Placed<'a>,
    loader: &'c Loader<'c, H>,
}

impl<'c, H: Host> Code<'c, '_, H> {
    pub(crate) fn host(&self) -> &'c H {
        self.loader.host
    }

    pub(crate) fn limits(&self) -> Limits {
        self.loader.host.limits()
    }

    /// Bytes of the payload.
    pub(crate) fn get(&self, addr: u64, len: usize) -> Option<&'c [u8]> {
        self.placed.image.get(addr, len)
    }

    /// Whether there is permanent code at `addr`.
    pub(crate) fn is_code(&self, addr: u64) -> bool {
        self.placed.is_code(self.loader, addr)
    }

    /// Why there is no function at `addr`, if so.
    pub(crate) fn not_function(&self, addr: u64) -> Option<&'static str> {
        self.placed.not_function(self.loader, addr)
    }
}

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
        let code = self.code(loader);
        let architecture = loader.host.architecture();
        let end = replacements.addr.saturating_add(replacements.section.size);
        let replacements = replacements.addr..end;
        for (index, addr, bytes) in table.entries(architecture.alternatives(), problems) {
            let Some(entry) = architecture.alternative(bytes, addr) else {
                continue;
            };
            let wrong = if self.in_text(entry.place, entry.total_len().into()) {
                architecture.check_alternative(&code, &replacements, &entry)
            } else {
                Err(("its code is outside the payload's text", entry.place))
            };
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

    fn code<'c, H>(&'c self, loader: &'c Loader<'c, H>) -> Code<'c, 'c, H> {
        Code {
            placed: self,
            loader,
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
        let code = self.code(loader);
        let architecture = loader.host.architecture();
        let form = Entries {
            size: special::Table::CallSites.entry_size(),
            expected: "a multiple of 4 (call sites)",
        };
        for (index, addr, bytes) in table.entries(form, problems) {
            let offset = Bytes(bytes).i32(0).unwrap_or(0);
            let at = addr.wrapping_add_signed(offset.into());
            let wrong = if self.in_text(at, CALL_SITE_SIZE.into()) {
                architecture.check_call_site(&code, at)
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
        let behind = at.saturating_add(CALL_SITE_SIZE.into());
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
