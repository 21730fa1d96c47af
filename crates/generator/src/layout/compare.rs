// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether data in memory, as laid out by one build of an object, means the same to
//! another build.

use crate::dwarf::types::{Definition, Encoding, Member, Name, Record, Shape, Types};
use crate::patch::Edits;
use std::collections::{BTreeMap, BTreeSet};

/// How one build's data appears to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Relation {
    /// It reads the same values.
    Same,
    /// It interprets the same bits differently, or reads bits that were never
    /// written.
    Read,
    /// It does not find the values.
    Lost,
}

/// A difference in one type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Difference {
    /// [`Relation::Read`] or [`Relation::Lost`].
    pub(crate) relation: Relation,
    /// A description, to follow the name of the type.
    pub(crate) words: String,
}

/// The differences between two definitions of a name, `old` in `types.0` and `new` in
/// `types.1`. A member that `edits` only rename is unchanged.
pub(crate) fn differences(
    name: &Name,
    (types, edits): ((&Types, &Types), &Edits),
    old: &Definition,
    new: &Definition,
) -> Vec<Difference> {
    let mut comparison = Comparison {
        old: types.0,
        new: types.1,
        edits,
        known: BTreeMap::new(),
        found: Vec::new(),
    };
    match (&old.shape, &new.shape) {
        (Shape::Record(old), Shape::Record(new)) => comparison.records("", (0, old), (0, new)),
        (old, new) => {
            // A variable of a different size is reported as a changed symbol.
            let resized = types.0.size(old) != types.1.size(new);
            if !(name.kind.is_variable() && resized) {
                comparison.values("", (0, old), (0, new));
            }
        }
    }
    comparison.found
}

struct Comparison<'a> {
    old: &'a Types,
    new: &'a Types,
    edits: &'a Edits,
    /// Types of different names that were compared, or are under comparison, since
    /// types can be recursive.
    known: BTreeMap<(Name, Name), Relation>,
    found: Vec<Difference>,
}

impl<'a> Comparison<'a> {
    fn tell(&mut self, relation: Relation, words: String) {
        self.found.push(Difference { relation, words });
    }

