// SPDX-License-Identifier: MIT OR Apache-2.0
//! Data that a payload changes in place: hooks write the new contents, and restore
//! the old ones.

use crate::choice::Choices;
use std::ops::Range;
use xsplice_objdiff::compare::{Change, Kind};
use xsplice_objdiff::object::{Object, Relocation, Symbol, Target};

/// Maximum number of bytes before and after a differing byte that belong to the same
/// number or pointer.
const AROUND: u64 = 7;

/// Whether the caller wants `change` of the source `file` in place.
pub(crate) fn is_chosen(choices: &Choices, file: &str, change: &Change) -> bool {
    let data = match change.kind {
        Kind::Data
        | Kind::Constant
        | Kind::Resized
        | Kind::Init
        | Kind::Misplaced
        | Kind::Alignment
        | Kind::Elsewhere
        | Kind::Renamed => change.original.is_some() && change.patched.is_some(),
        Kind::Function | Kind::Added | Kind::Removed | Kind::Unsized => false,
    };
    data && choices.contains_of(file, &change.name)
}

/// The contents of `symbol`, zeros included.
pub(crate) fn contents(object: &Object, symbol: &Symbol) -> Vec<u8> {
    let mut bytes = object.bytes(symbol.span()).to_vec();
    bytes.resize(usize::try_from(symbol.size).unwrap_or(0), 0);
    bytes
}

/// The byte ranges in which the old and the new symbol, of the same size, differ,
/// each with the complete numbers and pointers.
pub(crate) fn differences(
    (before, old): (&Object, &Symbol),
    (after, new): (&Object, &Symbol),
    is_same: impl Fn(&Target, &Target) -> bool,
) -> Vec<Range<u64>> {
    let fields = |object: &'_ Object, symbol: &Symbol| -> Vec<(u64, Relocation)> {
        let fields = object.relocations(symbol.first(symbol.size));
        let fields = fields.iter();
        fields
            .map(|field| (field.offset - symbol.offset, field.clone()))
            .collect()
    };
    let (fields, new_fields) = (fields(before, old), fields(after, new));
    let same = |(at, field): &(u64, Relocation), others: &[(u64, Relocation)]| {
        let other = others.iter().find(|(other, _)| other == at);
        other.is_some_and(|(_, other)| {
            field.r_type == other.r_type
                && field.reference.bias == other.reference.bias
                && field.reference.offset == other.reference.offset
                && is_same(&field.reference.target, &other.reference.target)
        })
    };
    let whole = |(at, field): &(u64, Relocation)| *at..at + after.width(field.r_type) as u64;
    let changed = fields.iter().filter(|field| !same(field, &new_fields));
    let added = new_fields
        .iter()
        .filter(|(at, _)| fields.iter().all(|(other, _)| other != at));
    let mut ranges: Vec<Range<u64>> = changed.chain(added).map(whole).collect();
    let (was, now) = (contents(before, old), contents(after, new));
    let bytes = (0u64..).zip(was.iter().zip(&now));
    ranges.extend(
        bytes
            .filter(|(_, (was, now))| was != now)
            .map(|(at, _)| at.saturating_sub(AROUND)..(at + 1 + AROUND).min(old.size)),
    );
    // A pointer is written completely or not at all.
    for range in &mut ranges {
        for pointer in new_fields.iter().map(whole) {
            if pointer.start < range.end && range.start < pointer.end {
                *range = range.start.min(pointer.start)..range.end.max(pointer.end);
            }
        }
    }
    joined(ranges)
}

/// `ranges` sorted, with adjacent ones joined.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_one() {
        assert_eq!(joined(vec![8..16, 0..3, 3..5, 12..20]), [0..5, 8..20]);
    }
}
