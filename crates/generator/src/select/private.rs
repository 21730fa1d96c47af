// SPDX-License-Identifier: MIT OR Apache-2.0
//! Variables that a patch moves to another file, at least one end private.
//!
//! A private name is not unique: two files may both have it. If one file loses a
//! variable and another gains one of that name, they are the same if a function of
//! the same name uses both and they are alike; otherwise it is ambiguous, and the
//! patch must be clearer.

use super::At;
use crate::unit::{Unit, Units};
use std::collections::{BTreeSet, HashMap};
use xsplice_objdiff::SymbolName;
use xsplice_objdiff::compare::is_once_flag;
use xsplice_objdiff::object::{Class, Object, Relocation, SectionIx, Symbol, SymbolIx, Target};

/// The variables that one file loses and another gains.
#[derive(Debug, Default)]
pub(super) struct Privates {
    /// The old places of variables that are the same, by their new ones.
    pub(super) same: HashMap<At, At>,
    /// Variables that may or may not be the same.
    pub(super) unclear: BTreeSet<At>,
}

impl Privates {
    pub(super) fn find(units: &Units) -> Self {
        let mut lost: HashMap<&str, Vec<At>> = HashMap::new();
        let mut gained: HashMap<&str, Vec<At>> = HashMap::new();
        for (unit, u) in units.iter_enumerated() {
            for change in &u.comparison.changes {
                let (side, index, object) = match (change.original, change.patched) {
                    (Some(index), None) => (&mut lost, index, &u.original),
                    (None, Some(index)) => (&mut gained, index, &u.patched),
                    _ => continue,
                };
                let symbol = &object.symbols[index];
                if is_writable(object, index) {
                    let name = symbol.name.base();
                    side.entry(name).or_default().push((unit, index));
                }
            }
        }
        let mut found = Self::default();
        for (name, new) in gained {
            let old = lost.get(name).map_or(&[][..], Vec::as_slice);
            for &new in &new {
                found.judge(units, new, old);
            }
        }
        // One variable cannot become two.
        let mut taken: HashMap<At, usize> = HashMap::new();
        for &old in found.same.values() {
            *taken.entry(old).or_default() += 1;
        }
        let twice = found.same.iter().filter(|(_, old)| taken[old] > 1);
        found.unclear.extend(twice.map(|(&new, _)| new));
        found.same.retain(|_, old| taken[old] == 1);
        found
    }

    fn judge(&mut self, units: &Units, new: At, lost: &[At]) {
        let patched = &units[new.0].patched;
        let global = patched.symbols[new.1].global;
        let mut elsewhere: Vec<At> = lost.iter().copied().filter(|old| old.0 != new.0).collect();
        elsewhere.retain(|&(unit, index)| !global || !units[unit].original.symbols[index].global);
        if elsewhere.is_empty() {
            return;
        }
        let after = users(units, |u| &u.patched, new);
        elsewhere.retain(|&old| {
            let before = users(units, |u| &u.original, old);
            !before.is_disjoint(&after)
        });
        match elsewhere[..] {
            [old] if is_alike((&units[old.0].original, old.1), (patched, new.1)) => {
                self.same.insert(new, old);
            }
            // At worst, a message is printed again.
            _ if is_once_flag(patched, &patched.symbols[new.1]) => {}
            _ => {
                self.unclear.insert(new);
            }
        }
    }
}

/// The names in the source of the users of a symbol in one build of all units.
fn users(units: &Units, build: fn(&Unit) -> &Object, place: At) -> BTreeSet<&str> {
    let symbol = &build(&units[place.0]).symbols[place.1];
    let mut found = BTreeSet::new();
    for (unit, object) in units.iter_enumerated().map(|(unit, u)| (unit, build(u))) {
        let is_it = |target: &Target| match target {
            Target::Symbol(index) => (unit, *index) == place,
            Target::External(name) => symbol.global && *name == symbol.name,
            Target::Anonymous(_) => false,
        };
        for (at, section) in object.sections.iter_enumerated() {
            let refers = section
                .relocations
                .iter()
                .filter(|r| is_it(&r.reference.target));
            let users = refers.filter_map(|r| object.symbol_at(at, r.offset));
            found.extend(users.map(|user| object.symbols[user].name.in_source()));
        }
    }
    found
}

/// Whether two variables have the same size, class and initial value.
pub(super) fn is_alike((old, a): (&Object, SymbolIx), (new, b): (&Object, SymbolIx)) -> bool {
    let (a, b) = (&old.symbols[a], &new.symbols[b]);
    let class = |object: &Object, section: SectionIx| object.sections[section].class;
    let leads_to = |object: &Object, at: &Symbol| -> Vec<_> {
        let fields = object.relocations(at.first(at.size));
        let place = |r: &Relocation| {
            let target = object.label(&r.reference.target);
            (
                r.offset - at.offset,
                SymbolName::from(target).in_source().to_owned(),
                r.reference.offset,
            )
        };
        fields.iter().map(place).collect()
    };
    a.size == b.size
        && class(old, a.section) == class(new, b.section)
        && old.bytes(a.span()) == new.bytes(b.span())
        && leads_to(old, a) == leads_to(new, b)
}

/// Whether a symbol is a variable with state.
pub(super) fn is_writable(object: &Object, index: SymbolIx) -> bool {
    let symbol = &object.symbols[index];
    let class = object.sections[symbol.section].class;
    !symbol.function && matches!(class, Class::Data | Class::Bss | Class::PerCpu)
}
