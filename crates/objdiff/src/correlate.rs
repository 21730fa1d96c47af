// SPDX-License-Identifier: MIT OR Apache-2.0
//! Correlates the symbols of the patched object with those of the original.
//!
//! Symbols are matched in steps; each step only looks at symbols that are still open.
//! A step derives a key for every symbol and matches keys that occur once in each
//! object; others are left to the next step, and in the end stay open. Neither the
//! position of a symbol nor the number that a compiler appended to its name is ever a
//! criterion.
//!
//! Constants made by the compiler are not matched at all: they are identified by
//! their contents. So are ambiguous flags made by macros.

use crate::object::{Class, Object, SectionIx, Symbol, SymbolIx, Target};
use crate::placement::{Fate, fate};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

/// The criterion for a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum By {
    /// The caller's knowledge of their declarations.
    Declaration,
    /// The name, which is unique in both objects.
    Name,
    /// The name in the source: a compiler specialised a function, or numbered a
    /// variable that is local to a function.
    SourceName,
    /// The name in the source, and the functions that refer to it.
    Users,
    /// References to it in functions that are otherwise equal.
    Use,
    /// Equal contents and references, and the name in the source unless that changed;
    /// all similar symbols are matched.
    Content,
    /// An alias of a matched symbol.
    Place,
}

impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::Declaration => "declaration",
            Self::Name => "name",
            Self::SourceName => "source name",
            Self::Users => "users",
            Self::Use => "use",
            Self::Content => "content",
            Self::Place => "place",
        })
    }
}

/// The match of a symbol of the patched object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// Index in the original object.
    pub original: SymbolIx,
    /// What showed it.
    pub by: By,
}

/// The correlation of two objects.
#[derive(Debug, Clone, Default)]
pub struct Correlation {
    matches: HashMap<SymbolIx, Match>,
    /// Symbols of the patched object that are new although the original has their
    /// name: its placement is incompatible.
    renewed: HashMap<SymbolIx, SymbolIx>,
    /// Symbols of the patched object that may be the same as one of several in the
    /// original, or as none.
    pub ambiguous: BTreeSet<SymbolIx>,
}

impl Correlation {
    /// Matches the symbols of two builds of an object.
    pub fn new(original: &Object, patched: &Object) -> Self {
        Self::knowing(original, patched, &[])
    }

    /// Like [`Correlation::new`]; the pairs in `known`, indices in the original and
    /// in the patched object, are known to be the same symbols.
    pub fn knowing(original: &Object, patched: &Object, known: &[(SymbolIx, SymbolIx)]) -> Self {
        let mut correlator = Correlator {
            original: Side::new(original),
            patched: Side::new(patched),
            matches: HashMap::new(),
            renewed: HashMap::new(),
        };
        for &(original, patched) in known {
            correlator.pair(original, patched, By::Declaration);
        }
        correlator.run();
        correlator.part_merged();
        correlator.renew();
        correlator.match_aliases();
        let ambiguous = correlator.ambiguous();
        Self {
            matches: correlator.matches,
            renewed: correlator.renewed,
            ambiguous,
        }
    }

    /// Matches the symbols of an object with themselves.
    pub(crate) fn of_one(object: &Object) -> Self {
        let all = object.symbols.indices().map(|original| {
            let by = By::Name;
            (original, Match { original, by })
        });
        Self {
            matches: all.collect(),
            renewed: HashMap::new(),
            ambiguous: BTreeSet::new(),
        }
    }

    /// The match of the symbol at `patched`.
    pub fn get(&self, patched: SymbolIx) -> Option<Match> {
        self.matches.get(&patched).copied()
    }

    /// The index in the original object of the symbol at `patched`.
    pub fn original(&self, patched: SymbolIx) -> Option<SymbolIx> {
        Some(self.get(patched)?.original)
    }

    /// The symbol of the original with the same name as the one at `patched` but an
    /// incompatible placement: a boot-only function for a permanent one, a constant
    /// for a variable.
    pub fn renewed(&self, patched: SymbolIx) -> Option<SymbolIx> {
        self.renewed.get(&patched).copied()
    }

    /// All matches, as index in the patched object and match.
    pub fn iter(&self) -> impl Iterator<Item = (SymbolIx, Match)> {
        self.matches.iter().map(|(&patched, &pair)| (patched, pair))
    }
}

