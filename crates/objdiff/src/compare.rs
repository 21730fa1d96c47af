// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds the symbols that differ between two builds of an object.

mod contents;
mod entries;
mod nameless;
mod reference;

use crate::correlate::{Correlation, is_anonymous, is_macro_flag};
use crate::name::SymbolName;
use crate::object::{Class, Object, Section, Symbol, SymbolIx, Target, significant};
use crate::placement::{self, Fate};
use entries::{Entries, by_owner};
use std::collections::BTreeSet;

pub use crate::change::{Change, Kind};
pub use crate::correlate::is_once_flag;
pub(crate) use contents::describe;

/// The result of [`compare`].
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// Every difference, in the order of the patched object's symbols.
    pub changes: Vec<Change>,
    /// The correlation of the symbols.
    pub correlation: Correlation,
}

impl Comparison {
    /// The comparison of an object with itself.
    pub fn of_one(object: &Object) -> Self {
        Self {
            changes: Vec::new(),
            correlation: Correlation::of_one(object),
        }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// Compares `patched` with `original`.
pub fn compare(original: &Object, patched: &Object) -> Comparison {
    compare_knowing(original, patched, &[])
}

/// Like [`compare`]; the pairs in `known`, indices in the original and in the patched
/// object, are known to be the same symbols.
pub fn compare_knowing(
    original: &Object,
    patched: &Object,
    known: &[(SymbolIx, SymbolIx)],
) -> Comparison {
    let correlation = Correlation::knowing(original, patched, known);
    let needier = placement::needier(original, patched, |index| correlation.original(index));
    let comparer = Comparer {
        original,
        patched,
        original_entries: by_owner(original),
        patched_entries: by_owner(patched),
        kept: correlation.iter().map(|(_, pair)| pair.original).collect(),
        renewed: patched
            .symbols
            .indices()
            .filter_map(|index| correlation.renewed(index))
            .collect(),
        needier,
        correlation,
    };
    Comparison {
        changes: comparer.changes(),
        correlation: comparer.correlation,
    }
}

struct Comparer<'a> {
    original: &'a Object,
    patched: &'a Object,
    original_entries: Entries,
    patched_entries: Entries,
    correlation: Correlation,
    /// Symbols of the original that are matched.
    kept: BTreeSet<SymbolIx>,
    /// Symbols of the original whose names are reused by new ones.
    renewed: BTreeSet<SymbolIx>,
    /// Variables of the patched object that need more alignment than before.
    needier: BTreeSet<SymbolIx>,
}

/// Pairs of places under comparison up the call stack, assumed to be equal.
type Seen = BTreeSet<((Target, i64), (Target, i64))>;

impl Comparer<'_> {
    fn changes(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (index, symbol) in self.patched.symbols.iter_enumerated() {
            let original = self.correlation.original(index);
            let class = self.patched.sections[symbol.section].class;
            let difference = match original {
                Some(original) => self
                    .difference(class, original, index)
                    .or_else(|| self.other_name(class, original, index)),
                None => absent_from_the_other(self.patched, symbol, Kind::Added)
                    .map(|kind| (kind, self.why_new(index))),
            };
            if let Some((kind, why)) = difference {
                changes.push(Change {
                    kind,
                    name: symbol.name.clone(),
                    original,
                    patched: Some(index),
                    why,
                });
            }
        }
        self.compare_nameless(&mut changes);
        self.follow_cold_parts(&mut changes);
        for (index, symbol) in self.original.symbols.iter_enumerated() {
            let kind = absent_from_the_other(self.original, symbol, Kind::Removed);
            let kind = kind.filter(|_| !self.kept.contains(&index));
            if let Some(kind) = kind.filter(|_| !self.renewed.contains(&index)) {
                changes.push(Change {
                    kind,
                    name: symbol.name.clone(),
                    original: Some(index),
                    patched: None,
                    why: "the patched source does not have it".to_owned(),
                });
            }
        }
        changes
    }

    /// Why a symbol that is not matched is new.
    fn why_new(&self, patched: SymbolIx) -> String {
        let Some(original) = self.correlation.renewed(patched) else {
            return "it is new".to_owned();
        };
        self.where_it_was(original, patched)
    }

    fn where_it_was(&self, original: SymbolIx, patched: SymbolIx) -> String {
        let (old, new) = self.sections(original, patched);
        let (was, is) = (placement::describe(old), placement::describe(new));
        format!("it was in {was} and is in {is} now")
    }

    fn sections(&self, original: SymbolIx, patched: SymbolIx) -> (&Section, &Section) {
        (
            &self.original.sections[self.original.symbols[original].section],
            &self.patched.sections[self.patched.symbols[patched].section],
        )
    }

    /// A function and its cold part jump into each other: if one changed, both are
    /// changed.
    fn follow_cold_parts(&self, changes: &mut Vec<Change>) {
        let changed = changes.iter();
        let changed = changed.filter(|c| matches!(c.kind, Kind::Function | Kind::Added));
        let changed: BTreeSet<SymbolName> = changed.map(|c| c.name.clone()).collect();
        let parents: BTreeSet<&str> = changed.iter().filter_map(|name| name.parent()).collect();
        for (index, symbol) in self.patched.symbols.iter_enumerated() {
            let (follows, why) = match symbol.name.parent() {
                Some(parent) => (
                    changed.contains(parent),
                    "the function it belongs to changed",
                ),
                None => (parents.contains(&*symbol.name), "its cold part changed"),
            };
            if symbol.function && !changed.contains(&symbol.name) && follows {
                changes.push(Change {
                    kind: Kind::Function,
                    name: symbol.name.clone(),
                    original: self.correlation.original(index),
                    patched: Some(index),
                    why: why.to_owned(),
                });
            }
        }
    }

