// SPDX-License-Identifier: MIT OR Apache-2.0
//! Macros whose numeric values change.
//!
//! Objects do not contain macros. All code that uses one is recompiled, but values
//! stored in memory keep the old number.

use crate::patch::{FilePatch, Line};
use std::collections::{BTreeMap, BTreeSet};

/// Definitions of one macro that only one side of the patch has.
#[derive(Default)]
struct Definitions<'a> {
    removed: BTreeSet<String>,
    added: BTreeSet<String>,
    file: &'a str,
}

/// Notes about macros whose values `files` change.
pub(crate) fn notes<'a>(files: impl Iterator<Item = &'a FilePatch>) -> Vec<String> {
    let mut macros: BTreeMap<String, Definitions> = BTreeMap::new();
    for file in files {
        for line in file.hunks.iter().flat_map(|hunk| &hunk.lines) {
            let (text, added) = match line {
                Line::Added(text) => (text, true),
                Line::Removed(text) => (text, false),
                Line::Context(_) => continue,
            };
            let Some((name, value)) = definition(text) else {
                continue;
            };
            let known = macros.entry(name).or_default();
            if added {
                known.file = file.path();
                known.added.insert(value);
            } else {
                known.removed.insert(value);
            }
        }
    }
    let changed = macros.iter().filter_map(|(name, definitions)| {
        let Definitions { removed, added, .. } = definitions;
        let only = |one: &BTreeSet<String>, other: &BTreeSet<String>| -> Vec<String> {
            one.difference(other).cloned().collect()
        };
        let (was, is) = (only(removed, added), only(added, removed));
        (!was.is_empty() && !is.is_empty()).then(|| {
            format!(
                "{}: {name} goes from {} to {}: values that the running hypervisor keeps in memory \
                 have the old meaning; check that the new code can handle them",
                definitions.file,
                was.join(", "),
                is.join(", ")
            )
        })
    });
    changed.collect()
}

/// Name and value of the macro that `line` defines, if it has no parameters and may
/// be a number.
fn definition(line: &str) -> Option<(String, String)> {
    let rest = line.trim_start().strip_prefix('#')?.trim_start();
    let rest = rest
        .strip_prefix("define")?
        .strip_prefix([' ', '\t'])?
        .trim_start();
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    let (name, value) = rest.split_at(end);
    if !value.starts_with([' ', '\t', '/']) {
        return None;
    }
    let value = without_comments(value);
    let numeric =
        |c: char| c.is_alphanumeric() || c.is_whitespace() || "_()+-*/%<>|&^~,!?:=".contains(c);
    let has_number = || value.contains(|c: char| c.is_ascii_digit());
    let is_one = !value.is_empty() && value.chars().all(numeric) && has_number();
    is_one.then(|| (name.to_owned(), value))
}

/// `text` without comments, and with single spaces.
fn without_comments(text: &str) -> String {
    let mut rest = text.split("//").next().unwrap_or_default();
    let mut found = String::new();
    while let Some((before, comment)) = rest.split_once("/*") {
        found += before;
        found.push(' ');
        rest = comment.split_once("*/").map_or("", |(_, behind)| behind);
    }
    found += rest;
    let words: Vec<&str> = found.split_whitespace().collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::Hunk;

    fn told(removed: &[&str], added: &[&str]) -> Vec<String> {
        let removed = removed.iter().map(|text| Line::Removed((*text).to_owned()));
        let added = added.iter().map(|text| Line::Added((*text).to_owned()));
        let file = FilePatch {
            old: Some("x.h".to_owned()),
            new: Some("x.h".to_owned()),
            written: "b/x.h".to_owned(),
            hunks: vec![Hunk {
                old_start: 1,
                lines: removed.chain(added).collect(),
            }],
        };
        let notes = notes(std::iter::once(&file));
        let short = notes.iter().map(|note| note.split(": values").next());
        short.flatten().map(str::to_owned).collect()
    }

    #[test]
    fn macros_that_get_another_number_are_told() {
        let found = told(
            &[
                "#define A 1\n",
                "# define B (1u << 3) /* bit */\n",
                "#define C\t0x10\n",
                "#define D 1\n",
            ],
            &[
                "#define A\t2 // why\n",
                "# define B (1u << 4)\n",
                "#define C 0x10 /* moved */\n",
            ],
        );
        assert_eq!(
            found,
            [
                "x.h: A goes from 1 to 2",
                "x.h: B goes from (1u << 3) to (1u << 4)"
            ]
        );
    }

    #[test]
    fn what_is_no_number_is_not_told() {
        let found = told(
            &[
                "#define F(x) 1\n",
                "#define S \"1\"\n",
                "#define W first\n",
                "#define E\n",
                "a = 1;\n",
            ],
            &[
                "#define F(x) 2\n",
                "#define S \"2\"\n",
                "#define W other\n",
                "#define E 1\n",
                "a = 2;\n",
            ],
        );
        assert_eq!(found, Vec::<String>::new());
    }
}
