// SPDX-License-Identifier: MIT OR Apache-2.0

//! The live-patch engine as a static library, for hypervisors that are not written in
//! Rust. They include `include/xsplice.h`, which cbindgen generates from these files; a
//! test compares the two.
//!
//! The hypervisor fills in an [`xsplice_host`](host::xsplice_host), a table of functions: the engine's
//! [`Host`](::xsplice_engine::Host) in C. `examples/host.c` is the smallest one.
//!
//! * **Trusts** that the hypervisor follows the header: pointers are valid, and calls
//!   with the same engine are serialised.
//! * **Guarantees** what `xsplice-engine` does. An `xsplice_host` without a required
//!   function is refused when the engine is created.
#![no_std]
#![allow(
    non_camel_case_types,
    reason = "the header has the names that C programs expect"
)]

extern crate alloc;
// For its allocator and panic handler.
#[cfg(not(target_os = "none"))]
extern crate std;

pub mod engine;
pub mod host;
#[cfg(target_os = "none")]
mod runtime;
