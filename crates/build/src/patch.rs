// SPDX-License-Identifier: MIT OR Apache-2.0
//! Unified diffs: reading them, and applying them.

use crate::{Problem, Refused};

/// A change to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePatch {
    /// Path before, without the first component; `None` for a new file.
    pub old: Option<String>,
    /// Path after, without the first component; `None` for a removed file.
    pub new: Option<String>,
    /// The changes, in order.
    pub hunks: Vec<Hunk>,
}

impl FilePatch {
    /// The path that names the file in messages.
    pub fn path(&self) -> &str {
        self.new.as_deref().or(self.old.as_deref()).unwrap_or("?")
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
    fn old_lines(&self) -> Vec<&str> {
        let old = |line| match line {
            &Line::Context(ref text) | &Line::Removed(ref text) => Some(text.as_str()),
            Line::Added(_) => None,
        };
        self.lines.iter().filter_map(old).collect()
    }
}

/// Reads the unified diff `text` of the file `name`, `git format-patch` or
/// `git diff` output included; text outside of the diffs is passed over.
///
/// # Errors
/// If a hunk is damaged, or if there is none at all.
pub fn parse(name: &str, text: &str) -> Result<Vec<FilePatch>, Refused> {
    let mut files: Vec<FilePatch> = Vec::new();
    let mut lines = text.split_inclusive('\n').enumerate().peekable();
    let mut old_path = None;
    let mut renamed = None;
    while let Some((number, line)) = lines.next() {
        if let Some(path) = line.strip_prefix("--- ") {
            let next_is_new = lines
                .peek()
                .is_some_and(|(_, next)| next.starts_with("+++ "));
            if next_is_new {
                old_path = Some(file_name(path));
            }
        } else if let (Some(path), Some(old)) = (line.strip_prefix("+++ "), old_path.take()) {
            let new = file_name(path);
            // A rename that changes lines too is announced twice.
            let announced = files
                .last()
                .is_some_and(|f| f.hunks.is_empty() && f.old == old && f.new == new);
            if !announced {
                files.push(FilePatch {
                    old,
                    new,
                    hunks: Vec::new(),
                });
            }
        } else if let Some(path) = line.strip_prefix("rename from ") {
            renamed = Some(path.trim_end().to_owned());
        } else if let (Some(path), Some(old)) = (line.strip_prefix("rename to "), renamed.take()) {
            files.push(FilePatch {
                old: Some(old),
                new: Some(path.trim_end().to_owned()),
                hunks: Vec::new(),
            });
        } else if line.starts_with("copy from ") {
            return Err(Refused::one(
                format!("{name}:{}", number + 1),
                "the patch copies a file; write the copy as a new file (`git diff --no-renames`)",
            ));
        } else if line.starts_with("Binary files ") || line.starts_with("GIT binary patch") {
            return Err(Refused::one(
                format!("{name}:{}", number + 1),
                "the patch changes a binary file, which no payload can carry",
            ));
        } else if let Some(header) = line.strip_prefix("@@ -") {
            let damaged = |what: &str| {
                Refused::one(
                    format!("{name}:{}", number + 1),
                    format!("damaged patch: {what}"),
                )
            };
            let file = files
                .last_mut()
                .ok_or_else(|| damaged("a hunk without a file name"))?;
            let (old_start, mut old_left, mut new_left) =
                parse_header(header).ok_or_else(|| damaged("cannot read the @@ line"))?;
            let mut hunk = Hunk {
                old_start,
                lines: Vec::new(),
            };
            while old_left > 0 || new_left > 0 {
                let (_, line) = lines
                    .next()
                    .ok_or_else(|| damaged("the hunk is cut short"))?;
                let rest = || line.get(1..).unwrap_or_default().to_owned();
                let counts = match line.as_bytes().first() {
                    Some(b'-') => (1, 0, Line::Removed(rest())),
                    Some(b'+') => (0, 1, Line::Added(rest())),
                    Some(b' ') => (1, 1, Line::Context(rest())),
                    // An empty context line whose blank some mailer removed.
                    Some(b'\n' | b'\r') => (1, 1, Line::Context(line.to_owned())),
                    Some(b'\\') => {
                        strip_newline(&mut hunk);
                        continue;
                    }
                    _ => return Err(damaged("a hunk line starts with none of ' ', '+', '-'")),
                };
                let short = |_| damaged("the hunk has more lines than its @@ line says");
                old_left = usize::checked_sub(old_left, counts.0)
                    .ok_or(())
                    .map_err(short)?;
                new_left = usize::checked_sub(new_left, counts.1)
                    .ok_or(())
                    .map_err(short)?;
                hunk.lines.push(counts.2);
            }
            if lines.peek().is_some_and(|(_, next)| next.starts_with('\\')) {
                strip_newline(&mut hunk);
            }
            file.hunks.push(hunk);
        }
    }
    if files.iter().all(|f| f.hunks.is_empty() && !f.is_rename()) {
        return Err(Refused::one(name, "there is no unified diff in this file"));
    }
    Ok(files)
}

/// `\ No newline at end of file` speaks of the line before it.
fn strip_newline(hunk: &mut Hunk) {
    if let Some(Line::Context(text) | Line::Removed(text) | Line::Added(text)) =
        hunk.lines.last_mut()
        && text.ends_with('\n')
    {
        text.pop();
    }
}

fn file_name(header: &str) -> Option<String> {
    let path = header
        .split(['\t', '\n', '\r'])
        .next()
        .unwrap_or_default()
        .trim_end();
    if path == "/dev/null" {
        return None;
    }
    Some(
        path.split_once('/')
            .map_or(path, |(_, rest)| rest)
            .to_owned(),
    )
}

fn parse_header(header: &str) -> Option<(usize, usize, usize)> {
    let (old, rest) = header.split_once(" +")?;
    let (new, _) = rest.split_once(" @@")?;
    let range = |text: &str| -> Option<(usize, usize)> {
        match text.split_once(',') {
            Some((start, count)) => Some((start.parse().ok()?, count.parse().ok()?)),
            None => Some((text.parse().ok()?, 1)),
        }
    };
    let (old, new) = (range(old)?, range(new)?);
    Some((old.0, old.1, new.1))
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

/// How many lines of context at each end of a hunk may differ from the file.
const FUZZ: usize = 2;

/// Applies `patch` to `text`. Every hunk must match, at the line it names or as
/// near to it as possible. Where the outermost lines of its context differ, as
/// few of them as possible are passed over, if there is one place only where
/// the rest matches.
///
/// # Errors
/// Each hunk that does not match, with the first line that differs.
pub fn apply(text: &str, patch: &FilePatch) -> Result<Patched, Refused> {
    let old: Vec<&str> = text.split_inclusive('\n').collect();
    let mut result = Vec::new();
    let mut loose = Vec::new();
    let mut problems = Vec::new();
    let mut done = 0;
    let mut shift: isize = 0;
    let keep = |result: &mut Vec<PatchedLine>, from: usize, to: usize| {
        for (number, line) in old.iter().enumerate().take(to).skip(from) {
            result.push(PatchedLine {
                text: (*line).to_owned(),
                original: Some(number + 1),
            });
        }
    };
    for (index, hunk) in patch.hunks.iter().enumerate() {
        let wanted = hunk.old_lines();
        let named = hunk
            .old_start
            .saturating_sub(usize::from(!wanted.is_empty()));
        let near = named.saturating_add_signed(shift);
        let at = find(&old, &wanted, near, done).or_else(|| {
            let (at, fuzz) = (1..=FUZZ)
                .find_map(|fuzz| Some((find_loosely(&old, hunk, &wanted, fuzz, done)?, fuzz)))?;
            loose.push(format!(
                "hunk {} (line {}) applies at line {} only without the outermost {fuzz} lines of \
                 its context, which differ in the tree: see that this is right",
                index + 1,
                hunk.old_start,
                at + 1
            ));
            Some(at)
        });
        let Some(at) = at else {
            problems.push(mismatch(patch.path(), index, hunk, &old, &wanted, near));
            continue;
        };
        shift = at.cast_signed() - named.cast_signed();
        keep(&mut result, done, at);
        let mut number = at;
        for line in &hunk.lines {
            match line {
                Line::Context(_) => {
                    keep(&mut result, number, number + 1);
                    number += 1;
                }
                Line::Removed(_) => number += 1,
                Line::Added(text) => {
                    result.push(PatchedLine {
                        text: text.clone(),
                        original: None,
                    });
                }
            }
        }
        done = number;
    }
    if !problems.is_empty() {
        return Err(Refused(problems));
    }
    keep(&mut result, done, old.len());
    Ok(Patched {
        lines: result,
        loose,
    })
}

/// The only place where the old lines of `hunk`, which are `wanted`, match
/// without `fuzz` lines of context at each end.
fn find_loosely(
    old: &[&str],
    hunk: &Hunk,
    wanted: &[&str],
    fuzz: usize,
    from: usize,
) -> Option<usize> {
    let context = |line: &&Line| matches!(line, Line::Context(_));
    let before = hunk.lines.iter().take_while(context).count().min(fuzz);
    let after = hunk
        .lines
        .iter()
        .rev()
        .take_while(context)
        .count()
        .min(fuzz);
    let inner = wanted.get(before..wanted.len().checked_sub(after)?)?;
    if inner.is_empty() {
        return None;
    }
    let last = old.len().checked_sub(wanted.len())?;
    let mut places = (from..=last).filter(|at| old[at + before..].starts_with(inner));
    places.next().filter(|_| places.next().is_none())
}

fn find(old: &[&str], wanted: &[&str], near: usize, from: usize) -> Option<usize> {
    let last = old.len().checked_sub(wanted.len())?;
    let matches = |at: usize| at >= from && at <= last && old[at..at + wanted.len()] == *wanted;
    (0..=old.len()).find_map(|distance| {
        let before = near.checked_sub(distance).filter(|&at| matches(at));
        before.or_else(|| Some(near + distance).filter(|&at| matches(at)))
    })
}

fn mismatch(
    path: &str,
    index: usize,
    hunk: &Hunk,
    old: &[&str],
    wanted: &[&str],
    near: usize,
) -> Problem {
    let differs = wanted
        .iter()
        .enumerate()
        .find(|(line, text)| old.get(near + line) != Some(text));
    let detail = differs.map_or(String::new(), |(line, text)| {
        let found = old
            .get(near + line)
            .map_or("the end of the file", |l| l.trim_end());
        format!(
            "; line {}: the patch has `{}`, the tree `{found}`",
            near + line + 1,
            text.trim_end()
        )
    });
    Problem::new(
        path,
        format!(
            "hunk {} (line {}) does not apply{detail}; is the patch for another version of the source?",
            index + 1,
            hunk.old_start
        ),
    )
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
        parse("test.patch", text).expect("a patch").remove(0)
    }

    #[test]
    fn a_hunk_applies_where_its_lines_are() {
        // The @@ line is off by two: the lines decide.
        let patch = only("--- a/x/f\n+++ b/x/f\n@@ -5,2 +5,2 @@\n three\n-four\n+4\n");
        assert_eq!(patch.path(), "x/f");
        let text: String = apply(OLD, &patch)
            .expect("applies")
            .lines
            .into_iter()
            .map(|l| l.text)
            .collect();
        assert_eq!(text, "one\ntwo\nthree\n4\nfive\n");
    }

    #[test]
    fn outer_context_may_differ_where_only_one_place_matches() {
        let hunk = " zero\n two\n-three\n+3\n four\n";
        let patch = only(&format!("--- a/f\n+++ b/f\n@@ -1,4 +1,4 @@\n{hunk}"));
        let patched = apply(OLD, &patch).expect("applies");
        let text: String = patched.lines.iter().map(|l| l.text.as_str()).collect();
        assert_eq!(text, "one\ntwo\n3\nfour\nfive\n");
        assert!(
            patched.loose[0]
                .contains("hunk 1 (line 1) applies at line 1 only without the outermost 1")
        );
        let twice = [OLD, OLD].concat();
        let Refused(problems) = apply(&twice, &patch).expect_err("two places match");
        assert!(
            problems[0].message.contains("the patch has `zero`"),
            "{}",
            problems[0]
        );
        // What is removed is never passed over.
        let patch = only("--- a/f\n+++ b/f\n@@ -1,3 +1,2 @@\n-zero\n two\n three\n");
        apply(OLD, &patch).expect_err("there is no such line to remove");
    }

    #[test]
    fn every_hunk_that_does_not_apply_is_named() {
        let patch = only(
            "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-eins\n+1\n@@ -2 +2 @@\n-two\n+2\n@@ -5 +5 @@\n-fuenf\n+5\n",
        );
        let Refused(problems) = apply(OLD, &patch).expect_err("two hunks do not apply");
        assert_eq!(problems.len(), 2);
        assert!(
            problems[0].message.contains("hunk 1 (line 1)"),
            "{}",
            problems[0]
        );
        assert!(
            problems[1]
                .message
                .contains("the patch has `fuenf`, the tree `five`"),
            "{}",
            problems[1]
        );
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

    #[test]
    fn renames_are_read_with_and_without_hunks() {
        let files = parse(
            "test.patch",
            "diff --git a/x/a b/x/b\nsimilarity index 100%\nrename from x/a\nrename to x/b\n\
             diff --git a/x/c b/x/d\nrename from x/c\nrename to x/d\n--- a/x/c\n+++ b/x/d\n\
             @@ -1 +1 @@\n-one\n+1\n",
        )
        .expect("a patch");
        let shape: Vec<_> = files
            .iter()
            .map(|f| (f.old.as_deref(), f.new.as_deref(), f.hunks.len()))
            .collect();
        assert_eq!(
            shape,
            [(Some("x/a"), Some("x/b"), 0), (Some("x/c"), Some("x/d"), 1)]
        );
    }

    #[test]
    fn damaged_patches_are_refused() {
        let whole = "--- a/f\n+++ b/f\n@@ -1,2 +1,3 @@\n one\n+new\n two\n";
        for length in 0..whole.len() - 1 {
            // Never a panic; cut within the hunk's last line it may still read.
            let _ = parse("cut", &whole[..length]);
        }
        assert!(parse("p", "").is_err());
        assert!(parse("p", "--- a/f\n+++ b/f\n@@ nonsense @@\n").is_err());
        assert!(parse("p", "--- a/f\n+++ b/f\n@@ -1,9 +1,9 @@\n one\n").is_err());
        assert!(parse("p", "Binary files a/x and b/x differ\n").is_err());
    }

    #[test]
    fn the_end_of_a_file_without_newline() {
        let patch = only(
            "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-x\n\\ No newline at end of file\n+y\n\\ No newline at end of file\n",
        );
        let text: String = apply("x", &patch)
            .expect("applies")
            .lines
            .into_iter()
            .map(|l| l.text)
            .collect();
        assert_eq!(text, "y");
    }
}
