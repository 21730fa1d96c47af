// SPDX-License-Identifier: MIT OR Apache-2.0
//! The generator: from a source patch to a live-patch payload.
//!
//! *What it is*: [`generate`] takes a built Xen source tree, source patches
//! and the `xen-syms` of the hypervisor to be patched, and makes a payload in
//! Xen's live-patch format. The way of a patch, one module a step: [`patch`]
//! is applied to files of the [`tree`], the objects that it reaches are
//! compiled from both, `xsplice-objdiff` compares them, [`proof`] ties the
//! originals to the [`image`], [`select`] collects what changed and all that
//! it needs, and [`payload`] writes it as ELF.
//!
//! *What it trusts*: the compiler and the recorded compile commands of the
//! tree, which it runs; nothing about the tree's relation to the hypervisor.
//!
//! *What it guarantees*: the user's tree is not touched; a payload is written
//! only if every function that it replaces was proved, byte by byte, to be the
//! one in the hypervisor; what cannot be patched is refused by name.
#![forbid(unsafe_code)]

pub mod account;
mod archive;
pub mod below;
mod cache;
pub mod choice;
mod climb;
mod code;
mod compile;
mod constants;
mod forgotten;
mod generate;
mod generated;
mod generated_hooks;
mod image;
mod layout;
mod locals;
pub mod makefile;
pub mod numbering;
pub mod patch;
mod patched_data;
pub mod payload;
mod per_cpu;
mod place;
mod preprocessed;
pub mod proof;
mod rebuild;
mod record;
mod renamed;
pub mod select;
mod shadow;
pub mod source;
pub mod tree;
pub mod unit;
mod unrecorded;
mod uses;
mod variant;
pub mod warning;
mod witness;

pub use code::Code;
pub use generate::{Options, PatchedFunction, Progress, Report, generate};
use xsplice_objdiff::ReadError;

/// One thing that keeps a payload from being built.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Which refusal it is.
    pub code: Code,
    /// The file or object it is about.
    pub place: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    pub(crate) fn new(code: Code, place: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code,
            place: place.into(),
            message: message.into(),
        }
    }

    /// The object of `source` cannot be compared.
    pub(crate) fn unreadable(source: &str, error: &ReadError) -> Self {
        let code = match error {
            ReadError::UnknownTable { .. } => Code::UnknownTable,
            ReadError::Malformed { .. }
            | ReadError::WrongKind { .. }
            | ReadError::BadRelocation { .. }
            | ReadError::Doubtful { .. } => Code::UnreadableObject,
        };
        let message = format!("the object cannot be compared: {error}");
        Self::new(code, source, message)
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Why no payload was built: every problem that was found.
#[derive(Debug, thiserror::Error)]
pub struct Refused(pub Vec<Problem>);

impl Refused {
    pub(crate) fn one(code: Code, place: impl Into<String>, message: impl Into<String>) -> Self {
        Self(vec![Problem::new(code, place, message)])
    }

    pub(crate) fn io(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::one(
            Code::UnreadableFile,
            xsplice_system::file::shown(path),
            error.to_string(),
        )
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// All values, or all problems, each once.
fn all<T>(results: Vec<Result<T, Problem>>) -> Result<Vec<T>, Refused> {
    let mut problems = Vec::new();
    let mut values = Vec::new();
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(problem) if problems.contains(&problem) => {}
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() {
        Ok(values)
    } else {
        Err(Refused(problems))
    }
}
