// SPDX-License-Identifier: MIT OR Apache-2.0

//! What can be wrong with a file.

use thiserror::Error;
use xsplice_abi::errno::Errno;
use xsplice_abi::machine::Machine;

/// What is wrong with a file as a whole.
#[derive(Debug, PartialEq, Eq, Error)]
#[expect(
    missing_docs,
    reason = "fields are named after what they hold; the message uses each"
)]
#[non_exhaustive]
pub enum FileFault {
    /// No bytes at all, or too many.
    #[error("the payload has {size} bytes; 1 to {limit} are allowed")]
    Size { size: u64, limit: u64 },
    /// Not an ELF file.
    #[error("this is not an ELF file; pass the .livepatch file that the build made")]
    NotElf,
    /// Shorter than its own header.
    #[error("the ELF header is cut off: {size} of {whole} bytes are there")]
    HeaderCutOff { size: usize, whole: usize },
    /// An ELF file, but not a payload.
    #[error("ELF header: {field} is {value:#x}, expected {expected}")]
    Header {
        field: &'static str,
        value: u64,
        expected: &'static str,
    },
    /// For a machine that the engine does not know.
    #[error(
        "the payload is for another machine ({field} {value:#x}); \
         this engine takes x86-64, ARM64 and ARM32"
    )]
    Machine { field: &'static str, value: u64 },
    /// For another machine than the hypervisor.
    #[error("the payload is for {machine}, and this hypervisor is for {takes}")]
    OtherMachine { machine: Machine, takes: Machine },
    /// Too many sections.
    #[error("the payload has {count} sections; fewer than {limit} are supported")]
    TooManySections { count: u16, limit: u16 },
    /// The section header table is outside the file or invalid.
    #[error("section header table: {what} ({value:#x})")]
    SectionTable { what: &'static str, value: u64 },
    /// Xen's own core reads words of it, which must be aligned.
    #[error(
        "section header table: it is at {offset:#x}, with entries of {entry} bytes, where Xen's \
         own core crashes the host when it reads it; both must be multiples of {align}"
    )]
    StockSectionTable { offset: u64, entry: u64, align: u64 },
    /// Sections overlap in the file (*stricter*: each one is processed).
    #[error("the sections have {size:#x} bytes in the file, which has {file:#x}: they overlap")]
    SectionsOverlap { size: u64, file: u64 },
    /// No symbol table.
    #[error("the payload has no symbol table; it must not be stripped")]
    NoSymbolTable,
    /// A required section is missing.
    #[error("{name} is missing; every payload needs it")]
    Missing { name: &'static str },
    /// Neither functions nor hooks.
    #[error("there is nothing to apply: neither .livepatch.funcs nor a hook is there")]
    NothingToDo,
}

impl FileFault {
    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::Header { .. }
            | Self::Machine { .. }
            | Self::OtherMachine { .. }
            | Self::StockSectionTable { .. }
            | Self::TooManySections { .. } => Errno::EOPNOTSUPP,
            _ => Errno::EINVAL,
        }
    }
}
