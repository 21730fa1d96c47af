// SPDX-License-Identifier: MIT OR Apache-2.0

//! Problems with payloads.

mod file;
mod function;
mod refusal;
mod section;
mod signature;
mod symbol;
mod text;

pub use file::FileFault;
pub use function::FunctionFault;
pub use refusal::{Brief, Refusal};
pub use section::{EntryFault, SectionFault, SectionId};
pub use signature::SignatureFault;
pub use symbol::{RelocationFault, SymbolFault};
pub use text::hex;
pub(crate) use text::{bytes, copied, printable, same, text};

use crate::elf::{Section, Symbol};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use thiserror::Error;
use xsplice_abi::errno::Errno;
use xsplice_fallible::{self as fallible, NoMemory};

/// The severity of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The payload works, but this should be known.
    Warning,
    /// The payload loads, but its apply is refused.
    NotApplied,
    /// The upload of the payload is refused.
    NotLoaded,
}

/// A problem with a payload: what, where, and what to do.
///
/// Variants marked *stricter*, of this and of what it holds, are refused here
/// although Xen's own loader does not check them: it would crash or corrupt the
/// hypervisor, now or later.
///
/// Names are empty if there was no memory for them.
///
/// ```
/// use xsplice_engine::{Errno, FunctionFault, Problem, Severity};
/// # use xsplice_test_host::{Payload, func, load};
/// # let refusal = load(&Payload::new(&[func("nowhere")]).bytes()).unwrap_err();
///
/// // `refusal` is of a payload that patches a function that is not there.
/// for problem in &refusal.problems {
///     if let Problem::Function { index, name, fault } = problem {
///         assert_eq!((*index, name.as_str()), (0, "nowhere"));
///         assert_eq!(*fault, FunctionFault::Unknown);
///     }
///     assert_eq!(problem.errno(), Errno::ENOENT);
///     assert_eq!(problem.severity(), Severity::NotLoaded);
///     assert!(problem.to_string().starts_with("function 0 (nowhere): it is neither"));
/// }
/// # assert_eq!(refusal.problems.len(), 1);
/// ```
#[derive(Debug, PartialEq, Eq, Error)]
#[expect(
    missing_docs,
    reason = "fields are named after what they hold; the message uses each"
)]
#[non_exhaustive]
pub enum Problem {
    // Its name, and what is already loaded.
    /// A name that the interface cannot carry.
    #[error("a payload's name has 1 to {limit} bytes; this one has {length}")]
    Name { length: usize, limit: usize },
    /// A payload of that name is loaded.
    #[error("a payload of this name is loaded already; unload it first or take another name")]
    NameTaken,
    /// Its signature is missing or invalid.
    #[error("{fault}{}", if *.enforced { "" } else { " (signatures are not enforced)" })]
    Signature {
        fault: SignatureFault,
        enforced: bool,
    },
    /// Built for another hypervisor.
    #[error(
        "the payload is for the hypervisor with build-id {}, but this one has {}; \
         build it again for this hypervisor", hex(.wants), hex(.has)
    )]
    OtherHypervisor { wants: Vec<u8>, has: Vec<u8> },
    /// A payload with this build-id is loaded already.
    #[error("a payload with build-id {} is loaded already, as {as_name}", hex(.id))]
    BuildIdLoaded { id: Vec<u8>, as_name: String },
    /// The payload was built for a different state of the stack.
    #[error(
        "the payload applies on top of build-id {}, but the top is {} ({top_name}); \
         apply what it depends on first{}", hex(.wants), hex(.top),
        if *.replaces { ", or use replace" } else { "" }
    )]
    Depends {
        wants: Vec<u8>,
        top: Vec<u8>,
        top_name: String,
        replaces: bool,
    },
    /// An applied payload also has this new symbol (*stricter*).
    #[error("{other} is applied and has the symbol {symbol} too; only a replace can follow")]
    AppliedSymbol { symbol: String, other: String },

    // What it needs from the hypervisor.
    /// More memory than allowed.
    #[error("the payload needs {size:#x} bytes of memory; {limit:#x} are allowed")]
    TooLarge { size: u64, limit: u64 },
    /// No room.
    #[error("the hypervisor has no {size:#x} bytes of memory for the payload{}", Window(*.window))]
    NoMemory {
        /// How much it needs.
        size: u64,
        /// How much all payloads together can have, if that is little.
        window: Option<u64>,
    },
    /// The hypervisor rejected the payload.
    #[error("the hypervisor failed to {what} ({})", .errno.name().unwrap_or("?"))]
    Hypervisor { what: &'static str, errno: Errno },

    // Its contents.
    /// The file as a whole.
    #[error("{0}")]
    File(FileFault),
    /// A section.
    #[error("{section} {fault}")]
    Section {
        section: SectionId,
        fault: SectionFault,
    },
    /// A symbol.
    #[error("symbol [{index}]{} {fault}", Named(" ", .name, ""))]
    Symbol {
        index: usize,
        name: String,
        fault: SymbolFault,
    },
    /// A relocation. Where its symbol has no name, the name is that of the section.
    #[error("{section}, relocation {index}{}: {fault}", Named(", for ", .symbol, ""))]
    Relocation {
        section: SectionId,
        index: usize,
        symbol: String,
        fault: RelocationFault,
    },
    /// A function that is to be patched.
    #[error("function {index}{}: {fault}", Named(" (", .name, ")"))]
    Function {
        index: usize,
        name: String,
        fault: FunctionFault,
    },
    /// An entry of a table, or a hook.
    #[error("{section}, entry {index}: {fault}")]
    Entry {
        section: SectionId,
        index: usize,
        fault: EntryFault,
    },
    /// An old function has changed since the payload was built.
    #[error(
        "the {size} bytes at {addr:#x} are not the function that the payload was made for: another \
         payload or something else changed it"
    )]
    Preimage { addr: u64, size: u32 },
}

