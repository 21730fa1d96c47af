// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables about code: bug frames, exception tables, alternatives and the sites
//! of alternative calls.
//!
//! Their form is Xen's, defined in `abi` for all crates, and [`crate::arch`] chooses it by the
//! machine: this crate must only not share conclusions with the generator.

use crate::image::Image;
use std::collections::BTreeMap;
use std::ops::Range;
use xsplice_abi::special::{self, Special, Table};

/// The name of an entry of `table`.
pub(crate) fn name(table: Table) -> &'static str {
    match table {
        Table::BugFrames(_) => "bug frame",
        Table::Exceptions | Table::EarlyExceptions => "exception table entry",
        Table::Alternatives => "alternative",
        Table::CallSites => "alternative call site",
    }
}

/// An entry of `table` in words.
pub(crate) fn one(table: Table) -> String {
    let article = match table {
        Table::BugFrames(_) => "a",
        Table::Exceptions | Table::EarlyExceptions | Table::Alternatives | Table::CallSites => "an",
    };
    format!("{article} {}", name(table))
}

/// The table that the section `name` of an object or a payload holds.
pub(crate) fn of_section(name: &str) -> Result<Option<Table>, String> {
    match Special::of(name) {
        Some(Special::Table(table)) => Ok(Some(table)),
        Some(Special::Unknown) => Err(format!("{name} is a table of a kind that is not known")),
        Some(Special::Replacements) | None => Ok(None),
    }
}

/// The contents of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Says {
    Bug {
        line: u32,
        /// Its file, or the function to call.
        file: Option<u64>,
        message: Option<u64>,
    },
    Exception {
        continues: u64,
    },
    Alternative {
        replacement: u64,
        replacement_size: u8,
        /// Feature, length of the original, padding, whether it was applied.
        terms: (u16, u8, u8, u8),
    },
    AltCall,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) table: Table,
    /// The address of the entry itself.
    pub(crate) at: u64,
    pub(crate) says: Says,
}

/// All entries, by the code that they describe.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    entries: BTreeMap<u64, Vec<Entry>>,
}

impl Tables {
    /// The tables of a linked hypervisor.
    pub(crate) fn linked(image: &Image) -> Result<Self, String> {
        let mut tables = Self::default();
        for table in Table::ALL {
            let start = table.starts().iter().find_map(|start| image.global(start));
            if let (Some(start), Some(end)) = (start, image.global(table.end())) {
                tables.add(image, table, start..end)?;
            }
        }
        Ok(tables)
    }

    /// The addresses of fixups, unsorted.
    pub(crate) fn fixups(&self) -> impl Iterator<Item = u64> {
        let entries = self.entries.values().flatten();
        entries.filter_map(|entry| match entry.says {
            Says::Exception { continues } => Some(continues),
            _ => None,
        })
    }

    /// The total size of the entries of `table`.
    pub(crate) fn size(&self, image: &Image, table: Table) -> u64 {
        let entries = self.entries.values().flatten();
        entries.filter(|entry| entry.table == table).count() as u64 * image.arch.entry_size(table)
    }

    /// Adds the entries in `range`; returns the code that each describes and its
    /// address.
    pub(crate) fn add(
        &mut self,
        image: &Image,
        table: Table,
        range: Range<u64>,
    ) -> Result<Vec<(u64, u64)>, String> {
        let mut added = Vec::new();
        let size = image.arch.entry_size(table);
        let mut at = range.start;
        while at < range.end {
            let whole = Some(at + size).filter(|&end| end <= range.end);
            let entry = whole.and_then(|_| read(image, table, at));
            let (place, says) =
                entry.ok_or_else(|| format!("the last {} is truncated", name(table)))?;
            let entry = Entry { table, at, says };
            self.entries.entry(place).or_default().push(entry);
            added.push((place, at));
            at += size;
        }
        Ok(added)
    }

    /// The entries about code in `range`, with the address of that code, table by
    /// table.
    pub(crate) fn about(&self, range: Range<u64>) -> Vec<(u64, Entry)> {
        let found = self.entries.range(range);
        let mut all: Vec<_> = found
            .flat_map(|(&place, entries)| entries.iter().map(move |entry| (place, entry.clone())))
            .collect();
        // Within an address and table, their order matters; the sort is stable.
        all.sort_by_key(|(place, entry)| (*place, entry.table));
        all
    }

    /// Whether execution continues after the trap at `place`.
    pub(crate) fn goes_on(&self, place: u64) -> bool {
        let entries = self.entries.get(&place).map_or(&[][..], Vec::as_slice);
        entries
            .iter()
            .any(|entry| matches!(entry.table, Table::BugFrames(kind) if kind.goes_on()))
    }
}

fn read(image: &Image, table: Table, at: u64) -> Option<(u64, Says)> {
    let bytes = image.bytes(at, image.arch.entry_size(table))?;
    let entry = image.arch.entry(table, &bytes, at)?;
    let says = match entry {
        special::Entry::BugFrame { frame, message, .. } => Says::Bug {
            line: frame.line,
            // Without one, it leads to itself.
            file: (frame.pointer != at).then_some(frame.pointer),
            message,
        },
        special::Entry::Exception(exception) => Says::Exception {
            continues: exception.continues,
        },
        special::Entry::Alternative(entry) => Says::Alternative {
            replacement: entry.replacement,
            replacement_size: entry.replacement_len,
            terms: (
                entry.condition,
                entry.original_len,
                entry.padding,
                entry.used,
            ),
        },
        special::Entry::CallSite(_) => Says::AltCall,
    };
    Some((entry.place(), says))
}
