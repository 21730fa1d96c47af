// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes a patched file such that unchanged lines keep their numbers.
//!
//! Code that only moved then compiles to the same bytes. Removed lines become empty
//! ones. Added lines are followed by a `#line` directive, or share a line where no
//! directive is possible.
//!
//! A directive has no effect in a skipped `#if` group, and it is unknown here which
//! groups are skipped, so another directive follows every group that has one.

use crate::patch::PatchedLine;

/// The language of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// C, where a line end is white space.
    C,
    /// Assembly, where a line end ends an instruction.
    Assembly,
}

/// The text of `lines`, in which every original line has its original number.
pub fn numbered(lines: &[PatchedLine], language: Language) -> String {
    let mut writer = Writer {
        text: String::new(),
        number: 1,
        stale: false,
        groups: Vec::new(),
        place: Place::new(language),
    };
    let mut next: Vec<Option<usize>> = Vec::with_capacity(lines.len());
    let mut following = None;
    for line in lines.iter().rev() {
        following = line.original.or(following);
        next.push(following);
    }
    for (line, next) in lines.iter().zip(next.into_iter().rev()) {
        match line.original {
            Some(original) => writer.keep(&line.text, original),
            None => writer.add(&line.text, next),
        }
    }
    writer.text
}

/// A group of lines from `#if` to `#endif`.
struct Group {
    /// Number of open parentheses before it.
    depth: usize,
    /// Whether it contains a `#line`, which may be skipped.
    numbered: bool,
}

struct Writer {
    text: String,
    /// The number of the next line, if no directive was skipped.
    number: usize,
    /// Whether one may have been.
    stale: bool,
    groups: Vec<Group>,
    place: Place,
}

impl Writer {
    fn keep(&mut self, line: &str, original: usize) {
        while self.number < original && !self.stale {
            self.text.push_str(self.place.empty_line());
            self.number += 1;
        }
        if self.number != original || self.stale {
            match conditional(line) {
                // Their own numbers do not matter, and another directive would be
                // needed after them.
                Some(Conditional::Parts | Conditional::Closes) => {
                    self.number = original;
                    self.stale = true;
                }
                _ => self.direct(original),
            }
        }
        self.push(line);
    }

    /// `next` is the original number of the next line that has one.
    fn add(&mut self, line: &str, next: Option<usize>) {
        if self.stale {
            self.direct(self.number);
        }
        let is_room = next.is_none_or(|next| self.number < next);
        if !is_room && self.join(line) {
            self.number -= 1;
        }
        self.push(line);
    }

    fn push(&mut self, line: &str) {
        self.text.push_str(line);
        self.number += 1;
        let conditional = self.place.pass(line);
        match conditional {
            None => {}
            Some(Conditional::Opens) => self.groups.push(Group {
                depth: self.place.depth,
                numbered: false,
            }),
            Some(Conditional::Parts) => {
                if let Some(group) = self.groups.last_mut() {
                    self.place.depth = group.depth;
                    self.stale |= group.numbered;
                }
            }
            Some(Conditional::Closes) => {
                let group = self.groups.pop();
                self.stale |= group.is_some_and(|group| group.numbered);
            }
        }
    }

    /// Emits a directive that the next line has the number `number`, if possible
    /// here.
    fn direct(&mut self, number: usize) {
        let directive = format!("#line {number}\n");
        match self.place.next() {
            Next::Continued => return,
            Next::Comment if self.place.directive => return,
            Next::Comment => {
                self.text.push_str("*/\n");
                self.text.push_str(&directive);
                self.text.push_str("/*");
            }
            Next::Arguments | Next::Free => self.text.push_str(&directive),
        }
        self.number = number;
        self.stale = false;
        for group in &mut self.groups {
            group.numbered = true;
        }
    }

    /// Prepares the text for `line` to be joined to its last line, if that only
    /// changes the number.
    fn join(&mut self, line: &str) -> bool {
        match self.place.next() {
            Next::Continued => {
                let whole = self.text.trim_end();
                let whole = whole.strip_suffix('\\').unwrap_or(whole).len();
                self.text.truncate(whole);
                true
            }
            Next::Comment => self.unbreak(),
            Next::Arguments if !self.place.in_line_comment && !self.place.is_directive(line) => {
                self.unbreak()
            }
            Next::Arguments => false,
            Next::Free => false,
        }
    }

