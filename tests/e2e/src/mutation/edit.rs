// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kinds of edit. Each looks for lines that it can change; the result need not
//! compile.

use super::Random;

/// An edit of a line: returns the lines that replace it.
type Edit = fn(&Lines, usize) -> Option<Vec<String>>;

const KINDS: [(&str, Edit); 18] = [
    ("constant", constant),
    ("comparison", |lines, at| {
        let pairs = [
            (" < ", " <= "),
            (" == ", " != "),
            (" > ", " >= "),
            (" >= ", " > "),
        ];
        swapped(lines.statement(at)?, &pairs)
    }),
    ("connective", |lines, at| {
        swapped(
            lines.statement(at)?,
            &[(" && ", " || "), (" || ", " && "), (" & ", " | ")],
        )
    }),
    ("arithmetic", |lines, at| {
        swapped(
            lines.statement(at)?,
            &[(" += ", " -= "), (" + ", " - "), (" |= ", " &= ")],
        )
    }),
    ("condition", |lines, at| {
        let line = lines.statement(at)?;
        let inner = line.trim().strip_prefix("if ( ")?.strip_suffix(" )")?;
        Some(vec![line.replace(inner, &format!("!({inner})"))])
    }),
    ("call", |lines, at| {
        lines.behind_statement(at, "printk(\"mutation: %u\\n\", 7U);")
    }),
    ("static local", |lines, at| {
        let added = "{ static unsigned int mutation_count; if ( ++mutation_count > 3 ) printk(\"often\\n\"); }";
        lines.behind_statement(at, added)
    }),
    ("static local with a value", |lines, at| {
        let added = "{ static int mutation_left = 5; if ( mutation_left > 0 && !--mutation_left ) printk(\"done\\n\"); }";
        lines.behind_statement(at, added)
    }),
    ("warning", |lines, at| {
        lines.behind_statement(at, "WARN_ON(!smp_processor_id());")
    }),
    ("removed statement", |lines, at| {
        let line = lines.statement(at)?;
        let call =
            line.trim_end().ends_with(");") && !line.contains('=') && !line.contains("return");
        (call && balanced(line)).then(Vec::new)
    }),
    ("string", |lines, at| {
        let line = lines.statement(at)?;
        let (before, rest) = line.split_once('"')?;
        let letter = rest.chars().next().filter(char::is_ascii_alphabetic)?;
        (!before.contains("asm")).then(|| vec![format!("{before}\"{letter}{rest}")])
    }),
    ("noinline", |lines, at| {
        let line = lines.function(at)?;
        let rest = line.strip_prefix("static ")?;
        let rest = rest.strip_prefix("inline ").unwrap_or(rest);
        (!rest.contains("__init")).then(|| vec![format!("static noinline {rest}")])
    }),
    ("inline", |lines, at| {
        let rest = lines.function(at)?.strip_prefix("static ")?;
        let plain = !rest.contains("inline") && !rest.contains("__init");
        plain.then(|| vec![format!("static always_inline {rest}")])
    }),
    ("no longer static", |lines, at| {
        let rest = lines.function(at)?.strip_prefix("static ")?;
        (!rest.contains("inline")).then(|| vec![rest.to_owned()])
    }),
    ("new function", |lines, at| {
        let added = "static noinline unsigned int mutation_helper(unsigned int n)\n{\n    return n * 3 + smp_processor_id();\n}\n\n";
        let used = "    if ( mutation_helper(5) == 4 )\n        printk(\"helped\\n\");\n";
        lines.added_and_used(at, added, used)
    }),
    ("new table", |lines, at| {
        let added =
            "static const char *const mutation_names[] = { \"one\", \"two\", \"three\" };\n\n";
        let used = "    printk(\"%s\\n\", mutation_names[smp_processor_id() % 3]);\n";
        lines.added_and_used(at, added, used)
    }),
    ("new variable", |lines, at| {
        let used = "    mutation_seen += smp_processor_id();\n";
        lines.added_and_used(at, "unsigned long mutation_seen = 17;\n\n", used)
    }),
    ("function in another section", |lines, at| {
        let line = lines.function(at)?;
        let plain = !line.contains("__init") && !line.contains("inline");
        plain.then(|| vec![format!("__attribute__((cold)) {line}")])
    }),
];

/// Changes a random place of `text`; `None` if the first few kinds find no place.
pub(super) fn apply(text: &str, random: &mut Random) -> Option<(&'static str, String)> {
    const TRIES: usize = 4;
    let lines = Lines::new(text);
    for _ in 0..TRIES {
        let (kind, edit) = random.choose(&KINDS)?;
        let mut places: Vec<usize> = (0..lines.all.len()).collect();
        places.retain(|&at| edit(&lines, at).is_some());
        let Some(&at) = random.choose(&places) else {
            continue;
        };
        let mut new = lines.all.clone();
        // Such an edit covers all lines up to the use of the new symbol.
        let end = match *kind {
            "new function" | "new table" | "new variable" => lines.first_code(at)? + 1,
            _ => at + 1,
        };
        new.splice(at..end, edit(&lines, at)?);
        return Some((kind, new.concat()));
    }
    None
}

struct Lines {
    all: Vec<String>,
    /// Whether each line is in the body of a function that is not boot-only.
    in_body: Vec<bool>,
}

