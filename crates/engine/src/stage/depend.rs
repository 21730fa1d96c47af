// SPDX-License-Identifier: MIT OR Apache-2.0

//! Is the payload for this hypervisor, and for what is loaded on it?

use super::{File, Loader, Parsed};
use crate::Host;
use crate::elf::{Elf, Section};
use crate::format::{BUG_FRAMES, HOOKS, UNIQUE};
use crate::problem::{Problem, Problems, Refusal, bytes, same};
use alloc::boxed::Box;
use xsplice_abi::note::parse_build_id;
use xsplice_abi::payload::section;

/// A payload that was made for this hypervisor.
#[derive(Debug)]
pub struct DependencyChecked<'a>(pub(super) Box<File<'a>>);

impl<'a> Parsed<'a> {
    /// Compares the payload's notes with the hypervisor and with what is loaded.
    /// What it goes on top of counts only when it is applied.
    ///
    /// # Errors
    /// [`Refusal`] when the payload is for another hypervisor: whatever else
    /// could be found would be noise.
    #[inline(never)]
    pub fn check_dependencies(
        self,
        loader: &Loader<'_, impl Host>,
    ) -> Result<DependencyChecked<'a>, Refusal> {
        let mut file = self.0;
        let File { findings, elf, .. } = &mut *file;
        let problems = &mut findings.problems;
        let xen = note(elf, section::XEN_DEPENDS, problems);
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
        let depends = note(elf, section::DEPENDS, problems);
        let build_id = note(elf, section::BUILD_ID, problems).unwrap_or(b"");
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

/// The build-id in the note section called `name`, which every payload has.
fn note<'a>(elf: &Elf<'a>, name: &'static str, problems: &mut Problems) -> Option<&'a [u8]> {
    let Some(section) = elf.section(name) else {
        problems.push(Problem::Missing { name });
        return None;
    };
    if section.size == 0 {
        problems.push_empty(section);
        return None;
    }
    let id = parse_build_id(section.data);
    if id.is_none() {
        problems.push(Problem::Note {
            section: section.id(),
        });
    }
    id
}

/// Sections that must be unique; where there are two, Xen silently takes the first.
fn duplicates(elf: &Elf<'_>, problems: &mut Problems) {
    let hooks = HOOKS.iter().map(|(name, _)| name);
    for name in UNIQUE.iter().chain(&BUG_FRAMES).chain(hooks) {
        let named = |section: &&Section<'_>| section.name == name.as_bytes();
        let mut sections = elf.sections.iter().filter(named);
        let Some(first) = sections.next() else {
            continue;
        };
        for second in sections {
            problems.push(Problem::Duplicate {
                first: first.index,
                second: second.id(),
            });
        }
    }
}
