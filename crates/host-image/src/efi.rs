// SPDX-License-Identifier: MIT OR Apache-2.0

//! Creates an image with symbols for a `xen.efi`.
//!
//! `xen.efi` is linked from the same objects as `xen-syms`, as a PE file (Microsoft's
//! "PE Format") with a COFF symbol table: code has the same addresses in both, but
//! data addresses and build-ids differ. Its symbols have names but no sizes;
//! `xen-syms` has those.

use object::elf::{self, Sym64};
use object::pod::bytes_of_slice;
use object::read::coff::{Symbol as _, SymbolTable};
use object::read::elf::{ElfFile64, Sym as _};
use object::read::pe::{ImageNtHeaders as _, PeFile64, PeSection64};
use object::write::elf::{FileHeader, SectionHeader, Writer};
use object::{LittleEndian as LE, Object as _, ObjectSection as _, SymbolIndex, pe};
use std::collections::HashMap;
use thiserror::Error;
use xsplice_abi::note::build_id_note;

/// Why the image of a `xen.efi` cannot be created.
#[derive(Debug, Error)]
pub enum EfiError {
    /// Not the required ELF file.
    #[error("this is not a usable xen-syms")]
    Symbols(#[source] object::Error),
    /// Not the required PE file.
    #[error("this is not a usable xen.efi")]
    Program(#[source] object::Error),
    /// No debug directory with an identity.
    #[error("xen.efi has no build-id, so payloads cannot be matched to it")]
    NoBuildId,
    /// No symbol table.
    #[error("xen.efi has no symbols; pass the unstripped file")]
    NoSymbols,
    /// The two files have a symbol a different number of times.
    #[error(
        "{name} occurs {ours} times in xen-syms and {theirs} times in xen.efi: \
         pass files of one build"
    )]
    Another {
        /// The symbol.
        name: String,
        /// Number of occurrences in `xen-syms`.
        ours: usize,
        /// Number of occurrences in `xen.efi`.
        theirs: usize,
    },
    /// Too large for an ELF file.
    #[error("the image cannot be written")]
    Write(#[source] object::write::Error),
}

/// Bytes for a file name in a COFF symbol; the linker truncates some names to this.
const FILE_NAME: usize = 14;

/// The key that matches symbols of the two files: the source file for local symbols,
/// as far as both have its name, and the name. Symbols with equal keys are in the
/// same order.
type Key = (Option<Vec<u8>>, Vec<u8>);

/// Section and address of a symbol; `None` for an absolute value.
type Place = Option<(u16, u64)>;

struct Section<'a> {
    name: &'a [u8],
    header: SectionHeader,
    data: &'a [u8],
}

impl<'a> Section<'a> {
    /// A section that is not loaded.
    fn new(name: &'a [u8], sh_type: elf::SectionType, data: &'a [u8]) -> Self {
        Self {
            name,
            header: SectionHeader {
                sh_type,
                sh_addralign: 1,
                ..SectionHeader::default()
            },
            data,
        }
    }

    /// A section of `xen.efi`; it is loaded if symbols are in it.
    fn of(section: &PeSection64<'a, '_>, used: bool) -> object::Result<Self> {
        let raw = section.pe_section();
        let has = |flag| raw.characteristics.get(LE).contains(flag);
        // Skips the firmware's relocations and the space at the end.
        let loaded = used && !has(pe::IMAGE_SCN_MEM_DISCARDABLE);
        let flags = [
            (elf::SHF_ALLOC, loaded),
            (elf::SHF_WRITE, has(pe::IMAGE_SCN_MEM_WRITE)),
            (elf::SHF_EXECINSTR, has(pe::IMAGE_SCN_MEM_EXECUTE)),
        ];
        let flags = flags.iter().filter(|(_, set)| *set);
        let flags = flags.fold(0, |flags, (flag, _)| flags | flag.0);
        let sh_type = match has(pe::IMAGE_SCN_CNT_UNINITIALIZED_DATA) {
            true => elf::SHT_NOBITS,
            false => elf::SHT_PROGBITS,
        };
        let mut made = Self::new(section.name_bytes()?, sh_type, section.data()?);
        made.header.sh_flags = elf::SectionFlags(flags);
        made.header.sh_addr = section.address();
        made.header.sh_size = section.size();
        Ok(made)
    }