impl Lines {
    fn new(text: &str) -> Self {
        let all: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
        let mut in_body = Vec::new();
        let mut inside = false;
        for (at, line) in all.iter().enumerate() {
            if line.starts_with('}') {
                inside = false;
            }
            in_body.push(inside);
            if line.starts_with('{') {
                let head = all.get(at.saturating_sub(6)..at).unwrap_or_default();
                let start = head.iter().rposition(|l| l.trim().is_empty());
                let head = head.get(start.unwrap_or(0)..).unwrap_or_default().concat();
                inside = head.contains('(') && !head.contains("__init") && !head.contains("__exit");
            }
        }
        Self { all, in_body }
    }

    /// The line `at`, if it is part of a statement.
    fn statement(&self, at: usize) -> Option<&str> {
        let line = self.all.get(at)?;
        let code = self.in_body[at] && line.starts_with("    ");
        let trimmed = line.trim();
        let excluded = ["/*", "*", "#", "//", "case ", "asm", ":"];
        let plain = !excluded.iter().any(|prefix| trimmed.starts_with(prefix));
        (code && plain && !trimmed.ends_with('\\')).then_some(line)
    }

    /// The line `at`, if a function definition starts there.
    fn function(&self, at: usize) -> Option<&str> {
        let line = self.all.get(at)?;
        self.body(at)?;
        Some(line)
    }

    /// The line of the brace that opens the body of the function that starts in line
    /// `at`.
    fn body(&self, at: usize) -> Option<usize> {
        let line = self.all.get(at)?;
        let begins = line.starts_with(|c: char| c.is_ascii_lowercase()) && line.contains('(');
        let other = ["typedef", "struct", "union", "enum", "extern", "asm", "if"];
        let previous = at.checked_sub(1).and_then(|at| self.all.get(at));
        let alone = previous.is_none_or(|previous| {
            previous.trim().is_empty() || previous.trim_end().ends_with("*/")
        });
        if !begins || !alone || line.contains('=') || other.iter().any(|o| line.starts_with(o)) {
            return None;
        }
        let rest = self.all.get(at + 1..(at + 6).min(self.all.len()))?;
        let brace = rest.iter().position(|l| l.starts_with('{'))?;
        let head = self.all.get(at..=at + brace)?.concat();
        let plain = !head.contains(';')
            && !head.contains("__init")
            && !head.contains('#')
            && balanced(&head);
        plain.then_some(at + 1 + brace)
    }

    /// The empty line after the declarations of the function that starts in line
    /// `at`.
    fn first_code(&self, at: usize) -> Option<usize> {
        let body = self.body(at)?;
        let rest = self.all.get(body + 1..)?;
        let length = rest.iter().position(|l| l.starts_with('}'))?;
        let blank = rest
            .get(..length)?
            .iter()
            .position(|l| l.trim().is_empty())?;
        Some(body + 1 + blank)
    }

    /// Puts `added` before the function that starts in line `at`, and `used` into it.
    fn added_and_used(&self, at: usize, added: &str, used: &str) -> Option<Vec<String>> {
        let code = self.first_code(at)?;
        let mut new = vec![format!(
            "#include <xen/lib.h>\n#include <xen/smp.h>\n\n{added}"
        )];
        new.extend_from_slice(&self.all[at..=code]);
        new.push(used.to_owned());
        Some(new)
    }

    /// The statement of line `at`, followed by `added`.
    fn behind_statement(&self, at: usize, added: &str) -> Option<Vec<String>> {
        let line = self.statement(at)?;
        let previous = self.all.get(at.checked_sub(1)?)?.trim();
        // Not the only statement of a condition or a loop, and not a declaration.
        let whole = line.trim_end().ends_with(");") && balanced(line) && !line.contains("return");
        let alone = previous.is_empty() || previous.ends_with(';') || previous.ends_with('{');
        let indent = line.len() - line.trim_start().len();
        let next = self.all.get(at + 1)?.trim();
        let declares =
            next.contains(" = ") || line.trim().split(' ').count() > 1 && line.contains(" = ");
        (whole && alone && !declares)
            .then(|| vec![line.to_owned(), format!("{}{added}\n", " ".repeat(indent))])
    }
}

fn balanced(text: &str) -> bool {
    text.matches('(').count() == text.matches(')').count()
}

fn swapped(line: &str, pairs: &[(&str, &str)]) -> Option<Vec<String>> {
    if line.contains('"') {
        return None;
    }
    let (from, to) = pairs.iter().find(|(from, _)| line.contains(from))?;
    Some(vec![line.replacen(from, to, 1)])
}

/// Replaces the first decimal number by another.
fn constant(lines: &Lines, at: usize) -> Option<Vec<String>> {
    let line = lines.statement(at)?;
    if line.contains('"') {
        return None;
    }
    let bytes = line.as_bytes();
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
    let start = (1..bytes.len()).find(|&at| bytes[at].is_ascii_digit() && !word(bytes[at - 1]))?;
    let length = bytes[start..]
        .iter()
        .take_while(|b| b.is_ascii_digit())
        .count();
    let end = start + length;
    if bytes.get(end).is_some_and(|&b| word(b)) {
        return None;
    }
    let number: u32 = line.get(start..end)?.parse().ok()?;
    Some(vec![format!(
        "{}{}{}",
        &line[..start],
        number.wrapping_add(1),
        &line[end..]
    )])
}
