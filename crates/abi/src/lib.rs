// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen's two live-patch interfaces as types: the payload format, version 2, and the
//! sysctl hypercall, interface versions 0x12 to 0x16; the proposed signatures of
//! payloads ([`signature`]); the deny-list ([`deny`]); and the hypercall that loads
//! microcode ([`platform`]).
//!
//! *What it trusts*: nothing; it only describes.
//!
//! *What it guarantees*: every structure has the size and offsets of Xen's public
//! headers and live-patch design, asserted at compile time.
//!
//! Writing payloads needs the feature `alloc`, and reading or writing build records
//! needs `serde`; code for a hypervisor needs neither.
//!
//! Sources: Xen's `docs/misc/livepatch` ("design") and
//! `xen/include/public/{sysctl,version,platform,errno}.h` ("public headers").
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;

/// Defines structures of public headers, and asserts sizes and offsets.
macro_rules! structure {
    ($(#[$meta:meta])* $name:ident = $size:literal {
        $($(#[$field_meta:meta])* $field:ident : $kind:ty = $offset:literal,)*
    }) => {
        $(#[$meta])*
        #[derive(
            Clone,
            Copy,
            Debug,
            Default,
            zerocopy::FromBytes,
            zerocopy::IntoBytes,
            zerocopy::Immutable,
            zerocopy::KnownLayout,
        )]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $kind,)*
        }
        const _: () = {
            assert!(core::mem::size_of::<$name>() == $size);
            $(assert!(core::mem::offset_of!($name, $field) == $offset);)*
        };
    };
}

pub mod deny;
pub mod errno;
pub mod hooks;
pub mod machine;
pub mod note;
pub mod payload;
pub mod platform;
pub mod preimage;
pub mod record;
pub mod signature;
pub mod special;
pub mod suffix;
pub mod symbol;
pub mod sysctl;
pub mod text;
pub mod trampoline;

/// The examples in the README are run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
