// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lines of a makefile with the conditionals around them.
//!
//! `ifeq`, `ifneq`, `ifdef` and `ifndef` are evaluated if they test configuration
//! options; only the build can evaluate anything else.

use std::collections::BTreeSet;

/// Whether make reads a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Active {
    Yes,
    No,
    /// Only the build knows.
    Unknown,
}

impl Active {
    fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Unknown => Self::Unknown,
        }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Unknown,
        }
    }

    fn or(self, other: Self) -> Self {
        self.not().and(other.not()).not()
    }
}

impl From<bool> for Active {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// A line that is not a conditional, without comments; continued lines are joined.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) active: Active,
    /// The conditionals around it that only the build can evaluate, outermost first,
    /// each with its previous branches.
    pub(super) unknown: Vec<String>,
}

impl Line {
    /// A line under no conditional.
    pub(super) fn plain(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            active: Active::Yes,
            unknown: Vec::new(),
        }
    }
}

/// An open conditional.
struct Frame {
    /// Its lines up to here.
    words: String,
    /// Whether one of its branches so far is read.
    taken: Active,
    /// Whether the current branch is read.
    active: Active,
}

/// The lines of the makefile `text`. `setting` is the value of an option of the
/// configuration, empty if it is not set.
///
/// # Errors
/// What is wrong with the first conditional that has no start or no end.
pub(super) fn lines(text: &str, setting: &dyn Fn(&str) -> String) -> Result<Vec<Line>, String> {
    let all = logical_lines(text);
    let assigned: BTreeSet<&str> = all.iter().filter_map(|line| assigned(line)).collect();
    let setting = |option: &str| (!assigned.contains(option)).then(|| setting(option));
    let mut open: Vec<Frame> = Vec::new();
    let mut found = Vec::new();
    for line in &all {
        let end = line.find([' ', '\t', '(']).unwrap_or(line.len());
        let (word, rest) = line.split_at(end);
        match word {
            "ifeq" | "ifneq" | "ifdef" | "ifndef" => {
                let active = condition(word, rest.trim(), &setting);
                open.push(Frame {
                    words: line.clone(),
                    taken: active,
                    active,
                });
            }
            "else" => {
                let frame = open.last_mut().ok_or_else(|| no_start(line))?;
                let rest = rest.trim();
                let (word, rest) = rest.split_once([' ', '\t']).unwrap_or((rest, ""));
                let holds = match word {
                    "" => Active::Yes,
                    word => condition(word, rest.trim(), &setting),
                };
                frame.active = frame.taken.not().and(holds);
                frame.taken = frame.taken.or(holds);
                frame.words += " ";
                frame.words += line;
            }
            "endif" => drop(open.pop().ok_or_else(|| no_start(line))?),
            _ => {
                let unknown = open.iter().filter(|f| f.active == Active::Unknown);
                found.push(Line {
                    text: line.clone(),
                    active: open.iter().fold(Active::Yes, |all, f| all.and(f.active)),
                    unknown: unknown.map(|frame| frame.words.clone()).collect(),
                });
            }
        }
    }
    match open.pop() {
        Some(frame) => Err(format!("`{}` has no `endif`", frame.words)),
        None => Ok(found),
    }
}

fn no_start(line: &str) -> String {
    format!("`{line}` belongs to no `ifeq`, `ifneq`, `ifdef` or `ifndef`")
}

/// Lines without comments and surrounding space, continued ones joined, empty ones
/// dropped. A leading tab is kept: it marks commands.
fn logical_lines(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut line = String::new();
    for part in text.lines() {
        let continued = part.strip_suffix('\\');
        line += match line.is_empty() {
            true => continued.unwrap_or(part),
            false => continued.unwrap_or(part).trim_start(),
        };
        if continued.is_some() {
            line.push(' ');
            continue;
        }
        all.extend(without_comment(&line));
        line.clear();
    }
    all.extend(without_comment(&line));
    all
}

fn without_comment(line: &str) -> Option<String> {
    let text = line.split('#').next()?.trim();
    let tab = if line.starts_with('\t') { "\t" } else { "" };
    (!text.is_empty()).then(|| format!("{tab}{text}"))
}

/// The configuration option that a line itself sets.
fn assigned(line: &str) -> Option<&str> {
    let line = line.strip_prefix("override ").unwrap_or(line);
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (name, _) = line.split_once('=')?;
    let name = name.trim_end_matches([':', '+', '?', '!']).trim();
    name.starts_with("CONFIG_").then_some(name)
}