    /// The symbol table; the names are in the section with index `names`.
    fn symbols(symbols: &'a [Sym64<LE>], names: u32) -> Self {
        let mut table = Self::new(b".symtab", elf::SHT_SYMTAB, bytes_of_slice(symbols));
        table.header.sh_entsize = size_of::<Sym64<LE>>() as u64;
        let locals = symbols
            .iter()
            .take_while(|symbol| symbol.st_bind() == elf::STB_LOCAL);
        table.header.sh_info = u32::try_from(locals.count()).unwrap_or(u32::MAX);
        table.header.sh_link = names;
        table
    }
}

/// Creates an ELF file that is to `xen_efi` what `xen_syms` is to `xen.gz`.
///
/// # Errors
/// [`EfiError`] if the two are not of the same build, or incomplete.
pub fn efi_symbols(xen_syms: &[u8], xen_efi: &[u8]) -> Result<Vec<u8>, EfiError> {
    let efi = PeFile64::parse(xen_efi).map_err(EfiError::Program)?;
    let syms = ElfFile64::<LE>::parse(xen_syms).map_err(EfiError::Symbols)?;
    let identity = efi.pdb_info().map_err(EfiError::Program)?;
    let note = build_id_note(&identity.ok_or(EfiError::NoBuildId)?.guid());
    let symbols = moved(&syms, places(&efi, xen_efi).map_err(EfiError::Program)?)?;
    let part = |name| {
        let section = syms.section_by_name_bytes(name);
        section.map_or(Ok(&[][..]), |section| section.data())
    };
    let (names, comment) = (part(b".strtab"), part(b".comment"));

    let mut sections = Vec::new();
    for (index, section) in (1..).zip(efi.sections()) {
        let used = symbols
            .iter()
            .any(|symbol| symbol.st_shndx.get(LE).0 == index);
        sections.push(Section::of(&section, used).map_err(EfiError::Program)?);
    }
    let comment = comment.map_err(EfiError::Symbols)?;
    sections.push(Section::new(b".note.gnu.build-id", elf::SHT_NOTE, &note));
    sections.push(Section::new(b".comment", elf::SHT_PROGBITS, comment));
    // The names of the symbols are in the section after them.
    let names_index = u32::try_from(sections.len() + 2).unwrap_or(u32::MAX);
    sections.push(Section::symbols(&symbols, names_index));
    let names = names.map_err(EfiError::Symbols)?;
    sections.push(Section::new(b".strtab", elf::SHT_STRTAB, names));
    write(sections).map_err(EfiError::Write)
}

/// The addresses of the symbols of `efi`, in the order of its table.
fn places(efi: &PeFile64<'_>, data: &[u8]) -> object::Result<HashMap<Key, Vec<Place>>> {
    let table = efi.nt_headers().symbols(data)?;
    let mut places: HashMap<Key, Vec<Place>> = HashMap::new();
    let mut file = Vec::new();
    for (index, symbol) in table.iter() {
        let local = match symbol.storage_class() {
            pe::IMAGE_SYM_CLASS_FILE => {
                file = file_name(&table, index, symbol.number_of_aux_symbols())?;
                continue;
            }
            pe::IMAGE_SYM_CLASS_STATIC => Some(file.clone()),
            pe::IMAGE_SYM_CLASS_EXTERNAL => None,
            _ => continue,
        };
        let address = symbol.address(efi.relative_address_base(), &efi.section_table())?;
        let section = symbol
            .section()
            .and_then(|index| u16::try_from(index.0).ok());
        let name = symbol.name(table.strings())?.to_vec();
        let place = section.zip(address);
        places.entry((local, name)).or_default().push(place);
    }
    Ok(places)
}

