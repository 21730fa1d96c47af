// SPDX-License-Identifier: MIT OR Apache-2.0
//! Room for a signature in a payload.
//!
//! Nothing of the payload is moved: the names of the sections and their table are
//! written again behind everything else, with the note. What is loaded stays the same,
//! to the byte and to the number of every section.

use object::elf::{FileHeader64, SHT_NOTE, SectionFlags, SectionHeader64};
use object::pod::{bytes_of, bytes_of_slice};
use object::read::elf::{FileHeader as _, SectionHeader as _};
use object::{LittleEndian as LE, U16, U32, U64};
use std::ops::Range;
use xsplice_abi::signature::{Kind, Note, SECTION, note};

type Header = FileHeader64<LE>;
type Section = SectionHeader64<LE>;

/// `payload` with a note for `size` bytes of signature, which are zero; and where
/// they are. `None` when it is no ELF file for this machine.
pub(crate) fn with_room(payload: &[u8], size: usize) -> Option<(Vec<u8>, Range<usize>)> {
    let header = Header::parse(payload).ok()?;
    let sections = header.section_headers(LE, payload).ok()?;
    let names_index = header.shstrndx(LE, payload).ok()?;
    let names = sections.get(usize::try_from(names_index).ok()?)?;
    let mut names = names.data(LE, payload).ok()?.to_vec();
    let name = names.len();
    names.extend_from_slice(SECTION.as_bytes());
    names.push(0);

    let mut file = payload.to_vec();
    let names_at = append(&mut file, &names, 1);
    let content = note(Kind::RSA_SHA256, &vec![0; size]);
    let note_at = append(&mut file, &content, 4);
    let mut table = sections.to_vec();
    let place = table.get_mut(usize::try_from(names_index).ok()?)?;
    place.sh_offset = word(names_at)?;
    place.sh_size = word(names.len())?;
    table.push(Section {
        sh_name: U32::new(LE, u32::try_from(name).ok()?),
        sh_type: U32::new(LE, SHT_NOTE),
        sh_flags: U64::new(LE, SectionFlags(0)),
        sh_addr: U64::new(LE, 0),
        sh_offset: word(note_at)?,
        sh_size: word(content.len())?,
        sh_link: U32::new(LE, 0),
        sh_info: U32::new(LE, 0),
        sh_addralign: U64::new(LE, 4),
        sh_entsize: U64::new(LE, 0),
    });
    let table_at = append(&mut file, bytes_of_slice(&table), 8);
    let mut header = *header;
    header.e_shoff = word(table_at)?;
    header.e_shnum = U16::new(LE, u16::try_from(table.len()).ok()?);
    file.get_mut(..size_of::<Header>())?
        .copy_from_slice(bytes_of(&header));
    let signature = Note::parse(&content)?.signature;
    Some((file, note_at + signature.start..note_at + signature.end))
}

/// Adds `data` at the next multiple of `align`; returns where.
fn append(file: &mut Vec<u8>, data: &[u8], align: usize) -> usize {
    file.resize(file.len().next_multiple_of(align), 0);
    let at = file.len();
    file.extend_from_slice(data);
    at
}

fn word(value: usize) -> Option<U64<LE>> {
    Some(U64::new(LE, u64::try_from(value).ok()?))
}
