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

use object::read::elf::{FileHeader, SectionHeader as _};
use object::{Endianness, FileKind, SectionIndex, elf};

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
    let layout = Layout::of(payload)?;
    let read = Read::of(payload)?;
    let mut names = read.names.clone();
    for name in TRUSTED {
        names.extend_from_slice(name.as_bytes());
        names.push(0);
    }
    let mut data = payload.to_vec();
    let at = read.headers + read.strings * layout.section_size;
    let [_, _, _, offset, length, ..] = layout.section;
    for ((_, place, size), value) in [(offset, data.len()), (length, names.len())] {
        let value = (value as u64).to_le_bytes();
        data[at + place..at + place + size].copy_from_slice(&value[..size]);
    }
    data.extend_from_slice(&names);
    Ok(data)
}

/// Name, offset in the structure, and size of a field.
type Field = (&'static str, usize, usize);

/// The structures of a file of 64 bits, or of 32.
struct Layout {
    header: [Field; 12],
    section: [Field; 9],
    section_size: usize,
    /// The type and size of a table of relocations, and what is in one.
    relocations: elf::SectionType,
    relocation: &'static [Field],
    relocation_size: usize,
    symbol: [Field; 5],
    symbol_size: usize,
    function: [Field; 9],
    function_size: usize,
}

static WIDE: Layout = Layout {
    header: [
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
    ],
    section: [
        ("name", 0, 4),
        ("type", 4, 4),
        ("flags", 8, 8),
        ("offset", 24, 8),
        ("size", 32, 8),
        ("link", 40, 4),
        ("info", 44, 4),
        ("alignment", 48, 8),
        ("entry size", 56, 8),
    ],
    section_size: size_of::<elf::SectionHeader64<Endianness>>(),
    relocations: elf::SHT_RELA,
    relocation: &[
        ("offset", 0, 8),
        ("type", 8, 4),
        ("symbol", 12, 4),
        ("addend", 16, 8),
    ],
    relocation_size: 24,
    symbol: [
        ("name", 0, 4),
        ("info", 4, 1),
        ("section", 6, 2),
        ("value", 8, 8),
        ("size", 16, 8),
    ],
    symbol_size: 24,
    function: [
        ("new address", 8, 8),
        ("old address", 16, 8),
        ("new size", 24, 4),
        ("old size", 28, 4),
        ("version", 32, 1),
        ("opaque", 33, 1),
        ("applied", 64, 1),
        ("padding", 65, 1),
        ("expectation", 72, 1),
    ],
    function_size: 104,
};

static NARROW: Layout = Layout {
    header: [
        ("magic", 0, 4),
        ("class", 4, 1),
        ("byte order", 5, 1),
        ("ident version", 6, 1),
        ("type", 16, 2),
        ("machine", 18, 2),
        ("version", 20, 4),
        ("shoff", 32, 4),
        ("ehsize", 40, 2),
        ("shentsize", 46, 2),
        ("shnum", 48, 2),
        ("shstrndx", 50, 2),
    ],
    section: [
        ("name", 0, 4),
        ("type", 4, 4),
        ("flags", 8, 4),
        ("offset", 16, 4),
        ("size", 20, 4),
        ("link", 24, 4),
        ("info", 28, 4),
        ("alignment", 32, 4),
        ("entry size", 36, 4),
    ],
    section_size: size_of::<elf::SectionHeader32<Endianness>>(),
    relocations: elf::SHT_REL,
    relocation: &[("offset", 0, 4), ("type", 4, 1), ("symbol", 5, 3)],
    relocation_size: 8,
    symbol: [
        ("name", 0, 4),
        ("info", 12, 1),
        ("section", 14, 2),
        ("value", 4, 4),
        ("size", 8, 4),
    ],
    symbol_size: 16,
    function: [
        ("new address", 4, 4),
        ("old address", 8, 4),
        ("new size", 12, 4),
        ("old size", 16, 4),
        ("version", 20, 1),
        ("opaque", 21, 1),
        ("applied", 52, 1),
        ("padding", 53, 1),
        ("expectation", 60, 1),
    ],
    function_size: 92,
};

impl Layout {
    fn of(payload: &[u8]) -> object::Result<&'static Self> {
        Ok(match FileKind::parse(payload)? {
            FileKind::Elf32 => &NARROW,
            _ => &WIDE,
        })
    }

    /// The offset, the type and the symbol of a relocation, in this order.
    fn symbol_of_relocation(&self) -> Field {
        self.relocation[2]
    }
}

