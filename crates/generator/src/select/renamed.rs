// SPDX-License-Identifier: MIT OR Apache-2.0
//! Variables that replace others.
//!
//! If functions stop using one variable and start using another, the patch may have
//! renamed the variable, whose value must be kept, or replaced it by a new one, which
//! must start from its initial value. It was renamed if the name is the only
//! difference in every line that has it. Otherwise, two similar variables may be one,
//! and the patch must be clearer.

use super::moved::Moves;
use super::private::{Privates, is_alike, is_writable};
use super::{At, Selector};
use crate::patch::Edits;
use crate::unit::{Unit, UnitId, Units};
use index_vec::IndexVec;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use xsplice_objdiff::compare::is_once_flag;
use xsplice_objdiff::object::{Class, Object, SymbolIx, Target};
use xsplice_objdiff::placement::{Fate, alignment, fate};

/// Prefix of a per-CPU variable's symbol.
const PER_CPU: &str = "per_cpu__";

/// Variables that may be renamed old ones.
#[derive(Debug, Default)]
pub(super) struct Renamed {
    /// The old places of renamed variables, by their new ones.
    pub(super) same: HashMap<At, At>,
    /// The old variables that an ambiguous one may be.
    unclear: BTreeMap<At, Vec<At>>,
    /// The old variables that a new one cannot be, although the same functions used
    /// them.
    instead: BTreeMap<At, Vec<At>>,
}

impl Renamed {
    /// Classifies the variables that neither moved nor became private to another
    /// file.
    pub(super) fn find(
        units: &Units,
        (moves, privates): (&Moves, &Privates),
        edits: &Edits,
    ) -> Self {
        let known = [&moves.moved, &moves.renewed, &privates.same];
        let known_new: HashSet<At> = known.into_iter().flat_map(|m| m.keys()).copied().collect();
        let known_old = known.into_iter().flat_map(|m| m.values()).copied();
        let known_old: HashSet<At> = known_old.collect();
        let (mut lost, mut gained) = (Vec::new(), Vec::new());
        for (unit, u) in units.iter_enumerated() {
            for change in &u.comparison.changes {
                match (change.original, change.patched) {
                    (Some(old), None) if is_writable(&u.original, old) => lost.push((unit, old)),
                    (None, Some(new)) if is_writable(&u.patched, new) => gained.push((unit, new)),
                    _ => {}
                }
            }
        }
        lost.retain(|old| !known_old.contains(old));
        gained.retain(|new| !known_new.contains(new) && !privates.unclear.contains(new));
        if lost.is_empty() || gained.is_empty() {
            return Self::default();
        }
        Self::judge(units, &lost, &gained, edits)
    }

    fn judge(units: &Units, lost: &[At], gained: &[At], edits: &Edits) -> Self {
        let before = Users::new(units, |u| &u.original, |u| &u.patched);
        let after = Users::new(units, |u| &u.patched, |u| &u.original);
        let after: Vec<_> = gained.iter().map(|&new| (new, after.of(new))).collect();
        let (mut alike, mut unlike) = (Vec::new(), Vec::new());
        for &old in lost {
            let users = before.of(old);
            for (new, others) in &after {
                if users.is_disjoint(others) || is_no_rename(units, old, *new) {
                    continue;
                }
                let pair = (
                    (&units[old.0].original, old.1),
                    (&units[new.0].patched, new.1),
                );
                let pairs = match is_alike(pair.0, pair.1) {
                    true => &mut alike,
                    false => &mut unlike,
                };
                pairs.push((old, *new));
            }
        }
        let mut exact: Vec<(At, At)> = alike.clone();
        exact.retain(|&(old, new)| {
            edits.rename(name(units, old), new_name(units, new)) && fits(units, old, new)
        });
        let mut found = Self::default();
        for &(old, new) in &exact {
            let mut others = exact.iter().filter(|(o, n)| (*o == old) != (*n == new));
            if others.next().is_none() {
                found.same.insert(new, old);
            }
        }
        let taken: HashSet<At> = found.same.values().copied().collect();
        let open = |(old, new): &(At, At)| !taken.contains(old) && !found.same.contains_key(new);
        for (old, new) in alike.into_iter().filter(open) {
            found.unclear.entry(new).or_default().push(old);
        }
        for (old, new) in unlike.into_iter().filter(open) {
            found.instead.entry(new).or_default().push(old);
        }
        found
    }
}

