// SPDX-License-Identifier: MIT OR Apache-2.0
//! Applies the hunks of a unified diff to a file.
//!
//! A hunk applies where all its old lines are: at the line that it names, shifted
//! like the hunk before it, or else at the only other match. No place is guessed.

use super::{FilePatch, Hunk, Line, Patched, PatchedLine};
use crate::code::Code;
use crate::problem::{Problem, Refused};

/// Number of context lines at each end of a hunk that may differ from the file.
const FUZZ: usize = 2;

/// Applies `patch` to `text`. If the outermost context lines of a hunk differ, as few
/// as possible are ignored, provided that the rest matches in exactly one place.
///
/// # Errors
/// Each hunk that does not apply, with the reason.
pub fn apply(text: &str, patch: &FilePatch) -> Result<Patched, Refused> {
    let old: Vec<&str> = text.split_inclusive('\n').collect();
    let mut patched = Patched::default();
    let mut failures = Vec::new();
    let mut done = 0;
    let mut shift = 0;
    for (index, hunk) in patch.hunks.iter().enumerate() {
        let place = Place::new(&old, hunk, done, shift);
        let at = match place.find() {
            Ok(at) => at,
            Err(Failure::Loose { at, fuzz }) => {
                patched.loose.push(format!(
                    "hunk {} (line {}) applies at line {} only without the outermost {fuzz} lines \
                     of its context, which differ in the tree: check that this is right",
                    index + 1,
                    hunk.old_start,
                    at + 1
                ));
                at
            }
            Err(failure) => {
                failures.push((index, failure));
                continue;
            }
        };
        shift = at.cast_signed() - place.named.cast_signed();
        keep(&mut patched.lines, &old, done, at);
        done = at;
        for line in &hunk.lines {
            match line {
                Line::Context(_) => {
                    keep(&mut patched.lines, &old, done, done + 1);
                    done += 1;
                }
                Line::Removed(_) => done += 1,
                Line::Added(text) => patched.lines.push(PatchedLine {
                    text: text.clone(),
                    original: None,
                }),
            }
        }
    }
    if failures.is_empty() {
        keep(&mut patched.lines, &old, done, old.len());
        return Ok(patched);
    }
    Err(Refused(problems(patch, &failures)))
}

fn keep(result: &mut Vec<PatchedLine>, old: &[&str], from: usize, to: usize) {
    for (number, line) in old.iter().enumerate().take(to).skip(from) {
        result.push(PatchedLine {
            text: (*line).to_owned(),
            original: Some(number + 1),
        });
    }
}

/// Why a hunk does not apply.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// It does, at `at`, without the outermost `fuzz` lines of its context.
    Loose { at: usize, fuzz: usize },
    /// The file already has the new lines.
    Applied,
    /// There are several matches, including these two.
    Ambiguous(usize, usize),
    /// Only the line endings differ.
    LineEnds { patch_has_crlf: bool },
    /// There is no context around the changed lines.
    NoContext,
    /// The lines match, but not at the start or end of the file, or they precede the
    /// end of the last hunk.
    Edge(usize),
    /// The first line that differs at the place that the hunk names.
    Differs {
        line: usize,
        wanted: String,
        found: Option<String>,
    },
}

/// A hunk and the file to search.
struct Place<'a> {
    old: &'a [&'a str],
    hunk: &'a Hunk,
    wanted: Vec<&'a str>,
    /// Its line according to the patch.
    named: usize,
    near: usize,
    /// The hunks before it end here.
    from: usize,
}

