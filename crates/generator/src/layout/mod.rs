// SPDX-License-Identifier: MIT OR Apache-2.0
//! Types before and after the patch.
//!
//! Data in the running hypervisor's memory keeps its layout and meaning, and so do
//! the expectations of every function outside the payload. So every type that a
//! changed object uses, directly or through pointers, is compared with the original.
//! Unchanged objects use memory as before, even if types changed.

mod compare;

use crate::choice::Choices;
use crate::code::Code;
use crate::dwarf;
use crate::dwarf::types::{Definition, Enumerator, Kind, Name, Types};
use crate::pair::Pair;
use crate::patch::Edits;
use crate::problem::{Problem, all};
use crate::rebuild::{Patched, Rebuild};
use crate::tree::ObjectFile;
use crate::unit::{Unit, Units};
use crate::variant::Variant;
use compare::{Difference, Relation};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use xsplice_objdiff::object::{Class, Object};

/// The result of the comparison.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Types whose layout in memory no longer matches.
    pub(crate) problems: Vec<Problem>,
    /// Notes about the others.
    pub(crate) notes: Vec<String>,
}

/// Compares the types that the changed `units` use, between the source `below`, or
/// the tree's own, and `patched`, given `edits`. Types in `allowed` may change.
pub(crate) fn check(
    rebuild: &Rebuild,
    (below, patched): (Option<&Patched>, &Patched),
    (pairs, units): (&[Pair], &Units),
    edits: &Edits,
    allowed: &Choices,
) -> Findings {
    let before = below.map_or(rebuild.original_source(), |below| &below.variant);
    let changed = |pair: &&Pair| units.iter().find(|unit| unit.file.path == pair.object.path);
    let changed: Vec<(&Pair, &Unit)> = pairs
        .iter()
        .filter(|pair| pair.object.source.ends_with(".c") && pair.object.path.ends_with(".o"))
        .filter_map(|pair| Some((pair, changed(&pair)?)))
        .collect();
    let read: Vec<Result<Side, Problem>> = changed
        .par_iter()
        .map(|(pair, unit)| {
            let types = |build: &Option<_>, source, object| {
                let is_there = build.is_some();
                is_there.then(|| types(source, object)).transpose()
            };
            let (old, new) = rayon::join(
                || types(&pair.original, before, pair.original_object()),
                || types(&pair.patched, &patched.variant, &pair.object),
            );
            Ok(Side {
                object: &unit.original,
                old: old?.unwrap_or_default(),
                new: new?.unwrap_or_default(),
            })
        })
        .collect();
    match all(read) {
        Ok(sides) => compare_all(&sides, edits, allowed),
        Err(refused) => Findings {
            problems: refused.0,
            notes: Vec::new(),
        },
    }
}

/// Cache key of types; raised when they are read differently.
const KEPT: &str = "types 2";

/// The types that `object` uses.
fn types(source: &Variant, object: &ObjectFile) -> Result<Types, Problem> {
    let damaged = |words: String| {
        let message = format!("its debugging information cannot be read: {words}");
        Problem::new(Code::UnreadableObject, &object.path, message)
    };
    let derive = |object: &ObjectFile| {
        source.derive(object, KEPT, |bytes| {
            let types = dwarf::read(bytes).map_err(|error| damaged(error.to_string()))?;
            serde_json::to_vec(&types).map_err(|error| damaged(error.to_string()))
        })
    };
    // Not every compiler can skip code generation.
    let kept = derive(&object.with_early_types()).or_else(|_| derive(&object.with_types()))?;
    serde_json::from_slice(&kept).map_err(|error| damaged(error.to_string()))
}

/// The types of a changed object.
struct Side<'a> {
    /// From the original source.
    object: &'a Object,
    old: Types,
    new: Types,
}

/// A type with differences.
struct Changed<'a> {
    /// The old one.
    definition: &'a Definition,
    /// The name of the new one, if it was renamed.
    renamed: Option<&'a Name>,
    differences: Vec<Difference>,
}

fn compare_all(sides: &[Side], edits: &Edits, allowed: &Choices) -> Findings {
    let mut all: BTreeMap<&Name, Changed> = BTreeMap::new();
    for side in sides {
        for (name, old) in &side.old.definitions {
            let successor = || successor(side, (name, old), edits);
            let same = counterpart(sides, side, name).map(|(types, new)| (None, types, new));
            let Some((renamed, types, new)) = same.or_else(successor) else {
                continue;
            };
            if name.kind.is_variable() && !is_in_memory(side.object, name) {
                continue;
            }
            for (old, new) in unequal(old, new) {
                let found = compare::differences(name, ((&side.old, types), edits), old, new);
                if found.is_empty() {
                    continue;
                }
                let changed = all.entry(name).or_insert(Changed {
                    definition: old,
                    renamed,
                    differences: Vec::new(),
                });
                for difference in found {
                    if !changed.differences.contains(&difference) {
                        changed.differences.push(difference);
                    }
                }
            }
        }
    }
    let mut findings = Findings::default();
    for (name, changed) in all {
        findings.tell(name, &changed, allowed);
    }
    findings.notes.extend(enumerators(sides));
    findings
}

