// SPDX-License-Identifier: MIT OR Apache-2.0
//! What differs between two builds of an object.

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
    /// What is what it was, under a name that it did not have, and that other files
    /// can use.
    Renamed,
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
            | Self::Elsewhere
            | Self::Renamed => true,
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
