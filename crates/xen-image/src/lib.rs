// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one reader of linked hypervisors: `xen-syms` files.
//!
//! An [`Image`] has only what the file states: sections, symbols with the source
//! files of local ones, the build-id, the compiler, and what is freed after boot.
//! What this means for a payload is up to its users.
//!
//! The file is not trusted: anything wrong with it is an [`enum@Error`].
#![forbid(unsafe_code)]

mod image;
mod listed;
mod section;
mod symbol;

pub use image::{Error, Image};
pub use section::Section;
pub use symbol::{Binding, Kind, Symbol};

/// The first string of a `.comment` section: the compiler's identification.
///
/// ```
/// let comment = b"\0GCC: (Debian 12.2.0-14) 12.2.0\0";
/// assert_eq!(xsplice_xen_image::compiler(comment), "GCC: (Debian 12.2.0-14) 12.2.0");
/// ```
#[must_use]
pub fn compiler(comment: &[u8]) -> String {
    let mut texts = comment.split(|&byte| byte == 0);
    let first = texts.find(|text| !text.is_empty()).unwrap_or_default();
    String::from_utf8_lossy(first).into_owned()
}
