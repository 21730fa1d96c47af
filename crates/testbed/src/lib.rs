// SPDX-License-Identifier: MIT OR Apache-2.0
//! What tests, demo and benchmarks run on: Debian's Xen and Xen with the engine,
//! built and cached, and this repository's programs.
#![forbid(unsafe_code)]

/// Prints a line to standard output. The standard macro panics if the reader has
/// closed the pipe; this one does not, and leaves other errors to [`end`].
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($text:tt)*) => { $crate::lines::say!($($text)*) };
}

/// Prints text to standard output, as [`println!`] does a line.
#[macro_export]
macro_rules! print {
    ($($text:tt)*) => { $crate::lines::print(format_args!($($text)*)) };
}

pub mod arm;
pub mod arm32;
pub mod arm64;
pub mod base;
pub mod cache;
pub mod command;
pub mod compiler;
pub mod debian;
pub mod debian_build;
pub mod dom0;
pub mod hypervisor;
pub mod keys;
pub mod packages;
pub mod programs;
pub mod rust_core;
pub mod shipped;
pub mod size;
pub mod upstream;
pub mod xen;
pub mod xl;

use anyhow::Context as _;
use std::process::ExitCode;
pub use xsplice_abi::machine::Machine;
pub use xsplice_system::lines;

/// Ends a program: prints the error of `result`, or of writing the output.
#[must_use]
pub fn end(result: anyhow::Result<()>) -> ExitCode {
    let printed = lines::finish().context("cannot write to standard output");
    match result.and(printed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            lines::complain!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
