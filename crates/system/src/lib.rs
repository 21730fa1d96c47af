// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the programs of this repository need from the operating system.
//!
//! *What it is*: [`lines`] writes to standard output and remembers errors; [`mod@file`]
//! replaces files atomically, and writes to devices and pipes; [`interrupt`] has
//! temporary directories and processes that do not outlive this one; [`cache`] says
//! where derived data is kept.
//!
//! *What it trusts*: that nothing else runs under the process group ids of its
//! children.
//!
//! *What it guarantees*: no write error is lost; a signal that ends the program
//! leaves nothing behind.
#![deny(unsafe_code)]

pub mod cache;
pub mod file;
pub mod interrupt;
pub mod lines;
mod startup;
