// SPDX-License-Identifier: MIT OR Apache-2.0
//! The entries in tables about code for a symbol.

use super::{Comparer, Seen};
use crate::object::{Object, Span, SymbolIx};
use crate::special::{self, Entry};
use std::collections::{BTreeMap, BTreeSet};

/// The table entries for each symbol, by the name of the table: the order of tables
/// in an object has no meaning.
pub(super) type Entries = BTreeMap<Option<SymbolIx>, BTreeMap<String, Vec<Entry>>>;

pub(super) fn by_owner(object: &Object) -> Entries {
    let mut map = Entries::new();
    for entry in special::entries(object) {
        let table = object.sections[entry.span.section].name.clone();
        let tables = map.entry(entry.owner).or_default();
        tables.entry(table).or_default().push(entry);
    }
    map
}

impl Comparer<'_> {
    pub(super) fn entries_difference(
        &self,
        original: Option<SymbolIx>,
        patched: Option<SymbolIx>,
        seen: &mut Seen,
    ) -> Option<String> {
        let none = BTreeMap::new();
        let old = self.original_entries.get(&original).unwrap_or(&none);
        let new = self.patched_entries.get(&patched).unwrap_or(&none);
        let tables: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        tables.into_iter().find_map(|table| {
            let count = |entries: Option<&Vec<Entry>>| entries.map_or(0, Vec::len);
            let (Some(old), Some(new)) = (old.get(table), new.get(table)) else {
                let (was, is) = (count(old.get(table)), count(new.get(table)));
                return Some(format!("it has {is} entries in {table}, it had {was}"));
            };
            if old.len() != new.len() {
                let (was, is) = (old.len(), new.len());
                return Some(format!("it has {is} entries in {table}, it had {was}"));
            }
            let mut pairs = old.iter().zip(new);
            let same = pairs.all(|(old, new)| self.same_entry(old, new, seen));
            (!same).then(|| format!("its entry in {table} differs"))
        })
    }

    fn same_entry(&self, old: &Entry, new: &Entry, seen: &mut Seen) -> bool {
        let (was, is) = (old.compared(self.original), new.compared(self.patched));
        self.same_span(was, is, seen) && self.pieces_equal(old, new, seen)
    }

    fn same_span(&self, old: Span, new: Span, seen: &mut Seen) -> bool {
        old.size == new.size && self.range_difference(old, new, seen).is_none()
    }

    fn pieces_equal(&self, old: &Entry, new: &Entry, seen: &mut Seen) -> bool {
        let old = special::pieces(self.original, old);
        let new = special::pieces(self.patched, new);
        let mut pairs = old.iter().zip(&new);
        old.len() == new.len() && pairs.all(|(&old, &new)| self.same_span(old, new, seen))
    }
}