    fn unbreak(&mut self) -> bool {
        let whole = self.text.trim_end_matches(['\n', '\r']).len();
        self.text.truncate(whole);
        self.text.push(' ');
        true
    }
}

/// The context of the next line.
enum Next {
    /// The line before it.
    Continued,
    Comment,
    /// Inside parentheses, which may be a macro's arguments.
    Arguments,
    /// A place where a directive is possible.
    Free,
}

/// The effect of a directive on groups of lines.
enum Conditional {
    Opens,
    Parts,
    Closes,
}

/// The lexical state at the end of a line.
#[derive(Clone)]
struct Place {
    language: Language,
    comment: bool,
    in_line_comment: bool,
    continued: bool,
    quote: Option<char>,
    /// Number of open parentheses.
    depth: usize,
    /// Whether the line, including those that it continues, is a directive.
    directive: bool,
    /// Whether it has anything but blanks and comments.
    started: bool,
}

impl Place {
    fn new(language: Language) -> Self {
        Self {
            language,
            comment: false,
            in_line_comment: false,
            continued: false,
            quote: None,
            depth: 0,
            directive: false,
            started: false,
        }
    }

    fn next(&self) -> Next {
        if self.continued {
            Next::Continued
        } else if self.comment {
            Next::Comment
        } else if self.depth > 0 && !self.directive {
            Next::Arguments
        } else {
            Next::Free
        }
    }

    /// Whether the next line is a directive, if it is `line`.
    fn is_directive(&self, line: &str) -> bool {
        let mut after = self.clone();
        after.pass(line);
        after.directive
    }

    /// A line without effect.
    fn empty_line(&self) -> &'static str {
        if self.continued { "\\\n" } else { "\n" }
    }

    fn pass(&mut self, line: &str) -> Option<Conditional> {
        if !self.continued {
            self.quote = None;
            self.in_line_comment = false;
            if !self.comment {
                self.directive = false;
                self.started = false;
            }
        }
        let line = line.trim_end();
        let was_directive = self.directive;
        let mut code = String::new();
        let mut chars = line.chars().peekable();
        while let Some(c) = chars.next() {
            match (c, self.quote) {
                ('*', None) if self.comment => self.comment = chars.next_if_eq(&'/').is_none(),
                _ if self.comment || self.in_line_comment => {}
                ('\\', Some(_)) => {
                    chars.next();
                }
                (c, Some(quote)) if c == quote => self.quote = None,
                (_, Some(_)) => {}
                ('/', None) if chars.peek() == Some(&'/') => self.in_line_comment = true,
                ('/', None) if chars.next_if_eq(&'*').is_some() => {
                    self.comment = true;
                    code.push(' ');
                }
                (c, None) => self.take(c, &mut code),
            }
        }
        self.continued = line.ends_with('\\');
        // A brace in the first column closes a function: nothing can be open after
        // it.
        if line.starts_with('}') {
            self.depth = 0;
        }
        let begins = self.directive && !was_directive;
        begins.then(|| conditional(&code)).flatten()
    }

    /// Processes a character of code.
    fn take(&mut self, c: char, code: &mut String) {
        if !self.started && c == '#' {
            self.directive = true;
        }
        self.started |= !c.is_whitespace();
        code.push(c);
        match c {
            '"' | '\'' => self.quote = Some(c),
            '(' if !self.directive && self.language == Language::C => self.depth += 1,
            ')' if !self.directive => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

fn conditional(directive: &str) -> Option<Conditional> {
    let rest = directive.trim_start().strip_prefix('#')?.trim_start();
    let word = rest.split(|c: char| !c.is_alphanumeric()).next()?;
    match word {
        "if" | "ifdef" | "ifndef" => Some(Conditional::Opens),
        "else" | "elif" | "elifdef" | "elifndef" => Some(Conditional::Parts),
        "endif" => Some(Conditional::Closes),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
