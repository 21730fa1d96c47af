// SPDX-License-Identifier: MIT OR Apache-2.0

//! What can be wrong with a function that is to be patched.

use super::Severity;
use super::text::hex;
use alloc::string::String;
use alloc::vec::Vec;
use thiserror::Error;
use xsplice_abi::errno::Errno;

/// What is wrong with a function that is to be patched.
#[derive(Debug, PartialEq, Eq, Error)]
#[expect(
    missing_docs,
    reason = "fields are named after what they hold; the message uses each"
)]
#[non_exhaustive]
pub enum FunctionFault {
    // Its record.
    /// A version of the record that is not known.
    #[error("version {version} of the record; {expected} is known")]
    Version { version: u8, expected: u8 },
    /// It has no size.
    #[error("its old size is 0")]
    NoOldSize,
    /// No such function.
    #[error(
        "it is neither in the hypervisor nor in a loaded payload; \
         a local function is called file.c#name"
    )]
    Unknown,
    /// Neither an address nor a name that can be read (*stricter*).
    #[error("its name, at {addr:#x}, cannot be read, and it has no old address")]
    Name { addr: u64 },
    /// The old function is not code of the hypervisor or of a payload (*stricter*).
    #[error("{addr:#x}, {size} bytes, is not in hypervisor text")]
    OldAddress { addr: u64, size: u32 },
    /// The old function is freed after boot (*stricter*).
    #[error("{addr:#x} is in init text, which is freed after boot")]
    OldInit { addr: u64 },
    /// The new address is not code, is the old function, or is inside a function
    /// (*stricter*).
    #[error("its new address {addr:#x}: {what}")]
    NewAddress { addr: u64, what: &'static str },
    /// The new function would reach into a page without code, where the hypervisor
    /// cannot clean the data cache (*stricter*).
    #[error("its new code, {size} bytes at {addr:#x}, reaches out of text")]
    NewSize { addr: u64, size: u32 },
    /// The symbol of the new function has more bytes than the record, and Xen cleans only
    /// as many as that from the data cache: the processor may run what was in the rest of
    /// its memory before. Xen loads it, and emulation does not show it.
    #[error(
        "its new code has {symbol} bytes at {addr:#x}, but its record says {size}, and Xen's own \
         core cleans no more than that from the data cache; give the record the whole size"
    )]
    NewSizeShort { addr: u64, size: u32, symbol: u64 },

    // The overwritten bytes.
    /// No room for the trampoline.
    #[error("its {old_size} bytes are too few for a trampoline, which takes {needed}")]
    TooSmall { old_size: u32, needed: u32 },
    /// More no-ops than supported.
    #[error("{new_size} bytes to make no-ops; {limit} are allowed")]
    NopTooLong { new_size: u32, limit: u32 },
    /// More no-ops than the function has bytes.
    #[error("{new_size} bytes to make no-ops, but it has {old_size}")]
    NopPastEnd { new_size: u32, old_size: u32 },
    /// No-ops for a part of an instruction.
    #[error("{new_size} bytes to make no-ops, which is not a multiple of {unit}")]
    NopPart { new_size: u32, unit: u32 },
    /// Fewer no-ops than the landing pad has bytes (*stricter*: Xen computes a
    /// negative length).
    #[error(
        "{new_size} bytes to make no-ops, but it starts with a {endbr}-byte endbr64, which must \
         be kept"
    )]
    NopInEndbr { new_size: u32, endbr: u32 },
    /// The new function is out of reach.
    #[error("new code at {new:#x} is out of reach from {old:#x}")]
    Distance { old: u64, new: u64 },
    /// It is on the host's deny-list: code that runs while the hypervisor is patched, or
    /// that the host protects for another reason (*stricter*).
    #[error("the code at {addr:#x} must not be patched: {reason}")]
    Denied { addr: u64, reason: &'static str },
    /// The patched range extends into the next function (*stricter*).
    #[error(
        "the bytes to be patched, {addr:#x} to {end:#x}, reach into the function at {next:#x}; \
         only one function's bytes may be patched by a record"
    )]
    NextFunction { addr: u64, end: u64, next: u64 },
    /// The patched range starts or ends inside an instruction (*stricter*: Xen
    /// patches it, and the processor runs the rest of the instruction).
    #[error(
        "the {size} bytes to be patched at {addr:#x} {what} inside of the instruction at \
         {begin:#x}, which has {length}; the payload is for a hypervisor that was built differently"
    )]
    Boundary {
        addr: u64,
        size: u32,
        what: &'static str,
        begin: u64,
        length: u64,
    },
    /// The patched range starts or ends between two instructions that compute an address
    /// together (*stricter*: Xen patches it, and the rest of the function, or the new code,
    /// works with half of an address).
    #[error(
        "the bytes to be patched at {addr:#x} {what} between the instruction at {first:#x}, which \
         has the page of an address, and that at {second:#x}, which has the rest; patch both or \
         neither"
    )]
    Pair {
        addr: u64,
        what: &'static str,
        first: u64,
        second: u64,
    },
    /// The patched range cannot be decoded into complete instructions (*stricter*).
    #[error(
        "what is at {addr:#x} cannot be decoded, or may be data, so it is unclear whether whole \
         instructions are patched"
    )]
    Undecodable { addr: u64 },
    /// Another record patches the same bytes (*stricter*).
    #[error("it overlaps at {addr:#x} with function {other} ({other_name})")]
    Overlap {
        addr: u64,
        other: usize,
        other_name: String,
    },

    // What must hold when it is applied.
    /// It has no preimage note, and the guard is the old code.
    #[error("it has no preimage note, and this hypervisor requires one for every function")]
    NoPreimage,
    /// It shares bytes with one that an applied payload patches (*stricter*).
    #[error("it overlaps at {addr:#x} with {theirs}, which {other} patches")]
    AppliedOverlap {
        addr: u64,
        other: String,
        theirs: String,
    },
    /// The expectation makes no sense.
    #[error("expectation with {what}")]
    ExpectationInvalid { what: &'static str, errno: Errno },
    /// The old function does not have the expected bytes.
    #[error(
        "{addr:#x} should hold {}, but holds {}; \
         the payload is for another build or another state of the stack",
        hex(.expected), hex(.actual)
    )]
    Expectation {
        addr: u64,
        expected: Vec<u8>,
        actual: Vec<u8>,
    },
}

impl FunctionFault {
    pub(super) fn severity(&self) -> Severity {
        match self {
            Self::NoPreimage
            | Self::AppliedOverlap { .. }
            | Self::ExpectationInvalid { .. }
            | Self::Expectation { .. } => Severity::NotApplied,
            Self::NewSizeShort { .. } => Severity::Warning,
            _ => Severity::NotLoaded,
        }
    }

    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::Version { .. } | Self::NopTooLong { .. } | Self::NopPart { .. } => {
                Errno::EOPNOTSUPP
            }
            Self::Denied { .. } => Errno::EPERM,
            Self::Unknown => Errno::ENOENT,
            Self::Distance { .. } => Errno::EOVERFLOW,
            Self::ExpectationInvalid { errno, .. } => *errno,
            _ => Errno::EINVAL,
        }
    }
}
