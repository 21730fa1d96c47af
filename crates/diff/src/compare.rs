//! Correlates the symbols of two builds of an object and tells which differ.

use crate::object::{Class, Object, Reference, Relocation, Symbol, Target, slice};
use crate::special::{self, Entry};
use std::collections::{BTreeMap, BTreeSet, HashMap};

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
    /// Code of a section in which symbols have no size: hand-written assembly,
    /// of which nothing tells where a function ends.
    Unsized,
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
#[derive(Debug, Default)]
pub struct Comparison {
    /// Every difference, in the order of the patched object's symbols.
    pub changes: Vec<Change>,
    /// For a symbol of the patched object, the same symbol of the original.
    pub correlated: HashMap<usize, usize>,
    /// Symbols of the patched object that may be the same as one of several
    /// in the original, or as none: nothing tells which.
    pub ambiguous: BTreeSet<usize>,
}

impl Comparison {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// Compares `patched` with `original`.
pub fn compare(original: &Object, patched: &Object) -> Comparison {
    let mut comparer = Comparer {
        original,
        patched,
        original_entries: by_owner(special::entries(original)),
        patched_entries: by_owner(special::entries(patched)),
        result: Comparison::default(),
    };
    comparer.correlate();
    comparer.find_changes();
    comparer.result
}

/// `name` without the number that the compiler put behind a static local
/// variable or a clone: `rover.0` is `rover`.
pub fn base_name(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((base, number))
            if !base.is_empty()
                && !number.is_empty()
                && number.bytes().all(|b| b.is_ascii_digit()) =>
        {
            base
        }
        _ => name,
    }
}

/// Whether `symbol` is a private flag that only says whether a message was
/// printed already: a copy of one is as good, at the price of one message.
pub fn is_once_flag(object: &Object, symbol: &Symbol) -> bool {
    let class = object.sections[symbol.section].class;
    let name = base_name(&symbol.name).trim_end_matches('_');
    !symbol.global
        && !symbol.function
        && matches!(class, Class::Data | Class::Bss)
        && symbol.size <= 4
        && ["once", "warned", "already_done"]
            .iter()
            .any(|end| name.ends_with(end))
}

type Entries = BTreeMap<Option<usize>, Vec<Entry>>;

fn by_owner(entries: Vec<Entry>) -> Entries {
    let mut map = Entries::new();
    for entry in entries {
        map.entry(entry.owner).or_default().push(entry);
    }
    map
}

struct Comparer<'a> {
    original: &'a Object,
    patched: &'a Object,
    original_entries: Entries,
    patched_entries: Entries,
    result: Comparison,
}

/// Pairs of places that are being compared further up, taken to be equal.
type Seen = BTreeSet<(Target, Target, i64)>;

