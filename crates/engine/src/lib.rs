//! The hypervisor's half of live patching, for any hypervisor.
//!
//! The engine takes a payload (version 2 of Xen's live-patch design) from bytes
//! to something that can be applied. The way is a chain of types, so that
//! nothing reaches the end that was not checked:
//!
//! ```text
//! bytes -> Parsed -> DependencyChecked -> LaidOut -> Resolved -> Relocated -> Verified
//! ```
//!
//! What it needs from its surroundings is the [`Host`] trait: a hypervisor, an
//! image on disk, a test. One engine, many hosts: what one accepts, all accept.
//!
//! * **Trusts** the host: its symbols, its bytes and what it says about
//!   addresses. Trusts nothing in a payload.
//! * **Guarantees** that no payload makes it panic, read or write out of
//!   bounds, or use more than a fixed multiple of [`MAX_SIZE`] of memory; that
//!   a payload is [`Verified`] only when every check passed; and that a refusal
//!   names everything that could be found wrong, with the result code that
//!   Xen's interface gives for it.
//!
//! Checks and their results follow Xen's loader. Where Xen would accept a
//! payload that crashes or corrupts the hypervisor later, the engine refuses;
//! the documentation of the [`Problem`] says so.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod elf;
mod format;
mod host;
mod image;
mod problem;
mod stack;
mod stage;
mod x86_64;

pub use format::MAX_SIZE;
pub use host::{Host, Region};
pub use problem::{Problem, Refusal, SectionId, Severity};
pub use stack::{Loaded, Stack};
pub use stage::{
    DependencyChecked, Function, LaidOut, Loader, Parsed, Policy, Relocated, Resolved, Verified,
};
pub use xsplice_abi::errno::Errno;
