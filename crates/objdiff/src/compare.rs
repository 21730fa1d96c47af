// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tells which symbols of two builds of an object differ.

use crate::correlate::{Correlation, is_anonymous};
use crate::names::{base_name, parent_of_cold};
use crate::object::{Class, Merge, Object, Reference, Relocation, Section, Symbol, Target, slice};
use crate::placement::{self, Fate};
use crate::special::{self, Entry};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use std::collections::{BTreeMap, BTreeSet};

pub use crate::correlate::is_once_flag;

/// What happened to a symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A function with other code, or with other entries in the tables about it.
    Function,
    /// A function or variable that the original does not have.
    Added,
    /// A function or variable that only the original has.
    Removed,
    /// A writable variable with another initial value.
    Data,
    /// Read-only data with other contents.
    Constant,
    /// A variable of another size.
    Resized,
    /// Code or data that is only used while booting.
    Init,
    /// What is what it was, in a place where something else is done with it:
    /// another list, other protection.
    Misplaced,
    /// Data that is what it was, and needs more alignment.
    Alignment,
    /// Data that is what it was, in a place that is as good as the old one.
    Elsewhere,
    /// Code of a section in which symbols have no size: hand-written assembly,
    /// of which nothing tells where a function ends.
    Unsized,
}

impl Kind {
    /// Whether patched code goes on with what the running hypervisor has: it has
    /// a state, or its place is all that differs.
    pub fn stays(self) -> bool {
        match self {
            Self::Function | Self::Added | Self::Removed | Self::Constant | Self::Unsized => false,
            Self::Data
            | Self::Resized
            | Self::Init
            | Self::Misplaced
            | Self::Alignment
            | Self::Elsewhere => true,
        }
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: Kind,
    /// Name of the symbol.
    pub name: String,
    /// The symbol in the original object, if it is there.
    pub original: Option<usize>,
    /// The symbol in the patched object, if it is there.
    pub patched: Option<usize>,
    /// Where the first difference is, in words.
    pub why: String,
}

/// The result of [`compare`].
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// Every difference, in the order of the patched object's symbols.
    pub changes: Vec<Change>,
    /// Which symbol of the patched object is which of the original.
    pub correlation: Correlation,
}

impl Comparison {
    /// Of an object with itself.
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
    compare_knowing(original, patched, &BTreeSet::new())
}

