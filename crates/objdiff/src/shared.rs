// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sections of data that several variables share.
//!
//! An assembler writes a reference to a private symbol as its section and an offset.
//! In a section with one symbol, this means that symbol. In a shared section, it is
//! only a place: `array + ARRAY_SIZE(array)` is the start of the next variable, and
//! `&array[-1]` is within the one before. As long as all of them are laid out as in
//! the hypervisor, only the place matters. If a patch adds, removes or reorders one,
//! or a copy of one goes into the payload, the same source is assembled once more
//! with these variables declared global, so that relocations must name them. That
//! object is the witness.

use crate::compare::Comparison;
use crate::correlate::{is_anonymous, is_macro_flag};
use crate::name::SymbolName;
use crate::object::{
    Class, Index, Object, ReadError, Reference, Relocation, SectionIx, SymbolIx, Target,
};
use std::collections::{BTreeSet, HashMap};

/// The private variables that the witness of `object` must declare global.
pub fn variables(object: &Object) -> BTreeSet<&str> {
    let shared = |section: SectionIx| is_shared(object, section);
    let symbols = object.symbols.iter();
    symbols
        .filter(|symbol| !symbol.global && shared(symbol.section))
        .map(|symbol| &*symbol.name)
        .collect()
}

/// Whether it matters which variable of a shared section a reference means.
pub fn needs_witness(original: &Object, patched: &Object, comparison: &Comparison) -> bool {
    let forth: HashMap<SymbolIx, SymbolIx> = comparison
        .correlation
        .iter()
        .map(|(patched, pair)| (patched, pair.original))
        .collect();
    let back = forth
        .iter()
        .map(|(&patched, &original)| (original, patched));
    let moved = shifted(patched, original, &forth)
        .chain(shifted(original, patched, &back.collect()))
        .next()
        .is_some();
    moved || copies_meet_references(patched, comparison)
}

/// Referenced shared sections of `object` whose variables are laid out differently in
/// `other`.
fn shifted<'a>(
    object: &'a Object,
    other: &'a Object,
    partners: &'a HashMap<SymbolIx, SymbolIx>,
) -> impl Iterator<Item = SectionIx> + 'a {
    referred_to(object, |_| true)
        .into_iter()
        .filter(move |&section| {
            let mut distances = BTreeSet::new();
            let mut count = 0;
            for index in object.symbols_in(section) {
                let symbol = &object.symbols[index];
                if is_anonymous(object, symbol) || is_macro_flag(object, symbol) {
                    continue;
                }
                let Some(partner) = partners.get(&index).map(|&i| &other.symbols[i]) else {
                    return true;
                };
                count += 1;
                let distance = partner.offset.wrapping_sub(symbol.offset);
                distances.insert((partner.section, distance, partner.size == symbol.size));
            }
            let Some(&(there, _, true)) = distances.first() else {
                return count > 0;
            };
            distances.len() > 1 || other.sections[there].class != object.sections[section].class
        })
}

/// Whether changed code refers to a shared section from which the payload gets a copy
/// of a variable.
fn copies_meet_references(patched: &Object, comparison: &Comparison) -> bool {
    let changed = |index: SymbolIx| comparison.changes.iter().any(|c| c.patched == Some(index));
    let copied = |index: SymbolIx| {
        let mut changes = comparison.changes.iter();
        let stays = changes.all(|change| change.patched != Some(index) || change.kind.stays());
        !stays || comparison.correlation.original(index).is_none()
    };
    let from_changed =
        |place: (SectionIx, u64)| patched.symbol_at(place.0, place.1).is_none_or(changed);
    referred_to(patched, from_changed)
        .into_iter()
        .any(|section| patched.symbols_in(section).any(copied))
}

/// Shared sections that permanent code or data refers to without naming a variable,
/// counting only references from places that `counts` accepts.
fn referred_to(object: &Object, counts: impl Fn((SectionIx, u64)) -> bool) -> BTreeSet<SectionIx> {
    let mut found = BTreeSet::new();
    for (index, section) in object.sections.iter_enumerated() {
        if matches!(section.class, Class::Init | Class::Ignored) {
            continue;
        }
        for relocation in section.relocations.iter().filter(|r| r.inferred) {
            if let Some((to, _)) = place(object, &relocation.reference)
                && !found.contains(&to)
                && is_shared(object, to)
                && counts((index, relocation.offset))
            {
                found.insert(to);
            }
        }
    }
    found
}

