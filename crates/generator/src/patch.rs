// SPDX-License-Identifier: MIT OR Apache-2.0
//! Unified diffs.

mod apply;
mod edits;
mod parse;
mod path;

pub use apply::apply;
pub use edits::Edits;
pub use parse::parse;

/// A change to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePatch {
    /// Path before, without the first component; `None` for a new file.
    pub old: Option<String>,
    /// Path after, without the first component; `None` for a removed file.
    pub new: Option<String>,
    /// The name of the file as written.
    pub written: String,
    /// The changes, in order.
    pub hunks: Vec<Hunk>,
}

impl FilePatch {
    /// The path that names the file in messages.
    pub fn path(&self) -> &str {
        self.new.as_deref().or(self.old.as_deref()).unwrap_or("?")
    }

    /// Whether only the mode of the file changes.
    pub fn is_mode_only(&self) -> bool {
        self.hunks.is_empty() && self.old.is_some() && self.old == self.new
    }

    /// Whether the file is renamed.
    pub fn is_rename(&self) -> bool {
        self.old.is_some() && self.new.is_some() && self.old != self.new
    }
}

/// One `@@` part of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hunk {
    /// First line in the old file, counted from 1 (0 for an empty file).
    pub old_start: usize,
    /// The lines with their changes.
    pub lines: Vec<Line>,
}

/// A line of a hunk, with its line ending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// In both files.
    Context(String),
    /// Only in the old file.
    Removed(String),
    /// Only in the new file.
    Added(String),
}

impl Hunk {
    /// The lines of one side, selected by `is`.
    fn side(&self, is: impl Fn(&Line) -> bool) -> Vec<&str> {
        let lines = self.lines.iter().filter(|line| is(line));
        lines
            .map(|line| match line {
                Line::Context(text) | Line::Removed(text) | Line::Added(text) => text.as_str(),
            })
            .collect()
    }
}

/// A line of a patched file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatchedLine {
    /// The text with its line ending.
    pub text: String,
    /// Its number in the old file, if it was there.
    pub original: Option<usize>,
}

/// A patched file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Patched {
    /// Its lines.
    pub lines: Vec<PatchedLine>,
    /// Descriptions of hunks whose outer context lines differ from the file.
    pub loose: Vec<String>,
}
