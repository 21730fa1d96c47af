// SPDX-License-Identifier: MIT OR Apache-2.0

//! Xen as the host of the live-patch engine.
//!
//! *What it is*: a static library that is linked into the hypervisor, in place
//! of its own live-patch core. `shim/livepatch-rust.c` does what only C can,
//! and is the only part of Xen that calls it; what both ask of each other is in
//! `shim/livepatch-rust.h`, and here in `ffi`.
//!
//! *What it trusts*: Xen, and the shim to make the calls of the engine follow
//! each other.
//!
//! *What it guarantees*: what `xsplice-engine` and `xsplice-rendezvous` do. A
//! panic ends in Xen's, with its message and place.
#![no_std]

extern crate alloc;

mod entry;
mod ffi;
mod host;
mod memory;
#[cfg(target_os = "none")]
mod runtime;
mod symbols;