/// Whether `symbol` is a message flag, private and only recording whether a message
/// was printed: a copy works as well, at the cost of one repeated message.
pub fn is_once_flag(object: &Object, symbol: &Symbol) -> bool {
    let class = object.sections[symbol.section].class;
    let name = symbol.name.base().trim_end_matches('_');
    !symbol.global
        && !symbol.function
        && matches!(class, Class::Data | Class::Bss)
        && symbol.size <= 4
        && ["once", "warned", "already_done"]
            .iter()
            .any(|end| name.ends_with(end))
}

/// Whether `symbol` is such a flag made by a macro: unlike one from the source, it is
/// identified by its contents if it is ambiguous.
pub(crate) fn is_macro_flag(object: &Object, symbol: &Symbol) -> bool {
    let name = symbol.name.base();
    let last = name.rsplit('.').next().unwrap_or(name);
    (last.starts_with("__") || last.ends_with('_')) && is_once_flag(object, symbol)
}

/// Whether `symbol` is never matched, because it is identified by its contents.
pub(crate) fn is_anonymous(object: &Object, symbol: &Symbol) -> bool {
    !symbol.global
        && object.sections[symbol.section].class == Class::ReadOnly
        && symbol.name.is_compilers_own()
}

/// The properties of a symbol besides its name; only symbols that agree in these are
/// matched.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Sort {
    Function,
    Variable,
    PerCpu,
    Constant,
}

struct Side<'a> {
    object: &'a Object,
    /// Symbols not matched yet.
    open: BTreeSet<SymbolIx>,
    /// The functions and variables, by name in the source, that refer to each symbol
    /// with an ambiguous name.
    users: HashMap<SymbolIx, BTreeSet<&'a str>>,
}

/// Size, bytes outside of relocated fields, and positions of these fields.
type Shape = (u64, Vec<u8>, Vec<(u64, usize)>);

impl<'a> Side<'a> {
    fn new(object: &'a Object) -> Self {
        let matchable = |symbol: &Symbol| {
            let class = object.sections[symbol.section].class;
            !matches!(class, Class::Ignored | Class::Special) && !is_anonymous(object, symbol)
        };
        let all = object.symbols.iter_enumerated();
        let open = all
            .filter(|(_, symbol)| matchable(symbol))
            .map(|(index, _)| index);
        Self {
            object,
            open: open.collect(),
            users: HashMap::new(),
        }
    }

    fn symbol(&self, index: SymbolIx) -> &'a Symbol {
        &self.object.symbols[index]
    }

    fn sort(&self, index: SymbolIx) -> Sort {
        let symbol = self.symbol(index);
        match self.object.sections[symbol.section].class {
            _ if symbol.function => Sort::Function,
            Class::PerCpu => Sort::PerCpu,
            Class::ReadOnly | Class::Text | Class::Init => Sort::Constant,
            Class::Data | Class::Bss | Class::Special | Class::Ignored => Sort::Variable,
        }
    }

    fn role(&self, index: SymbolIx) -> (Sort, String) {
        (self.sort(index), self.symbol(index).name.role())
    }

    /// Whether the compiler numbers further function-local variables like this one:
    /// `f.count`, `f.count.2`.
    fn is_counted(&self, index: SymbolIx) -> bool {
        let symbol = self.symbol(index);
        let others = || self.object.symbols.iter().filter(|s| s.name != symbol.name);
        !symbol.function
            && symbol.name.contains('.')
            && others().any(|other| other.name.base() == &*symbol.name)
    }

    /// Open variables that share their name in the source with others.
    fn variables_alike(&self) -> BTreeSet<SymbolIx> {
        let mut alike: BTreeMap<_, Vec<SymbolIx>> = BTreeMap::new();
        for &index in &self.open {
            if matches!(self.sort(index), Sort::Variable | Sort::PerCpu) {
                alike.entry(self.role(index)).or_default().push(index);
            }
        }
        let several = alike.into_values().filter(|all| all.len() > 1);
        several.flatten().collect()
    }

    fn find_users(&mut self) {
        for (index, symbol) in self.object.symbols.iter_enumerated() {
            let fields = self.object.relocations(symbol.span());
            for field in fields {
                if let Target::Symbol(target) = field.reference.target
                    && target != index
                    && self.open.contains(&target)
                {
                    let users = self.users.entry(target).or_default();
                    users.insert(symbol.name.in_source());
                }
            }
        }
    }

    /// Whether any symbol has this name in the source.
    fn has(&self, name: &str) -> bool {
        let mut symbols = self.object.symbols.iter();
        symbols.any(|symbol| symbol.name.in_source() == name)
    }

    fn shape(&self, index: SymbolIx) -> Shape {
        let symbol = self.symbol(index);
        let bytes = self.object.bytes(symbol.span());
        let fields = self.object.relocations(symbol.span());
        let places = fields.iter().map(|field| {
            let start = field.offset - symbol.offset;
            (start, self.object.width(field.r_type))
        });
        let mut outside = bytes.to_vec();
        self.object.clear_fields(symbol.span(), &mut outside);
        (symbol.extent(), outside, places.collect())
    }

    /// The targets of a symbol's fields, described independently of open symbols.
    fn leads_to(&self, index: SymbolIx) -> Vec<(String, i64)> {
        let symbol = self.symbol(index);
        let fields = self.object.relocations(symbol.span());
        let name = |target: &Target, offset: i64| match target {
            Target::Symbol(other) if *other == index => "itself".to_owned(),
            Target::Symbol(other) if is_anonymous(self.object, self.symbol(*other)) => {
                format!("{:?}", self.object.bytes(self.symbol(*other).span()))
            }
            Target::Symbol(other) if self.open.contains(other) => {
                format!("{} bytes", self.symbol(*other).extent())
            }
            Target::Symbol(other) => self.symbol(*other).name.in_source().to_owned(),
            Target::External(name) => name.to_string(),
            Target::Anonymous(section) => match self.object.merged(*section, offset) {
                Some((content, _)) => format!("{content:?}"),
                None => String::new(),
            },
        };
        fields
            .iter()
            .map(|field| {
                let reference = &field.reference;
                let within = matches!(reference.target, Target::Symbol(_) | Target::External(_));
                let offset = if within { reference.offset } else { 0 };
                (name(&reference.target, reference.offset), offset)
            })
            .collect()
    }
}

