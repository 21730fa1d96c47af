// SPDX-License-Identifier: MIT OR Apache-2.0
//! The contents of a live-patch payload, for people and machines.
//!
//! *What it is*: [`Payload::read`] turns a payload in Xen's format, from any
//! generator, into plain data; [`compare()`] aligns the code of its functions with the
//! code that they replace in an [`Image`], the `xen-syms` file; a [`Review`] is all
//! of this as one HTML page for reviewers.
//!
//! *What it trusts*: nothing. A damaged file is an error, and references in tables
//! are followed only within the file.
//!
//! *What it guarantees*: it shows the contents of the file without judging them: the
//! verdict on the page comes from `xsplice-host-image`. It does not panic on any
//! input.
#![forbid(unsafe_code)]

mod arch;
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
    /// Not an ELF file, or a damaged one.
    #[error("not a readable ELF file (is it truncated, or of another kind?)")]
    Malformed(#[from] object::read::Error),
    /// An ELF file of another kind.
    #[error("{0}")]
    WrongKind(String),
}
