// SPDX-License-Identifier: MIT OR Apache-2.0
//! Damages to payloads, each in one place, and what each payload then means.
//!
//! [`all`] lists the damages of a file; [`Used`] says which of them matter. Neither
//! shares code with what judges payloads.

mod meaning;

pub use meaning::{Meaning, Symbols, Used};

use anyhow::Context as _;
use object::LittleEndian;
use object::elf::{FileHeader64, SectionFlags, SectionHeader64};
use object::elf::{SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHT_NOBITS, SHT_RELA, SHT_SYMTAB};
use object::read::elf::{FileHeader as _, SectionHeader as _};
use std::ops::Range;

/// What is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A relocation's target.
    Target,
    /// The distance from its target.
    Addend,
    /// A relocation's type.
    Type,
    /// The place that it is for.
    Place,
    /// A byte of a section in memory.
    Contents,
    /// A byte of a record of a replaced function.
    Record,
    /// A byte of what the payload is, or what it depends on.
    Identity,
    /// A section's header.
    Section,
    /// A symbol.
    Symbol,
}

impl Kind {
    /// Whether a payload that means the same may be refused: what it is for, its form and
    /// its symbols are checked, whatever the hypervisor does with them.
    #[must_use]
    pub fn is_strict(self) -> bool {
        matches!(self, Self::Identity | Self::Section | Self::Symbol)
    }
}

/// Damage in one place of a file.
#[derive(Debug, Clone)]
pub struct Damage {
    /// What is damaged.
    pub kind: Kind,
    /// In words.
    pub what: String,
    at: usize,
    new: Vec<u8>,
}

impl Damage {
    /// The damaged file.
    ///
    /// # Errors
    /// If it is of another file.
    pub fn apply(&self, file: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut file = file.to_vec();
        let place = file.get_mut(self.at..self.at + self.new.len());
        place.context("no such place")?.copy_from_slice(&self.new);
        Ok(file)
    }
}

/// Size in bytes of a relocation, and of a symbol.
const ENTRY: usize = 24;
/// Size in bytes of a section's header.
const HEADER: usize = 64;

/// Every damage of `file`, a payload.
///
/// # Errors
/// If it is no ELF file.
pub fn all(file: &[u8]) -> anyhow::Result<Vec<Damage>> {
    let header = FileHeader64::<LittleEndian>::parse(file)?;
    let sections = header.sections(LittleEndian, file)?;
    let mut damaged = Damaged {
        file,
        found: Vec::new(),
    };
    let symbols = sections
        .iter()
        .find(|s| s.sh_type(LittleEndian) == SHT_SYMTAB);
    let symbols = range(symbols.context("it has no symbols")?)?;
    let loaded = |section: &SectionHeader64<LittleEndian>| {
        section.sh_flags(LittleEndian).contains(SHF_ALLOC)
    };
    let table = usize::try_from(header.e_shoff(LittleEndian))?;
    for (index, section) in sections.enumerate() {
        let name = sections.section_name(LittleEndian, section)?;
        let name = String::from_utf8_lossy(name).into_owned();
        let target = sections.section(section.info_link(LittleEndian));
        if section.sh_type(LittleEndian) == SHT_RELA && target.is_ok_and(loaded) {
            damaged.relocations(&name, range(section)?, symbols.len() / ENTRY)?;
        }
        if loaded(section) {
            damaged.contents(&name, range(section)?);
            let others = (1..sections.len()).filter(|&other| other != index.0);
            let names = others.filter_map(|other| {
                sections
                    .section(object::SectionIndex(other))
                    .ok()
                    .map(|s| s.sh_name(LittleEndian))
            });
            damaged.header(&name, table + index.0 * HEADER, names.collect())?;
        }
    }
    damaged.symbols(symbols, sections.len())?;
    Ok(damaged.found)
}

/// Where the contents of a section are.
fn range(section: &SectionHeader64<LittleEndian>) -> anyhow::Result<Range<usize>> {
    let start = usize::try_from(section.sh_offset(LittleEndian))?;
    let size = match section.sh_type(LittleEndian) {
        SHT_NOBITS => 0,
        _ => usize::try_from(section.sh_size(LittleEndian))?,
    };
    Ok(start..start + size)
}

struct Damaged<'a> {
    file: &'a [u8],
    found: Vec<Damage>,
}

