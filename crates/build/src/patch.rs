// SPDX-License-Identifier: MIT OR Apache-2.0
//! Unified diffs: reading them, and applying them.

mod apply;
mod parse;
mod path;

pub use apply::apply;
pub use parse::parse;

/// A change to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePatch {
    /// Path before, without the first component; `None` for a new file.
    pub old: Option<String>,
    /// Path after, without the first component; `None` for a removed file.
    pub new: Option<String>,
    /// The name of the file as it is written.
    pub written: String,
    /// The changes, in order.
    pub hunks: Vec<Hunk>,
}

impl FilePatch {
    /// The path that names the file in messages.
    pub fn path(&self) -> &str {
        self.new.as_deref().or(self.old.as_deref()).unwrap_or("?")
    }

    /// Whether nothing but the mode of the file changes.
    pub fn is_mode_only(&self) -> bool {
        self.hunks.is_empty() && self.old.is_some() && self.old == self.new
    }

    /// Whether the file gets another name.
    pub fn is_rename(&self) -> bool {
        self.old.is_some() && self.new.is_some() && self.old != self.new
    }
}

/// One `@@` part of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hunk {
    /// First line in the old file, counted from 1 (0 for an empty file).
    pub old_start: usize,
    /// The lines with what happens to each.
    pub lines: Vec<Line>,
}

/// A line of a hunk, with its end of line.
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
    /// The lines of which `is` says that they belong to one side.
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
    /// The text with its end of line.
    pub text: String,
    /// Its number in the old file, if it was there.
    pub original: Option<usize>,
}

/// A patched file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Patched {
    /// Its lines.
    pub lines: Vec<PatchedLine>,
    /// Hunks of which the outer lines of context are not those of the file, in
    /// words.
    pub loose: Vec<String>,
}

/// The patched text with `#line` directives, so that no line of the old file
/// changes its number: code that only moved compiles to what it was.
pub fn with_line_numbers(lines: &[PatchedLine]) -> String {
    let mut text = String::new();
    let mut place = Place::default();
    let mut number = 1;
    for line in lines {
        if let Some(original) = line.original
            && original != number
            && place.allows_directive()
        {
            text.push_str(&format!("#line {original}\n"));
            number = original;
        }
        text.push_str(&line.text);
        place.pass(&line.text);
        number += 1;
    }
    text
}

/// Where in C source the end of a line is.
#[derive(Default)]
struct Place {
    comment: bool,
    continued: bool,
    depth: usize,
}

impl Place {
    /// Not within a comment, a continued line, or the arguments of a macro.
    fn allows_directive(&self) -> bool {
        !self.comment && !self.continued && self.depth == 0
    }

    fn pass(&mut self, line: &str) {
        let line = line.trim_end_matches(['\n', '\r']);
        let directive = !self.continued && line.trim_start().starts_with('#');
        let mut quote = None;
        let mut chars = line.chars().peekable();
        while let Some(c) = chars.next() {
            match (c, quote) {
                ('*', None) if self.comment => self.comment = chars.next_if_eq(&'/').is_none(),
                _ if self.comment => {}
                ('\\', Some(_)) => {
                    chars.next();
                }
                (c, Some(q)) if c == q => quote = None,
                (_, Some(_)) => {}
                ('/', None) if chars.peek() == Some(&'/') => break,
                ('/', None) if chars.peek() == Some(&'*') => {
                    chars.next();
                    self.comment = true;
                }
                ('"' | '\'', None) => quote = Some(c),
                ('(', None) if !directive => self.depth += 1,
                (')', None) if !directive => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        self.continued = line.ends_with('\\');
        // A brace at the margin closes a function: what looked open was
        // a parenthesis in two branches of an #if.
        if line.starts_with('}') {
            self.depth = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "one\ntwo\nthree\nfour\nfive\n";

    fn only(text: &str) -> FilePatch {
        parse("test.patch", text.as_bytes())
            .expect("a patch")
            .remove(0)
    }

    #[test]
    fn lines_keep_their_numbers() {
        let patch = only("--- a/f\n+++ b/f\n@@ -1,2 +1,3 @@\n one\n+new\n two\n");
        let lines = apply(OLD, &patch).expect("applies").lines;
        assert_eq!(
            with_line_numbers(&lines),
            "one\nnew\n#line 2\ntwo\nthree\nfour\nfive\n"
        );
    }

    #[test]
    fn no_directive_in_comments_continued_lines_and_arguments() {
        let old = "f(a,\n  b);\n/* c\n   d */\n#define X \\\n  1\nend\n";
        let patch = only("--- a/f\n+++ b/f\n@@ -1,2 +1,3 @@\n f(a,\n+  new,\n   b);\n");
        let lines = apply(old, &patch).expect("applies").lines;
        assert_eq!(
            with_line_numbers(&lines),
            "f(a,\n  new,\n  b);\n#line 3\n/* c\n   d */\n#define X \\\n  1\nend\n"
        );
        let patch =
            only("--- a/f\n+++ b/f\n@@ -3,3 +3,4 @@\n /* c\n+   new\n    d */\n #define X \\\n");
        let text = with_line_numbers(&apply(old, &patch).expect("applies").lines);
        assert!(text.contains("   d */\n#line 5\n#define X"), "{text}");
    }
}