const NOTE: [Field; 5] = [
    ("name size", 0, 4),
    ("size", 4, 4),
    ("type", 8, 4),
    ("name", 12, 4),
    ("id", 16, 1),
];
/// `struct alt_instr` of Xen; the fields before these are relocated. ARM does not have the
/// last two.
const ALTERNATIVE: [Field; 5] = [
    ("feature", 8, 2),
    ("original size", 10, 1),
    ("replacement size", 11, 1),
    ("padding", 12, 1),
    ("applied", 13, 1),
];
/// First bytes of branches and traps. On ARM, the last of the four bytes of branches, of
/// `adr` and `adrp`, `movw`, and loads of literals.
const CODE: [u8; 8] = [0x00, 0x15, 0x25, 0xcc, 0xe8, 0xe9, 0xeb, 0xff];
const CODE_ARM64: [u8; 8] = [0x00, 0x10, 0x17, 0x18, 0x54, 0x90, 0xb4, 0xff];
const CODE_ARM32: [u8; 8] = [0x00, 0x0a, 0xe3, 0xe5, 0xe7, 0xea, 0xeb, 0xfa];

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
    layout: &'static Layout,
    /// Size of an alternative, and bytes for its code.
    alternatives: (usize, [u8; 8]),
    mutants: Vec<Mutant>,
}

/// What is read of a payload before it is changed.
struct Read {
    sections: Vec<Section>,
    /// Where the section headers are.
    headers: usize,
    /// The section with the names, and its contents.
    strings: usize,
    names: Vec<u8>,
    machine: elf::Machine,
}

impl Read {
    fn of(payload: &[u8]) -> anyhow::Result<Self> {
        match FileKind::parse(payload)? {
            FileKind::Elf32 => Self::as_file::<elf::FileHeader32<Endianness>>(payload),
            _ => Self::as_file::<elf::FileHeader64<Endianness>>(payload),
        }
    }

    fn as_file<H: FileHeader<Endian = Endianness>>(payload: &[u8]) -> anyhow::Result<Self> {
        let header = H::parse(payload)?;
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
        let strings = usize::try_from(header.shstrndx(endian, payload)?)?;
        let names = table.section(SectionIndex(strings))?;
        Ok(Self {
            sections,
            headers: usize::try_from(header.e_shoff(endian).into())?,
            strings,
            names: names.data(endian, payload)?.to_vec(),
            machine: header.e_machine(endian),
        })
    }
}

/// All mutants of `payload`.
pub(crate) fn of(name: &str, payload: &[u8]) -> anyhow::Result<Vec<Mutant>> {
    let layout = Layout::of(payload)?;
    let read = Read::of(payload)?;
    let symbols = read.sections.iter().find(|s| s.kind == elf::SHT_SYMTAB);
    let mut made = Payload {
        name,
        data: payload,
        symbols: symbols.map_or(0, |symbols| symbols.offset),
        layout,
        alternatives: match read.machine {
            elf::EM_AARCH64 => (12, CODE_ARM64),
            elf::EM_ARM => (12, CODE_ARM32),
            _ => (14, CODE),
        },
        sections: read.sections,
        mutants: Vec::new(),
    };
    made.record(("header", String::new()), "", 0, &layout.header);
    let mut names = Vec::new();
    for name in TRUSTED {
        let bytes = [name.as_bytes(), b"\0"].concat();
        let at = read.names.windows(bytes.len()).position(|s| s == bytes);
        names.extend(at.and_then(|at| Some((name, u32::try_from(at).ok()?))));
    }
    for index in 0..made.sections.len() {
        let header = read.headers + index * layout.section_size;
        made.section(index, header, &names);
        made.cross(index, header, read.headers);
    }
    Ok(made.mutants)
}

