// SPDX-License-Identifier: MIT OR Apache-2.0
//! Inspects a payload file before the upload.

use crate::code::Code;
use crate::output::shown;
use anyhow::{Context, bail};
use object::read::elf::{FileHeader, SectionHeader};
use object::{Endianness, FileKind, elf};
use std::path::Path;
use xsplice_abi::machine::Machine;
use xsplice_abi::note::{hex, parse_build_id};
use xsplice_abi::payload::section;
use xsplice_system::file::{LARGEST_PAYLOAD, read_up_to};

/// Name prefixes of writable sections without variables.
const NO_VARIABLES: [&[u8]; 2] = [b".livepatch.", b".data.rel.ro"];

/// What a payload says it is for.
pub(super) struct Identity {
    /// The hypervisor's machine.
    pub(super) machine: Machine,
    /// Build-id of the hypervisor that it was built for.
    pub(super) hypervisor: String,
    /// Build-id of what it depends on.
    pub(super) depends: String,
}

/// Reads the payload at `path`.
pub(super) fn read(path: &Path) -> anyhow::Result<(Vec<u8>, Identity)> {
    let data = read_up_to(path, LARGEST_PAYLOAD).with_context(|| shown(path))?;
    let identity = identify(&data).with_context(|| shown(path))?;
    Ok((data, identity))
}

/// Whether the payload has variables. Sections that only the hypervisor writes do not
/// count: lists for the hypervisor, and constants with addresses, which compilers put
/// into writable sections.
pub(super) fn has_variables(data: &[u8]) -> anyhow::Result<bool> {
    match FileKind::parse(data)? {
        FileKind::Elf32 => variables::<elf::FileHeader32<Endianness>>(data),
        _ => variables::<elf::FileHeader64<Endianness>>(data),
    }
}

fn variables<H: FileHeader<Endian = Endianness>>(data: &[u8]) -> anyhow::Result<bool> {
    let header = H::parse(data)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, data)?;
    let writable = elf::SHF_ALLOC.0 | elf::SHF_WRITE.0;
    Ok(sections.iter().any(|entry| {
        let flags = entry.sh_flags(endian).0;
        let name = sections.section_name(endian, entry).unwrap_or_default();
        flags & writable == writable
            && entry.sh_size(endian).into() != 0
            && !NO_VARIABLES.iter().any(|start| name.starts_with(start))
    }))
}

/// Reads what the payload says of itself.
pub(super) fn identify(data: &[u8]) -> anyhow::Result<Identity> {
    identify_any(data).map_err(|error| Code::NotAPayload.error(format!("{error:#}")))
}

fn identify_any(data: &[u8]) -> anyhow::Result<Identity> {
    if data.len() < 4 || data[..4] != elf::ELFMAG {
        bail!("not an ELF file, so not a payload");
    }
    match FileKind::parse(data) {
        Ok(FileKind::Elf32) => identify_elf::<elf::FileHeader32<Endianness>>(data),
        _ => identify_elf::<elf::FileHeader64<Endianness>>(data),
    }
}

fn identify_elf<H: FileHeader<Endian = Endianness>>(data: &[u8]) -> anyhow::Result<Identity> {
    let header = H::parse(data).context("the ELF header is damaged or truncated")?;
    let endian = header.endian().context("the ELF header is damaged")?;
    let number = header.e_machine(endian).0;
    let machine = Machine::from_elf(number).with_context(|| {
        format!("it is for ELF machine number {number}, which xsplice does not know")
    })?;
    if header.e_type(endian) != elf::ET_REL {
        bail!("it is an ELF file, but not a relocatable one, as payloads are");
    }
    let sections = header
        .sections(endian, data)
        .context("the section table extends past the end of the file: is the file truncated?")?;
    for section in sections.iter() {
        section
            .data(endian, data)
            .context("a section extends past the end of the file: is the file truncated?")?;
    }
    let id = |name: &str| -> anyhow::Result<String> {
        let (_, section) = sections
            .section_by_name(endian, name.as_bytes())
            .with_context(|| {
                format!("it has no section {name}: not a payload, or a damaged one")
            })?;
        let note = section.data(endian, data)?;
        let id = parse_build_id(note)
            .with_context(|| format!("the section {name} holds no build-id"))?;
        Ok(hex(id))
    };
    Ok(Identity {
        machine,
        hypervisor: id(section::XEN_DEPENDS)?,
        depends: id(section::DEPENDS)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::write::Object;
    use object::{Architecture, BinaryFormat, SectionFlags, SectionKind};

    /// A payload with one writable section of this name.
    fn with_section(name: &str) -> Vec<u8> {
        let mut payload = Object::new(
            BinaryFormat::Elf,
            Architecture::X86_64,
            object::Endianness::Little,
        );
        let section = payload.add_section(Vec::new(), name.into(), SectionKind::Data);
        payload.append_section_data(section, &[0; 8], 8);
        payload.section_mut(section).flags = SectionFlags::Elf {
            sh_type: elf::SHT_PROGBITS,
            sh_flags: elf::SHF_ALLOC | elf::SHF_WRITE,
        };
        payload.write().expect("an object")
    }

    #[test]
    fn data_that_only_the_hypervisor_writes_is_not_a_variable() {
        for (name, variables) in [
            (".livepatch.funcs", false),
            (".livepatch.hooks.load", false),
            (".data.rel.ro", false),
            (".data.rel.ro.local.ops", false),
            (".data.rel.local.count", true),
            (".data", true),
            (".data.read_mostly", true),
            (".mine", true),
        ] {
            let found = has_variables(&with_section(name)).expect("a payload");
            assert_eq!(found, variables, "{name}");
        }
    }
}
