// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lines for people and programs.
//!
//! A reader may go away, as `head` does: a closed pipe is no error, and no
//! panic. Every other error of writing is remembered, and [`finish`] gives it.

use crate::startup;
use std::fmt::Arguments;
use std::io::{ErrorKind, Result, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use xsplice_abi::text::escaped;

/// The first error of writing to standard output.
static ERROR: Mutex<Option<std::io::Error>> = Mutex::new(None);
/// Whether standard output is for something else than lines.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// How much is said beside errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Nothing: no results, no progress.
    Quiet,
    /// Results, and on a terminal progress.
    Normal,
    /// All of it, wherever it goes.
    Verbose,
}

/// The [`Detail`] of this program.
static DETAIL: Mutex<Detail> = Mutex::new(Detail::Normal);

/// Says as much as `detail` from now on.
pub fn set_detail(detail: Detail) {
    *DETAIL.lock().unwrap_or_else(PoisonError::into_inner) = detail;
}

/// How much is to be said.
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

/// Writes `text` to standard error. Words of a file, a compiler or another program
/// may be in it: what could deceive the reader or control a terminal is escaped.
pub fn warn(text: Arguments) {
    let text = text.to_string() + "\n";
    let space = ['\n', '\t'];
    let pieces = text.split_inclusive(space).map(|piece| {
        let words = piece.trim_end_matches(space);
        format!("{}{}", escaped(words), &piece[words.len()..])
    });
    let text: String = pieces.collect();
    // There is no other place to say that this one failed.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Writes `text` to standard output, or to standard error if that was taken; with
/// [`Detail::Quiet`], nowhere.
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

/// Writes `data` to standard output as it is; all lines go to standard error
/// from now on.
pub fn take(data: &[u8]) {
    TAKEN.store(true, Ordering::Relaxed);
    keep(open().and_then(|()| std::io::stdout().write_all(data)));
}

/// Whether standard output was there when the program started.
fn open() -> Result<()> {
    match startup::standard_output_was_closed() {
        true => Err(std::io::Error::other("it is closed")),
        false => Ok(()),
    }
}

/// Writes at once what [`print`] may still hold back.
pub fn flush() {
    keep(std::io::stdout().flush());
}

/// Writes what is still to be written to standard output.
///
/// # Errors
/// The first error of writing there, but for a pipe that its reader closed.
pub fn finish() -> Result<()> {
    flush();
    let error = ERROR.lock().unwrap_or_else(PoisonError::into_inner).take();
    error.map_or(Ok(()), Err)
}

/// Remembers the error of `written`, which wrote to standard output by itself.
pub fn keep(written: Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        let mut first = ERROR.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
    }
}