impl<'a> Place<'a> {
    fn new(old: &'a [&'a str], hunk: &'a Hunk, from: usize, shift: isize) -> Self {
        let wanted = hunk.side(|line| !matches!(line, Line::Added(_)));
        let named = hunk
            .old_start
            .saturating_sub(usize::from(!wanted.is_empty()))
            .min(old.len());
        Self {
            old,
            hunk,
            wanted,
            named,
            near: named.saturating_add_signed(shift),
            from,
        }
    }

    fn find(&self) -> Result<usize, Failure> {
        let (before, after) = self.context();
        if before == 0 && after == 0 && !self.is_whole_file() {
            return Err(Failure::NoContext);
        }
        if self.fits(self.near, &self.wanted) {
            return Ok(self.near);
        }
        let mut places = self.places(&self.wanted);
        match (places.next(), places.next()) {
            (Some(at), None) => return Ok(at),
            (Some(one), Some(other)) => return Err(Failure::Ambiguous(one, other)),
            (None, _) => {}
        }
        let new = self.hunk.side(|line| !matches!(line, Line::Removed(_)));
        if self.places(&new).next().is_some() {
            return Err(Failure::Applied);
        }
        let loose = |fuzz| Some((self.find_loosely(fuzz)?, fuzz));
        Err(match (1..=FUZZ).find_map(loose) {
            Some((at, fuzz)) => Failure::Loose { at, fuzz },
            None => self.difference(),
        })
    }

    /// Number of context lines at the start and end of the hunk.
    fn context(&self) -> (usize, usize) {
        let context = |line: &&Line| matches!(line, Line::Context(_));
        let lines = &self.hunk.lines;
        (
            lines.iter().take_while(context).count(),
            lines.iter().rev().take_while(context).count(),
        )
    }

    fn is_whole_file(&self) -> bool {
        self.wanted == self.old
    }

    /// Whether `lines` are at `at`. A hunk without context on one side was made at
    /// the start or end of the file.
    fn fits(&self, at: usize, lines: &[&str]) -> bool {
        let end = at.saturating_add(lines.len());
        at >= self.from && self.old.get(at..end) == Some(lines) && self.is_at_its_edge(at, end)
    }

    fn is_at_its_edge(&self, at: usize, end: usize) -> bool {
        let (before, after) = self.context();
        (before > 0 || at == 0 || self.hunk.old_start > 1) && (after > 0 || end == self.old.len())
    }

    fn places<'b>(&'b self, lines: &'b [&'b str]) -> impl Iterator<Item = usize> + 'b {
        (self.from..=self.old.len()).filter(|&at| self.fits(at, lines))
    }

    /// The only place where the hunk fits without `fuzz` lines of context at
    /// each end.
    fn find_loosely(&self, fuzz: usize) -> Option<usize> {
        let (before, after) = self.context();
        let (before, after) = (before.min(fuzz), after.min(fuzz));
        let inner = self
            .wanted
            .get(before..self.wanted.len().checked_sub(after)?)?;
        if inner.is_empty() {
            return None;
        }
        let last = self.old.len().checked_sub(self.wanted.len())?;
        let mut places = (self.from..=last).filter(|at| {
            self.old[at + before..].starts_with(inner)
                && self.is_at_its_edge(*at, at + self.wanted.len())
        });
        places.next().filter(|_| places.next().is_none())
    }

    fn difference(&self) -> Failure {
        let same = |theirs: &str, ours: &str| theirs.trim_end() == ours.trim_end();
        let ends_differ = self.old.windows(self.wanted.len().max(1)).any(|lines| {
            lines.len() == self.wanted.len()
                && lines.iter().zip(&self.wanted).all(|(a, b)| same(a, b))
        });
        let crlf = |lines: &[&str]| lines.iter().any(|line| line.ends_with("\r\n"));
        let patch_has_crlf = crlf(&self.wanted);
        if ends_differ && patch_has_crlf != crlf(self.old) {
            return Failure::LineEnds { patch_has_crlf };
        }
        let mut lines = self.wanted.iter().enumerate();
        let differs = lines.find(|(line, text)| self.old.get(self.near + line) != Some(text));
        match differs {
            Some((line, text)) => Failure::Differs {
                line: self.near + line,
                wanted: (*text).to_owned(),
                found: self.old.get(self.near + line).map(|&text| text.to_owned()),
            },
            None => Failure::Edge(self.near),
        }
    }
}

fn problems(patch: &FilePatch, failures: &[(usize, Failure)]) -> Vec<Problem> {
    let applied = |(_, failure): &(usize, Failure)| *failure == Failure::Applied;
    if failures.len() == patch.hunks.len() && failures.iter().all(applied) {
        let message = "the tree has this change already: is the patch applied to it? The tree must \
                       be the source that the hypervisor was built from";
        return vec![Problem::new(Code::DoesNotApply, patch.path(), message)];
    }
    let mut problems: Vec<Problem> = Vec::new();
    for (index, failure) in failures {
        let hunk = &patch.hunks[*index];
        let name = format!("hunk {} (line {})", index + 1, hunk.old_start);
        let problem = Problem::new(Code::DoesNotApply, patch.path(), failure.message(&name));
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }
    problems
}