    /// Compares two structures or unions, unnamed or with the same name, at the given
    /// bit offsets in the reported type.
    fn records(
        &mut self,
        path: &str,
        (old_start, old): (u64, &'a Record),
        (new_start, new): (u64, &'a Record),
    ) {
        if old.size != new.size {
            let words = format!("goes from {} to {} bytes", old.size, new.size);
            let of = path
                .strip_suffix('.')
                .map(|path| format!("has {path}, which "));
            self.tell(Relation::Lost, of.unwrap_or_default() + &words);
        }
        let (old, new) = (flat(self.old, old), flat(self.new, new));
        let mut gone = Vec::new();
        for member in &old {
            match new.iter().find(|other| other.name == member.name) {
                Some(other) => self.members(path, (old_start, member), (new_start, other)),
                None => gone.push(member),
            }
        }
        let is_old = |member: &&Field| old.iter().any(|other| other.name == member.name);
        for member in new.iter().filter(|member| !is_old(member)) {
            let name = &member.name;
            let renamed = |other: &&&Field| self.edits.rename_in_use(other.name, name);
            if let Some(other) = gone.iter().find(renamed) {
                self.members(path, (old_start, other), (new_start, member));
                continue;
            }
            let before = gone.iter().find(|other| other.overlaps(member));
            match before {
                Some(other) => {
                    let words = format!("has {path}{name} where {path}{} was", other.name);
                    self.tell(Relation::Lost, words);
                }
                None => {
                    let at = place(new_start + member.at);
                    self.tell(Relation::Read, format!("gets {path}{name} at {at}"));
                }
            }
        }
    }

    fn members(
        &mut self,
        path: &str,
        (old_start, old): (u64, &Field<'a>),
        (new_start, new): (u64, &Field<'a>),
    ) {
        let path = format!("{path}{}", new.name);
        if old.at != new.at {
            let (from, to) = (old_start + old.at, new_start + new.at);
            let words = match (from % 8, to % 8) {
                (0, 0) => format!("has {path} at byte {} instead of {}", to / 8, from / 8),
                _ => format!("has {path} at {} instead of {}", place(to), place(from)),
            };
            self.tell(Relation::Lost, words);
        }
        if old.bits != new.bits && (old.bits.is_some() || new.bits.is_some()) {
            let words = format!("has {path} in {} bits instead of {}", new.width, old.width);
            self.tell(Relation::Lost, words);
        }
        self.values(
            &path,
            (old_start + old.at, old.shape),
            (new_start + new.at, new.shape),
        );
    }

    /// Compares the values at the same place, named `path`.
    fn values(
        &mut self,
        path: &str,
        (old_start, old): (u64, &'a Shape),
        (new_start, new): (u64, &'a Shape),
    ) {
        match (old, new) {
            (Shape::Record(old), Shape::Record(new)) => {
                self.records(&format!("{path}."), (old_start, old), (new_start, new));
            }
            (Shape::Array(old_of, old_length), Shape::Array(new_of, new_length))
                if old_length == new_length && is_unnamed(old_of) && is_unnamed(new_of) =>
            {
                self.values(
                    &format!("{path}[]"),
                    (old_start, old_of),
                    (new_start, new_of),
                );
            }
            _ => {
                let relation = self.relation(old, new);
                if relation > Relation::Same {
                    let what = match path {
                        "" => "is".to_owned(),
                        path => format!("has {path} as"),
                    };
                    let (mut old, mut new) = (old.to_string(), new.to_string());
                    if old == new {
                        old = "another type of this name".to_owned();
                        new = format!("a {new}");
                    }
                    self.tell(relation, format!("{what} {new} instead of {old}"));
                }
            }
        }
    }

    /// How values of the type `old` appear to code that uses `new`.
    fn relation(&mut self, old: &'a Shape, new: &'a Shape) -> Relation {
        if let (Shape::Named(old), Shape::Named(new)) = (old, new)
            && old == new
        {
            // The named type is compared at its definition.
            return Relation::Same;
        }
        let (old, new) = (self.old.behind_typedefs(old), self.new.behind_typedefs(new));
        match (old, new) {
            (Shape::Named(a), Shape::Named(b)) if a == b => Relation::Same,
            (Shape::Named(a), Shape::Named(b)) => {
                let pair = (a.clone(), b.clone());
                if let Some(known) = self.known.get(&pair) {
                    return *known;
                }
                self.known.insert(pair.clone(), Relation::Same);
                let relation = self.definitions(old, new);
                self.known.insert(pair, relation);
                relation
            }
            (Shape::Named(_), _) | (_, Shape::Named(_)) => self.definitions(old, new),
            (Shape::Void, Shape::Void) => Relation::Same,
            (Shape::Pointer(old), Shape::Pointer(new)) => self.pointers(old, new),
            (Shape::Array(old, old_length), Shape::Array(new, new_length)) => {
                if old_length == new_length {
                    self.relation(old, new)
                } else {
                    Relation::Lost
                }
            }
            (Shape::Record(old), Shape::Record(new)) => self.equal_records(old, new),
            (Shape::Function { .. }, Shape::Function { .. }) => self.functions(old, new),
            _ => numbers(old, new),
        }
    }

    /// Compares the definitions of the names `old` or `new`.
    fn definitions(&mut self, old: &'a Shape, new: &'a Shape) -> Relation {
        match (self.old.resolved(old), self.new.resolved(new)) {
            // Declared only.
            (Shape::Named(_), _) | (_, Shape::Named(_)) => Relation::Lost,
            (Shape::Enumeration { size: old }, Shape::Enumeration { size: new }) if old == new => {
                Relation::Read
            }
            (old, new) => self.relation(old, new),
        }
    }

    /// A `void *` may become a typed pointer, and the reverse.
    fn pointers(&mut self, old: &'a Shape, new: &'a Shape) -> Relation {
        let (old, new) = (self.old.behind_typedefs(old), self.new.behind_typedefs(new));
        match (old, new) {
            (Shape::Function { .. }, Shape::Void) | (Shape::Void, Shape::Function { .. }) => {
                Relation::Lost
            }
            (Shape::Void, Shape::Void) => Relation::Same,
            (Shape::Void, _) | (_, Shape::Void) => Relation::Read,
            _ => self.relation(old, new),
        }
    }

    /// Functions with the same calling convention. The user of narrow arguments and
    /// results extends them.
    fn functions(&mut self, old: &'a Shape, new: &'a Shape) -> Relation {
        let (
            Shape::Function {
                returns: old_returns,
                parameters: old_parameters,
                open: old_open,
            },
            Shape::Function {
                returns: new_returns,
                parameters: new_parameters,
                open: new_open,
            },
        ) = (old, new)
        else {
            return Relation::Lost;
        };
        if old_parameters.len() != new_parameters.len() || old_open != new_open {
            return Relation::Lost;
        }
        let parameters = old_parameters.iter().zip(new_parameters);
        let parameters = parameters.map(|(old, new)| self.relation(old, new)).max();
        let returns = self.relation(old_returns, new_returns);
        returns.max(parameters.unwrap_or(Relation::Same))
    }

    fn equal_records(&mut self, old: &'a Record, new: &'a Record) -> Relation {
        let (old_flat, new_flat) = (flat(self.old, old), flat(self.new, new));
        let alike = |(a, b): (&Field, &Field)| (&a.name, a.at, a.bits) == (&b.name, b.at, b.bits);
        if old.size != new.size
            || old_flat.len() != new_flat.len()
            || !old_flat.iter().zip(&new_flat).all(alike)
        {
            return Relation::Lost;
        }
        let pairs = old_flat.iter().zip(&new_flat);
        let relations = pairs.map(|(a, b)| self.relation(a.shape, b.shape));
        relations.max().unwrap_or(Relation::Same)
    }
}

/// A member as used by code.
struct Field<'a> {
    name: &'a str,
    at: u64,
    bits: Option<u64>,
    /// In bits.
    width: u64,
    shape: &'a Shape,
}

impl Field<'_> {
    fn overlaps(&self, other: &Self) -> bool {
        let end = |field: &Self| field.at.saturating_add(field.width.max(1));
        self.at < end(other) && other.at < end(self)
    }
}

/// The names of the members of a structure or union; `None` for other types.
pub(crate) fn member_names<'a>(
    types: &'a Types,
    definitions: &'a [Definition],
) -> Option<BTreeSet<&'a str>> {
    match &definitions.first()?.shape {
        Shape::Record(record) => {
            let fields = flat(types, record);
            Some(fields.iter().map(|field| field.name).collect())
        }
        _ => None,
    }
}

/// The members of `record`, including those of unnamed members.
fn flat<'a>(types: &'a Types, record: &'a Record) -> Vec<Field<'a>> {
    let mut fields = Vec::new();
    add_fields(types, &record.members, 0, &mut fields);
    fields
}

fn add_fields<'a>(
    types: &'a Types,
    members: &'a [Member],
    start: u64,
    fields: &mut Vec<Field<'a>>,
) {
    for member in members {
        let at = start.saturating_add(member.at);
        match types.resolved(&member.shape) {
            Shape::Record(inner) if member.name.is_empty() => {
                add_fields(types, &inner.members, at, fields);
            }
            _ if member.name.is_empty() => {}
            _ => fields.push(Field {
                name: &member.name,
                at,
                bits: member.bits,
                width: member
                    .bits
                    .unwrap_or_else(|| types.size(&member.shape).saturating_mul(8)),
                shape: &member.shape,
            }),
        }
    }
}

fn is_unnamed(shape: &Shape) -> bool {
    matches!(shape, Shape::Record(_) | Shape::Array(..))
}

/// Numbers of the same size keep their bits.
fn numbers(old: &Shape, new: &Shape) -> Relation {
    let number = |shape: &Shape| match shape {
        Shape::Number { size, encoding, .. } => Some((*size, *encoding)),
        Shape::Enumeration { size } => Some((*size, Encoding::Unsigned)),
        _ => None,
    };
    let (Some((old_size, old_encoding)), Some((new_size, new_encoding))) =
        (number(old), number(new))
    else {
        return Relation::Lost;
    };
    let other = |encoding| encoding == Encoding::Other;
    if old_size != new_size || other(old_encoding) != other(new_encoding) {
        Relation::Lost
    } else if old_encoding != new_encoding || is_enumeration(old) != is_enumeration(new) {
        Relation::Read
    } else {
        Relation::Same
    }
}

fn is_enumeration(shape: &Shape) -> bool {
    matches!(shape, Shape::Enumeration { .. })
}

/// Describes a bit offset in a structure.
fn place(at: u64) -> String {
    match at % 8 {
        0 => format!("byte {}", at / 8),
        bit => format!("byte {} bit {bit}", at / 8),
    }
}
