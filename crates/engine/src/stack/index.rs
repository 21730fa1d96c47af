// SPDX-License-Identifier: MIT OR Apache-2.0

//! What payloads are found by: their names, their build-ids and their symbols.

use super::loaded::{Id, Loaded};
use crate::sort::sort;
use alloc::vec::Vec;
use xsplice_fallible::{self as fallible, NoMemory};

/// A lookup key for a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Name,
    BuildId,
    /// The new symbol of this index.
    Symbol(usize),
}

/// An index entry: a payload has a name, a build-id or a symbol.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) hash: u64,
    pub(super) owner: Id,
    pub(super) key: Key,
}

impl Loaded {
    pub(super) fn key(&self, key: Key) -> &[u8] {
        match key {
            Key::Name => self.name.as_bytes(),
            Key::BuildId => &self.build_id,
            Key::Symbol(index) => self.symbols.name(index),
        }
    }

    /// All its index entries.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, NoMemory> {
        let build_id = Some(Key::BuildId).filter(|_| !self.build_id.is_empty());
        let symbols = (0..self.symbols.list.len()).map(Key::Symbol);
        let mut entries = fallible::with_room(2 + symbols.len())?;
        for key in [Key::Name].into_iter().chain(build_id).chain(symbols) {
            let entry = Entry {
                hash: hash(self.key(key)),
                owner: self.id,
                key,
            };
            fallible::push(&mut entries, entry)?;
        }
        // The order of symbols of the same name must not change.
        let index = |entry: &Entry| match entry.key {
            Key::Symbol(index) => index,
            _ => 0,
        };
        let full = |entry: &Entry| (self.key(entry.key), index(entry));
        sort(&mut entries, |a, b| {
            // The hashes usually decide.
            a.hash < b.hash || a.hash == b.hash && full(a) < full(b)
        });
        // Keep only the first symbol of each name. Otherwise, each lookup of an
        // applied one would scan all of them.
        let symbol = |entry: &Entry| matches!(entry.key, Key::Symbol(_));
        entries.dedup_by(|next, first| {
            let both = symbol(first) && symbol(next) && first.hash == next.hash;
            both && self.key(first.key) == self.key(next.key)
        });
        Ok(entries)
    }
}

/// The FNV-1a hash (draft-eastlake-fnv, section 2).
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
