// SPDX-License-Identifier: MIT OR Apache-2.0
//! Parses unified diffs, as written by `git` and `diff -u`.
//!
//! Text outside of diffs is ignored, but never part of one: unsupported lines are
//! refused with their line number.

use super::path::{self, FileName};
use super::{FilePatch, Hunk, Line};
use crate::code::Code;
use crate::problem::{Problem, Refused};

/// Reads the unified diff `data` of the file `name`, including `git format-patch` or
/// `git diff` output; text outside of the diffs is ignored.
///
/// # Errors
/// Everything that is damaged or cannot be in a payload; a file without line changes.
pub fn parse(name: &str, data: &[u8]) -> Result<Vec<FilePatch>, Refused> {
    if data.contains(&0) {
        let message = "this is a binary file, not a patch";
        return Err(Refused::one(Code::BadPatch, name, message));
    }
    // Some editors start UTF-8 text with this mark.
    let data = data.strip_prefix("\u{feff}".as_bytes()).unwrap_or(data);
    let lines: Vec<&[u8]> = data.split_inclusive(|&b| b == b'\n').collect();
    if lines.is_empty() {
        return Err(Refused::one(Code::BadPatch, name, "the file is empty"));
    }
    let mut parser = Parser {
        name,
        lines,
        next: 0,
        after_diff: false,
        files: Vec::new(),
    };
    while parser.next < parser.lines.len() {
        parser.step()?;
    }
    let files = parser.files;
    if files.is_empty() {
        return Err(Refused::one(
            Code::BadPatch,
            name,
            "there is no unified diff in this file",
        ));
    }
    if files.iter().all(FilePatch::is_mode_only) {
        return Err(Refused::one(
            Code::NothingToPatch,
            name,
            "it changes only file modes, which does not affect code",
        ));
    }
    Ok(files)
}

struct Parser<'a> {
    name: &'a str,
    /// With their line endings.
    lines: Vec<&'a [u8]>,
    /// Index of the next line to read.
    next: usize,
    /// Whether the line before belongs to a diff.
    after_diff: bool,
    files: Vec<FilePatch>,
}

/// `git`'s header lines for a file.
#[derive(Default)]
struct Header {
    created: bool,
    deleted: bool,
    mode_changed: bool,
    renamed: (Option<String>, Option<String>),
}

impl Header {
    /// Whether it belongs to `---` and `+++` lines with these names.
    fn is_about(
        &self,
        titled: Option<&(FileName, FileName)>,
        old: Option<&FileName>,
        new: Option<&FileName>,
    ) -> bool {
        // The names of a rename have no prefix.
        let is = |name: &FileName, other: &String| name.path == *other || name.written == *other;
        let as_titled = titled.is_none_or(|(a, b)| {
            old.is_none_or(|old| old.path == a.path) && new.is_none_or(|new| new.path == b.path)
        });
        let as_renamed = match (old, new, &self.renamed) {
            (Some(old), Some(new), (Some(from), Some(to))) => is(old, from) && is(new, to),
            _ => true,
        };
        as_titled && as_renamed
    }

    /// Its change without hunks.
    fn alone(&self, titled: Option<&(FileName, FileName)>) -> Option<FilePatch> {
        if let (Some(old), Some(new)) = &self.renamed {
            return Some(FilePatch {
                written: new.clone(),
                old: Some(old.clone()),
                new: Some(new.clone()),
                hunks: Vec::new(),
            });
        }
        if !self.created && !self.deleted && !self.mode_changed {
            return None;
        }
        let (_, name) = titled?;
        let side = |there| Some(name.clone()).filter(|_| there);
        Some(file_patch(side(!self.created), side(!self.deleted)))
    }
}

impl<'a> Parser<'a> {
    fn step(&mut self) -> Result<(), Refused> {
        let line = self.line(0);
        let in_diff = std::mem::take(&mut self.after_diff);
        if line.starts_with(b"diff --git ") && self.is_extended_header(1) {
            self.git_file()
        } else if self.is_file_header(0) {
            self.plain_file()
        } else if line.starts_with(b"@@ -") {
            Err(self.damaged("a hunk without a file name"))
        } else if let Some(what) = unsupported(line) {
            Err(self.at(0, what))
        } else if let Some(what) = omitted(line)
            && (in_diff || self.diff_follows())
        {
            Err(self.at(0, what))
        } else {
            self.after_diff = in_diff && trimmed(line).is_empty();
            self.next += 1;
            Ok(())
        }
    }

