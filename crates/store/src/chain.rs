// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the lines of the history are those that were written: each has the hash of the
//! one before.

use crate::Sha256;
use crate::history::Line;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::HashMap;

/// A place where the chain does not prove that the lines are those that were written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Broken {
    /// The name of the file: `history.jsonl`, or `history.jsonl.1` if it was rotated.
    pub file: String,
    /// The number of the line in it, the first is 1; 0 if it is the file as a whole.
    pub line: usize,
    /// What kind of place it is.
    pub kind: Break,
    /// What is wrong.
    pub reason: String,
}

/// What can be wrong with the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Break {
    /// Lines were changed, removed, added or reordered.
    Changed,
    /// The line is incomplete, because the host went down while it was written: the next line
    /// continues the chain from it.
    Torn,
    /// The lines predate the hashes: nothing shows whether they were changed.
    WithoutHash,
    /// What was before the oldest rotated file is missing, or is in a file that is not read.
    OlderMissing,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.reason),
            line => write!(f, "{}, line {line}: {}", self.file, self.reason),
        }
    }
}

/// A line as it is in its file.
pub(crate) struct Written<'a> {
    pub(crate) file: &'a str,
    pub(crate) number: usize,
    pub(crate) text: &'a [u8],
    pub(crate) hash: Sha256,
}

impl Written<'_> {
    pub(crate) fn broken(&self, kind: Break, reason: String) -> Broken {
        Broken {
            file: self.file.to_owned(),
            line: self.number,
            kind,
            reason,
        }
    }
}

impl std::fmt::Display for Written<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {} of {}", self.number, self.file)
    }
}

/// All lines, in which one is looked for that does not follow the one before.
pub(crate) struct Chain<'a> {
    written: &'a [Written<'a>],
    /// By their hashes.
    places: HashMap<&'a str, &'a Written<'a>>,
    rotated: bool,
}

impl<'a> Chain<'a> {
    /// Of the lines that are `written`, in files of which the oldest may be gone if some were
    /// `rotated`.
    pub(crate) fn new(written: &'a [Written<'a>], rotated: bool) -> Self {
        let places = written.iter().map(|line| (line.hash.as_str(), line));
        Self {
            written,
            places: places.collect(),
            rotated,
        }
    }

    /// What is wrong with the line at `index`, which has `previous` as the hash of the line
    /// before it.
    pub(crate) fn broken(&self, index: usize, previous: &Sha256) -> Option<Broken> {
        let at = &self.written[index];
        let Some(before) = index.checked_sub(1).map(|before| &self.written[before]) else {
            return self.first(at, previous);
        };
        if before.hash == *previous {
            return None;
        }
        let reason = match self.places.get(previous.as_str()) {
            Some(origin) => {
                format!("it has the hash of {origin}: lines were added or reordered")
            }
            None if *previous == Sha256::zero() => {
                "it was written as the first line: the lines before it were added".to_owned()
            }
            None => format!(
                "it does not have the hash of {before}: that was changed, or lines between the two \
                 were removed"
            ),
        };
        Some(at.broken(Break::Changed, reason))
    }

    /// What is wrong with the oldest line.
    fn first(&self, at: &Written, previous: &Sha256) -> Option<Broken> {
        match self.rotated {
            _ if *previous == Sha256::zero() => None,
            true => Some(at.broken(
                Break::OlderMissing,
                "older lines are missing: their file was rotated away or removed".to_owned(),
            )),
            false => Some(at.broken(
                Break::Changed,
                "it was not written as the first line: lines before it were removed".to_owned(),
            )),
        }
    }

    /// What is wrong with the line at `index`, which has no hash, while others before it
    /// have, or not. Of several, the first is named.
    pub(crate) fn without_hash(&self, index: usize, hashed: bool) -> Option<Broken> {
        let at = &self.written[index];
        match (hashed, index) {
            (true, _) => Some(at.broken(
                Break::Changed,
                "it has no hash, but lines before it have one: it was changed or added".to_owned(),
            )),
            (false, 0) => Some(
                at.broken(
                    Break::WithoutHash,
                    "lines from here on have no hash: nothing shows whether they were changed"
                        .to_owned(),
                ),
            ),
            (false, _) => None,
        }
    }
}

/// Whether a line that is no record is the beginning of one. Some file systems fill up what
/// was not written with zeros.
pub(crate) fn is_torn(text: &[u8]) -> bool {
    let zeros = text.iter().rev().take_while(|byte| **byte == 0).count();
    let text = &text[..text.len() - zeros];
    text.is_empty() || serde_json::from_slice::<Line>(text).is_err_and(|error| error.is_eof())
}
