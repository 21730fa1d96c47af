// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the programs of this repository need of the operating system.
//!
//! *What it is*: [`lines`] writes to standard output and remembers if that
//! failed; [`file`] writes a file that is seen whole or not at all, or what is
//! there in its place; [`interrupt`] has temporary directories and processes
//! that do not outlive this one.
//!
//! *What it trusts*: nothing else runs under the process group ids of its
//! children.
//!
//! *What it guarantees*: an error of writing is not lost; a signal that ends
//! the program leaves nothing behind.
#![deny(unsafe_code)]

pub mod file;
pub mod interrupt;
pub mod lines;
mod startup;