    /// A line ahead; empty after the last one.
    fn line(&self, ahead: usize) -> &'a [u8] {
        self.lines.get(self.next + ahead).copied().unwrap_or(b"")
    }

    fn is_file_header(&self, ahead: usize) -> bool {
        self.line(ahead).starts_with(b"--- ") && self.line(ahead + 1).starts_with(b"+++ ")
    }

    fn is_extended_header(&self, ahead: usize) -> bool {
        const STARTS: [&str; 12] = [
            "old mode ",
            "new mode ",
            "deleted file mode ",
            "new file mode ",
            "copy from ",
            "copy to ",
            "rename from ",
            "rename to ",
            "similarity index ",
            "dissimilarity index ",
            "index ",
            "GIT binary patch",
        ];
        let line = self.line(ahead);
        STARTS
            .iter()
            .any(|start| line.starts_with(start.as_bytes()))
            || is_binary_difference(line)
            || self.is_file_header(ahead)
    }

    fn diff_follows(&self) -> bool {
        let next = self.line(1);
        next.starts_with(b"diff ") || self.is_file_header(1) || omitted(next).is_some()
    }

    fn git_file(&mut self) -> Result<(), Refused> {
        let title = self.text(0)?;
        let titled = path::both(title.trim_end().trim_start_matches("diff --git "));
        if let Some((old, new)) = &titled {
            self.check(old, 0)?;
            self.check(new, 0)?;
        }
        self.next += 1;
        let mut header = Header::default();
        while !self.is_file_header(0) && self.is_extended_header(0) {
            self.extended_header(&mut header)?;
            self.next += 1;
        }
        let alone = header.alone(titled.as_ref());
        if self.is_file_header(0) {
            let (old, new) = self.header_names()?;
            if header.is_about(titled.as_ref(), old.as_ref(), new.as_ref()) {
                self.next += 2;
                return self.hunks(file_patch(
                    old.filter(|_| !header.created),
                    new.filter(|_| !header.deleted),
                ));
            }
            // A diff of another kind may follow one that has no lines.
            if alone.is_none() {
                return Err(self.at(0, "these names are not those of the lines above them"));
            }
        }
        let file = alone.ok_or_else(|| self.damaged("the lines above do not say what changes"))?;
        self.push(file);
        Ok(())
    }

    fn extended_header(&self, header: &mut Header) -> Result<(), Refused> {
        let line = self.text(0)?;
        let line = line.trim_end();
        let is_mode = |start: &str| line.strip_prefix(start);
        let index_mode = is_mode("index ").and_then(|rest| rest.split_once(' '));
        let mode = [
            "new file mode ",
            "deleted file mode ",
            "old mode ",
            "new mode ",
        ]
        .iter()
        .find_map(|start| is_mode(start))
        .or(index_mode.map(|(_, mode)| mode));
        match mode {
            Some("120000") => {
                return Err(self.at(
                    0,
                    "the patch makes, changes or removes a symbolic link, which no payload can \
                     carry",
                ));
            }
            Some("160000") => {
                return Err(self.at(0, "the patch changes a submodule, not a file"));
            }
            _ => {}
        }
        header.created |= line.starts_with("new file mode ");
        header.deleted |= line.starts_with("deleted file mode ");
        header.mode_changed |= line.starts_with("new mode ");
        if let Some(path) = line.strip_prefix("rename from ") {
            header.renamed.0 = Some(self.renamed(path)?);
        } else if let Some(path) = line.strip_prefix("rename to ") {
            header.renamed.1 = Some(self.renamed(path)?);
        } else if line.starts_with("copy from ") {
            return Err(self.at(
                0,
                "the patch copies a file; write the copy as a new file (`git diff --no-renames`)",
            ));
        } else if line.starts_with("GIT binary patch") || is_binary_difference(line.as_bytes()) {
            return Err(self.at(0, BINARY));
        }
        Ok(())
    }

    fn plain_file(&mut self) -> Result<(), Refused> {
        let (mut old, mut new) = self.header_names()?;
        if let (Some(one), Some(other)) = (&old, &new) {
            let name = path::same_file(one, other).ok_or_else(|| {
                self.at(
                    0,
                    "two files are compared, and nothing says which is changed; make the patch \
                     with `git diff`",
                )
            })?;
            (old, new) = (Some(name.clone()), Some(name.clone()));
        }
        self.next += 2;
        self.hunks(file_patch(old, new))
    }

    fn hunks(&mut self, mut file: FilePatch) -> Result<(), Refused> {
        if !self.line(0).starts_with(b"@@ -") {
            return Err(self.damaged("a file header without a hunk after it"));
        }
        while self.line(0).starts_with(b"@@ -") {
            let hunk = self.hunk()?;
            file.hunks.push(hunk);
        }
        // `diff -N` writes a new file as one that was empty.
        if let [only] = file.hunks.as_slice()
            && only.old_start == 0
            && only.lines.iter().all(|line| matches!(line, Line::Added(_)))
        {
            file.old = None;
        }
        self.push(file);
        Ok(())
    }

    fn push(&mut self, file: FilePatch) {
        self.files.push(file);
        self.after_diff = true;
    }

    fn hunk(&mut self) -> Result<Hunk, Refused> {
        let header = self.text(0)?;
        let range = header.strip_prefix("@@ -").and_then(parse_range);
        let (old_start, mut old_left, mut new_left) =
            range.ok_or_else(|| self.damaged("cannot read the @@ line"))?;
        let start = self.next;
        self.next += 1;
        let mut hunk = Hunk {
            old_start,
            lines: Vec::new(),
        };
        while old_left > 0 || new_left > 0 {
            let line = self.text(0)?;
            if line.is_empty() {
                self.next = start;
                return Err(self.damaged("the hunk is truncated"));
            }
            let rest = || line.get(1..).unwrap_or_default().to_owned();
            let (old, new, line) = match line.as_bytes().first() {
                Some(b'-') => (1, 0, Line::Removed(rest())),
                Some(b'+') => (0, 1, Line::Added(rest())),
                Some(b' ') => (1, 1, Line::Context(rest())),
                // An empty context line whose blank a mailer removed.
                Some(b'\n' | b'\r') => (1, 1, Line::Context(line.clone())),
                Some(b'\\') => {
                    strip_newline(&mut hunk);
                    self.next += 1;
                    continue;
                }
                _ => return Err(self.damaged("a hunk line starts with none of ' ', '+', '-'")),
            };
            let left = (
                usize::checked_sub(old_left, old),
                usize::checked_sub(new_left, new),
            );
            let (Some(old), Some(new)) = left else {
                return Err(self.damaged(MORE_LINES));
            };
            (old_left, new_left) = (old, new);
            hunk.lines.push(line);
            self.next += 1;
        }
        if self.line(0).starts_with(b"\\") {
            strip_newline(&mut hunk);
            self.next += 1;
        }
        if self.goes_on() {
            return Err(self.damaged(MORE_LINES));
        }
        let ends_within = |line: &[u8]| !line.ends_with(b"\n") && !line.starts_with(b"\\");
        if self
            .lines
            .get(self.next - 1)
            .is_some_and(|line| ends_within(line))
        {
            self.next -= 1;
            return Err(self.damaged("the file ends within this line: the patch is truncated"));
        }
        Ok(hunk)
    }

    /// Whether the text after a hunk looks like a continuation.
    fn goes_on(&self) -> bool {
        let adjacent = self.line(0);
        let mut rest = self.lines.iter().skip(self.next);
        let next = rest.find(|line| !trimmed(line).is_empty());
        let signature = |line: &[u8]| line.starts_with(b"--");
        let header = |line: &[u8]| line.starts_with(b"+++ ");
        let changed = |line: &&[u8]| match line.first() {
            Some(b'-') => !signature(line),
            Some(b'+') => !header(line),
            _ => false,
        };
        next.is_some_and(changed) || adjacent.starts_with(b" ")
    }

    /// A line as text. Ignored text may be in any encoding; parts of a diff may not.
    fn text(&self, ahead: usize) -> Result<String, Refused> {
        String::from_utf8(self.line(ahead).to_vec()).map_err(|_| {
            self.at(
                ahead,
                "the line is not UTF-8; no file of the hypervisor's code needs another encoding",
            )
        })
    }

    /// The names in the next two lines, at least one of which exists.
    fn header_names(&self) -> Result<(Option<FileName>, Option<FileName>), Refused> {
        let name = |ahead| -> Result<Option<FileName>, Refused> {
            let text = self.text(ahead)?;
            let name = path::read(text.get(4..).unwrap_or_default());
            let name = name.ok_or_else(|| self.damaged(UNREADABLE_NAME))?;
            if let Some(name) = &name {
                self.check(name, ahead)?;
            }
            Ok(name)
        };
        match (name(0)?, name(1)?) {
            (None, None) => Err(self.damaged("nothing says which file this changes")),
            names => Ok(names),
        }
    }

    fn check(&self, name: &FileName, ahead: usize) -> Result<(), Refused> {
        if name.written.starts_with('/') {
            return Err(self.at(ahead, ABSOLUTE));
        }
        self.inside(&name.path)
    }

    /// A name of a rename, which has no prefix.
    fn renamed(&self, text: &str) -> Result<String, Refused> {
        let name = path::unquoted(text).ok_or_else(|| self.damaged(UNREADABLE_NAME))?;
        if name.starts_with('/') {
            return Err(self.at(0, ABSOLUTE));
        }
        self.inside(&name)?;
        Ok(name)
    }

    /// Refuses a `path` that leads out of the tree.
    fn inside(&self, path: &str) -> Result<(), Refused> {
        if path.split('/').any(|part| part == "..") {
            return Err(self.at(0, format!("the path {path} leads out of the tree")));
        }
        if path.is_empty() || path.contains(char::is_control) {
            return Err(self.at(0, format!("{path:?} is not the name of a source file")));
        }
        Ok(())
    }

    fn at(&self, ahead: usize, message: impl Into<String>) -> Refused {
        let place = format!("{}:{}", self.name, self.next + ahead + 1);
        Refused(vec![Problem::new(Code::BadPatch, place, message)])
    }

    fn damaged(&self, what: &str) -> Refused {
        self.at(0, format!("damaged patch: {what}"))
    }
}