/// A name with what goes around it; nothing without a name.
struct Named<'a>(&'static str, &'a str, &'static str);

impl core::fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self(_, "", _) => Ok(()),
            Self(before, name, after) => write!(f, "{before}{name}{after}"),
        }
    }
}

/// The size of the window for all payloads.
struct Window(Option<u64>);

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(size) => write!(
                f,
                "; all payloads together can have {size:#x}, with an unused page after each: \
                 unload some, or replace them by one"
            ),
            None => Ok(()),
        }
    }
}

impl Problem {
    /// Its severity.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::Section { fault, .. } => fault.severity(),
            Self::Function { fault, .. } => fault.severity(),
            Self::Entry { fault, .. } => fault.severity(),
            Self::Signature {
                enforced: false, ..
            } => Severity::Warning,
            Self::Depends { .. } | Self::Preimage { .. } | Self::AppliedSymbol { .. } => {
                Severity::NotApplied
            }
            _ => Severity::NotLoaded,
        }
    }

    /// The result code in Xen's interface.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::File(fault) => fault.errno(),
            Self::Section { fault, .. } => fault.errno(),
            Self::Symbol { fault, .. } => fault.errno(),
            Self::Relocation { fault, .. } => fault.errno(),
            Self::Function { fault, .. } => fault.errno(),
            Self::Signature { fault, .. } => fault.errno(),
            Self::NameTaken | Self::BuildIdLoaded { .. } | Self::AppliedSymbol { .. } => {
                Errno::EEXIST
            }
            Self::NoMemory { .. } | Self::TooLarge { .. } => Errno::ENOMEM,
            Self::Hypervisor { errno, .. } => *errno,
            _ => Errno::EINVAL,
        }
    }
}

/// The problems found so far; those beyond [`Problems::LIMIT`] or without memory are
/// only counted.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    pub(crate) list: Vec<Problem>,
    pub(crate) more: usize,
    pub(crate) no_memory: bool,
}

impl Problems {
    const LIMIT: usize = 200;

    #[inline(never)]
    pub(crate) fn push(&mut self, problem: Problem) {
        if self.list.len() < Self::LIMIT {
            if fallible::push(&mut self.list, problem).is_ok() {
                return;
            }
            self.no_memory = true;
        }
        self.more += 1;
    }

    // Problems are large, and these are found where the stack is deep: each kind is
    // put together in one place.

    #[inline(never)]
    pub(crate) fn file(&mut self, fault: FileFault) {
        self.push(Problem::File(fault));
    }

    #[inline(never)]
    pub(crate) fn section(&mut self, section: &Section<'_>, fault: SectionFault) {
        let section = section.into();
        self.push(Problem::Section { section, fault });
    }

    #[inline(never)]
    pub(crate) fn symbol(&mut self, index: usize, symbol: &Symbol<'_>, fault: SymbolFault) {
        let name = symbol.text();
        self.push(Problem::Symbol { index, name, fault });
    }

    #[inline(never)]
    pub(crate) fn entry(&mut self, section: &Section<'_>, index: usize, fault: EntryFault) {
        self.push(Problem::Entry {
            section: section.into(),
            index,
            fault,
        });
    }

    /// The value, or `None` without memory; then the payload is refused.
    pub(crate) fn noted<T>(&mut self, result: Result<T, NoMemory>) -> Option<T> {
        self.no_memory |= result.is_err();
        result.ok()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.list.len() + self.more
    }

    /// Whether the payload is refused already.
    pub(crate) fn refused(&self) -> bool {
        self.more != 0
            || self.no_memory
            || self
                .list
                .iter()
                .any(|problem| problem.severity() == Severity::NotLoaded)
    }
}
