// SPDX-License-Identifier: MIT OR Apache-2.0

//! The live-patch engine as a static library, for hypervisors that are not written in
//! Rust. `include/xsplice.h` is what they include; cbindgen writes it from these
//! files, and a test compares the two.
//!
//! The hypervisor fills in an [`xsplice_host`](host::xsplice_host), a table of functions: the engine's
//! [`Host`](::xsplice_engine::Host) in C. `tests/host.c` is a small one.
//!
//! * **Trusts** that the hypervisor keeps to the header: pointers lead to what they
//!   are said to, and calls with the same engine follow each other.
//! * **Guarantees** what `xsplice-engine` does. An `xsplice_host` in which a function
//!   is missing is refused when the engine is made.
#![no_std]
#![allow(
    non_camel_case_types,
    reason = "the header has the names that C programs expect"
)]

extern crate alloc;
// Its allocator, and what it does in a panic.
#[cfg(not(target_os = "none"))]
extern crate std;

pub mod engine;
pub mod host;
#[cfg(target_os = "none")]
mod runtime;