fn file_patch(old: Option<FileName>, new: Option<FileName>) -> FilePatch {
    let written = new.as_ref().or(old.as_ref());
    FilePatch {
        written: written.map_or(String::new(), |name| name.written.clone()),
        old: old.map(|name| name.path),
        new: new.map(|name| name.path),
        hunks: Vec::new(),
    }
}

const BINARY: &str = "the patch changes a binary file, which no payload can carry";
const ABSOLUTE: &str = "the path is absolute; make the patch at the top of the source, with \
                        `git diff`";
const UNREADABLE_NAME: &str = "cannot read the file name";
const MORE_LINES: &str = "the hunk has more lines than its @@ line says";

/// Diffs of another kind, by their first line.
fn unsupported(line: &[u8]) -> Option<&'static str> {
    let starts = |start: &str| line.starts_with(start.as_bytes());
    if starts("diff --cc ") || starts("diff --combined ") || starts("@@@ -") {
        Some(
            "this is the combined diff of a merge; make one against its first parent (`git show -m --first-parent`)",
        )
    } else if starts("***************") {
        Some("this is a context diff; make a unified one (`diff -u`, `git diff`)")
    } else {
        None
    }
}

/// The messages of `diff -r` about files that it does not show.
fn omitted(line: &[u8]) -> Option<&'static str> {
    let only = trimmed(line).strip_prefix(b"Only in ".as_slice());
    let place = only.filter(|rest| {
        let mut blanks = rest.iter().enumerate().filter(|&(_, &byte)| byte == b' ');
        let first = blanks.next().map(|(at, _)| at);
        blanks.next().is_none() && first.is_some_and(|at| at > 0 && rest[at - 1] == b':')
    });
    if is_binary_difference(line) {
        Some(BINARY)
    } else if place.is_some() {
        Some(
            "a file that only one side has is missing in the patch; make it with `diff -N` or \
             `git diff`",
        )
    } else {
        None
    }
}