impl Damaged<'_> {
    fn add(&mut self, kind: Kind, what: String, at: usize, new: &[u8]) {
        if self
            .file
            .get(at..at + new.len())
            .is_some_and(|old| old != new)
        {
            let new = new.to_vec();
            self.found.push(Damage {
                kind,
                what,
                at,
                new,
            });
        }
    }

    fn number<const N: usize>(&self, at: usize) -> anyhow::Result<[u8; N]> {
        let bytes = self.file.get(at..at + N).context("the file ends")?;
        Ok(bytes.try_into()?)
    }

    fn relocations(
        &mut self,
        name: &str,
        table: Range<usize>,
        symbols: usize,
    ) -> anyhow::Result<()> {
        const TYPES: [u32; 8] = [0, 1, 2, 4, 9, 10, 11, 24];
        const SHIFTS: [i64; 8] = [-16, -8, -4, -1, 1, 4, 8, 16];
        for (number, at) in table.step_by(ENTRY).enumerate() {
            let place = u64::from_le_bytes(self.number(at)?);
            let what = format!("{name}[{number}] (+{place:#x})");
            let own = u32::from_le_bytes(self.number(at + 12)?);
            let symbols = u32::try_from(symbols)?;
            // Its neighbours, and one farther away.
            let others = [own + 1, own + symbols - 1, own + symbols / 2];
            for other in others.map(|other| other % symbols) {
                let bytes = other.to_le_bytes();
                self.add(
                    Kind::Target,
                    format!("{what}: symbol {own} is {other}"),
                    at + 12,
                    &bytes,
                );
            }
            for other in TYPES {
                let bytes = other.to_le_bytes();
                self.add(
                    Kind::Type,
                    format!("{what}: its type is {other}"),
                    at + 8,
                    &bytes,
                );
            }
            let addend = i64::from_le_bytes(self.number(at + 16)?);
            for by in SHIFTS {
                let bytes = addend.wrapping_add(by).to_le_bytes();
                self.add(Kind::Addend, format!("{what}: {by:+}"), at + 16, &bytes);
            }
            for by in [-8, -1, 1, 8] {
                let bytes = place.wrapping_add_signed(by).to_le_bytes();
                self.add(Kind::Place, format!("{what}: it is at {by:+}"), at, &bytes);
            }
        }
        Ok(())
    }

    /// Two bits of each byte; which ones depends on where it is.
    fn contents(&mut self, name: &str, contents: Range<usize>) {
        let kind = match name {
            ".livepatch.funcs" => Kind::Record,
            ".livepatch.depends" | ".livepatch.xen_depends" | ".note.gnu.build-id" => {
                Kind::Identity
            }
            _ => Kind::Contents,
        };
        for (offset, at) in contents.enumerate() {
            let first = offset * 5 % 8;
            for bit in [first, (first + 3) % 8] {
                let what = format!("{name}+{offset:#x}: bit {bit}");
                self.add(kind, what, at, &[self.file[at] ^ 1 << bit]);
            }
        }
    }

    fn header(&mut self, name: &str, at: usize, names: Vec<u32>) -> anyhow::Result<()> {
        let own = u32::from_le_bytes(self.number(at)?);
        for other in names.into_iter().chain([own + 1]) {
            let what = format!("{name}: its name is at {other} and not {own}");
            self.add(Kind::Section, what, at, &other.to_le_bytes());
        }
        for kind in [SHT_NOBITS.0, 1, 7] {
            let what = format!("{name}: its type is {kind}");
            self.add(Kind::Section, what, at + 4, &kind.to_le_bytes());
        }
        let flags = u64::from_le_bytes(self.number(at + 8)?);
        for SectionFlags(flag) in [SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR] {
            let what = format!("{name}: the flag {flag} is inverted");
            self.add(Kind::Section, what, at + 8, &(flags ^ flag).to_le_bytes());
        }
        for (field, offset) in [("place", 24), ("size", 32)] {
            let value = u64::from_le_bytes(self.number(at + offset)?);
            for by in [-16, -8, -4, -1, 1, 4, 8, 16] {
                let bytes = value.wrapping_add_signed(by).to_le_bytes();
                self.add(
                    Kind::Section,
                    format!("{name}: {field} {by:+}"),
                    at + offset,
                    &bytes,
                );
            }
        }
        for alignment in [0, 1, 2, 4, 8, 16, 32, 64, 4096_u64] {
            let what = format!("{name}: aligned to {alignment}");
            self.add(Kind::Section, what, at + 48, &alignment.to_le_bytes());
        }
        Ok(())
    }

    fn symbols(&mut self, table: Range<usize>, sections: usize) -> anyhow::Result<()> {
        let table: Vec<usize> = table.step_by(ENTRY).skip(1).collect();
        for (number, &at) in table.iter().enumerate() {
            let what = format!("symbol {}", number + 1);
            let next = self.number::<4>(table[(number + 1) % table.len()])?;
            self.add(
                Kind::Symbol,
                format!("{what}: the next one's name"),
                at,
                &next,
            );
            let info = self.file[at + 4];
            for kind in [0, 1, 2, 3] {
                let new = info & 0xf0 | kind;
                self.add(
                    Kind::Symbol,
                    format!("{what}: its type is {kind}"),
                    at + 4,
                    &[new],
                );
            }
            for binding in [0, 1, 2] {
                let new = info & 0x0f | binding << 4;
                self.add(
                    Kind::Symbol,
                    format!("{what}: its binding is {binding}"),
                    at + 4,
                    &[new],
                );
            }
            let section = u16::from_le_bytes(self.number(at + 6)?);
            let next = (section + 1) % u16::try_from(sections)?;
            for other in [0, 0xfff1, 0xfff2, next, section.wrapping_sub(1)] {
                let what = format!("{what}: it is in section {other:#x}");
                self.add(Kind::Symbol, what, at + 6, &other.to_le_bytes());
            }
            for (field, offset) in [("value", 8), ("size", 16)] {
                let value = u64::from_le_bytes(self.number(at + offset)?);
                for new in [-16, -8, -1, 1, 8, 16].map(|by| value.wrapping_add_signed(by)) {
                    let what = format!("{what}: {field} {new:#x} and not {value:#x}");
                    self.add(Kind::Symbol, what, at + offset, &new.to_le_bytes());
                }
            }
        }
        Ok(())
    }
}
