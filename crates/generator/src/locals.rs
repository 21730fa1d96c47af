// SPDX-License-Identifier: MIT OR Apache-2.0
//! Static variables of functions that the objects do not distinguish.
//!
//! Compilers number them, and inline the functions that use them. Debugging
//! information, generated for this purpose, shows which function declares each, and
//! on which line.

use crate::dwarf::{self, Local};
use std::collections::{BTreeSet, HashMap};
use xsplice_objdiff::compare::{Comparison, is_once_flag};
use xsplice_objdiff::object::{Object, SymbolIx};

/// Pairs of unmatched static variables of `original` and `patched` that are the same,
/// by index; `compile` compiles both objects with debugging information.
pub(crate) fn settle(
    (original, patched): (&Object, &Object),
    comparison: &Comparison,
    compile: impl FnOnce() -> Option<[Vec<u8>; 2]>,
) -> Vec<(SymbolIx, SymbolIx)> {
    let unsure = comparison.correlation.ambiguous.iter().copied();
    let unsure: Vec<SymbolIx> = unsure
        .filter(|&index| !patched.symbols[index].function)
        .filter(|&index| {
            let symbol = &patched.symbols[index];
            is_once_flag(patched, symbol) || is_lone((original, patched), symbol.name.base())
        })
        .collect();
    if unsure.is_empty() {
        return Vec::new();
    }
    let Some([before, after]) = compile() else {
        return Vec::new();
    };
    // What cannot be read tells nothing.
    let locals = |bytes: &[u8]| dwarf::locals(bytes).unwrap_or_default();
    let (before, after) = (locals(&before), locals(&after));
    let matched: BTreeSet<SymbolIx> = comparison
        .correlation
        .iter()
        .map(|(_, m)| m.original)
        .collect();
    let mut known = Vec::new();
    let mut taken = BTreeSet::new();
    for index in unsure {
        let symbol = &patched.symbols[index];
        let same = match is_once_flag(patched, symbol) {
            true => flag((&before, original), (&after, patched), index),
            false => lone((&before, original), &after, symbol.name.base()),
        };
        let same = same.filter(|old| !matched.contains(old) && taken.insert(*old));
        known.extend(same.map(|old| (old, index)));
    }
    known
}

/// Whether each build has exactly one function-local variable `name`.
fn is_lone((original, patched): (&Object, &Object), name: &str) -> bool {
    [original, patched]
        .into_iter()
        .all(|object| all(object, name).count() == 1)
}

fn all<'a>(object: &'a Object, name: &'a str) -> impl Iterator<Item = SymbolIx> + 'a {
    let locals = object.symbols.iter_enumerated();
    let locals =
        locals.filter(move |(_, s)| !s.function && s.name.is_numbered() && s.name.base() == name);
    locals.map(|(index, _)| index)
}

/// The variable of that name, if exactly one function declares it in both builds.
fn lone((before, original): (&[Local], &Object), after: &[Local], name: &str) -> Option<SymbolIx> {
    let declared_in = |locals: &[Local]| -> BTreeSet<String> {
        let here = locals.iter().filter(|local| local.name == name);
        here.map(|local| local.function.clone()).collect()
    };
    let (old, new) = (declared_in(before), declared_in(after));
    let same = old.len() == 1 && old == new;
    all(original, name).next().filter(|_| same)
}

/// The flag on the same line of the same function: unchanged lines keep their
/// numbers.
fn flag(
    (before, original): (&[Local], &Object),
    (after, patched): (&[Local], &Object),
    index: SymbolIx,
) -> Option<SymbolIx> {
    let mut counts: HashMap<(&str, &str, &str), [usize; 2]> = HashMap::new();
    for (at, locals) in [before, after].into_iter().enumerate() {
        for local in locals {
            counts.entry(local.declaration()).or_default()[at] += 1;
        }
    }
    let symbol = &patched.symbols[index].name;
    let of_symbol = |local: &&Local| local.symbol.as_deref() == Some(symbol);
    let ours = after.iter().find(of_symbol)?;
    // Two on one line, as in a macro, are ambiguous.
    if counts.get(&ours.declaration()) != Some(&[1, 1]) {
        return None;
    }
    let theirs = before
        .iter()
        .find(|local| local.declaration() == ours.declaration())?;
    let old = theirs.symbol.as_deref()?;
    let mut symbols = original.symbols.iter_enumerated();
    let (old, symbol) = symbols.find(|(_, symbol)| symbol.name == old)?;
    is_once_flag(original, symbol).then_some(old)
}
