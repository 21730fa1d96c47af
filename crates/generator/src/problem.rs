// SPDX-License-Identifier: MIT OR Apache-2.0
//! What keeps a payload from being built.

use crate::code::Code;
use xsplice_objdiff::ReadError;

/// A problem that prevents a payload from being built.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The kind of refusal.
    pub code: Code,
    /// The file or object it is about.
    pub place: String,
    /// The problem, and what to do.
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
            | ReadError::ForeignCode { .. }
            | ReadError::Unnamed { .. }
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

/// Why no payload was built: all problems found.
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

/// All values, or all distinct problems.
pub(crate) fn all<T>(results: Vec<Result<T, Problem>>) -> Result<Vec<T>, Refused> {
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
