// SPDX-License-Identifier: MIT OR Apache-2.0

//! What can be wrong with a section, and with an entry of one that is a table.

use super::Severity;
use super::text::text;
use crate::elf::Section;
use alloc::string::String;
use core::fmt;
use thiserror::Error;
use xsplice_abi::errno::Errno;

/// A section of a payload, for errors.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SectionId {
    /// Index in the section header table.
    pub index: usize,
    /// Name, made printable; empty when it cannot be read.
    pub name: String,
}

impl fmt::Display for SectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, name } = self;
        let space = if name.is_empty() { "" } else { " " };
        write!(f, "section [{index}]{space}{name}")
    }
}

impl From<&Section<'_>> for SectionId {
    fn from(section: &Section<'_>) -> Self {
        Self {
            index: section.index,
            name: text(section.name),
        }
    }
}

/// What is wrong with a section.
#[derive(Debug, PartialEq, Eq, Error)]
#[expect(
    missing_docs,
    reason = "fields are named after what they hold; the message uses each"
)]
#[non_exhaustive]
pub enum SectionFault {
    // In the file.
    /// It is outside the file, or overlaps its header.
    #[error("is outside the file: offset {offset:#x}, size {size:#x}, file {file:#x}")]
    Bounds { offset: u64, size: u64, file: usize },
    /// An alignment that is no power of two.
    #[error("has alignment {align:#x}, which is not a power of two")]
    Alignment { align: u64 },
    /// An address that does not have the section's alignment.
    #[error("has address {addr:#x}, which is not a multiple of its alignment {align:#x}")]
    Address { addr: u64, align: u64 },
    /// Without contents, and too large.
    #[error("has {size} bytes without contents in the file; {limit} are allowed")]
    TooLarge { size: u64, limit: u64 },
    /// Its name is not in the table of names.
    #[error("has a name, at {offset:#x}, that is not in the table of section names")]
    Name { offset: u32 },
    /// An invalid string table.
    #[error("should hold strings, but {what}")]
    Strings { what: &'static str },
    /// More than one symbol table.
    #[error("is a second symbol table; only one is supported")]
    SecondSymbolTable,
    /// A symbol table with impossible sizes.
    #[error("has symbols of {entry} bytes, which do not fill its {size} bytes")]
    SymbolTable { entry: u64, size: u64 },

    // In memory.
    /// Writable and executable.
    #[error("is writable and executable, which is not supported")]
    WritableText,
    /// To be loaded with alignment 0 (*stricter*: Xen places it over the sections
    /// before it).
    #[error("has alignment 0, which Xen's loader mishandles; use 1")]
    ZeroAlignment,
    /// An alignment that the loader cannot provide.
    #[error("has alignment {align:#x}, which is more than a page; only a page is guaranteed")]
    LargeAlignment { align: u64 },
    /// It is used, but not marked to be loaded (*stricter*: Xen reads from
    /// address 0).
    #[error("is needed at run time, but is not marked as loaded (SHF_ALLOC)")]
    NotAllocated,

    /// Xen's own core reads words there, which must be aligned.
    #[error(
        "is at {addr:#x}, where Xen's own core crashes the host when it reads it; give the section \
         alignment {align}"
    )]
    StockAlignment { addr: u64, align: u64 },
    /// Xen's own core reads words of the file there, which must be aligned.
    #[error(
        "is at {offset:#x} of the file, with entries of {entry} bytes, where Xen's own core \
         crashes the host when it reads it; both must be multiples of {align}"
    )]
    StockOffset { offset: u64, entry: u64, align: u64 },

    // What it holds.
    /// It must have contents and has none.
    #[error("is empty")]
    Empty,
    /// It must be unique and is not (*stricter*: Xen takes the first).
    #[error("is there already as section [{first}]; it must be unique")]
    Duplicate { first: usize },
    /// It is not a whole number of entries.
    #[error("has {size} bytes, which is not {expected}")]
    EntrySize { size: u64, expected: &'static str },
    /// A note without a build-id.
    #[error("is no build-id note (owner GNU, type 3), or is cut off")]
    Note,
    /// Unterminated strings.
    #[error("must be strings that each end with a zero byte")]
    Metadata,
    /// Relocations without addend.
    #[error("has relocations without addends (SHT_REL), which are not supported")]
    RelNotSupported,
    /// Malformed relocations, or relocations of notes or metadata (*stricter*: Xen reads
    /// the relocated bytes, people those in the file).
    #[error("has relocations that cannot be performed: {what}")]
    Relocations { what: &'static str },
    /// Alternatives without original code or without replacements.
    #[error("is there, but {missing} is not")]
    AlternativesAlone { missing: &'static str },
    /// An exception table, which hypervisors for this machine do not have.
    #[error("is there, but hypervisors for ARM have no exception table")]
    NoExceptions,
    /// A table that this hypervisor does not use (*stricter*: it ignores it, and the
    /// calls stay indirect, to functions without landing pads).
    #[error("is there, but this hypervisor does not make such calls direct")]
    CallSites,
    /// An unknown kind of table or hook (*stricter*: Xen ignores it, so it would have
    /// no effect).
    #[error("is a table of a kind that is not known, and would have no effect")]
    UnknownTable,
    /// The preimage notes cannot be read.
    #[error("has preimage notes that are damaged")]
    PreimageDamaged,
    /// Two preimage notes cover the same bytes.
    #[error("has two preimage notes about the bytes at {addr:#x}")]
    PreimageOverlap { addr: u64 },
    /// The preimage notes cover more bytes than possible.
    #[error("has preimage notes about {size:#x} bytes; {limit:#x} are allowed")]
    PreimageSize { size: u64, limit: u64 },
}

impl SectionFault {
    pub(super) fn severity(&self) -> Severity {
        match self {
            Self::LargeAlignment { .. } => Severity::Warning,
            _ => Severity::NotLoaded,
        }
    }

    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::Alignment { .. }
            | Self::SecondSymbolTable
            | Self::WritableText
            | Self::ZeroAlignment
            | Self::LargeAlignment { .. }
            | Self::UnknownTable
            | Self::StockAlignment { .. }
            | Self::StockOffset { .. }
            | Self::NoExceptions
            | Self::RelNotSupported => Errno::EOPNOTSUPP,
            _ => Errno::EINVAL,
        }
    }
}

/// What is wrong with an entry of a table, or with a hook.
#[derive(Debug, PartialEq, Eq, Error)]
#[expect(
    missing_docs,
    reason = "fields are named after what they hold; the message uses each"
)]
#[non_exhaustive]
pub enum EntryFault {
    /// The hypervisor would use it without a check (*stricter*).
    #[error("{what} ({addr:#x})")]
    Unusable { what: &'static str, addr: u64 },
    /// An exception table entry for code outside the payload (*stricter*).
    #[error("{what} {addr:#x} is not in the payload's text")]
    NotInText { what: &'static str, addr: u64 },
    /// The target of an indirect call has no landing pad: if the processor checks for
    /// one, the call crashes the hypervisor (*stricter*).
    #[error(
        "the function at {addr:#x} is called through a pointer and has no landing pad \
         (endbr64){}; declare it cf_check",
        if *.checked { "" } else { ", which hosts refuse whose processor checks for it (CET-IBT)" }
    )]
    NoLandingPad { addr: u64, checked: bool },
}

impl EntryFault {
    pub(super) fn severity(&self) -> Severity {
        match self {
            Self::NoLandingPad { checked: false, .. } => Severity::Warning,
            _ => Severity::NotLoaded,
        }
    }
}
