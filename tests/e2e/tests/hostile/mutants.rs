// SPDX-License-Identifier: MIT OR Apache-2.0
//! Payloads with a single change, a deterministic set.
//!
//! A payload is a set of structures at known offsets: headers, tables, records,
//! notes, strings. Each field of each structure gets boundary values, each section
//! gets the name of each section that the hypervisor looks for, and code that
//! alternatives patch is changed too. [`crossed`] copies fields between structures.
//! Layouts are those of the ELF specification, the note format, and the live-patch
//! design's "Design of payload format". Nothing here consults the engine.

mod crossed;

use object::read::elf::{FileHeader as _, SectionHeader as _};
use object::{Endianness, SectionIndex, elf};

/// A mutation of a good payload.
#[derive(Clone)]
pub(crate) struct Mutant {
    /// The stratum of the change: one for each section that the hypervisor trusts,
    /// and one for all others of a kind.
    pub(crate) stratum: (&'static str, String, &'static str),
    /// The changed structure, and the change.
    pub(crate) what: String,
    edits: Vec<(usize, Vec<u8>)>,
    /// The new length of the file.
    end: usize,
}

impl Mutant {
    pub(crate) fn apply(&self, payload: &[u8]) -> Vec<u8> {
        let mut data = payload.to_vec();
        for (at, bytes) in &self.edits {
            if let Some(there) = data.get_mut(*at..at + bytes.len()) {
                there.copy_from_slice(bytes);
            }
        }
        data.truncate(self.end);
        data
    }

    /// Both changes at once.
    pub(crate) fn and(&self, other: &Self) -> Self {
        Self {
            stratum: self.stratum.clone(),
            what: format!("{}; {}", self.what, other.what),
            edits: [&self.edits[..], &other.edits].concat(),
            end: self.end.min(other.end),
        }
    }
}

/// Sections that the hypervisor trusts, or looks for by name.
const TRUSTED: [&str; 21] = [
    ".altinstructions",
    ".altinstr_replacement",
    ".alt_call_sites",
    ".bug_frames.0",
    ".bug_frames.1",
    ".bug_frames.2",
    ".bug_frames.3",
    ".ex_table",
    ".livepatch.funcs",
    ".livepatch.depends",
    ".livepatch.xen_depends",
    ".livepatch.hooks.load",
    ".livepatch.hooks.unload",
    ".livepatch.hooks.preapply",
    ".livepatch.hooks.apply",
    ".livepatch.hooks.postapply",
    ".livepatch.hooks.prerevert",
    ".livepatch.hooks.revert",
    ".livepatch.hooks.postrevert",
    ".modinfo",
    ".note.gnu.build-id",
];

/// The payload with the names of all [`TRUSTED`] sections appended to its section
/// names; it stays valid.
pub(crate) fn with_names(payload: &[u8]) -> anyhow::Result<Vec<u8>> {
    let header = elf::FileHeader64::<Endianness>::parse(payload)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, payload)?;
    let index = header.shstrndx(endian, payload)?;
    let section = sections.section(SectionIndex(usize::try_from(index)?))?;
    let mut names = section.data(endian, payload)?.to_vec();
    for name in TRUSTED {
        names.extend_from_slice(name.as_bytes());
        names.push(0);
    }
    let mut data = payload.to_vec();
    let at = usize::try_from(header.e_shoff(endian))? + usize::try_from(index)? * SECTION_SIZE;
    for (place, value) in [(24, data.len()), (32, names.len())] {
        data[at + place..at + place + 8].copy_from_slice(&(value as u64).to_le_bytes());
    }
    data.extend_from_slice(&names);
    Ok(data)
}