/// The start of the name of the file whose symbols follow. It is after its symbol, or
/// in the string table.
fn file_name(table: &SymbolTable<'_>, index: SymbolIndex, more: u8) -> object::Result<Vec<u8>> {
    let mut name = table.aux_file_name(index, more)?;
    if name.is_empty() && more != 0 {
        let bytes: &[u8; 18] = table.get(index, 1)?;
        let at = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        name = table.strings().get(at).unwrap_or_default();
    }
    Ok(name.iter().copied().take(FILE_NAME).collect())
}

/// The symbol table of `syms` with the addresses of another file.
fn moved(
    syms: &ElfFile64<'_, LE>,
    mut places: HashMap<Key, Vec<Place>>,
) -> Result<Vec<Sym64<LE>>, EfiError> {
    let table = syms.elf_symbol_table();
    let mut symbols = table.symbols().to_vec();
    let mut same: HashMap<Key, Vec<usize>> = HashMap::new();
    let mut file = Vec::new();
    for (index, symbol) in symbols.iter().enumerate() {
        let name = symbol
            .name(LE, table.strings())
            .map_err(EfiError::Symbols)?;
        match symbol.st_type() {
            elf::STT_FILE => file = name.iter().copied().take(FILE_NAME).collect(),
            elf::STT_SECTION => {}
            _ if matches!(symbol.st_shndx(LE), elf::SHN_UNDEF | elf::SHN_ABS) => {}
            _ => {
                let local = symbol.st_bind() == elf::STB_LOCAL;
                let key = (local.then(|| file.clone()), name.to_vec());
                same.entry(key).or_default().push(index);
            }
        }
    }
    if places.is_empty() {
        return Err(EfiError::NoSymbols);
    }
    for (key, ours) in same {
        let Some(theirs) = places.remove(&key) else {
            // It describes the layout of the other file.
            for index in ours {
                symbols[index].st_shndx.set(LE, elf::SHN_UNDEF);
            }
            continue;
        };
        if ours.len() != theirs.len() {
            return Err(EfiError::Another {
                name: String::from_utf8_lossy(&key.1).into_owned(),
                ours: ours.len(),
                theirs: theirs.len(),
            });
        }
        for (index, place) in ours.into_iter().zip(theirs) {
            if let Some((section, address)) = place {
                symbols[index].st_value.set(LE, address);
                symbols[index].st_shndx.set(LE, elf::SymbolSection(section));
            }
        }
    }
    Ok(symbols)
}

fn write(mut sections: Vec<Section<'_>>) -> object::write::Result<Vec<u8>> {
    let (mut file, mut header) = (Vec::new(), Vec::new());
    let mut writer = Writer::new_single_phase(object::Endianness::Little, true, &mut file);
    writer.write_file_header(&FileHeader {
        e_type: elf::ET_EXEC,
        e_machine: elf::EM_X86_64,
        ..FileHeader::default()
    })?;
    let mut names = Vec::new();
    for section in &mut sections {
        names.push(writer.add_section_name(section.name));
        section.header.sh_offset = writer.write_align(8);
        writer.write(section.data);
        if section.header.sh_size == 0 {
            section.header.sh_size = section.data.len() as u64;
        }
    }
    writer.write_shstrtab()?;
    writer.write_null_section_header();
    for (section, name) in sections.iter().zip(names) {
        writer.write_section_header(&SectionHeader {
            sh_name: writer.section_name_offset(Some(name)),
            ..section.header.clone()
        });
    }
    writer.write_shstrtab_section_header();
    writer.write_file_header_to(&mut header)?;
    file[..header.len()].copy_from_slice(&header);
    Ok(file)
}