impl Failure {
    fn message(&self, hunk: &str) -> String {
        match self {
            // Never a failure in the end.
            Self::Loose { .. } => String::new(),
            Self::Applied => format!("{hunk} is in the tree already"),
            Self::Ambiguous(one, other) => format!(
                "{hunk} matches at line {} and at line {}, and neither is where the patch says; \
                 make the patch with more context (`git diff -U10`)",
                one + 1,
                other + 1
            ),
            Self::LineEnds {
                patch_has_crlf: true,
            } => {
                "the patch has CRLF line endings and the tree does not; convert it (`sed -i 's/\\r$//' \
                  FILE.patch`)"
                    .to_owned()
            }
            Self::LineEnds { .. } => {
                "the tree's file has CRLF line endings and the patch does not; make the patch from \
                 this tree"
                    .to_owned()
            }
            Self::NoContext => format!(
                "{hunk} has no line of context, so that it is unclear whether it is at the right \
                 place; make the patch with context (`git diff`, `diff -u`)"
            ),
            Self::Edge(at) => format!(
                "{hunk} has no context on one side, as at the start or the end of a file, or \
                 overlaps the hunk before it, but its lines are at line {}; make the patch with \
                 context (`git diff`)",
                at + 1
            ),
            Self::Differs {
                line,
                wanted,
                found,
            } => format!(
                "{hunk} does not apply; line {}: {}; is the patch for another version of the \
                 source?",
                line + 1,
                difference(wanted, found.as_deref())
            ),
        }
    }
}

/// How the line that a patch `wanted` differs from what the tree has.
fn difference(wanted: &str, found: Option<&str>) -> String {
    let words = |text: &str| text.split_whitespace().collect::<String>();
    match found {
        Some(found) if words(wanted) == words(found) => format!(
            "only white space differs, as after a mailer or an editor: the patch has {}, the tree \
             {}",
            visible(wanted),
            visible(found)
        ),
        _ => format!(
            "the patch has `{}`, the tree `{}`",
            wanted.trim_end(),
            found.map_or("the end of the file", str::trim_end)
        ),
    }
}

