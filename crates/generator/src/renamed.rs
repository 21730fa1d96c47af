// SPDX-License-Identifier: MIT OR Apache-2.0
//! Objects whose source has another name after the patch.
//!
//! A patch that renames a source file takes one object away and adds another.
//! What both define is the same: the variables keep their values, and only the
//! functions that changed are replaced. Which object is which, what they define
//! tells, whatever the patch calls it.

use crate::pair::Pair;
use crate::problem::Problem;
use std::collections::BTreeSet;
use xsplice_objdiff::Object;
use xsplice_objdiff::names::source_name;

/// Makes one pair of an object that the patch takes away and one that it adds,
/// where each has most of its names in common with the other.
pub(crate) fn merge(mut pairs: Vec<Pair>) -> Result<Vec<Pair>, Problem> {
    let names = |pair: &Pair, bytes: &Option<Vec<u8>>| match bytes {
        Some(bytes) => names(&pair.object.path, bytes),
        None => Ok(BTreeSet::new()),
    };
    let mut removed = Vec::new();
    let mut added = Vec::new();
    for (at, pair) in pairs.iter().enumerate() {
        match (&pair.original, &pair.patched) {
            (original @ Some(_), None) => removed.push((at, names(pair, original)?)),
            (None, patched @ Some(_)) => added.push((at, names(pair, patched)?)),
            _ => {}
        }
    }
    let mut gone = BTreeSet::new();
    for (new, defined) in added {
        let alike = |(_, other): &&(usize, BTreeSet<String>)| {
            // More than half of either: no other can have that, too.
            let common = 2 * other.intersection(&defined).count();
            common > other.len() && common > defined.len()
        };
        let Some(&(old, _)) = removed.iter().find(alike) else {
            continue;
        };
        if gone.insert(old) {
            let before = pairs[old].object.clone();
            pairs[new].original = pairs[old].original.take();
            pairs[new].below = std::mem::take(&mut pairs[old].below);
            pairs[new].was = Some(before);
        }
    }
    let mut at = 0..pairs.len();
    pairs.retain(|_| at.next().is_none_or(|at| !gone.contains(&at)));
    Ok(pairs)
}

/// What the source of an object defines.
fn names(path: &str, bytes: &[u8]) -> Result<BTreeSet<String>, Problem> {
    let object = Object::read(path, bytes).map_err(|error| Problem::unreadable(path, &error))?;
    let defined = object.symbols.iter().filter(|s| s.function || s.variable);
    Ok(defined.map(|s| source_name(&s.name).to_owned()).collect())
}