struct Correlator<'a> {
    original: Side<'a>,
    patched: Side<'a>,
    matches: HashMap<SymbolIx, Match>,
    renewed: HashMap<SymbolIx, SymbolIx>,
}

impl<'a> Correlator<'a> {
    fn run(&mut self) {
        // A numbered name is not reliable: the compiler counts from zero again. Nor
        // is one without a number if it is the first of a numbered series.
        self.step(By::Name, |side: &Side<'a>, index| {
            let symbol = side.symbol(index);
            (!symbol.name.is_numbered() && !side.is_counted(index))
                .then(|| (side.sort(index), symbol.name.clone()))
        });
        if self.done() {
            return;
        }
        self.original.find_users();
        self.patched.find_users();
        self.step(By::SourceName, |side: &Side<'a>, index| {
            Some(side.role(index))
        });
        self.step(By::Users, |side: &Side<'a>, index| {
            Some((side.role(index), side.users.get(&index)?.clone()))
        });
        self.match_by_use();
        // Initial values do not identify one of several variables: a patch may change
        // them too.
        let several = [&self.original, &self.patched].map(Side::variables_alike);
        let original: *const Object = self.original.object;
        self.step(By::Content, |side: &Side<'a>, index| {
            let several = &several[usize::from(!std::ptr::eq(side.object, original))];
            (!several.contains(&index))
                .then(|| (side.role(index), side.shape(index), side.leads_to(index)))
        });
        self.match_renamed();
    }

    fn done(&self) -> bool {
        self.original.open.is_empty() || self.patched.open.is_empty()
    }

    /// Matches open symbols with equal keys from `describe`, if the key is unique in
    /// each object.
    fn step<K: Eq + Hash>(&mut self, by: By, describe: impl Fn(&Side<'a>, SymbolIx) -> Option<K>) {
        if self.done() {
            return;
        }
        let mut alike: HashMap<K, [Vec<SymbolIx>; 2]> = HashMap::new();
        for (at, side) in [&self.original, &self.patched].into_iter().enumerate() {
            for &index in &side.open {
                if let Some(key) = describe(side, index) {
                    alike.entry(key).or_default()[at].push(index);
                }
            }
        }
        for [original, patched] in alike.into_values() {
            if let ([original], [patched]) = (original.as_slice(), patched.as_slice())
                && !self.changes_hands(*original, *patched)
            {
                self.pair(*original, *patched, by);
            }
        }
    }

    /// Whether a variable local to one function would become another function's: it
    /// may be the same, if the compiler inlined a function in one object only, or one
    /// of two with the same name.
    fn changes_hands(&self, original: SymbolIx, patched: SymbolIx) -> bool {
        let is_local = |side: &Side, index| {
            let name = &side.symbol(index).name;
            matches!(side.sort(index), Sort::Variable | Sort::PerCpu) && name.is_numbered()
        };
        let (Some(old), Some(new)) = (
            self.original.users.get(&original),
            self.patched.users.get(&patched),
        ) else {
            return false;
        };
        is_local(&self.original, original)
            && is_local(&self.patched, patched)
            && old.is_disjoint(new)
    }

    fn pair(&mut self, original: SymbolIx, patched: SymbolIx, by: By) {
        self.original.open.remove(&original);
        self.patched.open.remove(&patched);
        self.matches.insert(patched, Match { original, by });
    }

    /// Symbols that equal code refers to at the same place are the same, unless
    /// something contradicts; this may make more code equal.
    fn match_by_use(&mut self) {
        let mut looked_at = BTreeSet::new();
        loop {
            let fresh: Vec<(SymbolIx, SymbolIx)> = self
                .matches
                .iter()
                .map(|(&patched, pair)| (pair.original, patched))
                .filter(|pair| looked_at.insert(*pair))
                .collect();
            if self.done() || fresh.is_empty() {
                return;
            }
            let (mut claimed, mut contradicted) = (BTreeMap::new(), BTreeSet::new());
            let mut taken: BTreeMap<SymbolIx, SymbolIx> = BTreeMap::new();
            for (original, patched) in fresh {
                for (old, new) in self.used_alike(original, patched) {
                    let agreed = *claimed.entry(new).or_insert(old) == old
                        && *taken.entry(old).or_insert(new) == new;
                    if !agreed {
                        contradicted.extend([(old, new), (claimed[&new], new), (old, taken[&old])]);
                    }
                }
            }
            for (new, old) in claimed {
                if !contradicted.contains(&(old, new)) {
                    self.pair(old, new, By::Use);
                }
            }
        }
    }

    /// Open symbols that may be the same, because two matched symbols with equal code
    /// refer to them at the same places.
    fn used_alike(&self, original: SymbolIx, patched: SymbolIx) -> Vec<(SymbolIx, SymbolIx)> {
        let (a, b) = (self.original.symbol(original), self.patched.symbol(patched));
        let fields = |object: &Object, symbol: &Symbol| object.relocations(symbol.span()).to_vec();
        let old = fields(self.original.object, a);
        let new = fields(self.patched.object, b);
        let open: Vec<(SymbolIx, SymbolIx)> = old
            .iter()
            .zip(&new)
            .filter_map(
                |(old, new)| match (&old.reference.target, &new.reference.target) {
                    (&Target::Symbol(a), &Target::Symbol(b))
                        if self.original.open.contains(&a)
                            && self.patched.open.contains(&b)
                            && old.reference.offset == new.reference.offset =>
                    {
                        Some((a, b))
                    }
                    _ => None,
                },
            )
            .filter(|&(a, b)| self.may_be(a, b))
            .collect();
        if open.is_empty() || self.original.shape(original) != self.patched.shape(patched) {
            return Vec::new();
        }
        open
    }

    /// Whether two open symbols can be the same: they have the same name in the
    /// source, or neither object has the other's name and they are alike.
    fn may_be(&self, original: SymbolIx, patched: SymbolIx) -> bool {
        if self.original.sort(original) != self.patched.sort(patched) {
            return false;
        }
        if self.original.role(original) == self.patched.role(patched) {
            return true;
        }
        let (a, b) = (self.original.symbol(original), self.patched.symbol(patched));
        self.renamed(original, patched)
            && a.size == b.size
            && self.original.object.bytes(a.span()) == self.patched.object.bytes(b.span())
    }

    /// Whether the name of the first is gone, and that of the second is new.
    fn renamed(&self, original: SymbolIx, patched: SymbolIx) -> bool {
        let (a, b) = (self.original.symbol(original), self.patched.symbol(patched));
        !self.patched.has(a.name.in_source()) && !self.original.has(b.name.in_source())
    }

    /// Matches functions that were only renamed.
    fn match_renamed(&mut self) {
        if self.done() {
            return;
        }
        let names = [&self.original, &self.patched].map(|side| {
            let symbols = side.object.symbols.iter();
            symbols
                .map(|s| s.name.in_source().to_owned())
                .collect::<BTreeSet<_>>()
        });
        let original: *const Object = self.original.object;
        self.step(By::Content, |side: &Side<'a>, index| {
            let others = &names[usize::from(std::ptr::eq(side.object, original))];
            let symbol = side.symbol(index);
            let gone = !others.contains(symbol.name.in_source());
            (gone && side.sort(index) == Sort::Function && symbol.extent() > 0)
                .then(|| (side.shape(index), side.leads_to(index)))
        });
        self.match_by_use();
    }

    /// Functions folded by the compiler are one piece of code in the original. If
    /// they are not folded in the patched object, that piece is the function that
    /// other objects call; a private function that shares it is new.
    fn part_merged(&mut self) {
        let mut merged: BTreeMap<(SectionIx, u64), Vec<(SymbolIx, SymbolIx)>> = BTreeMap::new();
        for (&patched, pair) in &self.matches {
            let symbol = self.original.symbol(pair.original);
            if symbol.function && symbol.size > 0 {
                let place = (symbol.section, symbol.offset);
                merged
                    .entry(place)
                    .or_default()
                    .push((pair.original, patched));
            }
        }
        for mut pairs in merged.into_values() {
            // Among private ones, the code belongs to the first: references to the
            // place mean that one.
            pairs.sort_by_key(|&(original, _)| (!self.original.symbol(original).global, original));
            let first = self.patched.symbol(pairs[0].1);
            for (original, patched) in pairs {
                let together = self.patched.symbol(patched).is_at(first);
                if !together && !self.original.symbol(original).global {
                    self.matches.remove(&patched);
                }
            }
        }
    }

    /// Placement is part of a symbol's identity: this undoes matches with
    /// incompatible placements, and records the old symbol with the same name.
    fn renew(&mut self) {
        let (original, patched) = (self.original.object, self.patched.object);
        let section =
            |object: &'a Object, index: SymbolIx| &object.sections[object.symbols[index].section];
        let fate =
            |old: SymbolIx, new: SymbolIx| fate(section(original, old), section(patched, new));
        let matches = std::mem::take(&mut self.matches);
        for (new, pair) in matches {
            match fate(pair.original, new) {
                Fate::New => {
                    self.renewed.insert(new, pair.original);
                }
                _ => {
                    self.matches.insert(new, pair);
                }
            }
        }
        let mut alike: BTreeMap<String, [Vec<SymbolIx>; 2]> = BTreeMap::new();
        for (at, side) in [&self.original, &self.patched].into_iter().enumerate() {
            for &index in &side.open {
                let name = side.symbol(index).name.role();
                alike.entry(name).or_default()[at].push(index);
            }
        }
        for [old, new] in alike.into_values() {
            let (&[old], &[new]) = (old.as_slice(), new.as_slice()) else {
                continue;
            };
            if self.original.sort(old) == self.patched.sort(new) {
                continue;
            }
            self.original.open.remove(&old);
            self.patched.open.remove(&new);
            if fate(old, new) == Fate::New {
                self.renewed.insert(new, old);
            } else {
                let by = By::SourceName;
                self.matches.insert(new, Match { original: old, by });
            }
        }
    }

    /// A new name for an existing symbol is an alias, not a new symbol. Folded
    /// functions also share a place, and are equivalent.
    fn match_aliases(&mut self) {
        let mut known: HashMap<(SectionIx, u64, u64), SymbolIx> = HashMap::new();
        let place = |symbol: &Symbol| (symbol.section, symbol.offset, symbol.size);
        for (&patched, pair) in &self.matches {
            let original = known
                .entry(place(self.patched.symbol(patched)))
                .or_insert(pair.original);
            *original = pair.original.min(*original);
        }
        let open = std::mem::take(&mut self.patched.open);
        for patched in open {
            let symbol = self.patched.symbol(patched);
            match known.get(&place(symbol)) {
                Some(&original) if symbol.size > 0 && self.is_absent(patched) => {
                    let by = By::Place;
                    self.matches.insert(patched, Match { original, by });
                }
                _ => drop(self.patched.open.insert(patched)),
            }
        }
    }

    /// Whether the original object does not have the name of the symbol at `patched`.
    fn is_absent(&self, patched: SymbolIx) -> bool {
        !self
            .original
            .has(self.patched.symbol(patched).name.in_source())
    }

    /// Open symbols of the patched object that agree with open ones of the original.
    fn ambiguous(&self) -> BTreeSet<SymbolIx> {
        let open = self.original.open.iter();
        let roles: BTreeSet<_> = open.map(|&index| self.original.role(index)).collect();
        let same = |index: &SymbolIx| roles.contains(&self.patched.role(*index));
        self.patched.open.iter().copied().filter(same).collect()
    }
}
