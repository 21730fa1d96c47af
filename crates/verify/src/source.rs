// SPDX-License-Identifier: MIT OR Apache-2.0
//! The patched source files, with `#line` directives so that code that only moved
//! compiles to the same bytes.

use crate::Unusable;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::{Component, Path};

/// A line of a patched file, and its number in the original if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    text: String,
    number: Option<usize>,
}

/// The files that patches change; `None` for one that they remove.
#[derive(Debug, Default)]
pub(crate) struct Source(BTreeMap<String, Option<Vec<Line>>>);

/// The effect of a patch on a file.
#[derive(Debug, Default)]
struct Change<'a> {
    old: Option<&'a str>,
    new: Option<&'a str>,
    hunks: Vec<(usize, Vec<&'a str>)>,
}

impl Source {
    /// Applies the unified diff `patch` to the files below `top`. Files in
    /// `leave_out` stay unchanged.
    pub(crate) fn apply(
        &mut self,
        top: &Path,
        what: &str,
        patch: &str,
        leave_out: &BTreeSet<String>,
    ) -> Result<(), Unusable> {
        let changes = parse(what, patch)?;
        if changes.is_empty() {
            return Err(Unusable::new(
                what,
                &"there is no unified diff in this file",
            ));
        }
        for change in changes {
            if let Some(path) = [change.old, change.new]
                .into_iter()
                .flatten()
                .find(leads_out)
            {
                return Err(Unusable::new(
                    what,
                    &format!("{path} leads out of the tree"),
                ));
            }
            let path = change.new.or(change.old).unwrap_or_default();
            if !leave_out.contains(path) {
                self.change(top, what, &change)?;
            }
        }
        Ok(())
    }

    /// Writes the files below `copy`, whose links lead into the tree itself.
    pub(crate) fn write(&self, copy: &Path) -> std::io::Result<()> {
        for (path, lines) in &self.0 {
            make_parent(copy, path)?;
            let path_there = copy.join(path);
            let _ = std::fs::remove_file(&path_there);
            let Some(lines) = lines else {
                continue;
            };
            let preprocessed = [".c", ".h", ".S"].iter().any(|end| path.ends_with(end));
            let text = if preprocessed {
                numbered(lines)
            } else {
                lines.iter().map(|line| line.text.as_str()).collect()
            };
            std::fs::write(path_there, text)?;
        }
        Ok(())
    }

    fn change(&mut self, top: &Path, what: &str, change: &Change) -> Result<(), Unusable> {
        let bad = |reason: String| Unusable::new(what, &reason);
        let mut lines = match change.old {
            Some(old) => self
                .lines(top, old)
                .map_err(|e| bad(format!("{old}: {e}")))?,
            None => Vec::new(),
        };
        let path = change.new.or(change.old).unwrap_or_default();
        let mut shift = 0;
        for (start, hunk) in &change.hunks {
            shift = replace(&mut lines, start.saturating_add_signed(shift), hunk)
                .ok_or_else(|| bad(format!("{path}: the hunk for line {start} does not apply")))?;
        }
        if let Some(old) = change.old.filter(|old| Some(*old) != change.new) {
            self.0.insert(old.to_owned(), None);
        }
        if let Some(new) = change.new {
            self.0.insert(new.to_owned(), Some(lines));
        }
        Ok(())
    }

    fn lines(&self, top: &Path, path: &str) -> std::io::Result<Vec<Line>> {
        if let Some(Some(lines)) = self.0.get(path) {
            return Ok(lines.clone());
        }
        let text = std::fs::read(top.join(path))?;
        let text = String::from_utf8_lossy(&text);
        let lines = text.split_inclusive('\n').zip(1..);
        Ok(lines
            .map(|(text, number)| Line {
                text: text.to_owned(),
                number: Some(number),
            })
            .collect())
    }
}

