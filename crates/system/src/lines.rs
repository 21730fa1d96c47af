// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lines for people and programs.
//!
//! A reader may close the pipe, as `head` does: that is neither an error nor a panic.
//! Every other write error is remembered, and [`finish`] returns it.

use crate::startup;
use std::fmt::Arguments;
use std::io::{ErrorKind, Result, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use xsplice_abi::text::escaped;

/// The first error in writing to standard output.
static ERROR: Mutex<Option<std::io::Error>> = Mutex::new(None);
/// Whether standard output is used for data instead of lines.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// How much to print besides errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Nothing: no results, no progress.
    Quiet,
    /// Results, and progress on a terminal.
    Normal,
    /// Results and progress, even without a terminal.
    Verbose,
}

/// The [`Detail`] of this program.
static DETAIL: Mutex<Detail> = Mutex::new(Detail::Normal);

/// Sets the level of detail.
pub fn set_detail(detail: Detail) {
    *DETAIL.lock().unwrap_or_else(PoisonError::into_inner) = detail;
}

/// The level of detail.
pub fn detail() -> Detail {
    *DETAIL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints a line to standard output.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::lines::print(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints lines to standard error.
#[macro_export]
macro_rules! complain {
    ($($text:tt)*) => { $crate::lines::warn(format_args!($($text)*)) };
}

pub use {complain, say};

/// Writes `text` to standard error. It may quote a file, a compiler or another
/// program, so characters that could deceive the reader or control a terminal are
/// escaped.
pub fn warn(text: Arguments) {
    let text = text.to_string() + "\n";
    let space = ['\n', '\t'];
    let pieces = text.split_inclusive(space).map(|piece| {
        let words = piece.trim_end_matches(space);
        format!("{}{}", escaped(words), &piece[words.len()..])
    });
    let text: String = pieces.collect();
    // There is nowhere else to report this failure.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Writes `text` to standard output, or to standard error if standard output was
/// taken; with [`Detail::Quiet`], nowhere.
pub fn print(text: Arguments) {
    if detail() == Detail::Quiet {
        return;
    }
    if TAKEN.load(Ordering::Relaxed) {
        let _ = std::io::stderr().write_fmt(text);
    } else {
        keep(open().and_then(|()| std::io::stdout().write_fmt(text)));
    }
}

/// Writes raw `data` to standard output; all lines go to standard error from now on.
pub fn take(data: &[u8]) {
    TAKEN.store(true, Ordering::Relaxed);
    keep(open().and_then(|()| std::io::stdout().write_all(data)));
}

/// Fails if standard output was closed when the program started.
fn open() -> Result<()> {
    match startup::standard_output_was_closed() {
        true => Err(std::io::Error::other("it is closed")),
        false => Ok(()),
    }
}

/// Flushes the output of [`print()`].
pub fn flush() {
    keep(std::io::stdout().flush());
}

/// Flushes standard output.
///
/// # Errors
/// The first error in writing to it, except for a closed pipe.
pub fn finish() -> Result<()> {
    flush();
    let error = ERROR.lock().unwrap_or_else(PoisonError::into_inner).take();
    error.map_or(Ok(()), Err)
}

/// Remembers the error of `written`, a direct write to standard output.
pub fn keep(written: Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        let mut first = ERROR.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
    }
}
