// SPDX-License-Identifier: MIT OR Apache-2.0
//! Payloads with one thing wrong, always the same ones.
//!
//! A payload is a set of structures whose places are known: headers, tables,
//! records, notes. Each field of each of them gets values that are at an edge
//! of what it can say. Layouts are those of the ELF specification, the note
//! format, and the live-patch design's "Design of payload format".

use object::read::elf::{FileHeader as _, SectionHeader as _};
use object::{Endianness, elf};

/// A file that differs from a good payload in one thing.
pub(crate) struct Mutant {
    /// Which structure and field.
    pub(crate) field: (&'static str, &'static str),
    /// Which of them, and what was done to it; the same for payloads that are
    /// made of the same source for two hypervisors.
    pub(crate) what: String,
    pub(crate) data: Vec<u8>,
}

/// Name, place from the structure's begin, and size of a field.
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
/// `struct alt_instr` of Xen; the fields before these are relocated.
const ALTERNATIVE: [Field; 4] = [
    ("feature", 8, 2),
    ("original size", 10, 1),
    ("replacement size", 11, 1),
    ("padding", 12, 1),
];
const FUNCTION_SIZE: usize = 104;

struct Payload<'a> {
    data: &'a [u8],
    mutants: Vec<Mutant>,
}

/// What can be wrong with `payload`.
pub(crate) fn of(payload: &[u8]) -> anyhow::Result<Vec<Mutant>> {
    let header = elf::FileHeader64::<Endianness>::parse(payload)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, payload)?;
    let mut made = Payload {
        data: payload,
        mutants: Vec::new(),
    };
    made.record("header", "", 0, &HEADER);
    let table = usize::try_from(header.e_shoff(endian))?;
    for (index, section) in sections.enumerate() {
        let name = String::from_utf8_lossy(sections.section_name(endian, section)?).into_owned();
        let at = table + index.0 * size_of::<elf::SectionHeader64<Endianness>>();
        made.record("section header", &name, at, &SECTION);
        for other in sections.iter() {
            let taken = sections.section_name(endian, other)?;
            if taken.starts_with(b".livepatch") || taken.starts_with(b".note") {
                let value = other.sh_name(endian).into();
                let how = format!("is {}", String::from_utf8_lossy(taken));
                made.set("section header", &name, SECTION[0], at, &how, value);
            }
        }
        let Some((offset, size)) = section.file_range(endian) else {
            continue;
        };
        let (offset, size) = (usize::try_from(offset)?, usize::try_from(size)?);
        if size > 0 {
            made.cut(&name, offset + size / 2);
        }
        let records = match name.as_str() {
            ".livepatch.funcs" => Some(("function", FUNCTION_SIZE, &FUNCTION[..])),
            ".altinstructions" => Some(("alternative", 14, &ALTERNATIVE[..])),
            ".livepatch.depends" | ".livepatch.xen_depends" | ".note.gnu.build-id" => {
                Some(("note", size, &NOTE[..]))
            }
            _ => match section.sh_type(endian) {
                elf::SHT_RELA => Some(("relocation", 24, &RELOCATION[..])),
                elf::SHT_SYMTAB => Some(("symbol", 24, &SYMBOL[..])),
                elf::SHT_STRTAB if size > 0 => Some(("string table", size, &[][..])),
                _ => None,
            },
        };
        let Some((kind, step, fields)) = records else {
            continue;
        };
        if kind == "string table" || name == ".modinfo" {
            made.set(
                kind,
                &name,
                ("end", size - 1, 1),
                offset,
                "is x",
                u64::from(b'x'),
            );
        }
        for (number, at) in (offset..offset + size).step_by(step).enumerate() {
            made.record(kind, &format!("{name} {number}"), at, fields);
        }
    }
    Ok(made.mutants)
}

impl Payload<'_> {
    /// Every field of the structure at `at` gets every value of interest.
    fn record(&mut self, kind: &'static str, which: &str, at: usize, fields: &[Field]) {
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
                ("has another sign", old ^ top),
                ("is a megabyte more", old | 0x10_0000),
                ("is the most, signed", top - 1),
                ("has all bits", u64::MAX),
            ] {
                self.set(kind, which, field, at, how, value);
            }
        }
    }

    /// Sets a field of the structure at `at`, if that changes it.
    fn set(
        &mut self,
        kind: &'static str,
        which: &str,
        field: Field,
        at: usize,
        how: &str,
        value: u64,
    ) {
        let (name, place, size) = field;
        let bytes = value.to_le_bytes();
        let mut data = self.data.to_vec();
        let Some(there) = data.get_mut(at + place..at + place + size) else {
            return;
        };
        if *there == bytes[..size] {
            return;
        }
        there.copy_from_slice(&bytes[..size]);
        self.mutants.push(Mutant {
            field: (kind, name),
            what: format!("{which} {name} {how}").trim_start().to_owned(),
            data,
        });
    }

    /// The file ends at `end`.
    fn cut(&mut self, section: &str, end: usize) {
        self.mutants.push(Mutant {
            field: ("file", "length"),
            what: format!("ends in {section}"),
            data: self.data[..end].to_vec(),
        });
    }

    fn read(&self, at: usize, size: usize) -> Option<u64> {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(self.data.get(at..at + size)?);
        Some(u64::from_le_bytes(bytes))
    }
}
