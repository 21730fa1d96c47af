// SPDX-License-Identifier: MIT OR Apache-2.0
//! File names in the headers of a unified diff.

/// A file as a header names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileName {
    /// From the top of the source, without the first directory, which is `a` or `b`
    /// in `git`'s output.
    pub(super) path: String,
    /// As written.
    pub(super) written: String,
}

impl FileName {
    fn of(written: String) -> Self {
        let rest = written.split_once('/').map(|(_, rest)| rest);
        let parts = rest.unwrap_or(&written).split('/');
        // `a//b` and `a/./b` mean `a/b`.
        let parts: Vec<&str> = parts.filter(|part| !matches!(*part, "" | ".")).collect();
        Self {
            path: parts.join("/"),
            written,
        }
    }
}

/// Reads the text after `--- ` or `+++ `; there may be no file on this side.
pub(super) fn read(header: &str) -> Option<Option<FileName>> {
    let header = header.trim_end();
    let (name, stamp) = match header.starts_with('"') {
        true => quoted(header)?,
        false => match header.split_once('\t') {
            Some((name, stamp)) => (name.trim_end().to_owned(), stamp),
            None => without_stamp(header),
        },
    };
    if name == "/dev/null" || is_epoch(stamp) {
        return Some(None);
    }
    Some(Some(FileName::of(name)))
}

/// The names after `diff --git `, if they are unambiguous.
pub(super) fn both(header: &str) -> Option<(FileName, FileName)> {
    if header.starts_with('"') {
        let (old, rest) = quoted(header)?;
        return Some((
            FileName::of(old),
            FileName::of(unquoted(rest.trim_start())?),
        ));
    }
    let pair = |(at, _): (usize, &str)| {
        let new = unquoted(header.get(at + 1..)?)?;
        Some((
            FileName::of(header.get(..at)?.to_owned()),
            FileName::of(new),
        ))
    };
    let mut pairs: Vec<_> = header.match_indices(' ').filter_map(pair).collect();
    match pairs.iter().position(|(old, new)| old.path == new.path) {
        Some(same) => Some(pairs.swap_remove(same)),
        None if pairs.len() == 1 => pairs.pop(),
        None => None,
    }
}

/// A name that may be in quotes.
pub(super) fn unquoted(text: &str) -> Option<String> {
    if text.starts_with('"') {
        let (name, rest) = quoted(text)?;
        return rest.trim().is_empty().then_some(name);
    }
    Some(text.to_owned())
}

/// The one of two names, such as `x.c.orig` and `x.c`, that is the file's.
pub(super) fn same_file<'a>(old: &'a FileName, new: &'a FileName) -> Option<&'a FileName> {
    if old.path.starts_with(&new.path) {
        Some(new)
    } else if new.path.starts_with(&old.path) {
        Some(old)
    } else {
        None
    }
}

/// A name quoted as in C, and the text after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut bytes = Vec::new();
    let mut rest = text.strip_prefix('"')?.as_bytes();
    loop {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        match byte {
            b'"' => break,
            b'\\' => {
                let (&escape, after) = rest.split_first()?;
                rest = after;
                let plain = match escape {
                    b'a' => 7,
                    b'b' => 8,
                    b't' => b'\t',
                    b'n' => b'\n',
                    b'v' => 11,
                    b'f' => 12,
                    b'r' => b'\r',
                    b'"' | b'\\' => escape,
                    b'0'..=b'3' => {
                        let (low, after) = rest.split_at_checked(2)?;
                        rest = after;
                        let digits = [&[escape], low].concat();
                        u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 8).ok()?
                    }
                    _ => return None,
                };
                bytes.push(plain);
            }
            _ => bytes.push(byte),
        }
    }
    let rest = std::str::from_utf8(rest).ok()?;
    Some((String::from_utf8(bytes).ok()?, rest))
}

