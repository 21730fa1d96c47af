// SPDX-License-Identifier: MIT OR Apache-2.0
//! ELF files in one form: all else reads files of 64 bits whose relocations have their
//! addends in their records.
//!
//! ARM32's files have 32 bits, and addends in the places that are relocated. Source of
//! their form: ELF for the Arm Architecture, "Relocation".

use object::build::Error;
use object::build::elf::{Builder, Relocation, Section, SectionData};
use object::elf::{self, RelocationType};
use object::read::elf::{ElfFile64, FileHeader};
use object::{Endianness, FileKind};
use std::borrow::Cow;
use xsplice_abi::machine::Machine;
use xsplice_abi::trampoline::arm32::AHEAD;

/// Size of a relocation's record with an addend.
const RECORD: u64 = 24;

/// The contents of a file in that form.
#[derive(Debug)]
pub(crate) struct Wide<'a>(Cow<'a, [u8]>);

impl<'a> Wide<'a> {
    /// Those of the file `data`.
    ///
    /// # Errors
    /// Why it is no ELF file.
    pub(crate) fn of(data: &'a [u8]) -> Result<Self, String> {
        let narrow = machine(data)? == Machine::Arm32.elf_number();
        Ok(Self(match narrow {
            true => Cow::Owned(widened(data).map_err(|e| e.to_string())?),
            false => Cow::Borrowed(data),
        }))
    }

    /// Reads them.
    ///
    /// # Errors
    /// If they are malformed.
    pub(crate) fn parse(&self) -> Result<ElfFile64<'_, Endianness>, String> {
        ElfFile64::parse(&*self.0).map_err(|e| e.to_string())
    }
}

/// The number of the machine that a file is for.
///
/// # Errors
/// Why it is no ELF file.
pub(crate) fn machine(data: &[u8]) -> Result<u16, String> {
    fn number<H: FileHeader<Endian = Endianness>>(data: &[u8]) -> object::Result<u16> {
        let header = H::parse(data)?;
        Ok(header.e_machine(header.endian()?).0)
    }
    let number = FileKind::parse(data).and_then(|kind| match kind {
        FileKind::Elf32 => number::<elf::FileHeader32<Endianness>>(data),
        _ => number::<elf::FileHeader64<Endianness>>(data),
    });
    number.map_err(|e| e.to_string())
}

fn widened(data: &[u8]) -> Result<Vec<u8>, Error> {
    let mut file = Builder::read32(data)?;
    let addends = addends(&file);
    file.is_64 = true;
    // Sections have addresses of their own, and nothing here is loaded by segments.
    for segment in &mut file.segments {
        segment.delete = true;
    }
    for (section, addends) in file.sections.iter_mut().zip(addends) {
        if let (SectionData::Relocation(relocations), Some(addends)) = (&mut section.data, addends)
        {
            section.sh_type = elf::SHT_RELA;
            section.sh_entsize = RECORD;
            for (relocation, addend) in relocations.iter_mut().zip(addends) {
                relocation.r_addend = addend;
            }
        }
    }
    let mut wide = Vec::new();
    file.write(&mut wide)?;
    Ok(wide)
}

/// The addends that the relocations of each section have in their places.
fn addends(file: &Builder<'_>) -> Vec<Option<Vec<i64>>> {
    let contents = file.sections.iter().map(|section| match &section.data {
        SectionData::Data(bytes) | SectionData::Note(bytes) => bytes.as_slice(),
        _ => &[],
    });
    let contents: Vec<&[u8]> = contents.collect();
    let of_section = |section: &Section<'_>| {
        let SectionData::Relocation(relocations) = &section.data else {
            return None;
        };
        let target = usize::try_from(section.sh_info).ok()?.checked_sub(1);
        let target = target.and_then(|index| contents.get(index));
        let addend = |relocation: &Relocation| {
            let place = usize::try_from(relocation.r_offset).ok();
            let word = place.and_then(|at| target?.get(at..)?.first_chunk());
            // A place that is not there is reported where it is relocated.
            word.map_or(0, |word| {
                addend(relocation.r_type, u32::from_le_bytes(*word))
            })
        };
        let narrow = section.sh_type == elf::SHT_REL;
        narrow.then(|| relocations.iter().map(addend).collect())
    };
    file.sections.iter().map(of_section).collect()
}

/// What a relocation of this type adds to the symbol's address where `word` is. That of a
/// branch leads to its destination, and not to [`AHEAD`] bytes before it.
fn addend(r_type: RelocationType, word: u32) -> i64 {
    match r_type {
        elf::R_ARM_CALL | elf::R_ARM_JUMP24 => {
            i64::from((word << 8).cast_signed() >> 8) * 4 + i64::from(AHEAD)
        }
        elf::R_ARM_MOVW_ABS_NC
        | elf::R_ARM_MOVT_ABS
        | elf::R_ARM_MOVW_PREL_NC
        | elf::R_ARM_MOVT_PREL => {
            let immediate = word >> 4 & 0xf000 | word & 0xfff;
            i64::from((immediate << 16).cast_signed() >> 16)
        }
        _ => i64::from(word.cast_signed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As GNU as encodes them.
    #[test]
    fn addends_are_read_from_instructions() {
        for (r_type, word, expected) in [
            (elf::R_ARM_CALL, 0xebff_fffe, 0),
            (elf::R_ARM_JUMP24, 0xeaff_ffff, 4),
            (elf::R_ARM_CALL, 0xebff_fffd, -4),
            (elf::R_ARM_MOVW_ABS_NC, 0xe300_3010, 0x10),
            (elf::R_ARM_MOVT_ABS, 0xe34f_3ffc, -4),
            (elf::R_ARM_ABS32, 0x24, 0x24),
            (elf::R_ARM_REL32, 0xffff_fff8, -8),
        ] {
            assert_eq!(addend(r_type, word), expected, "{r_type:?} {word:#x}");
        }
    }
}
