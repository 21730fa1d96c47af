// SPDX-License-Identifier: MIT OR Apache-2.0
//! References from the hypervisor to a function.

use crate::arch::Arch;
use crate::place;
use serde::Serialize;
use std::collections::HashMap;
use xsplice_xen_image::Image;

/// A reference to a function.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Use {
    /// The function or table that contains it.
    pub(crate) user: String,
    /// Its address.
    #[serde(skip)]
    pub(crate) address: u64,
    /// Offset there in bytes.
    pub(crate) offset: u64,
    /// Its kind.
    pub(crate) how: How,
}

/// The kind of a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum How {
    /// A call.
    Call,
    /// A jump, as in a tail call.
    Jump,
    /// Code that takes the address.
    Address,
    /// Data that holds the address.
    Pointer,
}

/// For each of `functions`, given by address and size, the references from outside of
/// it, in order. Code that is freed after boot is ignored.
///
/// Calls through a register are not found, but the instruction that loads the
/// register is.
pub(crate) fn uses(arch: &dyn Arch, image: &Image, functions: &[(u64, u64)]) -> Vec<Vec<Use>> {
    let wanted: HashMap<u64, usize> = functions
        .iter()
        .enumerate()
        .map(|(index, (address, _))| (*address, index))
        .collect();
    let mut uses = vec![Vec::new(); functions.len()];
    let mut add = |target: u64, place: u64, how: How| {
        let Some(&index) = wanted.get(&target) else {
            return;
        };
        let (start, size) = functions[index];
        let within = place >= start && place - start < size;
        if within || image.is_init(place) {
            return;
        }
        if let Some((user, offset)) = place::symbol(image, place).or(place::section(image, place)) {
            uses[index].push(Use {
                user: user.into_owned(),
                address: place - offset,
                offset,
                how,
            });
        }
    };
    for (start, code) in image.code() {
        for reference in arch.references(code, start) {
            add(reference.target, reference.place, reference.how);
        }
    }
    let width = image.machine().width();
    for (start, data) in image.data() {
        let step = width.bytes();
        for (pointer, place) in data.chunks_exact(step).zip((start..).step_by(step)) {
            if let Some(target) = width.read(pointer) {
                add(target, place, How::Pointer);
            }
        }
    }
    uses.iter_mut().for_each(|uses| uses.sort());
    uses
}
