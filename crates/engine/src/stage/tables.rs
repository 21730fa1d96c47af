// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tables that the hypervisor uses while the payload is loaded: hooks, bug
//! frames, alternatives, exceptions and the description.

use super::verified::Contents;
use super::{Findings, Loader, Placed, Policy, relocate};
use crate::Host;
use crate::arch::{Entries, Instructions as _};
use crate::elf::{Records, Section};
use crate::format::{Known, pointers};
use crate::problem::{EntryFault, FileFault, Problems, SectionFault};
use core::ops::Range;
use xsplice_abi::payload::hook::Hook;
use xsplice_abi::special::Exception;
use xsplice_fallible::NoMemory;

/// A section with its address and bytes after relocation.
pub(super) struct Table<'a, 'e> {
    pub(super) section: &'a Section<'e>,
    pub(super) addr: u64,
    pub(super) bytes: &'a [u8],
}

impl<'a, 'e> Table<'a, 'e> {
    /// Reports a bad entry.
    #[inline(never)]
    pub(super) fn push_wrong(
        &self,
        index: usize,
        what: &'static str,
        addr: u64,
        problems: &mut Problems,
    ) {
        let fault = EntryFault::Unusable { what, addr };
        problems.entry(self.section, index, fault);
    }

    /// The entries, each with its index and address, if they fill the table.
    pub(super) fn entries(
        &self,
        Entries { size, expected }: Entries,
        problems: &mut Problems,
    ) -> impl Iterator<Item = (usize, u64, &'a [u8])> + use<'a, 'e> {
        let entry = usize::try_from(size).unwrap_or(1).max(1);
        let whole = self.bytes.len().is_multiple_of(entry);
        if !whole {
            let size = self.section.size;
            problems.section(self.section, SectionFault::EntrySize { size, expected });
        }
        let bytes = if whole { self.bytes } else { &[] };
        let base = self.addr;
        let addrs = (0..).map(move |index: u64| base.wrapping_add(index.wrapping_mul(size)));
        bytes
            .chunks_exact(entry)
            .enumerate()
            .zip(addrs)
            .map(|((index, bytes), addr)| (index, addr, bytes))
    }
}

/// Addresses of the tables that the hypervisor takes over; empty if there is none.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) funcs: Range<u64>,
    pub(super) alternatives: Range<u64>,
    pub(super) exceptions: Range<u64>,
    pub(super) bug_frames: [Range<u64>; 4],
    pub(super) call_sites: Range<u64>,
    pub(super) metadata: Range<u64>,
}

impl<'e> Placed<'e> {
    /// The section as it will be in memory.
    #[inline(never)]
    pub(super) fn table(&self, known: Known, problems: &mut Problems) -> Option<Table<'_, 'e>> {
        let section = self.elf.section(known)?;
        let Some(Some(addr)) = self.addresses.get(section.index) else {
            problems.section(section, SectionFault::NotAllocated);
            return None;
        };
        let bytes = match usize::try_from(section.size).ok()? {
            0 => &[],
            size => self.image.get(*addr, size)?,
        };
        Some(Table {
            section,
            addr: *addr,
            bytes,
        })
    }