/// Whether two variables are not a rename for another reason: they have the same
/// name, which is handled elsewhere, or are message flags.
fn is_no_rename(units: &Units, old: At, new: At) -> bool {
    let (before, after) = (&units[old.0].original, &units[new.0].patched);
    let flags =
        is_once_flag(before, &before.symbols[old.1]) && is_once_flag(after, &after.symbols[new.1]);
    flags || name(units, old) == new_name(units, new)
}

/// Whether the placement of `old` suits `new`.
fn fits(units: &Units, old: At, new: At) -> bool {
    let (before, after) = (&units[old.0].original, &units[new.0].patched);
    let from = &before.sections[before.symbols[old.1].section];
    let to = &after.sections[after.symbols[new.1].section];
    matches!(fate(from, to), Fate::Same | Fate::Stays)
        && alignment(after, new.1).most <= alignment(before, old.1).most
}

fn name(units: &Units, place: At) -> &str {
    in_source(&units[place.0].original, place.1)
}

fn new_name(units: &Units, place: At) -> &str {
    in_source(&units[place.0].patched, place.1)
}

/// The name that the source has for a variable.
fn in_source(object: &Object, index: SymbolIx) -> &str {
    let symbol = &object.symbols[index];
    let name = symbol.name.base();
    match object.sections[symbol.section].class {
        Class::PerCpu => name.strip_prefix(PER_CPU).unwrap_or(name),
        Class::Text
        | Class::Init
        | Class::ReadOnly
        | Class::Data
        | Class::Bss
        | Class::Special
        | Class::Ignored => name,
    }
}

/// The users of symbols in one build of all units.
struct Users<'a> {
    /// Names of users in the source, by the symbol or global name that they refer to.
    of: HashMap<Key<'a>, BTreeSet<&'a str>>,
    /// The callers of each name in the source.
    callers: HashMap<&'a str, BTreeSet<&'a str>>,
    objects: IndexVec<UnitId, &'a Object>,
    /// Functions of the other build.
    others: HashSet<&'a str>,
}

#[derive(PartialEq, Eq, Hash)]
enum Key<'a> {
    Private(At),
    Global(&'a str),
}

impl<'a> Users<'a> {
    fn new(
        units: &'a Units,
        this: impl Fn(&'a Unit) -> &'a Object,
        other: impl Fn(&'a Unit) -> &'a Object,
    ) -> Self {
        let objects: IndexVec<UnitId, &Object> = units.iter().map(this).collect();
        let others = units.iter().flat_map(|u| &other(u).symbols);
        let mut users = Self {
            of: HashMap::new(),
            callers: HashMap::new(),
            others: others
                .filter(|s| s.function)
                .map(|s| s.name.in_source())
                .collect(),
            objects,
        };
        for unit in units.indices() {
            users.add(unit);
        }
        users
    }

    fn add(&mut self, unit: UnitId) {
        let object = self.objects[unit];
        for (at, section) in object.sections.iter_enumerated() {
            for relocation in &section.relocations {
                let Some(user) = object.symbol_at(at, relocation.offset) else {
                    continue;
                };
                let user = object.symbols[user].name.in_source();
                let key = match &relocation.reference.target {
                    Target::Symbol(index) => self.key((unit, *index)),
                    Target::External(name) => Key::Global(name),
                    Target::Anonymous(_) => continue,
                };
                let name: &str = match &relocation.reference.target {
                    Target::Symbol(index) => object.symbols[*index].name.in_source(),
                    Target::External(name) => name,
                    Target::Anonymous(_) => continue,
                };
                self.callers.entry(name).or_default().insert(user);
                self.of.entry(key).or_default().insert(user);
            }
        }
    }

    fn key(&self, place: At) -> Key<'a> {
        let symbol = &self.objects[place.0].symbols[place.1];
        match symbol.global {
            true => Key::Global(&symbol.name),
            false => Key::Private(place),
        }
    }

    /// The users of a variable. A function that the other build lacks may be inlined
    /// into its callers there.
    fn of(&self, place: At) -> BTreeSet<&'a str> {
        let direct = self.of.get(&self.key(place)).into_iter().flatten();
        let mut open: Vec<&str> = direct.copied().collect();
        let mut found = BTreeSet::new();
        while let Some(user) = open.pop() {
            if found.insert(user) && !self.others.contains(user) {
                open.extend(self.callers.get(user).into_iter().flatten());
            }
        }
        found
    }
}

