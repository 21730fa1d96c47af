// SPDX-License-Identifier: MIT OR Apache-2.0
//! The relocation tables.
//!
//! Everything that reads, checks or writes relocated code goes through one
//! description of each relocation, so that the generator, the checker and the
//! hypervisor cannot disagree on what a relocation means.
//!
//! * **Trusts** nothing: relocation types, addresses and field bytes may come
//!   from an untrusted file.
//! * **Guarantees** that no input makes it panic, and that a value that does not fit
//!   its field is an error with the value and the bounds, never a silently truncated
//!   field.
#![no_std]
#![forbid(unsafe_code)]

pub mod reloc;

/// The examples in the README are run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