/// Name, offset in the structure, and size of a field.
type Field = (&'static str, usize, usize);

const HEADER: [Field; 12] = [
    ("magic", 0, 4),
    ("class", 4, 1),
    ("byte order", 5, 1),
    ("ident version", 6, 1),
    ("type", 16, 2),
    ("machine", 18, 2),
    ("version", 20, 4),
    ("shoff", 40, 8),
    ("ehsize", 52, 2),
    ("shentsize", 58, 2),
    ("shnum", 60, 2),
    ("shstrndx", 62, 2),
];
const SECTION: [Field; 9] = [
    ("name", 0, 4),
    ("type", 4, 4),
    ("flags", 8, 8),
    ("offset", 24, 8),
    ("size", 32, 8),
    ("link", 40, 4),
    ("info", 44, 4),
    ("alignment", 48, 8),
    ("entry size", 56, 8),
];
const RELOCATION: [Field; 4] = [
    ("offset", 0, 8),
    ("type", 8, 4),
    ("symbol", 12, 4),
    ("addend", 16, 8),
];
const SYMBOL: [Field; 5] = [
    ("name", 0, 4),
    ("info", 4, 1),
    ("section", 6, 2),
    ("value", 8, 8),
    ("size", 16, 8),
];
const FUNCTION: [Field; 9] = [
    ("new address", 8, 8),
    ("old address", 16, 8),
    ("new size", 24, 4),
    ("old size", 28, 4),
    ("version", 32, 1),
    ("opaque", 33, 1),
    ("applied", 64, 1),
    ("padding", 65, 1),
    ("expectation", 72, 1),
];
const NOTE: [Field; 5] = [
    ("name size", 0, 4),
    ("size", 4, 4),
    ("type", 8, 4),
    ("name", 12, 4),
    ("id", 16, 1),
];
/// `struct alt_instr` of Xen; the fields before these are relocated. ARM64 does not have
/// the last two.
const ALTERNATIVE: [Field; 5] = [
    ("feature", 8, 2),
    ("original size", 10, 1),
    ("replacement size", 11, 1),
    ("padding", 12, 1),
    ("applied", 13, 1),
];
const FUNCTION_SIZE: usize = 104;
const ALTERNATIVE_SIZE: usize = 14;
const ALTERNATIVE_SIZE_ARM64: usize = 12;
/// First bytes of branches and traps. On ARM64, the last of the four bytes of branches,
/// `adr`, `adrp` and loads of literals.
const CODE: [u8; 8] = [0x00, 0x15, 0x25, 0xcc, 0xe8, 0xe9, 0xeb, 0xff];
const CODE_ARM64: [u8; 8] = [0x00, 0x10, 0x17, 0x18, 0x54, 0x90, 0xb4, 0xff];
const SECTION_SIZE: usize = size_of::<elf::SectionHeader64<Endianness>>();
const RELOCATION_SIZE: usize = 24;
const SYMBOL_SIZE: usize = 24;
/// Beyond all feature numbers.
const FEATURES: u64 = 0x400;

/// A section of the good payload.
struct Section {
    name: String,
    kind: elf::SectionType,
    offset: usize,
    size: usize,
    /// The section that its relocations apply to.
    info: usize,
}

struct Payload<'a> {
    name: &'a str,
    data: &'a [u8],
    sections: Vec<Section>,
    symbols: usize,
    arm64: bool,
    mutants: Vec<Mutant>,
}

/// All mutants of `payload`.
pub(crate) fn of(name: &str, payload: &[u8]) -> anyhow::Result<Vec<Mutant>> {
    let header = elf::FileHeader64::<Endianness>::parse(payload)?;
    let endian = header.endian()?;
    let table = header.sections(endian, payload)?;
    let mut sections = Vec::new();
    for section in table.iter() {
        let (offset, size) = section.file_range(endian).unwrap_or_default();
        sections.push(Section {
            name: String::from_utf8_lossy(table.section_name(endian, section)?).into_owned(),
            kind: section.sh_type(endian),
            offset: usize::try_from(offset)?,
            size: usize::try_from(size)?,
            info: usize::try_from(section.sh_info(endian))?,
        });
    }
    let symbols = sections.iter().find(|s| s.kind == elf::SHT_SYMTAB);
    let mut made = Payload {
        name,
        data: payload,
        symbols: symbols.map_or(0, |symbols| symbols.offset),
        arm64: header.e_machine(endian) == elf::EM_AARCH64,
        sections,
        mutants: Vec::new(),
    };
    made.record(("header", String::new()), "", 0, &HEADER);
    let index = usize::try_from(header.shstrndx(endian, payload)?)?;
    let strings = table.section(SectionIndex(index))?.data(endian, payload)?;
    let mut names = Vec::new();
    for name in TRUSTED {
        let bytes = [name.as_bytes(), b"\0"].concat();
        let at = strings.windows(bytes.len()).position(|s| s == bytes);
        names.extend(at.and_then(|at| Some((name, u32::try_from(at).ok()?))));
    }
    let headers = usize::try_from(header.e_shoff(endian))?;
    for index in 0..made.sections.len() {
        made.section(index, headers + index * SECTION_SIZE, &names);
        made.cross(index, headers + index * SECTION_SIZE, headers);
    }
    Ok(made.mutants)
}

