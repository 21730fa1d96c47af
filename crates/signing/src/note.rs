// SPDX-License-Identifier: MIT OR Apache-2.0
//! Room for a signature in a payload.
//!
//! Nothing of the payload is moved: the names of the sections and their table are
//! written again behind everything else, with the note. What is loaded stays the same,
//! to the byte and to the number of every section.

use object::elf::{FileHeader32, FileHeader64, SHT_NOTE, SectionHeader32, SectionHeader64};
use object::pod::{Pod, bytes_of, bytes_of_slice, from_bytes};
use object::read::elf::{FileHeader, SectionHeader as _};
use object::{FileKind, LittleEndian as LE, U16, U32, U64};
use std::ops::Range;
use xsplice_abi::signature::{Kind, Note, SECTION, note};

/// What is written of a class of files.
trait Class: FileHeader<Endian = LE, SectionHeader: Copy + Pod> + Copy {
    /// Moves the contents of a section.
    fn replace(section: &mut Self::SectionHeader, at: usize, size: usize) -> Option<()>;

    /// The section of the note, whose name is at `name` in the table of names.
    fn note(name: usize, at: usize, size: usize) -> Option<Self::SectionHeader>;

    /// Moves the table of sections.
    fn move_table(&mut self, at: usize, count: usize) -> Option<()>;
}

/// The records of both classes have the same fields, as words of different widths.
macro_rules! class {
    ($header:ident, $section:ident, $word:ident) => {
        impl Class for $header<LE> {
            fn replace(section: &mut $section<LE>, at: usize, size: usize) -> Option<()> {
                section.sh_offset = $word::new(LE, at.try_into().ok()?);
                section.sh_size = $word::new(LE, size.try_into().ok()?);
                Some(())
            }

            fn note(name: usize, at: usize, size: usize) -> Option<$section<LE>> {
                // Without flags, address, link, info and size of entries.
                let zeros = [0; size_of::<$section<LE>>()];
                let (section, _) = from_bytes::<$section<LE>>(&zeros).ok()?;
                let mut section = *section;
                section.sh_name = U32::new(LE, name.try_into().ok()?);
                section.sh_type = U32::new(LE, SHT_NOTE);
                section.sh_addralign = $word::new(LE, 4);
                Self::replace(&mut section, at, size)?;
                Some(section)
            }

            fn move_table(&mut self, at: usize, count: usize) -> Option<()> {
                self.e_shoff = $word::new(LE, at.try_into().ok()?);
                self.e_shnum = U16::new(LE, count.try_into().ok()?);
                Some(())
            }
        }
    };
}

class!(FileHeader32, SectionHeader32, U32);
class!(FileHeader64, SectionHeader64, U64);

/// `payload` with a note for `size` bytes of signature, which are zero; and where
/// they are. `None` when it is no ELF file.
pub(crate) fn with_room(payload: &[u8], size: usize) -> Option<(Vec<u8>, Range<usize>)> {
    match FileKind::parse(payload).ok()? {
        FileKind::Elf32 => extended::<FileHeader32<LE>>(payload, size),
        FileKind::Elf64 => extended::<FileHeader64<LE>>(payload, size),
        _ => None,
    }
}

fn extended<Header: Class>(payload: &[u8], size: usize) -> Option<(Vec<u8>, Range<usize>)> {
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
    Header::replace(place, names_at, names.len())?;
    table.push(Header::note(name, note_at, content.len())?);
    let table_at = append(&mut file, bytes_of_slice(&table), 8);
    let mut header = *header;
    header.move_table(table_at, table.len())?;
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