impl Object {
    /// Reads the object file `data` as [`Object::read`] does. Where a relocation
    /// names only a section that several variables share, `witness` tells which
    /// one is meant: the same source, assembled so that relocations name them
    /// (see [`crate::shared`]).
    ///
    /// # Errors
    /// As [`Object::read`], and if the witness does not tell.
    pub fn read_with(path: &str, data: &[u8], witness: &[u8]) -> Result<Self, ReadError> {
        let mut object = Self::read(path, data)?;
        let witness = Self::read(path, witness)?;
        resolve(&mut object, &witness, path)?;
        Ok(object)
    }
}

/// Sets the variable of every reference into a shared section to the one that
/// `witness` names.
fn resolve(object: &mut Object, witness: &Object, file: &str) -> Result<(), ReadError> {
    let sections = object.sections.indices();
    let shared: BTreeSet<SectionIx> = sections
        .filter(|&section| is_shared(object, section))
        .collect();
    let names: HashMap<(SectionIx, &SymbolName), SymbolIx> = object
        .symbols
        .iter_enumerated()
        .map(|(index, symbol)| ((symbol.section, &symbol.name), index))
        .collect();
    let mut resolved = Vec::new();
    for (index, section) in object.sections.iter_enumerated() {
        for (at, relocation) in section.relocations.iter().enumerate() {
            let Some((to, offset)) = place(object, &relocation.reference)
                .filter(|(to, _)| relocation.inferred && shared.contains(to))
            else {
                continue;
            };
            let named = named(object, witness, index, relocation)
                .and_then(|name| names.get(&(to, name)).copied());
            if let Some(symbol) = named {
                let start = object.symbols[symbol].offset.cast_signed();
                resolved.push((index, at, Target::Symbol(symbol), offset - start));
            } else if section.class != Class::Init
                && (object.arch.has_anchors()
                    || !(is_labelled(witness, index, relocation) && is_inside(object, to, offset)))
            {
                return Err(ReadError::Doubtful {
                    file: file.to_owned(),
                    shared: object.sections[to].name.clone(),
                    section: section.name.clone(),
                    offset: relocation.offset,
                });
            }
        }
    }
    for (index, at, target, offset) in resolved {
        let relocation = &mut object.sections[index].relocations[at];
        relocation.inferred = false;
        relocation.reference.target = target;
        relocation.reference.offset = offset;
    }
    let mut index = std::mem::take(&mut object.index);
    Index::add_pieces(&mut index, &object.sections);
    object.index = index;
    Ok(())
}

/// The variable that `witness` names for `relocation` of `object`, if both lead to
/// the same place.
fn named<'a>(
    object: &Object,
    witness: &'a Object,
    section: SectionIx,
    relocation: &Relocation,
) -> Option<&'a SymbolName> {
    let other = counterpart(witness, section, relocation).filter(|other| !other.inferred)?;
    let Target::Symbol(symbol) = other.reference.target else {
        return None;
    };
    let same_place = place(object, &relocation.reference) == place(witness, &other.reference);
    same_place.then(|| &witness.symbols[symbol].name)
}

/// Whether the source refers to an unnamed label there.
fn is_labelled(witness: &Object, section: SectionIx, relocation: &Relocation) -> bool {
    counterpart(witness, section, relocation).is_some_and(|other| other.inferred)
}

fn counterpart<'a>(
    witness: &'a Object,
    section: SectionIx,
    relocation: &Relocation,
) -> Option<&'a Relocation> {
    let there = &witness.sections.get(section)?.relocations;
    let at = there.partition_point(|r| r.offset < relocation.offset);
    there
        .get(at)
        .filter(|r| (r.offset, r.r_type) == (relocation.offset, relocation.r_type))
}

/// Whether the bytes before and at `offset` belong to one variable.
fn is_inside(object: &Object, section: SectionIx, offset: i64) -> bool {
    let Ok(offset) = u64::try_from(offset) else {
        return false;
    };
    let mut symbols = object
        .symbols_in(section)
        .map(|index| &object.symbols[index]);
    symbols.any(|symbol| symbol.offset < offset && offset < symbol.end())
}

/// Section and offset of a reference's target, if it is in `object`.
fn place(object: &Object, reference: &Reference) -> Option<(SectionIx, i64)> {
    match reference.target {
        Target::Symbol(index) => {
            let symbol = &object.symbols[index];
            let start = symbol.offset.cast_signed();
            Some((symbol.section, start.wrapping_add(reference.offset)))
        }
        Target::Anonymous(section) => Some((section, reference.offset)),
        Target::External(_) => None,
    }
}

fn is_shared(object: &Object, index: SectionIx) -> bool {
    let section = &object.sections[index];
    let data = !matches!(section.class, Class::Text | Class::Ignored | Class::Special);
    let mut starts = object.symbols_in(index).map(|i| object.symbols[i].offset);
    let first = starts.next();
    data && !section.is_code()
        && section.merge.is_none()
        && starts.any(|start| Some(start) != first)
}
