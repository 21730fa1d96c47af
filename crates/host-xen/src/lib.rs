// SPDX-License-Identifier: MIT OR Apache-2.0

//! Xen as the host of the live-patch engine.
//!
//! *What it is*: a static library that is linked into the hypervisor in place of its
//! stock live-patch core. `shim/livepatch-rust.c` does what only C can, and is the
//! only part of Xen that calls it; their interface is `shim/livepatch-rust.h`, and
//! `ffi` here.
//!
//! *What it trusts*: Xen, and that the shim serialises calls to the engine.
//!
//! *What it guarantees*: what `xsplice-engine` and `xsplice-rendezvous` guarantee. A
//! panic becomes Xen's panic, with its message and location.
#![no_std]

extern crate alloc;

mod arch;
mod entry;
mod ffi;
mod host;
mod keys;
mod memory;
#[cfg(feature = "microcode")]
mod microcode;
#[cfg(target_os = "none")]
mod runtime;
mod symbols;
