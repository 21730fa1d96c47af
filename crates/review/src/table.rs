// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables about code: bug frames, alternatives, exception tables.

use crate::elf::{Elf, Section};
use serde::Serialize;
use xsplice_objdiff::special::entry_size;

/// A table about code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Its section.
    pub name: String,
    /// Its entries, in order.
    pub entries: Vec<Entry>,
}

/// One entry of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The code that it describes.
    pub place: String,
    /// What it says about that code.
    pub meaning: String,
}

pub(crate) fn tables(elf: &Elf) -> Vec<Table> {
    let tables = elf.sections.iter().filter_map(|section| {
        let size = usize::try_from(entry_size(&section.name)?).ok()?;
        let offsets = (0..section.data.len()).step_by(size);
        Some(Table {
            name: section.name.clone(),
            entries: offsets
                .filter_map(|offset| Reader::new(elf, section, offset).entry())
                .collect(),
        })
    });
    tables.collect()
}

/// Reads one entry.
struct Reader<'a> {
    elf: &'a Elf,
    section: &'a Section,
    /// The entry's bytes, and those after it.
    bytes: &'a [u8],
    /// The entry's address in the layout.
    address: u64,
}

impl<'a> Reader<'a> {
    fn new(elf: &'a Elf, section: &'a Section, offset: usize) -> Self {
        Self {
            elf,
            section,
            bytes: section.data.get(offset..).unwrap_or_default(),
            address: section.address.wrapping_add(offset as u64),
        }
    }

    /// `None` if it is truncated.
    fn entry(&self) -> Option<Entry> {
        match self.section.name.strip_prefix(".bug_frames.") {
            Some(kind) => self.bug_frame(kind),
            None if self.section.name.starts_with(".ex_table") => Some(Entry {
                place: self.name(self.leads_to(0)?),
                meaning: format!("a fault here continues at {}", self.name(self.leads_to(4)?)),
            }),
            None => self.alternative(),
        }
    }

    /// `struct alt_instr`: two displacements, a feature number, the lengths of the
    /// code, of its replacement and of the padding after the code.
    fn alternative(&self) -> Option<Entry> {
        let feature = u16::from_le_bytes(*self.bytes.get(8..)?.first_chunk()?);
        let [old, new, padding] = *self.bytes.get(10..)?.first_chunk()?;
        let replacement = match new {
            0 => "no-ops".to_owned(),
            new => format!("{new} bytes of {}", self.name(self.leads_to(4)?)),
        };
        Some(Entry {
            place: self.name(self.leads_to(0)?),
            meaning: format!(
                "{} bytes become {replacement} with CPU feature {}*32+{}",
                u16::from(old) + u16::from(padding),
                feature / 32,
                feature % 32
            ),
        })
    }

    /// `struct bug_frame`: two displacements of 24 bits from the frame's start, each
    /// with seven bits of a line number above; the text of an assertion is in a
    /// second record.
    fn bug_frame(&self, kind: &str) -> Option<Entry> {
        let ((place, high), (about, low)) = (self.split(0)?, self.split(4)?);
        let line = (high << 7) | low;
        let about = self.name(about);
        let meaning = match kind {
            "0" => format!("calls {about}"),
            "1" => format!("WARN at {about}:{line}"),
            "2" => format!("BUG at {about}:{line}"),
            _ => {
                let text = self.split(8).map(|(text, _)| self.name(text));
                format!("ASSERT {} at {about}:{line}", text.unwrap_or_default())
            }
        };
        Some(Entry {
            place: self.name(place),
            meaning,
        })
    }

    fn word(&self, at: usize) -> Option<i32> {
        Some(i32::from_le_bytes(*self.bytes.get(at..)?.first_chunk()?))
    }

    /// The target of the displacement at `at`.
    fn leads_to(&self, at: usize) -> Option<u64> {
        let from = self.address.wrapping_add(at as u64);
        Some(from.wrapping_add_signed(self.word(at)?.into()))
    }

    /// A displacement of 24 bits from the entry's start, and the byte above it.
    fn split(&self, at: usize) -> Option<(u64, u32)> {
        let word = self.word(at)?;
        let displacement = (word << 8) >> 8;
        let above = word.wrapping_sub(displacement).cast_unsigned() >> 24;
        let target = self.address.wrapping_add_signed(displacement.into());
        Some((target, above))
    }

    fn name(&self, address: u64) -> String {
        let label = self.elf.label(address);
        let text = || self.elf.string(address).filter(|text| !text.is_empty());
        let code = self.elf.is_code(address);
        let name = if code { label } else { text().or(label) };
        name.unwrap_or_else(|| format!("{address:#x}"))
    }
}
