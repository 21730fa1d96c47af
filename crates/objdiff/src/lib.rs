// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compares two builds of one object file, symbol by symbol.
//!
//! *What it is*: [`object::Object`] reads a relocatable ELF file for x86-64, ARM64 or ARM32
//! into symbols, sections and references, independent of section layout;
//! [`compare::compare`] correlates the symbols of two such objects and reports which differ.
//!
//! *What it trusts*: that both files were compiled with `-ffunction-sections
//! -fdata-sections`, like every hypervisor with live patching. The files themselves
//! are not trusted: a damaged one is an error, never a panic.
//!
//! *What it guarantees*: a symbol is reported unchanged only if its bytes outside
//! relocated fields are equal and every relocated field has the same target: the same
//! symbol and offset, or equal contents.
#![forbid(unsafe_code)]

pub mod arch;
mod change;
pub mod compare;
pub mod correlate;
pub mod explain;
pub mod line;
mod name;
pub mod object;
pub mod placement;
mod read;
pub mod shared;
pub mod special;

pub use compare::{Change, Comparison, Kind, compare};
pub use name::SymbolName;
pub use object::{Object, ReadError, Reference, Target};
