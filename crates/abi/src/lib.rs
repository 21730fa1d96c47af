// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen's two live-patch interfaces as types: the payload format, version 2,
//! and the sysctl hypercall, interface versions 0x12 to 0x16; the signatures that
//! were proposed for payloads ([`signature`]); and the functions of Xen that must not
//! be patched ([`deny`]).
//!
//! *What it trusts*: nothing; it only describes.
//!
//! *What it guarantees*: every structure has the size and the offsets that
//! Xen's public headers and live-patch design give it; each is asserted when
//! this crate is compiled.
//!
//! What writes payloads needs the feature `alloc`, and what reads or writes build records
//! `serde`; what a hypervisor uses does not.
//!
//! Sources: Xen's `docs/misc/livepatch` ("design") and
//! `xen/include/public/{sysctl,version,errno}.h` ("public headers").
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;

pub mod deny;
pub mod errno;
pub mod hooks;
pub mod note;
pub mod payload;
pub mod preimage;
pub mod record;
pub mod signature;
pub mod special;
pub mod symbol;
pub mod sysctl;
pub mod text;
pub mod trampoline;

/// The examples in the README are run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