    fn difference(
        &self,
        class: Class,
        original: SymbolIx,
        patched: SymbolIx,
    ) -> Option<(Kind, String)> {
        let (old, new) = (
            &self.original.symbols[original],
            &self.patched.symbols[patched],
        );
        let (from, to) = self.sections(original, patched);
        let fate = placement::fate(from, to);
        if fate == Fate::Misplaced {
            let kind = unless_init(class, Kind::Misplaced);
            return Some((kind, self.where_it_was(original, patched)));
        }
        if matches!(class, Class::Data | Class::Bss | Class::PerCpu)
            && let Some(why) = self.joins_or_parts(original, patched)
        {
            return Some((Kind::Misplaced, why));
        }
        let label = old.is_label() || new.is_label();
        if let Some(why) = self.contents_difference(original, patched) {
            let kind = match label {
                true => Kind::Unsized,
                false => kind_of_contents(class, old.size == new.size),
            };
            return Some((kind, why));
        }
        if class == Class::Text {
            let places = ((self.original, original), (self.patched, patched));
            let why = placement::code_moves(places.0, places.1)?;
            if from.align == to.align && self.is_pushed(original, patched) {
                return None;
            }
            let kind = if label { Kind::Unsized } else { Kind::Function };
            return Some((kind, why));
        }
        if self.needier.contains(&patched) {
            let had = placement::alignment(self.original, original).most;
            let needs = placement::alignment(self.patched, patched).most;
            let kind = unless_init(class, Kind::Alignment);
            return Some((kind, format!("its alignment goes from {had} to {needs}")));
        }
        if fate == Fate::Stays {
            return Some((Kind::Elsewhere, self.where_it_was(original, patched)));
        }
        let had = placement::alignment(self.original, original).least;
        let needs = placement::alignment(self.patched, patched).most;
        let less = || format!("its alignment goes from {had} to {needs}");
        (had > needs).then(|| (Kind::Elsewhere, less()))
    }

    /// Reports that other files use a different name for an existing symbol.
    fn other_name(
        &self,
        class: Class,
        original: SymbolIx,
        patched: SymbolIx,
    ) -> Option<(Kind, String)> {
        let old = &self.original.symbols[original];
        let new = &self.patched.symbols[patched];
        let told = new.global && new.name != old.name && class != Class::Init;
        told.then(|| {
            let why = format!("it is {} under another name", old.name);
            (Kind::Renamed, why)
        })
    }

    /// Reports that a variable becomes an alias of another, or stops being one.
    fn joins_or_parts(&self, original: SymbolIx, patched: SymbolIx) -> Option<String> {
        let old = &self.original.symbols[original];
        let new = &self.patched.symbols[patched];
        let others = self.correlation.iter().filter_map(|(index, pair)| {
            let other = &self.patched.symbols[index];
            let was = self.original.symbols[pair.original].is_at(old);
            let is = other.is_at(new);
            let sized = old.size > 0 && new.size > 0 && !other.is_label();
            (was != is && sized).then_some((&other.name, is))
        });
        let (other, is) = others.min()?;
        Some(match is {
            true => format!("it has one place with {other} now"),
            false => format!("it had one place with {other}"),
        })
    }

    /// Whether code moved in its section only because the code before it grew or
    /// shrank: its alignment is unchanged, as far as padding shows.
    fn is_pushed(&self, original: SymbolIx, patched: SymbolIx) -> bool {
        let in_front = |object: &Object, index: SymbolIx| -> u64 {
            let symbol = &object.symbols[index];
            let others = object.symbols_in(symbol.section);
            let others = others.map(|other| &object.symbols[other]);
            let before = others.filter(|other| other.offset < symbol.offset);
            before.map(|other| significant(object, other)).sum()
        };
        let had = placement::alignment(self.original, original);
        let has = placement::alignment(self.patched, patched);
        in_front(self.original, original) != in_front(self.patched, patched)
            && has.least <= had.most
            && had.least <= has.most
    }
}

/// The kind of change for a symbol that only `object` has; none if it is identified
/// by its contents only.
fn absent_from_the_other(object: &Object, symbol: &Symbol, kind: Kind) -> Option<Kind> {
    match object.sections[symbol.section].class {
        Class::Ignored | Class::Special => None,
        _ if is_anonymous(object, symbol) || is_macro_flag(object, symbol) => None,
        Class::Init => Some(Kind::Init),
        Class::Text | Class::ReadOnly | Class::Data | Class::Bss | Class::PerCpu => {
            Some(if symbol.is_label() {
                Kind::Unsized
            } else {
                kind
            })
        }
    }
}

/// The kind of a change of what is in a section of this class.
fn kind_of_contents(class: Class, same_size: bool) -> Kind {
    match class {
        Class::Init => Kind::Init,
        Class::Text => Kind::Function,
        Class::ReadOnly => Kind::Constant,
        Class::Data | Class::Bss | Class::PerCpu | Class::Special | Class::Ignored => {
            match same_size {
                true => Kind::Data,
                false => Kind::Resized,
            }
        }
    }
}

/// The kind of a change in a section of this class: where what is there is only used
/// while booting, nothing else counts.
fn unless_init(class: Class, kind: Kind) -> Kind {
    match class {
        Class::Init => Kind::Init,
        Class::Text
        | Class::ReadOnly
        | Class::Data
        | Class::Bss
        | Class::PerCpu
        | Class::Special
        | Class::Ignored => kind,
    }
}
