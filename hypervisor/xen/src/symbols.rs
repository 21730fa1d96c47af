// SPDX-License-Identifier: MIT OR Apache-2.0

//! The hypervisor's symbols, gone through once.
//!
//! Xen keeps their names compressed: to find what is at an address, it expands
//! a hundred of them, and a payload asks for every function and every new symbol.

use crate::ffi;
use alloc::vec::Vec;
use core::ops::Range;
use xsplice_abi::deny;
use xsplice_engine::hash;
use xsplice_memory::{self as memory, NoMemory};

/// What is asked for of the hypervisor's symbols.
#[derive(Debug)]
pub(crate) struct Symbols {
    /// Where the hypervisor's code is.
    text: Range<u64>,
    /// Offsets in it at which a function begins, in order.
    functions: Vec<u32>,
    /// Of those the ones that must not be patched, in order, and why.
    denied: Vec<(u32, &'static str)>,
    /// Hashes of all names, each at the first free place from the one that it
    /// names. At least half of the places are free.
    names: Vec<u32>,
}

/// A place that is free; no name has this hash.
const FREE: u32 = 0;

impl Symbols {
    /// Goes through all symbols.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub(crate) fn new() -> Result<Self, NoMemory> {
        let text = ffi::image().text.into();
        let (mut functions, mut denied, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
        let mut buf = [0; ffi::NAME_SIZE];
        let mut index = 0;
        while let Some((addr, name)) = ffi::next_symbol(&mut index, &mut buf) {
            memory::push(&mut hashes, short_hash(name))?;
            let Some(offset) = offset(&text, addr) else {
                continue;
            };
            if functions.last() != Some(&offset) {
                memory::push(&mut functions, offset)?;
            }
            if let Some(reason) = str::from_utf8(name).ok().and_then(deny::reason) {
                memory::push(&mut denied, (offset, reason))?;
            }
        }
        let mut names = memory::filled(FREE, (2 * hashes.len()).next_power_of_two())?;
        for hash in hashes {
            if let Some(held) = place(&names, hash).and_then(|place| names.get_mut(place)) {
                *held = hash;
            }
        }
        Ok(Self {
            text,
            functions,
            denied,
            names,
        })
    }

    /// Whether any symbol may have this name; false is certain.
    pub(crate) fn may_have(&self, name: &[u8]) -> bool {
        let hash = short_hash(name);
        let held = place(&self.names, hash).and_then(|place| self.names.get(place));
        held == Some(&hash)
    }

    /// Where the function with `addr` begins.
    pub(crate) fn function_at(&self, addr: u64) -> Option<u64> {
        Some(self.text.start + u64::from(self.start(addr)?))
    }

    /// Why the function with `addr` must not be patched, if so.
    pub(crate) fn denied(&self, addr: u64) -> Option<&'static str> {
        let start = self.start(addr)?;
        let found = self
            .denied
            .binary_search_by_key(&start, |(start, _)| *start);
        Some(self.denied.get(found.ok()?)?.1)
    }

    /// The offset at which the function with `addr` begins.
    fn start(&self, addr: u64) -> Option<u32> {
        let offset = offset(&self.text, addr)?;
        let behind = self.functions.partition_point(|start| *start <= offset);
        self.functions.get(behind.checked_sub(1)?).copied()
    }
}

fn offset(text: &Range<u64>, addr: u64) -> Option<u32> {
    let offset = addr.checked_sub(text.start)?;
    u32::try_from(offset).ok().filter(|_| text.contains(&addr))
}

/// Where a hash is, or would be.
fn place(names: &[u32], hash: u32) -> Option<usize> {
    let mask = names.len().checked_sub(1)?;
    let first = hash as usize & mask;
    (0..names.len())
        .map(|at| (first + at) & mask)
        .find(|place| matches!(names.get(*place), Some(held) if [FREE, hash].contains(held)))
}

/// Half of the hash of a name, without the one value that is [`FREE`].
fn short_hash(name: &[u8]) -> u32 {
    let hash = hash(name);
    ((hash >> 32) as u32 ^ hash as u32).max(FREE + 1)
}
