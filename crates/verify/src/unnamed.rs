// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the linker put sections without symbols.
//!
//! Compilers emit constants that only have a section, and our core's object has lost the
//! names of its own symbols. Whatever refers to such a section has its address in the
//! linked hypervisor.

use crate::arch::{self, Arch, Part, Shape};
use crate::image::Image;
use object::read::elf::{ElfFile64, SectionHeader as _};
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, Relocation, RelocationFlags,
    RelocationTarget, SectionIndex, elf,
};
use std::collections::HashMap;

/// The addresses of sections without symbols, from those of the others.
pub(crate) fn find(
    elf: &ElfFile64<Endianness>,
    image: &Image,
    named: &HashMap<SectionIndex, u64>,
) -> HashMap<SectionIndex, u64> {
    let mut found = HashMap::new();
    let mut queue: Vec<(SectionIndex, u64)> = named.iter().map(|(&at, &base)| (at, base)).collect();
    while let Some((section, base)) = queue.pop() {
        let Ok(section) = elf.section_by_index(section) else {
            continue;
        };
        for (target, start) in starts(elf, image, &section, base) {
            if !named.contains_key(&target) && !found.contains_key(&target) {
                found.insert(target, start);
                queue.push((target, start));
            }
        }
    }
    found
}

/// The sections that `section`, which is at `base`, refers to as a whole, and where the
/// linked hypervisor has them.
fn starts(
    elf: &ElfFile64<Endianness>,
    image: &Image,
    section: &object::read::elf::ElfSection64<Endianness>,
    base: u64,
) -> Vec<(SectionIndex, u64)> {
    let mut starts = Vec::new();
    // The halves of an address, by what both are relative to.
    let mut halves: HashMap<(SectionIndex, u64), [Option<u64>; 2]> = HashMap::new();
    for (offset, relocation) in section.relocations() {
        let target = target(elf, image.arch, &relocation);
        let Some((target, distance, shape)) = target else {
            continue;
        };
        let Some(value) = value(image, base.wrapping_add(offset), shape) else {
            continue;
        };
        let address = match shape.part {
            Part::Bytes | Part::Word => Some(value),
            Part::Computed(_) | Part::Distance(_) => None,
            Part::Upper | Part::Rest => {
                let known = halves.entry((target, distance)).or_default();
                known[usize::from(shape.part == Part::Rest)] = Some(value);
                known[0].zip(known[1]).map(|(page, rest)| page | rest)
            }
        };
        starts.extend(address.map(|address| (target, address.wrapping_sub(distance))));
    }
    starts
}

/// The section that `relocation` is relative to, if the linker moves it as a whole, and the
/// distance from its start.
fn target(
    elf: &ElfFile64<Endianness>,
    arch: &dyn Arch,
    relocation: &Relocation,
) -> Option<(SectionIndex, u64, Shape)> {
    let RelocationTarget::Symbol(index) = relocation.target() else {
        return None;
    };
    let RelocationFlags::Elf { r_type } = relocation.flags() else {
        return None;
    };
    let symbol = elf.symbol_by_index(index).ok()?;
    let section = symbol.section_index()?;
    let header = elf.section_by_index(section).ok()?.elf_section_header();
    let flags = header.sh_flags(elf.endian());
    if flags.contains(elf::SHF_MERGE) || !flags.contains(elf::SHF_ALLOC) {
        return None;
    }
    let distance = symbol.address().wrapping_add_signed(relocation.addend());
    Some((section, distance, arch.shape(r_type)?))
}

/// What the field at `at` has of an address.
fn value(image: &Image, at: u64, shape: Shape) -> Option<u64> {
    if shape.part != Part::Bytes {
        return arch::part(image, at, shape.part);
    }
    let bytes = image.bytes(at, shape.size.into())?;
    let value = crate::prove::number(&bytes)?;
    match (shape.relative, shape.size) {
        (true, _) => Some(at.wrapping_add_signed(value)),
        (false, size) => {
            let whole = usize::from(size) == image.width().bytes();
            whole.then_some(value.cast_unsigned())
        }
    }
}