impl Comparer<'_> {
    fn correlate(&mut self) {
        let originals = groups(self.original);
        for (key, candidates) in groups(self.patched) {
            match (
                candidates.as_slice(),
                originals.get(&key).map(Vec::as_slice),
            ) {
                (_, None) => {}
                ([patched], Some([original])) => {
                    self.result.correlated.insert(*patched, *original);
                }
                (patched, Some(original)) => self.correlate_group(patched, original),
            }
        }
    }

    /// Several symbols share a base name: only a pair that is alike in size,
    /// contents and in who refers to it, and alone in that, is the same.
    fn correlate_group(&mut self, patched: &[usize], original: &[usize]) {
        let mut marks: BTreeMap<Mark, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
        for &index in patched {
            marks
                .entry(mark(self.patched, index))
                .or_default()
                .0
                .push(index);
        }
        for &index in original {
            marks
                .entry(mark(self.original, index))
                .or_default()
                .1
                .push(index);
        }
        for (patched, original) in marks.into_values() {
            match (patched.as_slice(), original.as_slice()) {
                ([patched], [original]) => {
                    self.result.correlated.insert(*patched, *original);
                }
                // Which of several such flags is which makes no difference.
                ([first, ..], _) if is_once_flag(self.patched, &self.patched.symbols[*first]) => {
                    let pairs = patched.iter().copied().zip(original.iter().copied());
                    self.result.correlated.extend(pairs);
                }
                (patched, _) => self.result.ambiguous.extend(patched),
            }
        }
    }

    fn find_changes(&mut self) {
        let mut changes = Vec::new();
        for (index, symbol) in self.patched.symbols.iter().enumerate() {
            let class = self.patched.sections[symbol.section].class;
            if class == Class::Ignored || class == Class::Special {
                continue;
            }
            let original = self.result.correlated.get(&index).copied();
            let difference = match original {
                Some(original) => self.difference(class, original, index),
                None if class == Class::Init => Some((Kind::Init, "it is new".to_owned())),
                None => Some((Kind::Added, "it is new".to_owned())),
            };
            if let Some((kind, why)) = difference {
                let name = symbol.name.clone();
                changes.push(Change {
                    kind,
                    name,
                    original,
                    patched: Some(index),
                    why,
                });
            }
        }
        self.compare_unsized(&mut changes);
        self.follow_cold_parts(&mut changes);
        let kept: BTreeSet<usize> = self.result.correlated.values().copied().collect();
        for (index, symbol) in self.original.symbols.iter().enumerate() {
            let class = self.original.sections[symbol.section].class;
            if !kept.contains(&index) && class != Class::Ignored && class != Class::Special {
                changes.push(Change {
                    kind: if class == Class::Init {
                        Kind::Init
                    } else {
                        Kind::Removed
                    },
                    name: symbol.name.clone(),
                    original: Some(index),
                    patched: None,
                    why: "the patched source does not have it".to_owned(),
                });
            }
        }
        self.result.changes = changes;
    }

    /// Sections with symbols that have no size are compared as a whole.
    fn compare_unsized(&self, changes: &mut Vec<Change>) {
        let sections = |object: &Object| -> BTreeMap<String, (usize, String)> {
            let unsized_symbols = object.symbols.iter().filter(|s| {
                let section = &object.sections[s.section];
                s.size == 0
                    && section.size > 0
                    && !in_tail(object, s)
                    && !matches!(section.class, Class::Ignored | Class::Special)
            });
            let mut found = BTreeMap::new();
            for symbol in unsized_symbols {
                let name = object.sections[symbol.section].name.clone();
                found
                    .entry(name)
                    .or_insert((symbol.section, symbol.name.clone()));
            }
            found
        };
        if let Some(why) = self.entries_difference(None, None, &mut Seen::new()) {
            changes.push(Change {
                kind: Kind::Unsized,
                name: "a table about unnamed code".to_owned(),
                original: None,
                patched: None,
                why,
            });
        }
        let (old, new) = (sections(self.original), sections(self.patched));
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for name in names {
            let (first, why) = match (old.get(name), new.get(name)) {
                (Some((old, first)), Some((new, _))) => {
                    let size = self.patched.sections[*new].size;
                    let why = if self.original.sections[*old].size == size {
                        self.range_difference((*old, 0), (*new, 0), size, &mut Seen::new())
                    } else {
                        Some("its size changed".to_owned())
                    };
                    let Some(why) = why else { continue };
                    (first, why)
                }
                (Some((_, first)), None) => (first, "it was removed".to_owned()),
                (None, Some((_, first))) => (first, "it is new".to_owned()),
                (None, None) => continue,
            };
            changes.push(Change {
                kind: Kind::Unsized,
                name: format!("{name} (with {first})"),
                original: None,
                patched: None,
                why,
            });
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
            let (other, why) = match symbol.name.strip_suffix(".cold") {
                Some(parent) => (parent.to_owned(), "the function it belongs to changed"),
                None => (format!("{}.cold", symbol.name), "its cold part changed"),
            };
            if symbol.function && !changed.contains(&symbol.name) && changed.contains(&other) {
                changes.push(Change {
                    kind: Kind::Function,
                    name: symbol.name.clone(),
                    original: self.result.correlated.get(&index).copied(),
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
        let mut seen = Seen::from([(Target::Symbol(original), Target::Symbol(patched), 0)]);
        let why = if (old.size, old.tail) == (new.size, new.tail) {
            self.body_difference(old, new, &mut seen)
                .or_else(|| self.entries_difference(Some(original), Some(patched), &mut seen))
        } else {
            Some(format!(
                "its size goes from {} to {} bytes",
                old.extent(),
                new.extent()
            ))
        }?;
        let kind = match class {
            Class::Init => Kind::Init,
            Class::Text => Kind::Function,
            Class::ReadOnly => Kind::Constant,
            _ if old.size != new.size => Kind::Resized,
            _ => Kind::Data,
        };
        Some((kind, why))
    }

    /// Compares the bytes and references of two symbols of equal size.
    fn body_difference(&self, old: &Symbol, new: &Symbol, seen: &mut Seen) -> Option<String> {
        self.range_difference(
            (old.section, old.offset),
            (new.section, new.offset),
            new.extent(),
            seen,
        )
    }

    fn range_difference(
        &self,
        (old_section, old_offset): (usize, u64),
        (new_section, new_offset): (usize, u64),
        size: u64,
        seen: &mut Seen,
    ) -> Option<String> {
        let old_fields = self.original.relocations(old_section, old_offset, size);
        let new_fields = self.patched.relocations(new_section, new_offset, size);
        let old_bytes = masked(self.original, old_section, old_offset, size, old_fields);
        let new_bytes = masked(self.patched, new_section, new_offset, size, new_fields);
        if let Some(at) = first_difference(&old_bytes, &new_bytes) {
            return Some(format!("first difference at +{at:#x}"));
        }
        if old_fields.len() != new_fields.len() {
            return Some("it refers to other symbols".to_owned());
        }
        for (old, new) in old_fields.iter().zip(new_fields) {
            let at = new.offset - new_offset;
            if old.offset - old_offset != at || width(old.r_type) != width(new.r_type) {
                return Some(format!("first difference at +{at:#x}"));
            }
            if !self.same_reference(&old.reference, &new.reference, seen) {
                return Some(format!(
                    "at +{at:#x} it refers to {} instead of {}",
                    describe(self.patched, &new.reference),
                    describe(self.original, &old.reference)
                ));
            }
        }
        None
    }

    fn entries_difference(
        &self,
        original: Option<usize>,
        patched: Option<usize>,
        seen: &mut Seen,
    ) -> Option<String> {
        let none = Vec::new();
        let old = self.original_entries.get(&original).unwrap_or(&none);
        let new = self.patched_entries.get(&patched).unwrap_or(&none);
        if old.len() != new.len() {
            return Some("it has other bug frames, alternatives or exception entries".to_owned());
        }
        old.iter().zip(new).find_map(|(old, new)| {
            let table = &self.patched.sections[new.section].name;
            let same_table = self.original.sections[old.section].name == *table;
            let old_place = (old.section, old.offset);
            let new_place = (new.section, new.offset);
            let same = same_table
                && old.size == new.size
                && self
                    .range_difference(old_place, new_place, new.size, seen)
                    .is_none()
                && self.pieces_equal(old, new, seen);
            (!same).then(|| format!("its entry in {table} differs"))
        })
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
        if old.bias != new.bias {
            return false;
        }
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
                old.offset == new.offset && symbol.global && symbol.name == *name
            }
            (Target::External(name), Target::Symbol(symbol)) => {
                let symbol = &self.patched.symbols[*symbol];
                old.offset == new.offset && symbol.global && symbol.name == *name
            }
            _ => false,
        }
    }

    fn same_symbol(&self, old: usize, new: usize, seen: &mut Seen) -> bool {
        let (a, b) = (&self.original.symbols[old], &self.patched.symbols[new]);
        let correlated = self.result.correlated.get(&new) == Some(&old);
        let constant = |object: &Object, symbol: &Symbol| {
            object.sections[symbol.section].class == Class::ReadOnly && !symbol.global
                || is_once_flag(object, symbol)
        };
        if !constant(self.original, a) || !constant(self.patched, b) {
            return correlated;
        }
        // Private constants are what they contain, whatever they are called.
        // So is a flag that only says whether a message was printed already.
        base_name(&a.name) == base_name(&b.name)
            && a.extent() == b.extent()
            && (!seen.insert((Target::Symbol(old), Target::Symbol(new), 0))
                || self.body_difference(a, b, seen).is_none())
    }

    fn same_anonymous(&self, old: (usize, i64), new: (usize, i64), seen: &mut Seen) -> bool {
        let (a, b) = (
            &self.original.sections[old.0],
            &self.patched.sections[new.0],
        );
        match (a.merge, b.merge) {
            (Some(1), Some(1)) => {
                let text = self.original.string(old.0, old.1);
                text.is_some() && text == self.patched.string(new.0, new.1)
            }
            (Some(entry), Some(other)) if entry == other => {
                let bytes = |data: &[u8], at: i64| {
                    u64::try_from(at)
                        .ok()
                        .map(|at| slice(data, at, entry).to_vec())
                };
                bytes(&a.data, old.1) == bytes(&b.data, new.1)
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
                let pair = (Target::Anonymous(old.0), Target::Anonymous(new.0), new.1);
                if !seen.insert(pair) {
                    return true;
                }
                let old_end = special::piece_end(self.original, old.0, old_at);
                let new_end = special::piece_end(self.patched, new.0, new_at);
                old_end.checked_sub(old_at) == new_end.checked_sub(new_at)
                    && new_end >= new_at
                    && self
                        .range_difference((old.0, old_at), (new.0, new_at), new_end - new_at, seen)
                        .is_none()
            }
            _ => false,
        }
    }
}

/// Symbols by base name, kind and whether they are seen outside.
fn groups(object: &Object) -> BTreeMap<(&str, bool, bool), Vec<usize>> {
    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (index, symbol) in object.symbols.iter().enumerate() {
        let writable = !matches!(
            object.sections[symbol.section].class,
            Class::Text | Class::Init | Class::ReadOnly
        );
        groups
            .entry((base_name(&symbol.name), symbol.function, writable))
            .or_default()
            .push(index);
    }
    groups
}

/// What tells symbols of one base name apart: size, bytes and referrers.
type Mark = (u64, Vec<u8>, BTreeSet<String>);

fn mark(object: &Object, index: usize) -> Mark {
    let symbol = &object.symbols[index];
    let fields = object.relocations(symbol.section, symbol.offset, symbol.extent());
    let bytes = masked(
        object,
        symbol.section,
        symbol.offset,
        symbol.extent(),
        fields,
    );
    let referrers = object
        .symbols
        .iter()
        .enumerate()
        .filter(|(other, referrer)| {
            *other != index
                && object
                    .relocations(referrer.section, referrer.offset, referrer.extent())
                    .iter()
                    .any(|r| r.reference.target == Target::Symbol(index))
        });
    (
        symbol.extent(),
        bytes,
        referrers
            .map(|(_, s)| base_name(&s.name).to_owned())
            .collect(),
    )
}

/// Whether the label `symbol` is within the tail of a function.
fn in_tail(object: &Object, symbol: &Symbol) -> bool {
    object.symbols.iter().any(|function| {
        let start = function.offset.saturating_add(function.size);
        function.section == symbol.section
            && function.tail > 0
            && (start..start.saturating_add(function.tail)).contains(&symbol.offset)
    })
}

/// The bytes of a range with every relocated field zeroed.
fn masked(
    object: &Object,
    section: usize,
    offset: u64,
    size: u64,
    fields: &[Relocation],
) -> Vec<u8> {
    let mut bytes = slice(&object.sections[section].data, offset, size).to_vec();
    for field in fields {
        let start = usize::try_from(field.offset - offset).unwrap_or(usize::MAX);
        for byte in bytes.iter_mut().skip(start).take(width(field.r_type)) {
            *byte = 0;
        }
    }
    bytes
}

/// Size in bytes of the field that a relocation of type `r_type` fills.
pub fn width(r_type: u32) -> usize {
    // The types that the table does not have are the GOT's, of four bytes.
    xsplice_link::reloc::x86_64::lookup(r_type).map_or(4, |relocation| relocation.size)
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
        && object.sections[section].merge == Some(1)
        && let Some(text) = object.string(section, reference.offset)
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
