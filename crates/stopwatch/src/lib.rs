// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measures the time that a QEMU guest takes between two addresses in its code.
//!
//! *What it is*: a plugin for QEMU's emulator (TCG) and, for programs that start QEMU
//! with it, the formats of its arguments ([`Request`]) and output ([`Line`]). The
//! guest is not modified, and only the instructions at those addresses are
//! instrumented. It can also report which pages of code run at all. QEMU loads
//! plugins as shared libraries; build this one with
//!
//! ```text
//! cargo rustc --package xsplice-stopwatch --crate-type cdylib
//! ```
//!
//! and without `crt-static`, which does not support them.
//!
//! *What it trusts*: that QEMU follows its plugin interface, version 1 (that of QEMU
//! 7.2).
//!
//! *What it guarantees*: between a begin and its end it only takes the time twice,
//! and counts if requested; its output is bounded, by [`MOST`] and by one line per
//! page. `unsafe` is only in `plugin`.
#![deny(unsafe_code)]

mod line;
// It refers to functions that only QEMU provides.
#[cfg(not(test))]
mod plugin;
mod request;
mod stopwatch;

pub use line::{Line, NoLine, page};
pub use request::{ArgumentError, Request, Stretch};
pub use stopwatch::{MOST, Stopwatch};
