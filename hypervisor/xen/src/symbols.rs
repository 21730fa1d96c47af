// SPDX-License-Identifier: MIT OR Apache-2.0

//! The hypervisor's symbols, gone through once.
//!
//! Xen keeps their names compressed: to find what is at an address, it expands
//! a hundred of them, and a payload asks for every function and every new symbol.

use crate::ffi;
use alloc::vec::Vec;
use core::ops::Range;
use xsplice_abi::deny;
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
            memory::push(&mut hashes, hash(name))?;
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
        let places = (2 * hashes.len()).next_power_of_two();
        let mut names = memory::filled(FREE, places)?;
        for hash in hashes {
            let places = probe(places, hash);
            for place in places {
                match names.get_mut(place) {
                    Some(held) if *held == FREE => *held = hash,
                    Some(held) if *held != hash => continue,
                    _ => {}
                }
                break;
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
        let hash = hash(name);
        let held = probe(self.names.len(), hash).map(|place| self.names.get(place));
        let mut taken = held.map_while(|held| held.filter(|held| **held != FREE));
        taken.any(|held| *held == hash)
    }

    /// Where the function with `addr` begins.
    pub(crate) fn function_at(&self, addr: u64) -> Option<u64> {
        let offset = offset(&self.text, addr)?;
        let behind = self.functions.partition_point(|start| *start <= offset);
        let start = self.functions.get(behind.checked_sub(1)?)?;
        Some(self.text.start + u64::from(*start))
    }

    /// Why the function with `addr` must not be patched, if so.
    pub(crate) fn denied(&self, addr: u64) -> Option<&'static str> {
        let start = offset(&self.text, self.function_at(addr)?)?;
        let found = self
            .denied
            .binary_search_by_key(&start, |(start, _)| *start);
        Some(self.denied.get(found.ok()?)?.1)
    }
}

fn offset(text: &Range<u64>, addr: u64) -> Option<u32> {
    let offset = addr.checked_sub(text.start)?;
    u32::try_from(offset).ok().filter(|_| text.contains(&addr))
}

/// The places that a hash may be at, in the order in which they are tried.
fn probe(places: usize, hash: u32) -> impl Iterator<Item = usize> {
    let mask = places - 1;
    let first = hash as usize & mask;
    (0..places).map(move |at| (first + at) & mask)
}

/// FNV-1a (draft-eastlake-fnv, section 2), without the one value that is
/// [`FREE`].
fn hash(name: &[u8]) -> u32 {
    let hash = name.iter().fold(0x811c_9dc5, |hash: u32, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    hash.max(FREE + 1)
}
