// SPDX-License-Identifier: MIT OR Apache-2.0
//! Differences between two builds of an object.

use crate::name::SymbolName;
use crate::object::SymbolIx;

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A function with different code, or different entries in the tables about it.
    Function,
    /// A function or variable that the original does not have.
    Added,
    /// A function or variable that only the original has.
    Removed,
    /// A writable variable with a different initial value.
    Data,
    /// Read-only data with different contents.
    Constant,
    /// A variable of a different size.
    Resized,
    /// Code or data that is only used while booting.
    Init,
    /// Unchanged, but in a place with a different treatment: another list, other
    /// protection.
    Misplaced,
    /// Unchanged data that needs more alignment.
    Alignment,
    /// Unchanged data in a place that is as good as the old one.
    Elsewhere,
    /// Unchanged, but with a new name that other files can use.
    Renamed,
    /// Code of a section in which symbols have no size: hand-written assembly, where
    /// the ends of functions are unknown.
    Unsized,
}

impl Kind {
    /// Whether only the place differs, and the running hypervisor's may be as good.
    pub fn is_of_place(self) -> bool {
        match self {
            Self::Elsewhere | Self::Alignment => true,
            Self::Function
            | Self::Added
            | Self::Removed
            | Self::Data
            | Self::Constant
            | Self::Resized
            | Self::Init
            | Self::Misplaced
            | Self::Renamed
            | Self::Unsized => false,
        }
    }

    /// Whether patched code keeps using the running hypervisor's: it has state, or
    /// only its place differs.
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
    /// The kind of difference.
    pub kind: Kind,
    /// Name of the symbol; for code without one, that of its section.
    pub name: SymbolName,
    /// The symbol in the original object, if it exists there.
    pub original: Option<SymbolIx>,
    /// The symbol in the patched object, if it exists there.
    pub patched: Option<SymbolIx>,
    /// Where the first difference is, in words.
    pub why: String,
}
