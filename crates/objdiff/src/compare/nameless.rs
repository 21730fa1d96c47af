// SPDX-License-Identifier: MIT OR Apache-2.0
//! What no symbol names and nothing refers to.

use super::{Comparer, Seen};
use crate::change::{Change, Kind};
use crate::object::{Class, Object};
use std::collections::{BTreeMap, BTreeSet};

impl Comparer<'_> {
    /// Compares what no symbol names and nothing refers to.
    pub(super) fn compare_nameless(&self, changes: &mut Vec<Change>) {
        let mut differs = |name: String, why: String| {
            changes.push(Change {
                kind: Kind::Unsized,
                name,
                original: None,
                patched: None,
                why,
            });
        };
        if let Some(why) = self.entries_difference(None, None, &mut Seen::new()) {
            differs("a table about unnamed code".to_owned(), why);
        }
        let (old, new) = (nameless(self.original), nameless(self.patched));
        let names: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        for name in names {
            let none = Vec::new();
            let (old, new) = (
                old.get(name).unwrap_or(&none),
                new.get(name).unwrap_or(&none),
            );
            let why = if old.len() == new.len() {
                old.iter().zip(new).find_map(|(old, new)| {
                    if old.1 != new.1 {
                        return Some(format!("its size goes from {} to {} bytes", old.1, new.1));
                    }
                    self.range_difference((old.0, 0), (new.0, 0), new.1, &mut Seen::new())
                })
            } else {
                Some(format!(
                    "there are {} of it, there were {}",
                    new.len(),
                    old.len()
                ))
            };
            if let Some(why) = why {
                differs(name.to_owned(), why);
            }
        }
    }
}

/// For each section name the sections that begin with something without a name
/// that nothing refers to, with its size.
fn nameless(object: &Object) -> BTreeMap<&str, Vec<(usize, u64)>> {
    let mut found: BTreeMap<&str, Vec<(usize, u64)>> = BTreeMap::new();
    for (index, section) in object.sections.iter().enumerate() {
        let first = object.symbols_in(index).next();
        let size = first.map_or(section.size, |first| object.symbols[first].offset);
        let compared = matches!(section.class, Class::Ignored | Class::Special)
            || section.merge.is_some()
            || !object.pieces_in(index).is_empty();
        if size > 0 && !compared {
            found.entry(&section.name).or_default().push((index, size));
        }
    }
    found
}
