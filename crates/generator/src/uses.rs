// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds references in the linked hypervisor, which the affected objects alone do not
//! show.

use crate::arch::Arch;
use std::ops::Range;
use xsplice_xen_image::Image;

/// A reference to a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Use {
    /// The address of the reference.
    pub(crate) place: u64,
    /// The name of the symbol that contains it.
    pub(crate) user: String,
    /// Whether it only reads or calls.
    pub(crate) only_reads: bool,
}

/// All references into `target`: instructions with its address, and pointers in data.
pub(crate) fn uses(arch: &dyn Arch, image: &Image, target: &Range<u64>) -> Vec<Use> {
    let mut found = Vec::new();
    let mut add = |place, only_reads| {
        let user = image
            .symbol_before(place)
            .map_or_else(String::new, |symbol| symbol.name.clone());
        found.push(Use {
            place,
            user,
            only_reads,
        });
    };
    for (address, code) in image.code() {
        for (place, only_reads) in arch.uses(address, code, target) {
            add(place, only_reads);
        }
    }
    let width = image.machine().width();
    let size = width.bytes();
    for (address, data) in image.data() {
        // A section may start between two words.
        let skip = usize::try_from(address.wrapping_neg() % size as u64).unwrap_or(0);
        let words = data.get(skip..).unwrap_or_default().chunks_exact(size);
        for (word, place) in words.zip((address + skip as u64..).step_by(size)) {
            if width.read(word).is_some_and(|word| target.contains(&word)) {
                add(place, false);
            }
        }
    }
    found
}
