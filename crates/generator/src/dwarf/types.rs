// SPDX-License-Identifier: MIT OR Apache-2.0
//! The types of an object, in a form comparable between builds.
//!
//! Types that have names refer to each other by name, so that a change shows
//! once, at the type that changed. Types without names are part of what
//! contains them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The kind of a named thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Kind {
    Structure,
    Union,
    Enumeration,
    Typedef,
    /// A global variable.
    Global,
    /// A variable local to a file or function.
    Private,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Structure => "struct ",
            Self::Union => "union ",
            Self::Enumeration => "enum ",
            Self::Typedef => "",
            Self::Global | Self::Private => "the variable ",
        }
    }

    pub(crate) fn is_variable(self) -> bool {
        matches!(self, Self::Global | Self::Private)
    }
}

/// A unique name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Name {
    pub(crate) kind: Kind,
    /// The function in which it is declared; empty at file scope.
    pub(crate) scope: String,
    pub(crate) name: String,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind.word())?;
        f.write_str(&self.name)?;
        if !self.scope.is_empty() {
            write!(f, " of {}", self.scope)?;
        }
        Ok(())
    }
}

/// The encoding of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Encoding {
    Signed,
    Unsigned,
    Boolean,
    Other,
}

/// A type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Shape {
    Void,
    Number {
        name: String,
        size: u64,
        encoding: Encoding,
    },
    Named(Name),
    Pointer(Box<Shape>),
    /// With the number of elements, if known.
    Array(Box<Shape>, Option<u64>),
    Function {
        returns: Box<Shape>,
        parameters: Vec<Shape>,
        /// Whether more arguments may follow.
        open: bool,
    },
    Record(Record),
    /// The enumerators are in [`Types::enumerators`].
    Enumeration {
        size: u64,
    },
}

/// A structure or union.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) members: Vec<Member>,
}

/// A member of a structure or union.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Empty for an anonymous structure or union.
    pub(crate) name: String,
    /// Offset in bits.
    pub(crate) at: u64,
    /// Width in bits, of a bit-field.
    pub(crate) bits: Option<u64>,
    pub(crate) shape: Shape,
}

/// The definition of a name, and its place in the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Definition {
    pub(crate) place: String,
    pub(crate) shape: Shape,
}

/// A named constant of an enumeration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Enumerator {
    pub(crate) value: i64,
    /// The name of its enumeration; empty if it has none.
    pub(crate) of: String,
    /// Where its enumeration is defined.
    pub(crate) place: String,
}

/// The types that an object uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Types {
    #[serde(with = "pairs")]
    pub(crate) definitions: BTreeMap<Name, Vec<Definition>>,
    pub(crate) enumerators: BTreeMap<String, Enumerator>,
}

impl Types {
    /// `shape` with typedefs resolved.
    pub(crate) fn behind_typedefs<'a>(&'a self, mut shape: &'a Shape) -> &'a Shape {
        // A chain this long is a cycle, which only damage can cause.
        for _ in 0..64 {
            match shape {
                Shape::Named(name) if name.kind == Kind::Typedef => match self.only(name) {
                    Some(inner) => shape = inner,
                    None => return shape,
                },
                _ => return shape,
            }
        }
        shape
    }

    /// `shape` with its name resolved, if its definition is known.
    pub(crate) fn resolved<'a>(&'a self, shape: &'a Shape) -> &'a Shape {
        let shape = self.behind_typedefs(shape);
        match shape {
            Shape::Named(name) => self.only(name).unwrap_or(shape),
            _ => shape,
        }
    }

    /// The size of `shape` in bytes.
    pub(crate) fn size(&self, shape: &Shape) -> u64 {
        match self.resolved(shape) {
            Shape::Number { size, .. } | Shape::Enumeration { size } => *size,
            Shape::Pointer(_) => 8,
            Shape::Array(of, length) => self.size(of).saturating_mul(length.unwrap_or(0)),
            Shape::Record(record) => record.size,
            Shape::Void | Shape::Named(_) | Shape::Function { .. } => 0,
        }
    }

    fn only(&self, name: &Name) -> Option<&Shape> {
        Some(&self.definitions.get(name)?.first()?.shape)
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Void => f.write_str("void"),
            Self::Number { name, .. } => f.write_str(name),
            Self::Named(name) => write!(f, "{}{}", name.kind.word(), name.name),
            Self::Pointer(to) => match &**to {
                Self::Function { .. } => write!(f, "pointer to {to}"),
                Self::Pointer(_) => write!(f, "{to}*"),
                _ => write!(f, "{to} *"),
            },
            Self::Array(of, Some(length)) => write!(f, "{of}[{length}]"),
            Self::Array(of, None) => write!(f, "{of}[]"),
            Self::Function {
                returns,
                parameters,
                open,
            } => {
                let mut words: Vec<String> = parameters.iter().map(Shape::to_string).collect();
                if *open {
                    words.push("...".to_owned());
                }
                write!(f, "{returns} ({})", words.join(", "))
            }
            Self::Record(record) => write!(f, "a structure of {} bytes", record.size),
            Self::Enumeration { .. } => f.write_str("an enumeration"),
        }
    }
}

/// Keys of JSON's maps are strings; these are not.
mod pairs {
    use super::{Definition, Name};
    use serde::{Deserialize, Deserializer, Serializer};
    use std::collections::BTreeMap;

    type Definitions = BTreeMap<Name, Vec<Definition>>;

    pub(super) fn serialize<S: Serializer>(map: &Definitions, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Definitions, D::Error> {
        let pairs = Vec::<(Name, Vec<Definition>)>::deserialize(from)?;
        Ok(pairs.into_iter().collect())
    }
}