impl Selector<'_> {
    /// Why it is ambiguous whether the new variable at `place` is an old one; `None`
    /// if it is new, or the caller says so.
    pub(super) fn may_be_renamed(&self, place: At) -> Option<String> {
        let old = self.renamed.unclear.get(&place)?;
        let new = new_name(self.units, place);
        let file = &self.units[place.0].file.source;
        if self.rules.allow.contains_of(file, new) {
            return None;
        }
        let old = self.list(old);
        Some(format!(
            "the variable {new} may be {old} under another name: the same functions use it, and \
             nothing proves that it is, or is not; if it is, keep the old name, or change nothing \
             else in the lines that use it; if it is new, `--allow {new}` lets it begin with its \
             initial value"
        ))
    }

    /// Adds notes about variables that others replace.
    pub(super) fn tell_renamed(&mut self) {
        let mut notes = BTreeSet::new();
        let file = |new: At| &self.units[new.0].file.source;
        for (&new, &old) in &self.renamed.same {
            notes.insert(format!(
                "{}: {} is {} under another name, as every line that has it shows: it keeps the \
                 value that the running hypervisor has",
                file(new),
                new_name(self.units, new),
                name(self.units, old)
            ));
        }
        for (&new, old) in self.renamed.unclear.iter().chain(&self.renamed.instead) {
            let symbol = &self.units[new.0].patched.symbols[new.1];
            if self
                .placed
                .contains_key(&(new.0, symbol.section, symbol.offset))
            {
                notes.insert(format!(
                    "{}: {} is new and starts from its initial value; the value of {}, which the \
                     same functions used before, is not taken over",
                    file(new),
                    new_name(self.units, new),
                    self.list(old)
                ));
            }
        }
        self.selection.notes.extend(notes);
    }

    fn list(&self, old: &[At]) -> String {
        let names: BTreeSet<&str> = old.iter().map(|&old| name(self.units, old)).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::{FilePatch, Hunk, Line};

    /// A patch that replaces a whole file.
    fn edits(original: &str, patched: &str) -> Edits {
        let lines = |text: &str, line: fn(String) -> Line| -> Vec<Line> {
            text.lines().map(|text| line(text.to_owned())).collect()
        };
        let lines = [lines(original, Line::Removed), lines(patched, Line::Added)].concat();
        let file = FilePatch {
            old: None,
            new: None,
            written: String::new(),
            hunks: vec![Hunk {
                old_start: 1,
                lines,
            }],
        };
        Edits::new(std::iter::once(&file))
    }

    /// The result for each new variable: the old one that it is, those that it may
    /// be, and those that it is not although the same functions used them.
    fn found(original: &str, patched: &str) -> Vec<String> {
        let units = [Unit::of_sources(original, patched)];
        found_in(Units::new(&units), &edits(original, patched))
    }

    fn found_in(units: &Units, edits: &Edits) -> Vec<String> {
        let known = (&Moves::default(), &Privates::default());
        let renamed = Renamed::find(units, known, edits);
        let mut all = Vec::new();
        for (&new, &old) in &renamed.same {
            all.push(format!("{} is {}", new_name(units, new), name(units, old)));
        }
        for (word, pairs) in [("may be", &renamed.unclear), ("not", &renamed.instead)] {
            for (&new, old) in pairs {
                let old: BTreeSet<&str> = old.iter().map(|&old| name(units, old)).collect();
                let old: Vec<&str> = old.into_iter().collect();
                all.push(format!(
                    "{} {word} {}",
                    new_name(units, new),
                    old.join(", ")
                ));
            }
        }
        all.sort();
        all
    }

    const LOCAL: &str = "int f(int x)\n{\nstatic int seen;\nx += 1;\n\
        if (seen)\nreturn x;\nseen = 1;\nreturn 0;\n}\n";

    #[test]
    fn a_variable_that_only_has_another_name_is_the_same() {
        let renamed = LOCAL.replace("seen", "met").replace("+= 1", "+= 2");
        assert_eq!(found(LOCAL, &renamed), ["met is seen"]);
        let file = LOCAL.replace("static int seen;", "") + "static int seen;\n";
        let file = format!("static int seen;\n{file}int g(void)\n{{\nreturn seen;\n}}\n");
        let renamed = file.replace("seen", "met").replace("+= 1", "+= 2");
        let renamed = renamed.replace("return met;", "return 3 +\nmet;");
        let file = file.replace("return seen;", "return\nseen;");
        assert_eq!(found(&file, &renamed), ["met is seen"]);
        // A global variable of the file is not another one.
        let public = |text: &str| text.replace("static ", "");
        assert_eq!(found(&public(&file), &public(&renamed)), ["met is seen"]);
    }

    #[test]
    fn one_that_is_used_in_another_way_may_be_the_same() {
        let other = LOCAL.replace("seen", "met").replace("met = 1", "met = x");
        assert_eq!(found(LOCAL, &other), ["met may be seen"]);
        let two = "int f(int x)\n{\nstatic int a;\nstatic int b;\nint y = a + b;\n\
            a = x;\nb = x;\nreturn y;\n}\n";
        let renamed = two.replace("= a + b", "= 3 * c + d");
        let renamed = renamed.replace("a;", "c;").replace("b;", "d;");
        let renamed = renamed.replace("a =", "c =").replace("b =", "d =");
        assert_eq!(found(two, &renamed), ["c may be a, b", "d may be a, b"]);
    }

    #[test]
    fn one_that_is_inlined_in_one_build_only_is_seen() {
        let part = "static __attribute__((HOW)) int f(int x)\n{\nstatic int seen;\n\
            if (seen)\nreturn x;\nseen = x;\nreturn 7;\n}\n\
            int g(int x)\n{\nreturn f(x) + 1;\n}\n";
        let inlined = part.replace("HOW", "always_inline");
        let called = part.replace("HOW", "noinline").replace("+ 1", "+ 2");
        let renamed = |text: &str| text.replace("seen", "met");
        assert_eq!(found(&inlined, &renamed(&called)), ["met is seen"]);
        assert_eq!(found(&called, &renamed(&inlined)), ["met is seen"]);
    }

    #[test]
    fn one_that_goes_to_a_new_function_of_another_file_is_seen() {
        const USER: &str = "int g(int x)\n{\nstatic int seen;\nseen += x;\nreturn seen * 3;\n}\n";
        const CALLER: &str = "int note(int);\nint g(int x)\n{\nreturn note(x) * 3;\n}\n";
        const NEW: &str = "int note(int x)\n{\nstatic int met;\nmet += x;\nreturn met;\n}\n";
        let units = [Unit::of_sources(USER, CALLER), Unit::of_sources("", NEW)];
        let edits = edits(USER, &format!("{CALLER}{NEW}"));
        assert_eq!(found_in(Units::new(&units), &edits), ["met may be seen"]);
        let inlined = [Unit::of_sources(CALLER, USER), Unit::of_sources(NEW, "")];
        assert_eq!(found_in(Units::new(&inlined), &edits), ["seen may be met"]);
    }

    #[test]
    fn one_that_is_unlike_or_used_elsewhere_is_new() {
        let wider = LOCAL.replace("int seen", "long met").replace("seen", "met");
        assert_eq!(found(LOCAL, &wider), ["met not seen"]);
        let user = "int g(int x)\n{\nstatic int met;\nreturn met += x;\n}\n";
        let without = "int g(int x)\n{\nreturn x;\n}\n";
        let gone = "int f(int x)\n{\nreturn x;\n}\n";
        let (old, new) = (format!("{LOCAL}{without}"), format!("{gone}{user}"));
        assert_eq!(found(&old, &new), Vec::<String>::new());
    }
}