/// The counterpart of `name` of the old `side` in the new one, or in one that gains
/// what this one loses.
fn counterpart<'a>(
    sides: &'a [Side],
    side: &'a Side,
    name: &Name,
) -> Option<(&'a Types, &'a [Definition])> {
    let gains =
        |other: &&Side| name.kind != Kind::Private && !other.old.definitions.contains_key(name);
    let others = sides.iter().filter(gains);
    let mut all = std::iter::once(side).chain(others);
    all.find_map(|side| Some((&side.new, side.new.definitions.get(name)?.as_slice())))
}

/// The structure or union with another name that replaces `old` in the source: memory
/// that is only reached through `void *` does not show it.
fn successor<'a>(
    side: &'a Side,
    (name, old): (&Name, &[Definition]),
    edits: &Edits,
) -> Option<(Option<&'a Name>, &'a Types, &'a [Definition])> {
    let before = compare::member_names(&side.old, old)?;
    let in_common = |(new, definitions): &(&Name, &Vec<Definition>)| -> Option<usize> {
        if side.old.definitions.contains_key(new) || !edits.redefine(&name.name, &new.name) {
            return None;
        }
        let after = compare::member_names(&side.new, definitions)?;
        let common = before.intersection(&after).count();
        (2 * common >= before.len().max(after.len())).then_some(common)
    };
    let all = side.new.definitions.iter();
    let all = all.filter_map(|new| Some((in_common(&new)?, new)));
    let (_, (new, definitions)) = all.max_by_key(|(common, _)| *common)?;
    Some((Some(new), &side.new, definitions))
}

/// The definitions of a name that are only in one of the lists. Several belong to
/// different blocks of a function.
fn unequal<'a>(
    old: &'a [Definition],
    new: &'a [Definition],
) -> impl Iterator<Item = (&'a Definition, &'a Definition)> {
    let only = |all: &'a [Definition], other: &'a [Definition]| {
        let known = |one: &&Definition| other.iter().any(|other| other.shape == one.shape);
        all.iter().filter(move |one| !known(one))
    };
    only(old, new).zip(only(new, old))
}

/// Whether the object has a writable variable `name`. Automatic variables have no
/// symbol, which is why static ones are numbered.
fn is_in_memory(object: &Object, name: &Name) -> bool {
    object.symbols.iter().any(|symbol| {
        let class = object.sections[symbol.section].class;
        let is_it = match name.scope.is_empty() {
            true => symbol.name == name.name,
            false => symbol.name.is_numbered() && symbol.name.base() == name.name,
        };
        is_it && matches!(class, Class::Data | Class::Bss | Class::PerCpu)
    })
}

impl Findings {
    fn tell(&mut self, name: &Name, changed: &Changed, allowed: &Choices) {
        let words = |relation| -> Vec<&str> {
            let differences = changed.differences.iter();
            let these = differences.filter(|d| d.relation == relation);
            these.map(|d| d.words.as_str()).collect()
        };
        let (lost, read) = (words(Relation::Lost), words(Relation::Read));
        let (place, plain) = (&changed.definition.place, &name.name);
        let subject = match changed.renamed {
            Some(new) => format!("{name}, which is {new} now,"),
            None => name.to_string(),
        };
        if !read.is_empty() {
            self.notes.push(format!(
                "{place}: {subject} {}: what the running hypervisor has in memory is used as it is; \
                 check that the new code can handle it",
                read.join(", ")
            ));
        }
        if lost.is_empty() {
            return;
        }
        let lost = lost.join(", ");
        let file = place.rsplit_once(':').map_or("", |(file, _)| file);
        if allowed.contains_of(file, plain) || allowed.contains(&name.to_string()) {
            self.notes
                .push(format!("{place}: {subject} {lost}: allowed (--allow)"));
            return;
        }
        let message = format!(
            "{subject} {lost}: what the running hypervisor has in memory keeps the old layout, and so \
             does all code that is not in the payload; keep what is there and put what is new \
             elsewhere, or use `--allow {plain}` if none of it outlives a call of the changed \
             functions"
        );
        self.problems
            .push(Problem::new(Code::Layout, place, message));
    }
}

/// Notes about enumerators whose values change, by enumeration.
fn enumerators(sides: &[Side]) -> Vec<String> {
    let mut changes: BTreeMap<(&str, &str), BTreeSet<String>> = BTreeMap::new();
    for side in sides {
        for (name, old) in &side.old.enumerators {
            let words = match side.new.enumerators.get(name) {
                Some(new) if new.value != old.value => {
                    format!("{name} goes from {} to {}", old.value, new.value)
                }
                None if has_enumeration(&side.new, old) => {
                    format!("{name}, which is {}, is gone", old.value)
                }
                _ => continue,
            };
            let enumeration = (old.place.as_str(), old.of.as_str());
            changes.entry(enumeration).or_default().insert(words);
        }
    }
    let note = |((place, of), words): ((&str, &str), BTreeSet<String>)| {
        let of = match of {
            "" => "an enumeration".to_owned(),
            of => format!("enum {of}"),
        };
        let words: Vec<String> = words.into_iter().collect();
        format!(
            "{place}: {of}: {}: values that the running hypervisor keeps in memory have the old \
             meaning; check that the new code can handle them",
            words.join(", ")
        )
    };
    changes.into_iter().map(note).collect()
}

/// Whether `types` still has the enumeration of `enumerator`.
fn has_enumeration(types: &Types, enumerator: &Enumerator) -> bool {
    let mut all = types.enumerators.values();
    all.any(|other| (&other.of, &other.place) == (&enumerator.of, &enumerator.place))
}

#[cfg(test)]
mod tests;
