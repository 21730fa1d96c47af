// SPDX-License-Identifier: MIT OR Apache-2.0
//! Objects whose source the patch renames.
//!
//! A patch that renames a source file removes one object and adds another. Symbols in
//! both are the same: variables keep their values, and only changed functions are
//! replaced. Objects are matched by what they define, whatever the patch says.

use crate::pair::Pair;
use crate::problem::Problem;
use std::collections::BTreeSet;
use xsplice_objdiff::Object;

/// Pairs a removed object with an added one if each shares most of its names with the
/// other.
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
            // More than half of each, so no other object can qualify.
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

/// The names that an object's source defines.
fn names(path: &str, bytes: &[u8]) -> Result<BTreeSet<String>, Problem> {
    let object = Object::read(path, bytes).map_err(|error| Problem::unreadable(path, &error))?;
    let defined = object.symbols.iter().filter(|s| s.function || s.variable);
    Ok(defined.map(|s| s.name.in_source().to_owned()).collect())
}