/// As [`compare`]; the static variables of functions that have the names `same`
/// in the source are known to belong to one function in both.
pub fn compare_knowing(original: &Object, patched: &Object, same: &BTreeSet<String>) -> Comparison {
    let correlation = Correlation::knowing(original, patched, same);
    let needier = placement::needier(original, patched, |index| correlation.original(index));
    let comparer = Comparer {
        original,
        patched,
        original_entries: by_owner(original),
        patched_entries: by_owner(patched),
        kept: correlation.iter().map(|(_, pair)| pair.original).collect(),
        renewed: (0..patched.symbols.len())
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

/// What the tables say about each symbol, by the name of the table: which of
/// them comes first in an object is of no meaning.
type Entries = BTreeMap<Option<usize>, BTreeMap<String, Vec<Entry>>>;

fn by_owner(object: &Object) -> Entries {
    let mut map = Entries::new();
    for entry in special::entries(object) {
        let table = object.sections[entry.section].name.clone();
        let tables = map.entry(entry.owner).or_default();
        tables.entry(table).or_default().push(entry);
    }
    map
}

struct Comparer<'a> {
    original: &'a Object,
    patched: &'a Object,
    original_entries: Entries,
    patched_entries: Entries,
    correlation: Correlation,
    /// Symbols of the original that are matched.
    kept: BTreeSet<usize>,
    /// Symbols of the original whose name something new has.
    renewed: BTreeSet<usize>,
    /// Variables of the patched object that need more alignment than before.
    needier: BTreeSet<usize>,
}

/// Pairs of places that are being compared further up, taken to be equal.
type Seen = BTreeSet<((Target, i64), (Target, i64))>;

impl Comparer<'_> {
    fn changes(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (index, symbol) in self.patched.symbols.iter().enumerate() {
            let original = self.correlation.original(index);
            let class = self.patched.sections[symbol.section].class;
            let difference = match original {
                Some(original) => self.difference(class, original, index),
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
        for (index, symbol) in self.original.symbols.iter().enumerate() {
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
    fn why_new(&self, patched: usize) -> String {
        let Some(original) = self.correlation.renewed(patched) else {
            return "it is new".to_owned();
        };
        self.where_it_was(original, patched)
    }

    fn where_it_was(&self, original: usize, patched: usize) -> String {
        let (old, new) = self.sections(original, patched);
        let (was, is) = (placement::describe(old), placement::describe(new));
        format!("it was in {was} and is in {is} now")
    }

    fn sections(&self, original: usize, patched: usize) -> (&Section, &Section) {
        (
            &self.original.sections[self.original.symbols[original].section],
            &self.patched.sections[self.patched.symbols[patched].section],
        )
    }

    /// Compares what no symbol names and nothing refers to.
    fn compare_nameless(&self, changes: &mut Vec<Change>) {
        let mut differs = |name: String, why: String| {
            changes.push(Change {
                kind: Kind::Unsized,
                name,
                original: None,
                patched: None,
                why,
            });
        };
        if let Some(why) = self.entries_difference(None, None, &mut Seen::new()) {
            differs("a table about unnamed code".to_owned(), why);
        }
        let (old, new) = (nameless(self.original), nameless(self.patched));
        let names: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        for name in names {
            let none = Vec::new();
            let (old, new) = (
                old.get(name).unwrap_or(&none),
                new.get(name).unwrap_or(&none),
            );
            let why = if old.len() == new.len() {
                old.iter().zip(new).find_map(|(old, new)| {
                    if old.1 != new.1 {
                        return Some(format!("its size goes from {} to {} bytes", old.1, new.1));
                    }
                    self.range_difference((old.0, 0), (new.0, 0), new.1, &mut Seen::new())
                })
            } else {
                Some(format!(
                    "there are {} of it, there were {}",
                    new.len(),
                    old.len()
                ))
            };
            if let Some(why) = why {
                differs(name.to_owned(), why);
            }
        }
    }

    /// A function and the cold part that the compiler split off it jump into
    /// each other: when one changed, both do.
    fn follow_cold_parts(&self, changes: &mut Vec<Change>) {
        let changed: BTreeSet<String> = changes
            .iter()
            .filter(|c| matches!(c.kind, Kind::Function | Kind::Added))
            .map(|c| c.name.clone())
            .collect();
        for (index, symbol) in self.patched.symbols.iter().enumerate() {
            let (other, why) = match parent_of_cold(&symbol.name) {
                Some(parent) => (parent.to_owned(), "the function it belongs to changed"),
                None => (format!("{}.cold", symbol.name), "its cold part changed"),
            };
            if symbol.function && !changed.contains(&symbol.name) && changed.contains(&other) {
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

    fn difference(&self, class: Class, original: usize, patched: usize) -> Option<(Kind, String)> {
        let (old, new) = (
            &self.original.symbols[original],
            &self.patched.symbols[patched],
        );
        let (from, to) = self.sections(original, patched);
        let fate = placement::fate(from, to);
        if fate == Fate::Misplaced {
            let kind = match class {
                Class::Init => Kind::Init,
                _ => Kind::Misplaced,
            };
            return Some((kind, self.where_it_was(original, patched)));
        }
        if let Some(why) = self.contents_difference(original, patched) {
            let kind = match class {
                _ if old.is_label() || new.is_label() => Kind::Unsized,
                Class::Init => Kind::Init,
                Class::Text => Kind::Function,
                Class::ReadOnly => Kind::Constant,
                _ if old.size != new.size => Kind::Resized,
                _ => Kind::Data,
            };
            return Some((kind, why));
        }
        if class == Class::Text {
            let places = ((self.original, original), (self.patched, patched));
            let why = placement::code_moves(places.0, places.1)?;
            let label = old.is_label() || new.is_label();
            if from.align == to.align && self.is_pushed(original, patched) {
                return None;
            }
            let kind = if label { Kind::Unsized } else { Kind::Function };
            return Some((kind, why));
        }
        if self.needier.contains(&patched) {
            let had = placement::alignment(self.original, original).most;
            let needs = placement::alignment(self.patched, patched).most;
            let kind = match class {
                Class::Init => Kind::Init,
                _ => Kind::Alignment,
            };
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

    /// Whether code lies elsewhere in its section only because there is more or
    /// less in front of it: it is aligned as it was, as far as padding tells.
    fn is_pushed(&self, original: usize, patched: usize) -> bool {
        let in_front = |object: &Object, index: usize| -> u64 {
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

    /// How the bytes and references of two symbols differ.
    fn contents_difference(&self, original: usize, patched: usize) -> Option<String> {
        let (old, new) = (
            &self.original.symbols[original],
            &self.patched.symbols[patched],
        );
        let sizes = (
            significant(self.original, old),
            significant(self.patched, new),
        );
        if sizes.0 != sizes.1 || old.size != new.size {
            return Some(format!(
                "its size goes from {} to {} bytes",
                sizes.0, sizes.1
            ));
        }
        let mut seen = Seen::from([((Target::Symbol(original), 0), (Target::Symbol(patched), 0))]);
        self.range_difference(
            (old.section, old.offset),
            (new.section, new.offset),
            sizes.1,
            &mut seen,
        )
        .or_else(|| self.entries_difference(Some(original), Some(patched), &mut seen))
    }

    /// Compares the bytes and references of two places.
    fn range_difference(
        &self,
        (old_section, old_offset): (usize, u64),
        (new_section, new_offset): (usize, u64),
        size: u64,
        seen: &mut Seen,
    ) -> Option<String> {
        let old_fields = self.original.relocations(old_section, old_offset, size);
        let new_fields = self.patched.relocations(new_section, new_offset, size);
        let old_bytes = slice(&self.original.sections[old_section].data, old_offset, size);
        let new_bytes = slice(&self.patched.sections[new_section].data, new_offset, size);
        let table = &self.patched.sections[new_section].name;
        let boot = self.patched.sections[new_section].class == Class::Init;
        let mut at = 0;
        let bytes_differ = |from: u64, to: u64| {
            let part = |bytes| slice(bytes, from, to.saturating_sub(from));
            let found = first_difference(part(old_bytes), part(new_bytes))?;
            Some(format!("first difference at +{:#x}", from + found as u64))
        };
        let zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
        if old_bytes.len() != new_bytes.len() {
            // Zeroes need no place in the file.
            if zero(old_bytes) && zero(new_bytes) && old_fields.is_empty() && new_fields.is_empty()
            {
                return None;
            }
            return Some("it has contents in one build only".to_owned());
        }
        for pair in 0..old_fields.len().max(new_fields.len()) {
            let (old, new) = (old_fields.get(pair), new_fields.get(pair));
            let place = |field: Option<&crate::object::Relocation>, start| {
                field.map_or(size, |field| field.offset.wrapping_sub(start))
            };
            let (old_at, new_at) = (place(old, old_offset), place(new, new_offset));
            let here = old_at.min(new_at);
            if let Some(why) = bytes_differ(at, here) {
                return Some(why);
            }
            let (Some(old), Some(new)) = (old, new) else {
                return Some(format!("at +{here:#x} it refers to another symbol"));
            };
            if old_at != new_at || width(old.r_type) != width(new.r_type) {
                return Some(format!("first difference at +{here:#x}"));
            }
            let mut leads_to_the_same = || {
                self.same_reference(&old.reference, &new.reference, seen)
                    || boot && self.left_boot_only(old, new, seen)
            };
            if !special::same_bias(table, old.reference.bias, new.reference.bias)
                || !leads_to_the_same()
            {
                let was = describe(self.original, &old.reference);
                let is = describe(self.patched, &new.reference);
                return Some(match was == is {
                    true => format!("at +{here:#x} it refers to {is}, which changed"),
                    false => format!("at +{here:#x} it refers to {is} instead of {was}"),
                });
            }
            at = here + width(new.r_type) as u64;
        }
        bytes_differ(at, size)
    }

    fn entries_difference(
        &self,
        original: Option<usize>,
        patched: Option<usize>,
        seen: &mut Seen,
    ) -> Option<String> {
        let none = BTreeMap::new();
        let old = self.original_entries.get(&original).unwrap_or(&none);
        let new = self.patched_entries.get(&patched).unwrap_or(&none);
        let tables: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        tables.into_iter().find_map(|table| {
            let count = |entries: Option<&Vec<Entry>>| entries.map_or(0, Vec::len);
            let (Some(old), Some(new)) = (old.get(table), new.get(table)) else {
                let (was, is) = (count(old.get(table)), count(new.get(table)));
                return Some(format!("it has {is} entries in {table}, it had {was}"));
            };
            if old.len() != new.len() {
                let (was, is) = (old.len(), new.len());
                return Some(format!("it has {is} entries in {table}, it had {was}"));
            }
            let mut pairs = old.iter().zip(new);
            let same = pairs.all(|(old, new)| self.same_entry(old, new, seen));
            (!same).then(|| format!("its entry in {table} differs"))
        })
    }

    fn same_entry(&self, old: &Entry, new: &Entry, seen: &mut Seen) -> bool {
        let old_place = (old.section, old.offset);
        let new_place = (new.section, new.offset);
        let difference = self.range_difference(old_place, new_place, new.size, seen);
        old.size == new.size && difference.is_none() && self.pieces_equal(old, new, seen)
    }

    fn pieces_equal(&self, old: &Entry, new: &Entry, seen: &mut Seen) -> bool {
        let old = special::pieces(self.original, old);
        let new = special::pieces(self.patched, new);
        old.len() == new.len()
            && old.into_iter().zip(new).all(|(old, new)| {
                let places = ((old.0, old.1), (new.0, new.1));
                old.2 == new.2
                    && self
                        .range_difference(places.0, places.1, new.2, seen)
                        .is_none()
            })
    }

    fn same_reference(&self, old: &Reference, new: &Reference, seen: &mut Seen) -> bool {
        match (&old.target, &new.target) {
            (Target::Anonymous(old_section), Target::Anonymous(new_section)) => {
                self.same_anonymous((*old_section, old.offset), (*new_section, new.offset), seen)
            }
            (Target::Symbol(old_symbol), Target::Symbol(new_symbol)) => {
                old.offset == new.offset && self.same_symbol(*old_symbol, *new_symbol, seen)
            }
            (Target::External(old_name), Target::External(new_name)) => {
                old.offset == new.offset && old_name == new_name
            }
            // The definition moved to or from another object.
            (Target::Symbol(symbol), Target::External(name)) => {
                let symbol = &self.original.symbols[*symbol];
                old.offset == new.offset && symbol.global && symbol.name == **name
            }
            (Target::External(name), Target::Symbol(symbol)) => {
                let symbol = &self.patched.symbols[*symbol];
                old.offset == new.offset && symbol.global && symbol.name == **name
            }
            _ => false,
        }
    }

    /// Whether a field of boot-only code leads to what was boot-only, and is the
    /// same in a place that stays: it was called, or read, while booting. Where
    /// its address was taken, something may still have the old one.
    fn left_boot_only(&self, old: &Relocation, new: &Relocation, seen: &mut Seen) -> bool {
        let (&Target::Symbol(a), &Target::Symbol(b)) =
            (&old.reference.target, &new.reference.target)
        else {
            return false;
        };
        let (was, is) = (&self.original.symbols[a], &self.patched.symbols[b]);
        let left = self.correlation.renewed(b) == Some(a)
            && self.original.sections[was.section].class == Class::Init
            && old.reference.offset == new.reference.offset;
        left && match is.function {
            true => new.branch,
            false => {
                was.size == is.size
                    && self
                        .range_difference(
                            (was.section, was.offset),
                            (is.section, is.offset),
                            is.size,
                            seen,
                        )
                        .is_none()
            }
        }
    }

    fn same_symbol(&self, old: usize, new: usize, seen: &mut Seen) -> bool {
        let (a, b) = (&self.original.symbols[old], &self.patched.symbols[new]);
        let same = match self.correlation.original(new) {
            Some(original) => {
                let other = &self.original.symbols[original];
                // A place may have several names.
                original == old || a.function && other.is_at(a)
            }
            // What is not matched may be one of several of the same name.
            None => base_name(&a.name) == base_name(&b.name) && !self.kept.contains(&old),
        };
        let constant = |object: &Object, symbol: &Symbol| {
            object.sections[symbol.section].class == Class::ReadOnly && !symbol.global
                || is_once_flag(object, symbol)
        };
        if !same || !constant(self.original, a) || !constant(self.patched, b) {
            return same && self.correlation.original(new).is_some();
        }
        // Private constants are what they contain. So is a flag that only says
        // whether a message was printed already.
        a.extent() == b.extent()
            && (!seen.insert(((Target::Symbol(old), 0), (Target::Symbol(new), 0)))
                || self
                    .range_difference(
                        (a.section, a.offset),
                        (b.section, b.offset),
                        b.extent(),
                        seen,
                    )
                    .is_none())
    }

    fn same_anonymous(&self, old: (usize, i64), new: (usize, i64), seen: &mut Seen) -> bool {
        let (a, b) = (
            &self.original.sections[old.0],
            &self.patched.sections[new.0],
        );
        match (a.merge, b.merge) {
            (Some(_), Some(_)) => {
                let content = self.original.merged(old.0, old.1);
                a.merge == b.merge
                    && content.is_some()
                    && content == self.patched.merged(new.0, new.1)
            }
            (None, None) => {
                let (Ok(old_at), Ok(new_at)) = (u64::try_from(old.1), u64::try_from(new.1)) else {
                    return false;
                };
                if old_at >= a.size && new_at >= b.size {
                    // An address computed from one in another address space.
                    return a.name == b.name && old_at == new_at;
                }
                if a.name == ".altinstr_replacement" && b.name == a.name {
                    // Compared by length, with the entry that has it.
                    return true;
                }
                let pair = (
                    (Target::Anonymous(old.0), old.1),
                    (Target::Anonymous(new.0), new.1),
                );
                if !seen.insert(pair) {
                    return true;
                }
                let was = special::piece(self.original, old.0, old_at);
                let is = special::piece(self.patched, new.0, new_at);
                old_at - was.start == new_at - is.start
                    && was.end.checked_sub(was.start) == is.end.checked_sub(is.start)
                    && is.end >= new_at
                    && self
                        .range_difference(
                            (old.0, was.start),
                            (new.0, is.start),
                            is.end - is.start,
                            seen,
                        )
                        .is_none()
            }
            _ => false,
        }
    }
}

/// How a symbol that only `object` has counts; not at all if it is nothing but
/// what it contains.
fn absent_from_the_other(object: &Object, symbol: &Symbol, kind: Kind) -> Option<Kind> {
    match object.sections[symbol.section].class {
        Class::Ignored | Class::Special => None,
        _ if is_anonymous(object, symbol) => None,
        Class::Init => Some(Kind::Init),
        _ if symbol.is_label() => Some(Kind::Unsized),
        _ => Some(kind),
    }
}

/// For each section name the sections that begin with something without a name
/// that nothing refers to, with its size.
fn nameless(object: &Object) -> BTreeMap<&str, Vec<(usize, u64)>> {
    let mut found: BTreeMap<&str, Vec<(usize, u64)>> = BTreeMap::new();
    for (index, section) in object.sections.iter().enumerate() {
        let first = object.symbols_in(index).next();
        let size = first.map_or(section.size, |first| object.symbols[first].offset);
        let compared = matches!(section.class, Class::Ignored | Class::Special)
            || section.merge.is_some()
            || !object.pieces_in(index).is_empty();
        if size > 0 && !compared {
            found.entry(&section.name).or_default().push((index, size));
        }
    }
    found
}

/// How many bytes of a symbol matter: behind a label, not the padding in front
/// of the next one.
pub(crate) fn significant(object: &Object, symbol: &Symbol) -> u64 {
    let class = object.sections[symbol.section].class;
    if !symbol.is_label() || !matches!(class, Class::Text | Class::Init) {
        return symbol.extent();
    }
    let code = object.bytes(symbol);
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    let (mut instruction, mut end) = (Instruction::default(), 0);
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if !matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3) {
            end = instruction.next_ip();
        }
    }
    end
}

/// Size in bytes of the field that a relocation of type `r_type` fills.
pub fn width(r_type: u32) -> usize {
    // The types that the table does not have are the GOT's, of four bytes.
    xsplice_reloc::reloc::x86_64::lookup(r_type).map_or(4, |relocation| relocation.size)
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    (a != b).then(|| {
        a.iter()
            .zip(b)
            .position(|(a, b)| a != b)
            .unwrap_or(a.len().min(b.len()))
    })
}

pub(crate) fn describe(object: &Object, reference: &Reference) -> String {
    if let Target::Anonymous(section) = reference.target
        && let Some(Merge::Strings(1)) = object.sections[section].merge
        && let Some((text, _)) = object.merged(section, reference.offset)
    {
        return format!(
            "\"{}\"",
            String::from_utf8_lossy(text)
                .trim_end_matches('\0')
                .escape_debug()
        );
    }
    let label = object.label(&reference.target);
    match reference.offset {
        0 => label,
        offset => format!("{label}{offset:+#x}"),
    }
}
