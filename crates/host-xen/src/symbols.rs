// SPDX-License-Identifier: MIT OR Apache-2.0

//! An index of the hypervisor's symbols, built once.
//!
//! Xen keeps their names compressed: it expands a hundred of them for each address
//! lookup, and a payload needs a lookup for every function and every new symbol.

use crate::ffi;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ops::Range;
use xsplice_abi::deny;
use xsplice_abi::machine::Machine;
use xsplice_engine::hash;
use xsplice_fallible::{self as fallible, NoMemory};

/// The index.
#[derive(Debug)]
pub(crate) struct Symbols {
    /// The range of the hypervisor's code.
    text: Range<u64>,
    /// The starts of functions in it, sorted.
    functions: Vec<Function>,
    /// For each of its blocks, and for the end, the number of functions that start
    /// before it.
    blocks: Vec<u32>,
    /// Offsets of those that must not be patched, sorted, with the reason.
    denied: Vec<(u32, &'static str)>,
    /// The boundaries of [`deny::AREAS`]; zeros for those that it does not have.
    areas: [[u64; 2]; deny::AREAS.len()],
    /// The last result: several properties of it are needed in a row.
    last: Cell<Option<(u64, Function)>>,
    /// An open-addressing hash table of all names, at most half full.
    names: Vec<u32>,
}

/// The offset of a function, and in the lowest bit whether it must not be
/// patched.
#[derive(Clone, Copy, Debug)]
struct Function(u32);

impl Function {
    fn offset(self) -> u32 {
        self.0 >> 1
    }

    fn denied(self) -> bool {
        self.0 & 1 != 0
    }
}

/// Bits of an offset in a block: few functions start in one.
const BLOCK: u32 = 9;

/// A free slot; no name has this hash.
const FREE: u32 = 0;

impl Symbols {
    /// Indexes all symbols.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub(crate) fn new(image: &ffi::Image) -> Result<Self, NoMemory> {
        let text = image.text.into();
        let (mut functions, mut denied, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
        let mut blocks = Vec::new();
        let mut areas = [[0; 2]; deny::AREAS.len()];
        let mut buf = [0; ffi::NAME_SIZE];
        let mut index = 0;
        while let Some((addr, name)) = ffi::next_symbol(&mut index, &mut buf) {
            fallible::push(&mut hashes, short_hash(name))?;
            let Some(offset) = offset(&text, addr) else {
                continue;
            };
            let edges = deny::AREAS.iter().flat_map(|area| area.edges);
            for (edge, known) in areas.as_flattened_mut().iter_mut().zip(edges) {
                if name == known.as_bytes() {
                    *edge = addr;
                }
            }
            while blocks.len() <= block(offset) {
                fallible::push(&mut blocks, count(&functions))?;
            }
            if functions.last().map(|last: &Function| last.offset()) != Some(offset) {
                fallible::push(&mut functions, Function(offset << 1))?;
            }
            let name = str::from_utf8(name).ok();
            if let Some(reason) = name.and_then(|name| deny::reason(Machine::NATIVE, name)) {
                fallible::push(&mut denied, (offset, reason))?;
                if let Some(last) = functions.last_mut() {
                    last.0 |= 1;
                }
            }
        }
        let end = offset(&text, text.end - 1).map_or(0, block);
        while blocks.len() <= end + 1 {
            fallible::push(&mut blocks, count(&functions))?;
        }
        let mut names = fallible::filled(FREE, (2 * hashes.len()).next_power_of_two())?;
        for hash in hashes {
            if let Some(held) = place(&names, hash).and_then(|place| names.get_mut(place)) {
                *held = hash;
            }
        }
        Ok(Self {
            text,
            functions,
            blocks,
            denied,
            areas,
            last: Cell::new(None),
            names,
        })
    }

    /// Whether any symbol may have this name; false is definite.
    pub(crate) fn may_have(&self, name: &[u8]) -> bool {
        let hash = short_hash(name);
        let held = place(&self.names, hash).and_then(|place| self.names.get(place));
        held == Some(&hash)
    }

    /// The start of the function that contains `addr`.
    pub(crate) fn function_at(&self, addr: u64) -> Option<u64> {
        Some(self.text.start + u64::from(self.function(addr)?.offset()))
    }

    /// Why code in `range` must not be patched, if so.
    pub(crate) fn denied(&self, range: &Range<u64>) -> Option<&'static str> {
        for ([start, end], area) in self.areas.iter().zip(deny::AREAS) {
            if range.start < *end && *start < range.end {
                return Some(area.why);
            }
        }
        let begin = self.function(range.start)?;
        let last = self.function(range.end.saturating_sub(1)).unwrap_or(begin);
        // Usually the range is in a single function, which has a flag for it.
        if begin.offset() == last.offset() && !begin.denied() {
            return None;
        }
        let first = self
            .denied
            .partition_point(|(start, _)| *start < begin.offset());
        let (start, why) = self.denied.get(first)?;
        (*start <= last.offset()).then_some(*why)
    }

    /// The function that contains `addr`: the last one that starts at or before it.
    fn function(&self, addr: u64) -> Option<Function> {
        if let Some((last, found)) = self.last.get()
            && last == addr
        {
            return Some(found);
        }
        let found = self.find(addr)?;
        self.last.set(Some((addr, found)));
        Some(found)
    }

    fn find(&self, addr: u64) -> Option<Function> {
        let offset = offset(&self.text, addr)?;
        let begun = |block| self.blocks.get(block).map(|count: &u32| *count as usize);
        let (before, behind) = (begun(block(offset))?, begun(block(offset) + 1)?);
        // The function at the start of the block may start before it.
        let near = self.functions.get(before.saturating_sub(1)..behind)?;
        near.iter()
            .rev()
            .find(|near| near.offset() <= offset)
            .copied()
    }
}

fn block(offset: u32) -> usize {
    (offset >> BLOCK) as usize
}

fn count(functions: &[Function]) -> u32 {
    u32::try_from(functions.len()).unwrap_or(u32::MAX)
}

fn offset(text: &Range<u64>, addr: u64) -> Option<u32> {
    let offset = addr.checked_sub(text.start)?;
    u32::try_from(offset).ok().filter(|_| text.contains(&addr))
}

/// The slot of a hash, or where it would be.
fn place(names: &[u32], hash: u32) -> Option<usize> {
    let mask = names.len().checked_sub(1)?;
    let first = hash as usize & mask;
    (0..names.len())
        .map(|at| (first + at) & mask)
        .find(|place| matches!(names.get(*place), Some(held) if [FREE, hash].contains(held)))
}

/// Half of the hash of a name, excluding the value [`FREE`].
fn short_hash(name: &[u8]) -> u32 {
    let hash = hash(name);
    let [a, b, c, d, ..] = (hash ^ hash >> 32).to_le_bytes();
    u32::from_le_bytes([a, b, c, d]).max(FREE + 1)
}