impl Payload<'_> {
    /// The structure's kind, with the section that it belongs to if the hypervisor
    /// trusts that.
    fn structure(&self, kind: &'static str, index: usize) -> (&'static str, String) {
        let section = &self.sections[index];
        let about = match section.kind {
            elf::SHT_RELA => &self.sections.get(section.info).unwrap_or(section).name,
            _ => &section.name,
        };
        let group = if TRUSTED.contains(&about.as_str()) {
            format!("{}: {}", self.name, section.name)
        } else {
            section.name.split('.').nth(1).unwrap_or("").to_owned()
        };
        (kind, group)
    }

    /// Mutates the section header and the contents.
    fn section(&mut self, index: usize, header: usize, names: &[(&str, u32)]) {
        let structure = self.structure("section header", index);
        let Section {
            name,
            kind,
            offset,
            size,
            ..
        } = &self.sections[index];
        let (name, kind, offset, size) = (name.clone(), *kind, *offset, *size);
        self.record(structure.clone(), &name, header, &SECTION);
        for (other, at) in names {
            let how = format!("is {other}");
            self.set(&structure, &name, SECTION[0], header, &how, (*at).into());
        }
        if size == 0 {
            return;
        }
        let cut = self.mutant(
            ("header", "file".to_owned(), "length"),
            format!("ends in {name}"),
        );
        self.mutants.push(Mutant {
            end: offset + size / 2,
            ..cut
        });
        let records = match name.as_str() {
            ".livepatch.funcs" => Some(("function", FUNCTION_SIZE, &FUNCTION[..])),
            ".altinstructions" => {
                let (step, fields) = match self.arm64 {
                    true => (ALTERNATIVE_SIZE_ARM64, &ALTERNATIVE[..3]),
                    false => (ALTERNATIVE_SIZE, &ALTERNATIVE[..]),
                };
                (offset..offset + size)
                    .step_by(step)
                    .for_each(|at| self.alternative(index, at));
                Some(("alternative", step, fields))
            }
            ".livepatch.depends" | ".livepatch.xen_depends" | ".note.gnu.build-id" => {
                Some(("note", size, &NOTE[..]))
            }
            _ => match kind {
                elf::SHT_RELA => Some(("relocation", RELOCATION_SIZE, &RELOCATION[..])),
                elf::SHT_SYMTAB => Some(("symbol", SYMBOL_SIZE, &SYMBOL[..])),
                _ => None,
            },
        };
        if kind == elf::SHT_STRTAB || name == ".modinfo" {
            self.strings(index);
        }
        let Some((kind, step, fields)) = records else {
            return;
        };
        let structure = self.structure(kind, index);
        for (number, at) in (offset..offset + size).step_by(step).enumerate() {
            self.record(structure.clone(), &format!("{name} {number}"), at, fields);
        }
    }

    /// Strings that are unterminated, end early, or are not UTF-8.
    fn strings(&mut self, index: usize) {
        let structure = self.structure("strings", index);
        let Section {
            name, offset, size, ..
        } = &self.sections[index];
        let (name, offset, size) = (name.clone(), *offset, *size);
        for at in 0..size {
            let place = format!("{name} {at:#x}");
            let (field, values) = match self.data[offset + at] {
                0 if at == size - 1 => ("last end", &b"x"[..]),
                0 => ("end", &b"x\xff"[..]),
                _ => ("letter", &b"\0\xff\n"[..]),
            };
            for value in values {
                let how = format!("is {value:#x}");
                let field = (field, at, 1);
                self.set(&structure, &place, field, offset, &how, (*value).into());
            }
        }
    }

    /// Mutates the code of the alternative at `at` and its replacement: their
    /// instructions and the pointers they use.
    fn alternative(&mut self, index: usize, at: usize) {
        let structure = self.structure("alternative's code", index);
        let entry = at - self.sections[index].offset;
        for feature in 0..FEATURES {
            // The last and the first of a word; increments and decrements cover the
            // others.
            if matches!(feature % 32, 0 | 31) {
                let how = format!("is {feature}");
                self.set(&structure, "", ALTERNATIVE[0], at, &how, feature);
            }
        }
        let lengths = [self.data[at + 10], self.data[at + 11]].map(usize::from);
        for (code, place, length) in [("code", 0, lengths[0]), ("replacement", 4, lengths[1])] {
            let Some((section, offset)) = self.target(index, entry + place) else {
                continue;
            };
            let begin = self.sections[section].offset + offset;
            for byte in 0..length {
                for value in if self.arm64 { CODE_ARM64 } else { CODE } {
                    let which = format!("{} {code} byte {byte}", self.sections[section].name);
                    let how = format!("is {value:#x}");
                    self.set(
                        &structure,
                        &which,
                        (code, byte, 1),
                        begin,
                        &how,
                        value.into(),
                    );
                }
            }
            for relocation in self.relocations(section) {
                let changed = self.read(relocation, 8).unwrap_or(0);
                if (offset as u64..(offset + length) as u64).contains(&changed) {
                    let which = format!("relocation of {} {code}", self.sections[section].name);
                    self.record(structure.clone(), &which, relocation, &RELOCATION);
                }
            }
        }
    }

    /// The relocation sections of a section.
    fn relocations(&self, section: usize) -> Vec<usize> {
        let tables = self
            .sections
            .iter()
            .filter(|table| table.kind == elf::SHT_RELA && table.info == section);
        tables
            .flat_map(|table| (table.offset..table.offset + table.size).step_by(RELOCATION_SIZE))
            .collect()
    }

    /// Section and offset that the field at `offset` of a section points to.
    fn target(&self, section: usize, offset: usize) -> Option<(usize, usize)> {
        let mut all = self.relocations(section).into_iter();
        let relocation = all.find(|at| self.read(*at, 8) == Some(offset as u64))?;
        let symbol = usize::try_from(self.read(relocation + 12, 4)?).ok()?;
        let symbol = self.symbols + symbol * SYMBOL_SIZE;
        let target = usize::try_from(self.read(symbol + 6, 2)?).ok()?;
        let value = self.read(symbol + 8, 8)?;
        let offset = value.wrapping_add(self.read(relocation + 16, 8)?);
        self.sections.get(target)?;
        Some((target, usize::try_from(offset).ok()?))
    }

    /// Gives every field of the structure at `at` every interesting value.
    fn record(
        &mut self,
        structure: (&'static str, String),
        which: &str,
        at: usize,
        fields: &[Field],
    ) {
        for &field in fields {
            let (_, place, size) = field;
            let Some(old) = self.read(at + place, size) else {
                continue;
            };
            let top = 1 << (8 * size - 1);
            for (how, value) in [
                ("is 0", 0),
                ("is 1", 1),
                ("is 3", 3),
                ("is 9", 9),
                ("is one more", old.wrapping_add(1)),
                ("is one less", old.wrapping_sub(1)),
                ("is 4 more", old.wrapping_add(4)),
                ("is 4 less", old.wrapping_sub(4)),
                ("is 8 more", old.wrapping_add(8)),
                ("is 8 less", old.wrapping_sub(8)),
                ("is 14 less", old.wrapping_sub(14)),
                ("is doubled", old.wrapping_mul(2)),
                ("has another sign", old ^ top),
                ("is a megabyte more", old | 0x10_0000),
                ("is the most, signed", top - 1),
                ("is for what is absolute", elf::SHN_ABS.0.into()),
                ("has all bits", u64::MAX),
            ] {
                self.set(&structure, which, field, at, how, value);
            }
        }
    }

    /// Sets a field of the structure at `at`, if that changes it.
    fn set(
        &mut self,
        structure: &(&'static str, String),
        which: &str,
        field: Field,
        at: usize,
        how: &str,
        value: u64,
    ) {
        let (name, place, size) = field;
        let bytes = value.to_le_bytes()[..size].to_vec();
        let there = self.data.get(at + place..at + place + size);
        if there.is_none_or(|there| there == bytes) {
            return;
        }
        let what = format!("{which} {name} {how}").trim_start().to_owned();
        let mut mutant = self.mutant((structure.0, structure.1.clone(), name), what);
        mutant.edits.push((at + place, bytes));
        self.mutants.push(mutant);
    }

    fn mutant(&self, stratum: (&'static str, String, &'static str), what: String) -> Mutant {
        Mutant {
            stratum,
            what: format!("{}: {what}", self.name),
            edits: Vec::new(),
            end: self.data.len(),
        }
    }

    fn read(&self, at: usize, size: usize) -> Option<u64> {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(self.data.get(at..at + size)?);
        Some(u64::from_le_bytes(bytes))
    }
}
