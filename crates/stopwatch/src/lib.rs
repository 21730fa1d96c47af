// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long a guest of QEMU takes from one place in its code to another.
//!
//! *What it is*: a plugin for QEMU's emulator (TCG), and for those that start
//! QEMU with it the form of its arguments ([`Request`]) and of what it writes
//! ([`Line`]). The guest is not changed, and only the instructions at the places
//! are instrumented. It can also say which pages of code are run at all. QEMU
//! loads shared libraries; make this one with
//!
//! ```text
//! cargo rustc --package xsplice-stopwatch --crate-type cdylib
//! ```
//!
//! and without `crt-static`, which has no shared libraries.
//!
//! *What it trusts*: QEMU to keep to its plugin interface, version 1 (that of
//! QEMU 7.2).
//!
//! *What it guarantees*: between a begin and its end it does nothing but take
//! the time twice, and count where it is asked to; what it writes is bounded: by
//! [`MOST`], and a page has one line. `unsafe` is only in `plugin`.
#![deny(unsafe_code)]

mod line;
// It refers to functions that only QEMU has.
#[cfg(not(test))]
mod plugin;
mod request;
mod stopwatch;

pub use line::{Line, NoLine, page};
pub use request::{ArgumentError, Request, Stretch};
pub use stopwatch::{MOST, Stopwatch};