    pub(super) fn in_text(&self, addr: u64, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.image.text().contains(addr, len))
    }

    /// Adds the hooks, which must be code. Returns whether the payload has a hook
    /// section.
    #[inline(never)]
    pub(super) fn hooks(
        &self,
        loader: &Loader<'_, impl Host>,
        contents: &mut Contents<'_>,
    ) -> Result<bool, NoMemory> {
        let mut any = false;
        for (known, hook) in Known::HOOKS {
            if let Some(table) = self.table(known, &mut contents.findings.problems) {
                any = true;
                self.hooks_of(loader, &table, hook, contents)?;
            }
        }
        Ok(any)
    }

    #[inline(never)]
    fn hooks_of(
        &self,
        loader: &Loader<'_, impl Host>,
        table: &Table<'_, '_>,
        hook: Hook,
        contents: &mut Contents<'_>,
    ) -> Result<(), NoMemory> {
        let Contents {
            findings: Findings { problems, uses, .. },
            hooks,
            ..
        } = contents;
        let single = hook.is_single();
        let width = loader.host.architecture().machine().width();
        let form = pointers(width, single);
        if table.bytes.is_empty() {
            problems.section(table.section, SectionFault::Empty);
        } else if single && table.section.size != form.size {
            let (size, expected) = (table.section.size, form.expected);
            problems.section(table.section, SectionFault::EntrySize { size, expected });
            return Ok(());
        }
        for (index, _, bytes) in table.entries(form, problems) {
            let addr = width.read(bytes).unwrap_or(0);
            if single && addr == 0 {
                // Xen treats it as missing.
                continue;
            }
            if let Some(what) = self.not_function(loader, addr) {
                table.push_wrong(index, what, addr, problems);
            } else {
                self.check_landing(loader, table, (index, addr), problems);
            }
            loader.note_owner(addr, uses)?;
            hooks.add(hook, addr)?;
        }
        Ok(())
    }

    /// The addresses of the tables that the hypervisor takes over.
    pub(super) fn tables(&self) -> Tables {
        let range = |known| {
            let section = self.elf.section(known);
            let found = section.and_then(|section| {
                let start = (*self.addresses.get(section.index)?)?;
                Some(start..start.checked_add(section.size)?)
            });
            found.unwrap_or_default()
        };
        Tables {
            funcs: range(Known::Funcs),
            alternatives: range(Known::Alternatives),
            exceptions: range(Known::ExTable),
            bug_frames: Known::BUG_FRAMES.map(|(known, _)| range(known)),
            call_sites: range(Known::CallSites),
            metadata: range(Known::ModInfo),
        }
    }

    #[inline(never)]
    pub(super) fn check_tables(&self, loader: &Loader<'_, impl Host>, problems: &mut Problems) {
        self.check_exceptions(loader, problems);
        if loader.policy == Policy::Stock {
            self.check_alignment(loader.host.architecture().word_alignment(), problems);
        }
        if let Some(table) = self.table(Known::ModInfo, problems)
            && table.bytes.last() != Some(&0)
        {
            problems.section(table.section, SectionFault::Metadata);
        }
    }

    /// Checks the sections that the hypervisor itself reads, in memory and in the file.
    #[inline(always)]
    fn check_alignment(&self, align: u64, problems: &mut Problems) {
        if align == 1 {
            return;
        }
        for (section, addr) in self.elf.sections.iter().zip(&self.addresses) {
            if let Some(addr) = *addr
                && section.known.is_some_and(Known::has_words)
                && section.size != 0
                && !addr.is_multiple_of(align)
            {
                problems.section(section, SectionFault::StockAlignment { addr, align });
            }
        }
        self.check_records(align, problems);
    }

    /// Checks what the hypervisor itself reads in the file.
    #[inline(never)]
    fn check_records(&self, align: u64, problems: &mut Problems) {
        let Records { offset, entry } = self.elf.headers;
        if !self.elf.headers.are_aligned(align) {
            problems.file(FileFault::StockSectionTable {
                offset,
                entry,
                align,
            });
        }
        for section in &self.elf.sections {
            let used = section.index == self.elf.symbol_table
                || section.size != 0
                    && relocate::table_of(&self.elf, &self.addresses, section.index).is_some();
            let Records { offset, entry } = section.records();
            if used && !section.records().are_aligned(align) {
                let fault = SectionFault::StockOffset {
                    offset,
                    entry,
                    align,
                };
                problems.section(section, fault);
            }
        }
    }

    #[inline(never)]
    fn check_exceptions(&self, loader: &Loader<'_, impl Host>, problems: &mut Problems) {
        let Some(table) = self.table(Known::ExTable, problems) else {
            return;
        };
        if !loader.host.architecture().has_exceptions() {
            return problems.section(table.section, SectionFault::NoExceptions);
        }
        let form = Entries {
            size: Exception::SIZE,
            expected: "a multiple of 8 (exception table entries)",
        };
        for (index, addr, bytes) in table.entries(form, problems) {
            let Some(entry) = Exception::read(bytes, addr) else {
                continue;
            };
            for (what, target) in [
                ("the faulting instruction", entry.place),
                ("its continuation", entry.continues),
            ] {
                if !self.in_text(target, 1) {
                    let fault = EntryFault::NotInText { what, addr: target };
                    problems.entry(table.section, index, fault);
                }
            }
        }
    }
}
