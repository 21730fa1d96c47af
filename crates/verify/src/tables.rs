// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables about code: bug frames, exception tables, alternatives and the sites
//! of alternative calls.

use crate::image::Image;
use std::collections::BTreeMap;
use std::ops::Range;

/// One of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    Bug(u8),
    Exceptions,
    EarlyExceptions,
    Alternatives,
    AltCallSites,
}

impl Table {
    fn entry_size(self) -> u64 {
        match self {
            Self::Bug(MESSAGE) => 16,
            Self::Bug(_) | Self::Exceptions | Self::EarlyExceptions => 8,
            Self::Alternatives => 14,
            Self::AltCallSites => 4,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bug(_) => "bug frame",
            Self::Exceptions | Self::EarlyExceptions => "exception table entry",
            Self::Alternatives => "alternative",
            Self::AltCallSites => "alternative call site",
        }
    }

    /// An entry of it in words.
    pub(crate) fn one(self) -> String {
        let article = match self {
            Self::Bug(_) => "a",
            Self::Exceptions | Self::EarlyExceptions | Self::Alternatives | Self::AltCallSites => {
                "an"
            }
        };
        format!("{article} {}", self.name())
    }
}

/// The kind of bug frame that has a message.
const MESSAGE: u8 = 3;

/// Where a linked hypervisor has them, by the linker script's symbols.
const LINKED: [(Table, &str, &str); 8] = [
    (Table::Bug(0), "__start_bug_frames", "__stop_bug_frames_0"),
    (Table::Bug(1), "__stop_bug_frames_0", "__stop_bug_frames_1"),
    (Table::Bug(2), "__stop_bug_frames_1", "__stop_bug_frames_2"),
    (
        Table::Bug(MESSAGE),
        "__stop_bug_frames_2",
        "__stop_bug_frames_3",
    ),
    (Table::Exceptions, "__start___ex_table", "__stop___ex_table"),
    (
        Table::EarlyExceptions,
        "__start___pre_ex_table",
        "__stop___pre_ex_table",
    ),
    (
        Table::Alternatives,
        "__alt_instructions",
        "__alt_instructions_end",
    ),
    (
        Table::AltCallSites,
        "__alt_call_sites_start",
        "__alt_call_sites_end",
    ),
];

/// The table that the section `name` of an object or a payload holds.
pub(crate) fn of_section(name: &str) -> Result<Option<Table>, String> {
    const REPLACEMENTS: &str = ".altinstr_replacement";
    Ok(Some(match name {
        ".bug_frames.0" => Table::Bug(0),
        ".bug_frames.1" => Table::Bug(1),
        ".bug_frames.2" => Table::Bug(2),
        ".bug_frames.3" => Table::Bug(MESSAGE),
        ".ex_table" => Table::Exceptions,
        ".ex_table.pre" => Table::EarlyExceptions,
        ".altinstructions" => Table::Alternatives,
        ".alt_call_sites" => Table::AltCallSites,
        REPLACEMENTS => return Ok(None),
        name if [".bug_frames", ".ex_table", ".alt"]
            .iter()
            .any(|known| name.starts_with(known)) =>
        {
            return Err(format!("{name} is a table of a kind that is not known"));
        }
        _ => return Ok(None),
    }))
}

/// What an entry says about its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Says {
    Bug {
        line: u32,
        file: u64,
        message: Option<u64>,
    },
    Exception {
        continues: u64,
    },
    Alternative {
        replacement: u64,
        replacement_size: u8,
        /// Feature, length of the original, padding.
        terms: [u8; 5],
    },
    AltCall,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) table: Table,
    /// Where the entry itself is.
    pub(crate) at: u64,
    pub(crate) says: Says,
}

/// All entries, by the code that they are about.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    entries: BTreeMap<u64, Vec<Entry>>,
}

impl Tables {
    /// The tables of a linked hypervisor.
    pub(crate) fn linked(image: &Image) -> Result<Self, String> {
        let mut tables = Self::default();
        for (table, start, end) in LINKED {
            if let (Some(start), Some(end)) = (image.global(start), image.global(end)) {
                tables.add(image, table, start..end)?;
            }
        }
        Ok(tables)
    }