fn parse<'a>(what: &str, patch: &'a str) -> Result<Vec<Change<'a>>, Unusable> {
    let mut changes: Vec<Change> = Vec::new();
    let mut lines = patch.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with("diff --git ") {
            changes.push(Change::default());
        } else if let Some(old) = line.strip_prefix("rename from ") {
            changes.last_mut().get_or_insert(&mut Change::default()).old = Some(old);
        } else if let Some(new) = line.strip_prefix("rename to ") {
            changes.last_mut().get_or_insert(&mut Change::default()).new = Some(new);
        } else if let Some(old) = line.strip_prefix("--- ")
            && let Some(new) = lines.peek().and_then(|next| next.strip_prefix("+++ "))
        {
            let fresh = changes.last().is_some_and(|last| last.hunks.is_empty());
            if !fresh {
                changes.push(Change::default());
            }
            if let Some(change) = changes.last_mut() {
                (change.old, change.new) = (path(old), path(new));
            }
        } else if let Some(ranges) = line.strip_prefix("@@ -") {
            let bad = || Unusable::new(what, &format!("the hunk `{line}` is damaged or truncated"));
            let (start, mut counts) = ranges_of(ranges).ok_or_else(bad)?;
            let mut body = Vec::new();
            while counts != (0, 0) {
                let line = lines.next().ok_or_else(bad)?;
                match line.bytes().next() {
                    Some(b'-') => counts.0 -= 1,
                    Some(b'+') => counts.1 -= 1,
                    Some(b' ') | None => counts = (counts.0 - 1, counts.1 - 1),
                    Some(b'\\') => {}
                    _ => return Err(bad()),
                }
                if counts.0 < 0 || counts.1 < 0 {
                    return Err(bad());
                }
                body.push(line);
            }
            if let Some(change) = changes.last_mut() {
                change.hunks.push((start, body));
            }
        }
    }
    changes.retain(|change| change.old.is_some() || change.new.is_some());
    Ok(changes)
}

