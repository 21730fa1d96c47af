// SPDX-License-Identifier: MIT OR Apache-2.0

//! Why a payload was not loaded.

use super::text::same;
use super::{Problem, Problems, Severity};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use thiserror::Error;
use xsplice_abi::errno::Errno;
use xsplice_fallible::NoMemory;

/// Why a payload was not loaded.
///
/// ```
/// # use xsplice_test_host::load;
/// # let file = b"#!/bin/sh";
/// let refusal = load(file).unwrap_err();
/// assert_eq!(
///     refusal.to_string(),
///     "test was not loaded (EINVAL)\n  \
///      this is not an ELF file; pass the .livepatch file that the build made"
/// );
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub struct Refusal {
    /// The intended name of the payload; empty if there was no memory for it.
    pub payload: String,
    /// All problems, in the order of the checks.
    pub problems: Vec<Problem>,
    /// Number of further problems that were not recorded.
    pub more: usize,
    /// Whether the engine ran out of memory for its own lists.
    pub no_memory: bool,
}

impl From<NoMemory> for Refusal {
    fn from(_: NoMemory) -> Self {
        Self {
            payload: String::new(),
            problems: Vec::new(),
            more: 0,
            no_memory: true,
        }
    }
}

impl Refusal {
    #[inline(never)]
    pub(crate) fn new(payload: &str, problem: Problem) -> Self {
        let mut problems = Problems::default();
        problems.push(problem);
        Self {
            payload: same(payload),
            problems: problems.list,
            more: problems.more,
            no_memory: problems.no_memory,
        }
    }

    /// The result code of the first problem that prevents loading.
    #[must_use]
    pub fn errno(&self) -> Errno {
        if self.no_memory {
            return Errno::ENOMEM;
        }
        self.problems
            .iter()
            .find(|problem| problem.severity() == Severity::NotLoaded)
            .map_or(Errno::EINVAL, Problem::errno)
    }
}

impl Refusal {
    /// The refusal with its first problems, for a console, which keeps only few
    /// lines, and earlier ones matter too.
    #[must_use]
    pub fn brief(&self) -> Brief<'_> {
        Brief(self)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, most: usize, all_where: &str) -> fmt::Result {
        write!(
            f,
            "{} was not loaded ({})",
            self.payload.as_bytes().escape_ascii(),
            self.errno().name().unwrap_or("?")
        )?;
        let shown = self.problems.iter().take(most);
        shown
            .clone()
            .try_for_each(|problem| write!(f, "\n  {problem}"))?;
        let more = self.problems.len() - shown.len() + self.more;
        if more != 0 {
            write!(f, "\n  and {more} more{all_where}")?;
        }
        if self.no_memory {
            write!(f, "\n  {NoMemory}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, usize::MAX, "")
    }
}

/// A [`Refusal`] with its first problems only.
#[derive(Clone, Copy, Debug)]
pub struct Brief<'a>(&'a Refusal);

impl Brief<'_> {
    /// Number of problems to show.
    pub const PROBLEMS: usize = 10;
}

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .write(f, Self::PROBLEMS, "; `xsplice check` shows all")
    }
}
