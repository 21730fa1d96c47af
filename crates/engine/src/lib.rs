// SPDX-License-Identifier: MIT OR Apache-2.0

//! The hypervisor's half of live patching, for any hypervisor.
//!
//! The engine takes a payload (version 2 of Xen's live-patch design) from bytes to
//! something that can be applied. The stages are a chain of types, so nothing reaches
//! the end unchecked:
//!
//! ```text
//! bytes -> Parsed -> Authenticated -> DependencyChecked -> LaidOut -> Resolved -> Relocated -> Verified
//! ```
//!
//! Its environment is the [`Host`] trait: a hypervisor, an image on disk, a test.
//! There is one engine for all hosts: what one accepts, all accept.
//!
//! # Actions
//!
//! [`Engine`] holds the payloads of one hypervisor. [`Engine::upload`] loads one;
//! [`Engine::act`] applies, reverts, replaces or unloads it. An action is a
//! transaction: it completes, or payloads and memory stay as they were. In a
//! hypervisor, where one context requests it and another runs it, it has two halves:
//!
//! 1. [`Engine::start`] does everything that can be done while the hypervisor runs:
//!    it checks the state, the position in the stack and the payload's expectations
//!    (for a replace: against the text as it will be after the reverts), prepares the
//!    bytes to write and to restore, and calls the hook that can veto. From then on
//!    the payload's result is `-EAGAIN`, and no other action starts.
//! 2. [`Engine::run`] lets the host prepare for writing ([`Host::open_text`]) and
//!    requests a [rendezvous](Host::rendezvous). Its window only has the writes of
//!    those bytes, between [`Host::begin_writing`] and [`Host::end_writing`], and the
//!    hooks that must run there. Nothing allocates, prints or waits. If a part fails,
//!    the parts before it are undone in the same window: a replace re-applies what it
//!    had reverted, including load hooks. Then the post hook runs.
//!
//! | action | from | checks, in this order | result when they fail |
//! | --- | --- | --- | --- |
//! | unload | checked | no applied payload refers to it | `EBUSY` |
//! | unload | applied | | `EINVAL` |
//! | revert | applied | it is the one applied last | `EBUSY` |
//! | apply | checked | never reverted, or no writable data | `EINVAL` |
//! | | | what it refers to is still loaded | `EINVAL` |
//! | | | it depends on the payload on top, or on the hypervisor when there is none (not with [`Options::nodeps`], nor with [`Guard::OldCode`]) | `EINVAL` |
//! | | | expectations | `EINVAL`, `ERANGE` |
//! | | | preimage notes (not with [`Guard::Stack`]) | `EINVAL` |
//! | | | no function shares bytes with another one that is patched | `EINVAL` |
//! | | | no new symbol is one of an applied payload | `EEXIST` |
//! | | | its pre-apply hook | the hook's |
//! | replace | checked | as apply, but it depends on the hypervisor | the same |
//! | | | neither it nor what is applied has pre or post hooks | `EOPNOTSUPP` |
//!
//! A revert of a payload that is not applied, and an apply or replace of one that is,
//! has nothing to do and succeeds, as in Xen. A rendezvous timeout gives `EBUSY` with
//! the numbers of the missing CPUs. [`Failure`] has messages for all of these.
//!
//! A payload's hooks run in this order: pre-apply; \[stop\] load hooks, writes;
//! \[go\] post-apply; pre-revert; \[stop\] writes, unload hooks; \[go\] post-revert.
//! An apply or revert hook runs instead of everything between stop and go. Post hooks
//! run after failures too, with the payload's result in its record, but not when
//! there was no window.
//!
//! # The host's part
//!
//! [`Host`] is the hypervisor, [`Resident`] one payload's memory in it; dropping a
//! [`Resident`] releases everything, so no failure leaks. The calls for one upload
//! are: [`Host::allocate`]; [`Resident::bytes_mut`], where text, data and read-only
//! data are laid out and relocated; [`Resident::register`] with the payload's
//! [`Description`] (alternatives are applied here, tables registered);
//! [`Resident::protect`] for text and read-only data. Those for one window are:
//! [`Host::open_text`]; [`Host::rendezvous`], and in it [`Host::begin_writing`],
//! [`Host::write_text`] and hooks, [`Host::end_writing`]; [`Host::close_text`]. The
//! engine is single-threaded and takes no locks: the host serialises its live-patch
//! calls.
//!
//! # Memory
//!
//! All allocation in the engine is fallible: without memory, the upload or action is
//! refused with `ENOMEM` ([`Refusal::no_memory`], [`Cause::NoMemory`]), and nothing
//! changes. An action has all its memory when [`Engine::start`] returns.
//! [`Engine::run`], a revert, an unload and the list of what is loaded need none.
//! Messages are formatted straight into [`Host::log`]; names in failures are left out
//! if there is no memory for them.
//!
//! # Trust
//!
//! * **Trusts** the host: its symbols, its bytes and its information about addresses;
//!   and the code of hooks. Trusts nothing else in a payload.
//! * **Guarantees** that no payload makes it read or write out of bounds, or use more
//!   than a fixed multiple of [`MAX_SIZE`] of memory; that neither a payload nor a
//!   lack of memory makes it panic; that a payload is [`Verified`] only if every
//!   check passed; and that a refusal names every problem that could be found, with
//!   its result code in Xen's interface.
//!
//! It uses at most 2 KiB of stack, excluding calls to the host (`cargo xtask bench
//! engine` measures it). That is why stages are boxed and some functions are not
//! inlined.
//!
//! Checks and their results follow Xen's loader. Where Xen would accept a payload
//! that crashes or corrupts the hypervisor later, the engine refuses; the
//! documentation of the [`Problem`] or [`Cause`] says so. One state cannot be
//! repaired, as in Xen: an apply or revert hook that patched some of its functions
//! and not others; then the engine calls [`Host::fatal`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod action;
mod arch;
mod area;
mod count;
mod elf;
mod format;
mod host;
mod image;
mod names;
mod patch;
mod problem;
mod sort;
mod stack;
mod stage;

pub use action::{Action, Cause, Engine, Failure, Guard, Options, Progress};
pub use arch::{Aarch64, Any, Architecture, Arm32, NATIVE, Native, X86_64};
pub use area::Area;
pub use count::Counters;
pub use format::MAX_SIZE;
pub use host::{
    Absent, Description, Hook, Host, LandingPads, Limits, Protection, Region, Resident, State,
    Status, Symbol, WriteAccess,
};
pub use patch::Patch;
pub use problem::{
    Brief, EntryFault, FileFault, FunctionFault, Problem, Refusal, RelocationFault, SectionFault,
    SectionId, Severity, SignatureFault, SymbolFault, hex,
};
pub use stack::{Loaded, Stack, Times, hash};
pub use stage::{
    Authenticated, DependencyChecked, Enforcement, Function, LaidOut, Loader, Parsed, Policy,
    Relocated, Resolved, Signature, Signatures, Verified,
};
pub use xsplice_abi::errno::Errno;

/// The examples in the README are run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
