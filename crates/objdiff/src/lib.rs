// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compares two builds of one object file, symbol by symbol.
//!
//! *What it is*: [`object::Object`] reads a relocatable x86-64 ELF file into
//! symbols, sections and references whose meaning does not depend on where
//! anything lies; [`compare::compare`] correlates the symbols of two such
//! objects and says which differ.
//!
//! *What it trusts*: that both files were made with `-ffunction-sections
//! -fdata-sections`, as every hypervisor with live patching is. The files
//! themselves are not trusted: a damaged one is an error, never a panic.
//!
//! *What it guarantees*: a symbol is reported unchanged only if its bytes
//! outside relocated fields are equal and every relocated field leads to the
//! same thing: the same symbol and offset, or equal contents.
#![forbid(unsafe_code)]

mod change;
pub mod compare;
pub mod correlate;
pub mod explain;
pub mod line;
pub mod names;
pub mod object;
pub mod placement;
mod read;
pub mod shared;
pub mod special;

pub use compare::{Change, Comparison, Kind, compare};
pub use object::{Object, ReadError, Reference, Target};
