// SPDX-License-Identifier: MIT OR Apache-2.0

//! A hypervisor in this process: real code, real pages, threads as CPUs.
//!
//! [`Machine`] maps an ELF image at its link address, with text executable and
//! read-only, and runs its functions on threads that act as CPUs: each enters the
//! image like a hypercall, and passes the rendezvous check on return. The engine
//! loads payloads next to the image and patches it while it runs, with the same calls
//! as in a hypervisor.
//!
//! The image and the payloads of [`image`] and [`payloads`] are compiled from C when
//! this crate is built, so running them needs nothing else.
//!
//! Differences from a hypervisor: nothing traps, so exception tables and bug frames
//! are accepted and never used; there are no alternatives (payloads that have some
//! are refused); there are no interrupts.
//!
//! * **Trusts** the image and the code in payloads, which it runs.
//! * **Guarantees** what the engine guarantees, on memory that the processor
//!   protects.
#![deny(unsafe_code)]

mod cpu;
mod machine;
mod memory;

pub use cpu::Cpus;
pub use machine::{Error, Machine};

/// The hypervisor, an ELF image with symbols.
#[must_use]
pub fn image() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/hypervisor"))
}

/// Payloads for [`image`].
pub mod payloads {
    /// Repairs the hypervisor's `grant`.
    pub const GRANT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/grant.livepatch"));
    /// Another `version`, on top of [`GRANT`].
    pub const VERSION: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/version.livepatch"));
    /// The same, directly on the hypervisor, with hooks before and after the apply.
    pub const HOOKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hooked.livepatch"));
    /// Both changes in one payload, for replace.
    pub const CUMULATIVE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cumulative.livepatch"));
}

/// Numbers of the hypervisor's calls.
pub mod call {
    /// The version: 10 as built.
    pub const VERSION: u64 = 0;
    /// Whether a guest may access a number of bytes at an offset: 0 or -1.
    pub const GRANT: u64 = 1;
    /// Number of refusals.
    pub const REFUSALS: u64 = 2;
    /// Stays in the hypervisor until the byte at an address is nonzero.
    pub const STALL: u64 = 3;
}
