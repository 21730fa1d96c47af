// SPDX-License-Identifier: MIT OR Apache-2.0

//! Is the payload for this hypervisor, and for what is loaded on it?

use super::{Authenticated, File, Loader};
use crate::Host;
use crate::elf::Elf;
use crate::format::Known;
use crate::problem::{FileFault, Problem, Problems, Refusal, SectionFault, bytes, same};
use alloc::boxed::Box;
use xsplice_abi::note::parse_build_id;

/// A payload that was made for this hypervisor.
#[derive(Debug)]
pub struct DependencyChecked<'a>(pub(super) Box<File<'a>>);

impl<'a> Authenticated<'a> {
    /// Compares the payload's notes with the hypervisor and the loaded payloads. Its
    /// dependency is only checked on apply.
    ///
    /// # Errors
    /// [`Refusal`] if the payload is for another hypervisor: any other problems would
    /// be noise.
    #[inline(never)]
    pub fn check_dependencies(
        self,
        loader: &Loader<'_, impl Host>,
    ) -> Result<DependencyChecked<'a>, Refusal> {
        let mut file = self.0;
        let File { findings, elf, .. } = &mut *file;
        let problems = &mut findings.problems;
        let xen = note(elf, Known::XenDepends, problems);
        let own_hypervisor = loader.host.build_id();
        if let Some(wants) = xen
            && wants != own_hypervisor
        {
            problems.push(Problem::OtherHypervisor {
                wants: bytes(wants),
                has: bytes(own_hypervisor),
            });
            return Err(file.findings.refuse());
        }
        let depends = note(elf, Known::Depends, problems);
        let build_id = note(elf, Known::BuildId, problems).unwrap_or(b"");
        duplicates(elf, problems);

        if let Some(loaded) = loader.stack.with_build_id(build_id) {
            problems.push(Problem::BuildIdLoaded {
                id: bytes(build_id),
                as_name: same(&loaded.name),
            });
        }
        (file.build_id, file.depends) = (build_id, depends.unwrap_or(b""));
        Ok(DependencyChecked(file))
    }
}

/// The build-id in this note section, which every payload has.
fn note<'a>(elf: &Elf<'a>, known: Known, problems: &mut Problems) -> Option<&'a [u8]> {
    let Some(section) = elf.section(known) else {
        problems.file(FileFault::Missing { name: known.name() });
        return None;
    };
    if section.size == 0 {
        problems.section(section, SectionFault::Empty);
        return None;
    }
    let id = parse_build_id(section.data);
    if id.is_none() {
        problems.section(section, SectionFault::Note);
    }
    id
}

/// Sections that must be unique; of two, Xen silently takes the first. Duplicate
/// signatures are checked elsewhere.
fn duplicates(elf: &Elf<'_>, problems: &mut Problems) {
    for second in &elf.sections {
        let known = second.known.filter(|known| !known.is_repeatable());
        let first = known.and_then(|known| elf.section(known));
        if let Some(first) = first
            && first.index != second.index
        {
            let first = first.index;
            problems.section(second, SectionFault::Duplicate { first });
        }
    }
}