/// Whether the conditional `word` holds for its arguments.
fn condition(word: &str, rest: &str, setting: &dyn Fn(&str) -> Option<String>) -> Active {
    let (negated, holds) = match word {
        "ifeq" | "ifneq" => {
            let sides = sides(rest);
            let values = sides.and_then(|(a, b)| Some((value(a, setting)?, value(b, setting)?)));
            (word == "ifneq", values.map(|(a, b)| a == b))
        }
        "ifdef" | "ifndef" => {
            let is_option = rest.starts_with("CONFIG_") && is_name(rest);
            let value = is_option.then(|| setting(rest)).flatten();
            (word == "ifndef", value.map(|value| !value.is_empty()))
        }
        _ => return Active::Unknown,
    };
    match holds {
        Some(holds) => Active::from(holds != negated),
        None => Active::Unknown,
    }
}

/// The two sides of `(a,b)`, `"a" "b"` or `'a' 'b'`.
fn sides(rest: &str) -> Option<(&str, &str)> {
    if let Some(inside) = rest.strip_prefix('(').and_then(|r| r.strip_suffix(')')) {
        let mut depth = 0;
        let comma = inside.find(|c| {
            depth += i32::from(matches!(c, '(' | '{')) - i32::from(matches!(c, ')' | '}'));
            depth == 0 && c == ','
        })?;
        return Some((inside[..comma].trim(), inside[comma + 1..].trim()));
    }
    let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let (first, rest) = rest[1..].split_once(quote)?;
    let second = rest.trim().strip_prefix(quote)?.strip_suffix(quote)?;
    Some((first, second))
}

/// `text` with option values substituted; `None` if it uses anything else.
fn value(text: &str, setting: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let mut found = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('$') {
        found += before;
        let (name, behind) = behind.strip_prefix('(')?.split_once(')')?;
        if !name.starts_with("CONFIG_") || !is_name(name) {
            return None;
        }
        found += &setting(name)?;
        rest = behind;
    }
    Some(found + rest)
}

fn is_name(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(option: &str) -> String {
        match option {
            "CONFIG_HVM" => "y",
            "CONFIG_NR_CPUS" => "256",
            _ => "",
        }
        .to_owned()
    }

    /// The lines that make reads, those in question marked.
    fn read(text: &str) -> Result<String, String> {
        let all = lines(text, &setting)?;
        let shown = all.iter().filter_map(|line| match line.active {
            Active::Yes => Some(line.text.clone()),
            Active::No => None,
            Active::Unknown => Some(format!("{}?{}", line.text, line.unknown.join("/"))),
        });
        Ok(shown.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn branches_are_those_of_the_configuration() {
        for (text, lines) in [
            ("ifeq ($(CONFIG_HVM),y)\na\nelse\nb\nendif\nc", "a c"),
            ("ifneq ($(CONFIG_HVM),y)\na\nelse\nb\nendif", "b"),
            (
                "ifdef CONFIG_ARGO\na\nelse ifeq \"$(CONFIG_HVM)\" \"y\"\nb\nelse\nc\nendif",
                "b",
            ),
            ("ifndef CONFIG_ARGO # why\na \\\n  b\nendif", "a  b"),
            (
                "all:\n\telse\n\t# x\n  ifdef CONFIG_ARGO\n\tendif\nendif",
                "all: \telse",
            ),
            (
                "ifeq ($(CONFIG_HVM)$(CONFIG_ARGO),y)\nifeq (256,$(CONFIG_NR_CPUS))\na\nendif\nendif",
                "a",
            ),
            ("ifeq($(CONFIG_ARGO),)\na\nendif", "a"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(lines), "{text}");
        }
    }

    #[test]
    fn what_only_the_build_knows_is_in_question() {
        for (text, lines) in [
            (
                "ifeq ($(debug),y)\na\nelse\nb\nendif\nc",
                "a?ifeq ($(debug),y) b?ifeq ($(debug),y) else c",
            ),
            ("ifdef CONFIG_ARGO\nifdef V\na\nendif\nendif", ""),
            (
                "ifeq ($(V),y)\na\nelse ifdef CONFIG_HVM\nb\nelse\nc\nendif",
                "a?ifeq ($(V),y) b?ifeq ($(V),y) else ifdef CONFIG_HVM",
            ),
            (
                "CONFIG_HVM := n\nifdef CONFIG_HVM\na\nendif",
                "CONFIG_HVM := n a?ifdef CONFIG_HVM",
            ),
            (
                "ifeq ($(filter x,$(CONFIG_HVM)),)\na\nendif",
                "a?ifeq ($(filter x,$(CONFIG_HVM)),)",
            ),
        ] {
            assert_eq!(read(text).as_deref(), Ok(lines), "{text}");
        }
    }

    #[test]
    fn a_conditional_without_start_or_end_is_an_error() {
        let without_start = "belongs to no `ifeq`, `ifneq`, `ifdef` or `ifndef`";
        for (text, message) in [
            ("a\nendif", format!("`endif` {without_start}")),
            ("else", format!("`else` {without_start}")),
            ("ifdef X\na", "`ifdef X` has no `endif`".to_owned()),
        ] {
            assert_eq!(read(text), Err(message));
        }
    }
}
