// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `cargo xtask` and the benchmarks share: Debian's Xen and ours, this
//! repository's programs, and the cache that all of it is in.
#![forbid(unsafe_code)]

/// A line on standard output, here and in the programs that use this: what the
/// standard macro makes a panic, `main` makes an error, or nothing if the reader
/// went away.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($text:tt)*) => { $crate::lines::say!($($text)*) };
}

/// The same without the end of the line.
#[macro_export]
macro_rules! print {
    ($($text:tt)*) => { $crate::lines::print(format_args!($($text)*)) };
}

pub mod base;
pub mod cache;
pub mod command;
pub mod debian;
pub mod debian_build;
pub mod packages;
pub mod programs;
pub mod rust_core;
pub mod size;
pub mod xen;

pub use xsplice_system::lines;