/// A line with visible white space, and whether it has a line ending.
fn visible(line: &str) -> String {
    let (line, end) = match line.strip_suffix('\n') {
        Some(line) => (line, ""),
        None => (line, " (no newline)"),
    };
    let shown = line
        .chars()
        .flat_map(|c| match c {
            ' ' => vec!['\u{b7}'],
            '\\' | '"' | '\'' => vec![c],
            c => c.escape_debug().collect(),
        })
        .collect::<String>();
    format!("`{shown}`{end}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::parse;

    const OLD: &str = "one\ntwo\nthree\nfour\nfive\n";

    fn only(hunks: &str) -> FilePatch {
        let text = format!("--- a/f\n+++ b/f\n{hunks}");
        parse("test.patch", text.as_bytes())
            .expect("a patch")
            .remove(0)
    }

    fn applied(text: &str, hunks: &str) -> String {
        let patched = apply(text, &only(hunks)).expect("applies");
        patched.lines.into_iter().map(|line| line.text).collect()
    }

    fn refused(text: &str, hunks: &str) -> String {
        let refused = apply(text, &only(hunks)).expect_err("does not apply");
        refused.to_string()
    }

    #[test]
    fn a_hunk_applies_where_its_lines_are() {
        // The @@ line is off by two: the lines decide.
        let hunk = "@@ -5,3 +5,3 @@\n three\n-four\n+4\n five\n";
        assert_eq!(applied(OLD, hunk), "one\ntwo\nthree\n4\nfive\n");
        let far = hunk.replace("-5,3", &format!("-{},3", usize::MAX));
        assert_eq!(applied(OLD, &far), "one\ntwo\nthree\n4\nfive\n");
    }

    #[test]
    fn no_place_is_guessed() {
        let hunk = "@@ -3,3 +3,3 @@\n a\n-b\n+B\n c\n";
        let words = refused("x\na\nb\nc\na\nb\nc\n", hunk);
        assert!(words.contains("matches at line 2 and at line 5"), "{words}");
        assert_eq!(
            applied("a\nb\na\nb\nc\na\nb\nc\n", hunk),
            "a\nb\na\nB\nc\na\nb\nc\n"
        );
        // Without context on one side it was the start or the end of the file.
        let words = refused(OLD, "@@ -1,2 +1,3 @@\n+zero\n two\n three\n");
        assert!(words.contains("does not apply"), "{words}");
        let words = refused(OLD, "@@ -2,2 +2,3 @@\n two\n three\n+more\n");
        assert!(words.contains("its lines are at line 2"), "{words}");
        let words = refused(OLD, "@@ -2 +2 @@\n-two\n+2\n");
        assert!(words.contains("no line of context"), "{words}");
    }

    #[test]
    fn outer_context_may_differ_where_only_one_place_matches() {
        let hunk = "@@ -1,4 +1,4 @@\n zero\n two\n-three\n+3\n four\n";
        let patched = apply(OLD, &only(hunk)).expect("applies");
        let text: String = patched.lines.iter().map(|l| l.text.as_str()).collect();
        assert_eq!(text, "one\ntwo\n3\nfour\nfive\n");
        assert!(
            patched.loose[0]
                .contains("hunk 1 (line 1) applies at line 1 only without the outermost 1")
        );
        let words = refused(&[OLD, OLD].concat(), hunk);
        assert!(words.contains("the patch has `zero`"), "{words}");
        // What is removed is never passed over.
        refused(OLD, "@@ -1,3 +1,2 @@\n-zero\n two\n three\n");
    }

    #[test]
    fn every_hunk_that_does_not_apply_is_named() {
        let hunks = "@@ -1,2 +1,2 @@\n-eins\n+1\n two\n@@ -2,3 +2,3 @@\n two\n-drei\n+3\n four\n\
                     @@ -4,2 +4,2 @@\n four\n-sixth\n+5\n";
        let Refused(problems) = apply(OLD, &only(hunks)).expect_err("three do not apply");
        let words: Vec<&str> = problems.iter().map(|p| p.message.as_str()).collect();
        assert_eq!(words.len(), 3, "{words:?}");
        assert!(words[0].starts_with("hunk 1 (line 1) does not apply"));
        assert!(words[1].contains("hunk 2 (line 2)"), "{words:?}");
        assert!(words[2].contains("the patch has `sixth`, the tree `five`"));
    }

    #[test]
    fn what_the_tree_has_already_is_said() {
        let first = "@@ -1,2 +1,2 @@\n-eins\n+one\n two\n";
        let second = "@@ -3,3 +3,4 @@\n three\n+3.5\n four\n five\n";
        let words = refused(OLD, first);
        assert!(
            words.contains("the tree has this change already"),
            "{words}"
        );
        let words = refused(OLD, &[first, second].concat());
        assert_eq!(words, "f: hunk 1 (line 1) is in the tree already");
        // Also where the old lines fit loosely.
        let twice = applied(OLD, second);
        let words = refused(&twice, second);
        assert!(words.contains("already"), "{words}");
    }

    #[test]
    fn ends_of_lines_and_white_space_are_shown() {
        let hunk = "@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n";
        let crlf = hunk.replace('\n', "\r\n");
        let words = refused(OLD, &crlf);
        assert!(words.contains("the patch has CRLF line endings"), "{words}");
        let words = refused(&OLD.replace('\n', "\r\n"), hunk);
        assert!(
            words.contains("the tree's file has CRLF line endings"),
            "{words}"
        );
        let words = refused(
            "one\n\ttwo x\nthree\n",
            &hunk.replace("-two", "-        two x"),
        );
        let shown = "the patch has `········two·x`, the tree `\\ttwo·x`";
        assert!(words.contains(shown), "{words}");
        let last = "@@ -2,2 +2,2 @@\n two\n-three\n\\ No newline at end of file\n+3\n";
        let words = refused("one\ntwo\nthree\nfour\n", last);
        let shown = "the patch has `three` (no newline), the tree `three`";
        assert!(words.contains(shown), "{words}");
    }

    #[test]
    fn the_end_of_a_file_without_newline() {
        let none = "\\ No newline at end of file";
        let hunk = format!("@@ -1 +1 @@\n-x\n{none}\n+y\n{none}\n");
        assert_eq!(applied("x", &hunk), "y");
    }
}
