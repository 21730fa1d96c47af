// SPDX-License-Identifier: MIT OR Apache-2.0
//! Contents without a symbol that nothing refers to.

use super::{Comparer, Seen};
use crate::change::{Change, Kind};
use crate::object::{Class, Object, Span};
use std::collections::{BTreeMap, BTreeSet};

impl Comparer<'_> {
    /// Compares contents without a symbol that nothing refers to.
    pub(super) fn compare_nameless(&self, changes: &mut Vec<Change>) {
        let mut differs = |name: &str, why: String| {
            changes.push(Change {
                kind: Kind::Unsized,
                name: name.into(),
                original: None,
                patched: None,
                why,
            });
        };
        if let Some(why) = self.entries_difference(None, None, &mut Seen::new()) {
            differs("a table about unnamed code", why);
        }
        let (old, new) = (nameless(self.original), nameless(self.patched));
        let names: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        for name in names {
            let none = Vec::new();
            let (old, new) = (
                old.get(name).unwrap_or(&none),
                new.get(name).unwrap_or(&none),
            );
            let why = match old.len() == new.len() {
                true => {
                    let mut pairs = old.iter().zip(new);
                    pairs.find_map(|(&old, &new)| self.nameless_difference(old, new))
                }
                false => Some(self.come_or_gone(name, old, new)),
            };
            if let Some(why) = why {
                differs(name, why);
            }
        }
    }

    /// How the starts of two sections differ.
    fn nameless_difference(&self, old: Span, new: Span) -> Option<String> {
        if old.size != new.size {
            return Some(format!(
                "its size goes from {} to {} bytes",
                old.size, new.size
            ));
        }
        let differs = self.range_difference(old, new, &mut Seen::new());
        let was = self.original.sections[old.section].align;
        let is = self.patched.sections[new.section].align;
        differs.or_else(|| (was != is).then(|| format!("its alignment goes from {was} to {is}")))
    }

    /// Describes the difference if not equally many sections of a name have such a
    /// start.
    fn come_or_gone(&self, name: &str, old: &[Span], new: &[Span]) -> String {
        let size = |all: &[Span]| all.iter().map(|start| start.size).sum::<u64>();
        let align = |object: &Object| {
            let sections = object.sections.iter().filter(|s| s.name == name);
            sections.map(|section| section.align).max()
        };
        let mut why = match (old, new) {
            (old, []) => format!(
                "{} bytes at its start, which have no symbol, are gone",
                size(old)
            ),
            ([], new) => format!(
                "{} bytes at its start, which have no symbol, are new",
                size(new)
            ),
            (old, new) => format!(
                "{} bytes without a symbol are in {} sections of this name, {} were in {}",
                size(new),
                new.len(),
                size(old),
                old.len()
            ),
        };
        if let (Some(was), Some(is)) = (align(self.original), align(self.patched))
            && was != is
        {
            why += &format!(", and its alignment goes from {was} to {is}");
        }
        why
    }
}

/// For each section name, the starts of sections without a symbol that nothing refers
/// to.
fn nameless(object: &Object) -> BTreeMap<&str, Vec<Span>> {
    let mut found: BTreeMap<&str, Vec<Span>> = BTreeMap::new();
    for (index, section) in object.sections.iter_enumerated() {
        let first = object.symbols_in(index).next();
        let size = first.map_or(section.size, |first| object.symbols[first].offset);
        let compared = matches!(section.class, Class::Ignored | Class::Special)
            || section.merge.is_some()
            || !object.pieces_in(index).is_empty();
        if size > 0 && !compared {
            found.entry(&section.name).or_default().push(Span {
                section: index,
                offset: 0,
                size,
            });
        }
    }
    found
}