fn leads_out(path: &&str) -> bool {
    let mut parts = Path::new(path).components();
    !parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Makes the directory of the file `path` of `copy`. A linked directory is replaced
/// by a directory of links, so that nothing is written to the link's target.
fn make_parent(copy: &Path, path: &str) -> std::io::Result<()> {
    let mut at = copy.to_owned();
    for part in Path::new(path).parent().into_iter().flatten() {
        at.push(part);
        match std::fs::read_link(&at) {
            Ok(target) => {
                let target = at.parent().unwrap_or(copy).join(target);
                std::fs::remove_file(&at)?;
                std::fs::create_dir(&at)?;
                for entry in std::fs::read_dir(target)? {
                    let entry = entry?;
                    symlink(entry.path(), at.join(entry.file_name()))?;
                }
            }
            Err(_) if at.is_dir() => {}
            Err(_) => std::fs::create_dir(&at)?,
        }
    }
    Ok(())
}

/// The path of a `---` or `+++` line, without its first directory.
fn path(line: &str) -> Option<&str> {
    let path = line.split('\t').next().unwrap_or(line).trim_end();
    let (_, rest) = path.split_once('/')?;
    (path != "/dev/null").then_some(rest)
}

/// First old line, and the number of old and new lines of a hunk.
fn ranges_of(text: &str) -> Option<(usize, (i64, i64))> {
    let (old, rest) = text.split_once(" +")?;
    let (new, _) = rest.split_once(" @@")?;
    let count = |range: &str| match range.split_once(',') {
        Some((_, count)) => count.parse().ok(),
        None => Some(1),
    };
    let start = old.split(',').next()?.parse().ok()?;
    Some((start, (count(old)?, count(new)?)))
}

/// Applies a hunk at the match nearest to line `start`; returns the change of the
/// following lines' offset.
fn replace(lines: &mut Vec<Line>, start: usize, hunk: &[&str]) -> Option<isize> {
    let side = |of: u8| {
        hunk.iter()
            .filter_map(move |line| match line.bytes().next() {
                None => Some((true, "")),
                Some(b' ') => Some((true, &line[1..])),
                Some(sign) if sign == of => Some((false, &line[1..])),
                _ => None,
            })
    };
    let old: Vec<&str> = side(b'-').map(|(_, text)| text).collect();
    let first = start.saturating_sub(usize::from(!old.is_empty()));
    let matches = |at: &usize| {
        let place = lines.get(*at..*at + old.len());
        place.is_some_and(|place| {
            let text = |line: &Line| line.text.trim_end_matches('\n').to_owned();
            place
                .iter()
                .zip(&old)
                .all(|(line, old)| text(line) == **old)
        })
    };
    let mut places: Vec<usize> = (0..=lines.len()).collect();
    places.sort_by_key(|at| at.abs_diff(first));
    let at = places.into_iter().find(matches)?;
    let mut kept = lines[at..at + old.len()].iter().cloned();
    let mut new = Vec::new();
    for line in hunk {
        match line.bytes().next() {
            Some(b'+') => new.push(Line {
                text: format!("{}\n", &line[1..]),
                number: None,
            }),
            Some(b'-') => drop(kept.next()),
            Some(b'\\') => {}
            _ => new.extend(kept.next()),
        }
    }
    let longer = new.len().cast_signed() - old.len().cast_signed();
    lines.splice(at..at + old.len(), new);
    Some(at.cast_signed() - first.cast_signed() + longer)
}

/// The text, with directives where line numbers change.
fn numbered(lines: &[Line]) -> String {
    let mut text = String::new();
    let mut place = Place::default();
    // The preprocessor's line number; unknown after a group that it may skip.
    let mut number = Some(1);
    let mut moved = false;
    for line in lines {
        if let Some(original) = line.number
            && number != Some(original)
            && place.allows_directive()
        {
            text.push_str(&format!("#line {original}\n"));
            number = Some(original);
            moved = true;
        }
        text.push_str(&line.text);
        place.pass(&line.text);
        number = number.map(|number| number + 1);
        let directive = line
            .text
            .trim_start()
            .strip_prefix('#')
            .map(str::trim_start);
        if moved && directive.is_some_and(|d| ["if", "el", "end"].iter().any(|k| d.starts_with(k)))
        {
            number = None;
        }
    }
    text
}

/// The state at the end of a line: in a comment, continued, in parentheses.
#[derive(Debug, Default)]
struct Place {
    comment: bool,
    continued: bool,
    depth: usize,
}

impl Place {
    fn allows_directive(&self) -> bool {
        !self.comment && !self.continued && self.depth == 0
    }

    fn pass(&mut self, line: &str) {
        let line = line.trim_end();
        let directive = self.continued || line.trim_start().starts_with('#');
        let mut bytes = line.bytes().peekable();
        let mut quote = None;
        while let Some(byte) = bytes.next() {
            match (quote, byte) {
                (_, b'*') if self.comment && bytes.peek() == Some(&b'/') => {
                    bytes.next();
                    self.comment = false;
                }
                _ if self.comment => {}
                (Some(_), b'\\') => drop(bytes.next()),
                (Some(open), byte) if open == byte => quote = None,
                (Some(_), _) => {}
                (None, b'"' | b'\'') => quote = Some(byte),
                (None, b'/') if bytes.next_if_eq(&b'*').is_some() => self.comment = true,
                (None, b'/') if bytes.peek() == Some(&b'/') => break,
                (None, b'(') if !directive => self.depth += 1,
                (None, b')') if !directive => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        self.continued = line.ends_with('\\');
        // No function starts within parentheses, so the count was wrong.
        if line.starts_with('{') || line.starts_with('}') {
            self.depth = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(old: &str, patch: &str) -> String {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("f.c");
        std::fs::write(&file, old).expect("written");
        let mut source = Source::default();
        source
            .apply(directory.path(), "test.patch", patch, &BTreeSet::new())
            .expect("it applies");
        source.write(directory.path()).expect("written");
        std::fs::read_to_string(file).expect("it is there")
    }

    #[test]
    fn what_moved_keeps_its_number() {
        let old = "one\ntwo\nthree\n";
        let patch = "--- a/f.c\n+++ b/f.c\n@@ -1,2 +1,3 @@\n one\n+new\n two\n";
        assert_eq!(patched(old, patch), "one\nnew\n#line 2\ntwo\nthree\n");
    }

    #[test]
    fn hunks_are_found_where_they_match() {
        let old = "0\n0\n0\none\ntwo\n";
        let patch = "--- a/f.c\n+++ b/f.c\n@@ -1,2 +1,2 @@\n one\n-two\n+2\n";
        assert_eq!(patched(old, patch), "0\n0\n0\none\n2\n");
    }

    #[test]
    fn a_group_that_may_be_skipped_does_not_lose_the_number() {
        let old = "#ifdef A\none\n#endif\ntwo\n";
        let patch = "--- a/f.c\n+++ b/f.c\n@@ -1,3 +1,4 @@\n #ifdef A\n+new\n one\n #endif\n";
        assert_eq!(
            patched(old, patch),
            "#ifdef A\nnew\n#line 2\none\n#endif\n#line 4\ntwo\n"
        );
    }

    #[test]
    fn arguments_and_comments_are_not_cut() {
        let old = "f(a,\n  b);\n/* c\n */\nend\n";
        let patch = "--- a/f.c\n+++ b/f.c\n@@ -1,2 +1,3 @@\n f(a,\n+  new,\n   b);\n";
        assert_eq!(
            patched(old, patch),
            "f(a,\n  new,\n  b);\n#line 3\n/* c\n */\nend\n"
        );
    }
}