fn is_binary_difference(line: &[u8]) -> bool {
    let Ok(line) = std::str::from_utf8(trimmed(line)) else {
        return false;
    };
    let names = line
        .strip_prefix("Binary files ")
        .and_then(|rest| rest.strip_suffix(" differ"))
        .and_then(|rest| rest.split_once(" and "));
    names.is_some_and(|(old, new)| old.contains('/') && new.contains('/'))
}

fn trimmed(line: &[u8]) -> &[u8] {
    line.trim_ascii_end()
}

/// `\ No newline at end of file` refers to the line before it.
fn strip_newline(hunk: &mut Hunk) {
    if let Some(Line::Context(text) | Line::Removed(text) | Line::Added(text)) =
        hunk.lines.last_mut()
        && text.ends_with('\n')
    {
        text.pop();
    }
}

/// First line and number of lines in the old file, number of lines in the new.
fn parse_range(header: &str) -> Option<(usize, usize, usize)> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<FilePatch>, Refused> {
        parse("test.patch", text.as_bytes())
    }

    fn refused(text: &str) -> String {
        read(text).expect_err(text).to_string()
    }

    type Shape<'a> = (Option<&'a str>, Option<&'a str>, usize);

    fn shape(files: &[FilePatch]) -> Vec<Shape<'_>> {
        files
            .iter()
            .map(|f| (f.old.as_deref(), f.new.as_deref(), f.hunks.len()))
            .collect()
    }

    #[test]
    fn a_mark_in_front_of_the_text_is_no_part_of_it() {
        let text = format!("\u{feff}--- a/x.c\n+++ b/x.c\n{HUNK}");
        assert_eq!(shape(&read(&text).expect("a patch")).len(), 1);
    }

    const HUNK: &str = "@@ -1,2 +1,2 @@\n-one\n+1\n two\n";

    #[test]
    fn renames_are_read_with_and_without_hunks() {
        let text = format!(
            "diff --git a/x/a b/x/b\nsimilarity index 100%\nrename from x/a\nrename to x/b\n\
             diff --git a/x/c b/x/d\nrename from x/c\nrename to x/d\n--- a/x/c\n+++ b/x/d\n{HUNK}"
        );
        assert_eq!(
            shape(&read(&text).expect("a patch")),
            [(Some("x/a"), Some("x/b"), 0), (Some("x/c"), Some("x/d"), 1)]
        );
    }

    #[test]
    fn files_that_come_and_go() {
        let text = format!(
            "--- a/x/y\t1970-01-01 00:00:00.000000000 +0000\n\
             +++ b/x/y\t2026-01-01 00:00:00 +0000\n@@ -0,0 +1 @@\n+y\n\
             --- a/x/z.orig\n+++ b/x/z\n{HUNK}\
             diff --git a/x/new b/x/new\nnew file mode 100644\nindex 000..123\n\
             diff --git a/x/gone b/x/gone\ndeleted file mode 100644\nindex 123..000\n\
             diff --git a/x/mode b/x/mode\nold mode 100644\nnew mode 100755\n"
        );
        assert_eq!(
            shape(&read(&text).expect("a patch")),
            [
                (None, Some("x/y"), 1),
                (Some("x/z"), Some("x/z"), 1),
                (None, Some("x/new"), 0),
                (Some("x/gone"), None, 0),
                (Some("x/mode"), Some("x/mode"), 0),
            ]
        );
        let modes = "diff --git a/x b/x\nold mode 100644\nnew mode 100755\n";
        assert!(refused(modes).contains("only file modes"));
    }

    #[test]
    fn prose_is_no_header() {
        let prose = "copy from the guest\nBinary files are not affected\nOnly in rare cases: yes\n\
                     rename from here\n+++ faster\n--- slower\nGIT binary patch\n\
                     Binary files a/x and b/x differ\n\ndiff --git is a command\n---\n x | 2 +-\n\n";
        let text = format!(
            "{prose}diff --git a/x b/x\nindex 1..2 100644\n--- a/x\n+++ b/x\n{HUNK}-- \n2.39\n"
        );
        assert_eq!(
            shape(&read(&text).expect("a patch")),
            [(Some("x"), Some("x"), 1)]
        );
    }

    #[test]
    fn paths_that_lead_out_of_the_tree_are_refused() {
        for path in ["xen/../../x", "../x", "..", "xen/.."] {
            let plain = format!("--- a/{path}\n+++ b/{path}\n{HUNK}");
            let new = format!("--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+x\n");
            let quoted = format!("--- \"a/{path}\"\n+++ \"b/{path}\"\n{HUNK}");
            let octal = quoted.replace('.', "\\056");
            let rename = format!("diff --git a/x b/{path}\nrename from x\nrename to {path}\n");
            let from = format!("diff --git a/{path} b/x\nrename from {path}\nrename to x\n");
            let empty = format!("diff --git a/{path} b/{path}\nnew file mode 100644\n");
            for text in [plain, new, quoted, octal, rename, from, empty] {
                let words = refused(&text);
                assert!(words.contains("leads out of the tree"), "{text}: {words}");
            }
        }
        for path in ["/etc/passwd", "//etc/passwd"] {
            let plain = format!("--- {path}\n+++ {path}\n{HUNK}");
            let rename = format!("diff --git a/x b/y\nrename from x\nrename to {path}\n");
            let empty = format!("diff --git {path} {path}\nnew file mode 100644\n");
            for text in [plain, rename, empty] {
                let words = refused(&text);
                assert!(words.contains("the path is absolute"), "{text}: {words}");
            }
        }
        let link = "diff --git a/xen/x b/xen/x\nnew file mode 120000\n--- /dev/null\n+++ b/xen/x\n\
                    @@ -0,0 +1 @@\n+/etc\n\\ No newline at end of file\n";
        assert!(refused(link).contains("symbolic link"));
        let control = format!("--- \"a/x\\ny\"\n+++ \"b/x\\ny\"\n{HUNK}");
        assert!(refused(&control).contains("not the name of a source file"));
    }

    #[test]
    fn what_is_no_change_of_lines_is_refused_by_name() {
        let file = format!("--- a/x\n+++ b/x\n{HUNK}");
        let git = "diff --git a/x b/x\nindex 1..2 100644\n";
        for (text, words) in [
            (
                format!("{git}Binary files a/x and b/x differ\n{file}"),
                "binary",
            ),
            (
                format!("{file}{git}GIT binary patch\nliteral 3\n"),
                "binary",
            ),
            (format!("{file}Binary files a/x and b/x differ\n"), "binary"),
            (format!("Only in a/xen: x.c\n{file}"), "`diff -N`"),
            (
                "diff --git a/x b/y\ncopy from x\ncopy to y\n".to_owned(),
                "copies a file",
            ),
            (
                "diff --cc x\nindex 1,2..3\n--- a/x\n+++ b/x\n".to_owned(),
                "of a merge",
            ),
            ("*** x\n***************\n\0".to_owned(), "a binary file"),
            (
                "*** a/x\n--- b/x\n***************\n".to_owned(),
                "context diff",
            ),
            (
                format!("{git}--- a/y\n+++ b/y\n{HUNK}"),
                "not those of the lines above",
            ),
            (
                format!("--- a/x\n+++ b/y\n{HUNK}"),
                "two files are compared",
            ),
        ] {
            let refused = refused(&text);
            assert!(refused.contains(words), "{text}: {refused}");
        }
    }

    #[test]
    fn damaged_patches_are_refused() {
        let file = format!("--- a/f\n+++ b/f\n{HUNK}");
        for length in 0..file.len() {
            assert!(read(&file[..length]).is_err(), "{}", &file[..length]);
        }
        assert!(refused("").contains("empty"));
        assert!(refused("prose\n").contains("no unified diff"));
        for (text, words) in [
            (
                "--- a/f\n+++ b/f\n@@ nonsense @@\n".to_owned(),
                "without a hunk",
            ),
            (file.replace("-1,2 +1,2", "-1,9 +1,9"), "truncated"),
            (format!("{file}+more\n"), "more lines"),
            (format!("{file}\n-more\n"), "more lines"),
            (format!("{file} more\n"), "more lines"),
            (file.replace(" two", "two"), "none of"),
            (HUNK.to_owned(), "without a file name"),
        ] {
            let refused = refused(&text);
            assert!(refused.contains(words), "{text}: {refused}");
        }
        let latin = [file.as_bytes(), b"@@ -8 +8 @@\n-a\n+\xe4\n"].concat();
        let words = parse("p", &latin).expect_err("not UTF-8").to_string();
        assert!(words.starts_with("p:9: the line is not UTF-8"), "{words}");
        let prose = [b"\xe4\n".as_slice(), file.as_bytes()].concat();
        parse("p", &prose).expect("prose may be in any encoding");
    }
}