/// A name, and the time stamp after it if a mailer turned the tab into a blank.
fn without_stamp(header: &str) -> (String, &str) {
    let date = |at: usize| {
        let mut parts = header.get(at + 1..)?.splitn(3, '-');
        let number = |part: Option<&str>| part.is_some_and(|p| p.parse::<u16>().is_ok());
        let year_and_month = number(parts.next()) && number(parts.next());
        let clock = header.get(at + 11..)?.contains(':');
        (year_and_month && clock).then_some(at)
    };
    match header.match_indices(' ').find_map(|(at, _)| date(at)) {
        Some(at) => (header[..at].trim_end().to_owned(), &header[at + 1..]),
        None => (header.to_owned(), ""),
    }
}

/// Whether a time stamp is the start of 1970, which `diff -N` writes for a missing
/// file.
fn is_epoch(stamp: &str) -> bool {
    let mut words = stamp.split_whitespace();
    let (Some(date), Some(clock), zone) = (words.next(), words.next(), words.next()) else {
        return false;
    };
    let day = match date {
        "1969-12-31" => -24 * 60,
        "1970-01-01" => 0,
        _ => return false,
    };
    let minutes = |text: &str, hours: usize| -> Option<i32> {
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        let hour: i32 = digits.get(..hours)?.parse().ok()?;
        Some(hour * 60 + digits.get(hours..hours + 2)?.parse::<i32>().ok()?)
    };
    let zone = zone.unwrap_or("+0000");
    let offset = minutes(zone, 2).map(|m| if zone.starts_with('-') { -m } else { m });
    let seconds = clock.get(5..).unwrap_or_default();
    let whole = seconds.chars().all(|c| matches!(c, ':' | '.' | '0'));
    match (minutes(clock, 2), offset) {
        (Some(clock), Some(offset)) => whole && day + clock == offset,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(header: &str) -> Option<String> {
        read(header).expect("a name").map(|name| name.path)
    }

    #[test]
    fn names_are_read_as_git_and_diff_write_them() {
        assert_eq!(path("a/xen/x.c").as_deref(), Some("xen/x.c"));
        assert_eq!(path("a/xen/x y.c\t\r\n").as_deref(), Some("xen/x y.c"));
        assert_eq!(
            path("xen.orig/xen/x.c\t2026-01-02 03:04:05.6 +0000").as_deref(),
            Some("xen/x.c")
        );
        assert_eq!(
            path("a/xen/x.c 2026-01-02 03:04:05.678 +0100").as_deref(),
            Some("xen/x.c")
        );
        assert_eq!(path("./xen//x.c").as_deref(), Some("xen/x.c"));
        assert_eq!(
            path("\"a/xen/\\303\\244 \\\"x\\\".c\"").as_deref(),
            Some("xen/ä \"x\".c")
        );
        assert_eq!(read("\"a/xen/x.c"), None);
        assert_eq!(read("\"a/\\9\""), None);
    }

    #[test]
    fn files_that_are_not_there_have_no_name() {
        for header in [
            "/dev/null",
            "a/x\t1970-01-01 00:00:00.000000000 +0000",
            "a/x\t1970-01-01 01:00:00.000000000 +0100",
            "a/x 1969-12-31 19:00:00 -0500",
        ] {
            assert_eq!(path(header), None, "{header}");
        }
        assert!(path("a/x\t1970-01-01 01:00:00 +0000").is_some());
    }

    #[test]
    fn both_names_of_a_title() {
        let names = |title: &str| both(title).map(|(old, new)| (old.path, new.path));
        let pair = |old: &str, new: &str| Some((old.to_owned(), new.to_owned()));
        assert_eq!(names("a/x.c b/x.c"), pair("x.c", "x.c"));
        assert_eq!(names("a/x y.c b/x y.c"), pair("x y.c", "x y.c"));
        assert_eq!(names("a/x.c b/y.c"), pair("x.c", "y.c"));
        assert_eq!(names("a/x y.c b/z.c"), None);
        assert_eq!(names("\"a/\\tx\" \"b/\\tx\""), pair("\tx", "\tx"));
    }
}
