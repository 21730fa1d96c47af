// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether a mutant still behaves like the good payload.
//!
//! Applying a payload runs its code, which may do anything, even stop the hypervisor.
//! So a mutant is applied only if its sections in memory have the contents and
//! relocations of the good payload: code, with its alternatives and exception table,
//! data, hooks, and the locations and targets of jumps in the records. It may differ
//! in everything else: notes, bug frames (good code does not raise them), symbols,
//! flags and versions of records, file offsets. Any harm it then does comes from what
//! the hypervisor trusts. Mutants are compared according to the ELF specification,
//! with a reader that the engine does not use.

use object::read::File;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use object::{RelocationFlags, RelocationTarget, SectionFlags, SectionIndex, elf};

/// Name prefixes of sections that good code does not use.
const UNUSED: [&str; 5] = [
    ".bug_frames.",
    ".livepatch.depends",
    ".livepatch.xen_depends",
    ".modinfo",
    ".note.",
];
const RECORDS: &str = ".livepatch.funcs";
/// Size of a record, and of its name, addresses and sizes, in files of 64 bits and of 32;
/// the fields after these do not affect the location or target of a jump.
const RECORD: [usize; 2] = [104, 92];
const JUMP: [usize; 2] = [32, 20];

/// A section that is in memory while the payload is applied.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    name: String,
    flags: u64,
    size: u64,
    data: Vec<u8>,
    /// Offset, type, target and addend.
    relocations: Vec<(u64, u32, String, i64)>,
}

/// Whether both files behave the same when applied.
pub(crate) fn same(good: &[u8], mutant: &[u8]) -> bool {
    match (parts(good), parts(mutant)) {
        (Ok(good), Ok(mutant)) => good == mutant,
        _ => false,
    }
}

fn parts(data: &[u8]) -> object::read::Result<Vec<Part>> {
    let file = File::parse(data)?;
    let narrow = usize::from(!file.is_64());
    let mut parts = Vec::new();
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else {
            continue;
        };
        let name = section.name()?;
        let unused = UNUSED.iter().any(|begin| name.starts_with(begin));
        if sh_flags.0 & elf::SHF_ALLOC.0 == 0 || unused || section.size() == 0 {
            continue;
        }
        let mut data = section.data()?.to_vec();
        if name == RECORDS {
            data.chunks_mut(RECORD[narrow])
                .filter_map(|record| record.get_mut(JUMP[narrow]..))
                .for_each(|rest| rest.fill(0));
        }
        let mut relocations = Vec::new();
        for (offset, relocation) in section.relocations() {
            let RelocationFlags::Elf { r_type } = relocation.flags() else {
                continue;
            };
            let target = target(&file, relocation.target())?;
            relocations.push((offset, r_type.0, target, relocation.addend()));
        }
        parts.push(Part {
            name: name.to_owned(),
            flags: sh_flags.0 & (elf::SHF_WRITE.0 | elf::SHF_EXECINSTR.0),
            size: section.size(),
            data,
            relocations,
        });
    }
    parts.sort();
    Ok(parts)
}

/// The target of a relocation: a name, or a section and an offset.
fn target(file: &File<'_>, target: RelocationTarget) -> object::read::Result<String> {
    let RelocationTarget::Symbol(index) = target else {
        return Ok("nothing".to_owned());
    };
    let symbol = file.symbol_by_index(index)?;
    let section: Option<SectionIndex> = symbol.section_index();
    Ok(match section {
        Some(section) => {
            let section = file.section_by_index(section)?;
            format!("{}+{:#x}", section.name()?, symbol.address())
        }
        None => format!("{} {:#x}", symbol.name()?, symbol.address()),
    })
}