impl Payload<'_> {
    /// The structure's kind, with the section that it belongs to if the hypervisor
    /// trusts that.
    fn structure(&self, kind: &'static str, index: usize) -> (&'static str, String) {
        let section = &self.sections[index];
        let about = match section.kind {
            kind if kind == self.layout.relocations => {
                &self.sections.get(section.info).unwrap_or(section).name
            }
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
        let layout = self.layout;
        self.record(structure.clone(), &name, header, &layout.section);
        for (other, at) in names {
            let how = format!("is {other}");
            self.set(
                &structure,
                &name,
                layout.section[0],
                header,
                &how,
                (*at).into(),
            );
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
            ".livepatch.funcs" => Some(("function", layout.function_size, &layout.function[..])),
            ".altinstructions" => {
                let step = self.alternatives.0;
                let fields = ALTERNATIVE.iter().filter(|(_, at, size)| at + size <= step);
                let fields = &ALTERNATIVE[..fields.count()];
                (offset..offset + size)
                    .step_by(step)
                    .for_each(|at| self.alternative(index, at));
                Some(("alternative", step, fields))
            }
            ".livepatch.depends" | ".livepatch.xen_depends" | ".note.gnu.build-id" => {
                Some(("note", size, &NOTE[..]))
            }
            _ => match kind {
                kind if kind == layout.relocations => {
                    Some(("relocation", layout.relocation_size, layout.relocation))
                }
                elf::SHT_SYMTAB => Some(("symbol", layout.symbol_size, &layout.symbol[..])),
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
                for value in self.alternatives.1 {
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
                let changed = self.field(relocation, self.layout.relocation[0]);
                let changed = changed.unwrap_or(0);
                if (offset as u64..(offset + length) as u64).contains(&changed) {
                    let which = format!("relocation of {} {code}", self.sections[section].name);
                    self.record(
                        structure.clone(),
                        &which,
                        relocation,
                        self.layout.relocation,
                    );
                }
            }
        }
    }

    /// The relocation sections of a section.
    fn relocations(&self, section: usize) -> Vec<usize> {
        let tables = self
            .sections
            .iter()
            .filter(|table| table.kind == self.layout.relocations && table.info == section);
        tables
            .flat_map(|table| {
                (table.offset..table.offset + table.size).step_by(self.layout.relocation_size)
            })
            .collect()
    }

    /// Section and offset that the field at `offset` of a section points to.
    fn target(&self, section: usize, offset: usize) -> Option<(usize, usize)> {
        let layout = self.layout;
        let mut all = self.relocations(section).into_iter();
        let relocation =
            all.find(|at| self.field(*at, layout.relocation[0]) == Some(offset as u64))?;
        let symbol = self.field(relocation, layout.symbol_of_relocation())?;
        let symbol = self.symbols + usize::try_from(symbol).ok()? * layout.symbol_size;
        let target = usize::try_from(self.field(symbol, layout.symbol[2])?).ok()?;
        let value = self.field(symbol, layout.symbol[3])?;
        let addend = match layout.relocation.get(3) {
            Some(&addend) => self.field(relocation, addend)?,
            // It is in the place itself.
            None => self.read(self.sections.get(section)?.offset + offset, 4)?,
        };
        let offset = value.wrapping_add(addend);
        self.sections.get(target)?;
        Some((target, usize::try_from(offset).ok()?))
    }

    /// A field of the structure at `at`.
    fn field(&self, at: usize, (_, place, size): Field) -> Option<u64> {
        self.read(at + place, size)
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
            let (_, _, size) = field;
            let Some(old) = self.field(at, field) else {
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