    /// Where code goes on after exceptions, in no order.
    pub(crate) fn fixups(&self) -> impl Iterator<Item = u64> {
        let entries = self.entries.values().flatten();
        entries.filter_map(|entry| match entry.says {
            Says::Exception { continues } => Some(continues),
            _ => None,
        })
    }

    /// How many bytes the entries of `table` have together.
    pub(crate) fn size(&self, table: Table) -> u64 {
        let entries = self.entries.values().flatten();
        entries.filter(|entry| entry.table == table).count() as u64 * table.entry_size()
    }

    /// Adds those in `range`; returns what code each is about and where it is.
    pub(crate) fn add(
        &mut self,
        image: &Image,
        table: Table,
        range: Range<u64>,
    ) -> Result<Vec<(u64, u64)>, String> {
        let mut added = Vec::new();
        let size = table.entry_size();
        let mut at = range.start;
        while at < range.end {
            let whole = Some(at + size).filter(|&end| end <= range.end);
            let entry = whole.and_then(|_| read(image, table, at));
            let (place, says) =
                entry.ok_or_else(|| format!("the last {} is truncated", table.name()))?;
            let entry = Entry { table, at, says };
            self.entries.entry(place).or_default().push(entry);
            added.push((place, at));
            at += size;
        }
        Ok(added)
    }

    /// Those about code in `range`, with the place of each, table by table.
    pub(crate) fn about(&self, range: Range<u64>) -> Vec<(u64, Entry)> {
        let found = self.entries.range(range);
        let mut all: Vec<_> = found
            .flat_map(|(&place, entries)| entries.iter().map(move |entry| (place, entry.clone())))
            .collect();
        // Within one place and table their order counts; it is stable.
        all.sort_by_key(|(place, entry)| (*place, entry.table));
        all
    }

    /// Whether execution goes on behind the trap at `place`.
    pub(crate) fn goes_on(&self, place: u64) -> bool {
        let entries = self.entries.get(&place).map_or(&[][..], Vec::as_slice);
        entries
            .iter()
            .any(|entry| matches!(entry.table, Table::Bug(0 | 1)))
    }
}

fn read(image: &Image, table: Table, at: u64) -> Option<(u64, Says)> {
    let bytes = image.bytes(at, table.entry_size())?;
    let word = |offset: usize| {
        let field = bytes.get(offset..offset + 4)?;
        Some(u32::from_le_bytes(field.try_into().ok()?))
    };
    let relative = |offset: usize| {
        let value = word(offset)?.cast_signed();
        Some((at + offset as u64).wrapping_add_signed(value.into()))
    };
    // Half of the line is in the top byte, the displacement in the others.
    let frame = |offset: usize| {
        let word = word(offset)?;
        let displacement = (word << 8).cast_signed() >> 8;
        let line = word.wrapping_sub(displacement.cast_unsigned()) >> 24;
        Some((at.wrapping_add_signed(displacement.into()), line))
    };
    Some(match table {
        Table::Bug(kind) => {
            let (place, high) = frame(0)?;
            let (file, low) = frame(4)?;
            let message = match kind {
                MESSAGE => Some(at.wrapping_add_signed(word(12)?.cast_signed().into())),
                _ => None,
            };
            let line = high << 7 | low;
            (
                place,
                Says::Bug {
                    line,
                    file,
                    message,
                },
            )
        }
        Table::Exceptions | Table::EarlyExceptions => {
            let continues = relative(4)?;
            (relative(0)?, Says::Exception { continues })
        }
        Table::Alternatives => {
            let says = Says::Alternative {
                replacement: relative(4)?,
                replacement_size: bytes[11],
                terms: [bytes[8], bytes[9], bytes[10], bytes[12], bytes[13]],
            };
            (relative(0)?, says)
        }
        Table::AltCallSites => (relative(0)?, Says::AltCall),
    })
}
