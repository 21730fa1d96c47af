// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is in a live-patch payload, for people and machines.
//!
//! *What it is*: [`Payload::read`] turns a payload in Xen's format, whoever
//! made it, into plain data; [`compare`] puts the code of its functions
//! next to the code that they replace in an [`Image`], the `xen-syms` file;
//! a [`Review`] is all of this as one HTML page for a reviewer.
//!
//! *What it trusts*: nothing. A damaged file is an error, and what a table
//! says is only followed within the file.
//!
//! *What it guarantees*: it shows what the file says, and judges nothing: that
//! is `xsplice-host-image`'s part, whose verdict the page repeats. It does not
//! panic on any input.
#![forbid(unsafe_code)]

pub mod compare;
mod elf;
pub mod payload;
mod place;
pub mod record;
pub mod report;
pub mod table;
mod uses;

pub use compare::{Line, Listing, compare};
pub use payload::Payload;
pub use record::Record;
pub use report::{Opinion, Review, SourcePatch};
pub use xsplice_xen_image::Image;

/// Why a file cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no ELF file, or a damaged one.
    #[error("not a readable ELF file (is it truncated, or of another kind?)")]
    Malformed(#[from] object::read::Error),
    /// It is an ELF file of another kind.
    #[error("{0}")]
    WrongKind(String),
}
