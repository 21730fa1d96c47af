// SPDX-License-Identifier: MIT OR Apache-2.0
//! What ARM64 and ARM32 have in common.

use super::Unsupported;
use std::ops::Range;
use xsplice_abi::machine::Width;
use xsplice_abi::special::{Alternative, BugKind, Entry};
use xsplice_abi::trampoline::arm32;
use xsplice_objdiff::arch::{Does, Instruction};
use xsplice_xen_image::Image;

/// Why hooks cannot write to read-only data.
pub(super) const CONSTANTS: Unsupported =
    "on ARM, hooks cannot write to read-only data: give the new one a name of its own";

/// The references into `target` that single instructions make, as `Arch::uses` has them.
pub(super) fn uses(
    instructions: impl Iterator<Item = Instruction>,
    target: &Range<u64>,
) -> Vec<(u64, bool)> {
    let mut found = Vec::new();
    for instruction in instructions {
        match instruction.does {
            Does::Branch(to) | Does::Access(to) if target.contains(&to) => {
                found.push((instruction.start, true));
            }
            Does::Address(to) if target.contains(&to) => found.push((instruction.start, false)),
            _ => {}
        }
    }
    found
}

/// The addresses in `target` that assembly has between its instructions, as `Arch::uses`
/// has them. Instructions count too: this finds too many rather than too few.
pub(super) fn constants(
    at: u64,
    code: &[u8],
    target: &Range<u64>,
    width: Width,
) -> impl Iterator<Item = (u64, bool)> {
    let words = code.windows(width.bytes()).step_by(arm32::SIZE.into());
    let places = (at..).step_by(arm32::SIZE.into());
    let used = places.zip(words).filter(move |(_, word)| {
        let address = width.read(word);
        address.is_some_and(|address| target.contains(&address))
    });
    used.map(|(place, _)| (place, false))
}

/// Why the hypervisor would not take this entry of a table about code, if so.
pub(super) fn refuses_entry(entry: &Entry, hypervisor: &Image) -> Option<Unsupported> {
    match entry {
        // Xen up to 4.22 only accepts file names that are its own. A BUG or an ASSERT
        // stops it as it should, without the name. With our core, it accepts them.
        Entry::BugFrame {
            kind: BugKind::Warn,
            ..
        } if !hypervisor.has_our_core() => Some(
            "it has a WARN, and on ARM a hypervisor with Xen's own core stops at one whose \
             file name is in a payload",
        ),
        Entry::Alternative(alternative) => refuses_alternative(alternative),
        Entry::BugFrame { .. } | Entry::Exception(_) | Entry::CallSite(_) => None,
    }
}

fn refuses_alternative(entry: &Alternative) -> Option<Unsupported> {
    if entry.replacement_len == 0 && entry.original_len > 0 {
        return Some(
            "it has an alternative that a function writes at boot, which a payload cannot carry",
        );
    }
    (entry.replacement_len != entry.original_len).then_some(
        "it has an alternative with a replacement of another length, and the hypervisor stops \
         when it loads one",
    )
}
