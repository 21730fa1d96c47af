// SPDX-License-Identifier: MIT OR Apache-2.0
//! Symbols that a payload below stopped using, and that the patch uses again.
//!
//! They are not in the source below, but still in memory: a variable keeps its
//! current value instead of its initial one.

use super::At;
use super::private::is_writable;
use crate::unit::{Unit, Units};
use std::collections::HashMap;
use xsplice_objdiff::compare::{Comparison, is_once_flag};
use xsplice_objdiff::object::SymbolIx;

/// The state of a symbol of the patched object before payloads below stopped using
/// it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Former {
    /// The symbol at this index of this build of the unit.
    Same {
        /// The build.
        build: usize,
        /// The index.
        index: SymbolIx,
    },
    /// A variable that differs from the one in memory, with the difference.
    Changed(String),
    /// One of several variables, or none.
    Unclear,
}

/// By unit and index in its patched object.
pub(super) type Revived = HashMap<At, Former>;

/// Finds symbols in earlier builds that the original of each unit lacks.
pub(super) fn find(units: &Units) -> Revived {
    let mut found = Revived::new();
    for (unit, u) in units.iter_enumerated() {
        let new = u.comparison.changes.iter().filter(|c| c.original.is_none());
        let mut new: Vec<SymbolIx> = new.filter_map(|change| change.patched).collect();
        for build in (0..u.stages.len()).rev() {
            if new.is_empty() {
                break;
            }
            let comparison = xsplice_objdiff::compare(u.build(build), &u.patched);
            new.retain(|&index| match former(u, build, &comparison, index) {
                Some(former) => found.insert((unit, index), former).is_some(),
                None => true,
            });
        }
    }
    found
}

fn former(u: &Unit, build: usize, comparison: &Comparison, index: SymbolIx) -> Option<Former> {
    let symbol = &u.patched.symbols[index];
    let variable = is_writable(&u.patched, index);
    // A constant is identified by its contents.
    if !variable && !symbol.function {
        return None;
    }
    let correlation = &comparison.correlation;
    let Some(old) = correlation.original(index) else {
        let unclear =
            correlation.ambiguous.contains(&index) && variable && !is_once_flag(&u.patched, symbol);
        return unclear.then_some(Former::Unclear);
    };
    let mut changes = comparison.changes.iter();
    match changes.find(|change| change.patched == Some(index)) {
        None => Some(Former::Same { build, index: old }),
        Some(change) => variable.then(|| Former::Changed(change.why.clone())),
    }
}
