// SPDX-License-Identifier: MIT OR Apache-2.0

//! What can be wrong with a symbol, and with a relocation.

use alloc::string::String;
use thiserror::Error;
use xsplice_abi::errno::Errno;
use xsplice_reloc::reloc::Overflow;

/// What is wrong with a symbol.
#[derive(Debug, PartialEq, Eq, Error)]
#[expect(
    missing_docs,
    reason = "fields are named after what they hold; the message uses each"
)]
#[non_exhaustive]
pub enum SymbolFault {
    /// Its name is not in the table of strings.
    #[error("has a name, at {offset:#x}, that is not in the table of strings")]
    Name { offset: u32 },
    /// A common symbol.
    #[error("is a common symbol; compile with -fno-common")]
    Common,
    /// Neither the hypervisor nor a loaded payload defines it.
    #[error(
        "is neither in the hypervisor nor in a loaded payload; \
         a local function or variable is called file.c#name"
    )]
    Unknown,
    /// Its section does not exist.
    #[error("is in section {section:#x}, which does not exist")]
    Section { section: u16 },
    /// A reserved section index that is not supported.
    #[error("has the special section index {section:#x}")]
    SpecialSection { section: u16 },
    /// It marks Thumb code.
    #[error("marks Thumb code, which the hypervisor does not run; compile with -marm")]
    ForeignCode,
    /// It is new and has a name that exists.
    #[error("is new in this payload, but {owner} has one of that name; rename it")]
    Duplicate { owner: String },
    /// It is new and has a name that the hypervisor cannot hold (*stricter*: Xen
    /// cuts it off).
    #[error("has a name of {length} characters; {limit} are allowed")]
    TooLong { length: usize, limit: usize },
}

impl SymbolFault {
    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::SpecialSection { .. } => Errno::EOPNOTSUPP,
            Self::Unknown => Errno::ENOENT,
            Self::Duplicate { .. } => Errno::EEXIST,
            _ => Errno::EINVAL,
        }
    }
}

/// What is wrong with a relocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(
    missing_docs,
    reason = "fields are named after what they hold; the message uses each"
)]
#[non_exhaustive]
pub enum RelocationFault {
    /// It names no symbol.
    #[error("it names no symbol, which is not supported")]
    NoSymbol,
    /// Its symbol does not exist.
    #[error("symbol [{symbol}] does not exist; there are {count}")]
    SymbolIndex { symbol: usize, count: usize },
    /// Its symbol is in a section that is not loaded.
    #[error("the symbol is in a section that is not loaded")]
    Ignored,
    /// It is outside the section that it changes.
    #[error("{name} at {offset:#x} is past the end of section [{target}] ({size:#x} bytes)")]
    PastEnd {
        name: &'static str,
        offset: u64,
        target: usize,
        size: u64,
    },
    /// An unknown type.
    #[error("type {r_type} is unknown")]
    Unknown { r_type: u32 },
    /// A type that this engine supports, but Xen's own loader does not.
    #[error("Xen's loader does not perform {name}; {advice}")]
    Stock {
        name: &'static str,
        advice: &'static str,
    },
    /// A value that Xen's own loader writes wrongly.
    #[error("at {offset:#x}: Xen's own core {what} ({name})")]
    StockFault {
        name: &'static str,
        offset: u64,
        what: &'static str,
    },
    /// A value that does not fit.
    #[error("at {offset:#x}: {overflow}")]
    Overflow { offset: u64, overflow: Overflow },
    /// A branch that changes to Thumb code (*stricter*).
    #[error(
        "at {offset:#x}: {name} is at a blx instruction, which changes to Thumb code; compile with -marm"
    )]
    Thumb { name: &'static str, offset: u64 },
    /// Its symbol is freed after boot, and no code that the payload replaces leads
    /// there (*stricter*).
    #[error(
        "{addr:#x} is in an init section, which is freed after boot, and no function that the \
         payload replaces refers to it"
    )]
    Init { addr: u64 },
}

impl RelocationFault {
    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::NoSymbol
            | Self::Unknown { .. }
            | Self::Stock { .. }
            | Self::StockFault { .. }
            | Self::Thumb { .. } => Errno::EOPNOTSUPP,
            Self::Overflow { .. } => Errno::EOVERFLOW,
            _ => Errno::EINVAL,
        }
    }
}
