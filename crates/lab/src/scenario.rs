// SPDX-License-Identifier: MIT OR Apache-2.0
//! Scenarios: text files of commands for a lab host, with expectations.
//!
//! ```text
//! # Lines that start with '#' are comments.
//! put fix.livepatch /lab/fix.livepatch
//! $ xsplice load /lab/fix.livepatch
//! > applied
//! $ xsplice load /lab/fix.livepatch
//! = 1
//! ! already loaded
//! console livepatch: fix finished APPLY with rc=0
//! ```
//!
//! `put FILE PLACE` copies a host file, relative to the scenario's directory, into
//! dom0. `$ COMMAND` runs a command in dom0; words are separated by blanks, except
//! within `'` or `"`. The lines after it are expectations: `= CODE` an exit code
//! (default 0), `> TEXT` and `! TEXT` text in its standard output and standard error.
//! `console TEXT` expects text on the console.

use crate::host::{Error, Host};
use crate::protocol::Output;
use std::path::Path;

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Copy a file.
    Put {
        /// From the scenario's directory.
        from: String,
        /// In dom0.
        to: String,
    },
    /// Run a command.
    Run {
        /// The program and its arguments.
        argv: Vec<String>,
        /// The exit code that it must have.
        code: i32,
        /// Texts that its standard output must have.
        stdout: Vec<String>,
        /// Texts that its standard error must have.
        stderr: Vec<String>,
    },
    /// Expect a text on the console.
    Console(String),
}

impl Step {
    /// A command without expectations.
    const fn run(argv: Vec<String>) -> Self {
        Self::Run {
            argv,
            code: 0,
            stdout: Vec::new(),
            stderr: Vec::new(),
        }
    }

    /// Adds what a command is expected to do. Returns what is wrong, if something is.
    fn expect(&mut self, word: &str, rest: &str) -> Result<(), &'static str> {
        let Self::Run {
            code,
            stdout,
            stderr,
            ..
        } = self
        else {
            return Err(NO_COMMAND);
        };
        match word {
            "=" => *code = rest.parse().map_err(|_| "an exit code is a number")?,
            ">" => stdout.push(rest.to_owned()),
            _ => stderr.push(rest.to_owned()),
        }
        Ok(())
    }
}

/// An expectation belongs to the command before it.
const NO_COMMAND: &str = "there is no command before this expectation";

/// A scenario that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ParseError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

/// Reads a scenario; each step comes with its line.
///
/// # Errors
/// The first line that is none of the above.
pub fn parse(text: &str) -> Result<Vec<(usize, Step)>, ParseError> {
    let mut steps: Vec<(usize, Step)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let error = |reason: &str| ParseError {
            line: index + 1,
            reason: reason.to_owned(),
        };
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match word {
            "" => {}
            _ if word.starts_with('#') => {}
            "put" => {
                let (from, to) = rest
                    .split_once(char::is_whitespace)
                    .ok_or_else(|| error("put FILE PLACE"))?;
                let step = Step::Put {
                    from: from.to_owned(),
                    to: to.trim().to_owned(),
                };
                steps.push((index + 1, step));
            }
            "$" => {
                let argv = words(rest).ok_or_else(|| error("a quote is not closed"))?;
                if argv.is_empty() {
                    return Err(error("there is no command"));
                }
                steps.push((index + 1, Step::run(argv)));
            }
            "console" => steps.push((index + 1, Step::Console(rest.to_owned()))),
            "=" | ">" | "!" => {
                let command = steps.last_mut().map(|(_, step)| step);
                let command = command.ok_or(NO_COMMAND);
                let expected = command.and_then(|step| step.expect(word, rest));
                expected.map_err(error)?;
            }
            _ => return Err(error("expected put, $, =, >, ! or console")),
        }
    }
    Ok(steps)
}

/// The words of a command; `None` if a quote is not closed.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match quote {
            Some(q) if q == c => quote = None,
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// The result of a step.
#[derive(Debug, Clone, serde::Serialize, schemars::JsonSchema)]
pub struct StepResult {
    /// Line of the scenario.
    pub line: usize,
    /// The step in words.
    pub what: String,
    /// The result of the command, if it is one.
    pub output: Option<Output>,
    /// Every expectation that was not met.
    pub failures: Vec<String>,
}

/// Runs `step` on `host`; `directory` is the scenario's.
///
/// # Errors
/// If the host is lost, or a file cannot be read.
pub fn run_step(
    host: &mut Host,
    directory: &Path,
    line: usize,
    step: &Step,
) -> Result<StepResult, Error> {
    let mut result = StepResult {
        line,
        what: String::new(),
        output: None,
        failures: Vec::new(),
    };
    match step {
        Step::Put { from, to } => {
            result.what = format!("put {from} {to}");
            let path = directory.join(from);
            let data = std::fs::read(&path).map_err(|error| Error::File {
                path: path.display().to_string(),
                error,
            })?;
            host.put(to, &data)?;
        }
        Step::Run {
            argv,
            code,
            stdout,
            stderr,
        } => {
            result.what = argv.join(" ");
            let output = host.run(argv)?;
            result.failures = unmet(&output, *code, stdout, stderr);
            result.output = Some(output);
        }
        Step::Console(text) => {
            result.what = format!("console {text}");
            if !host.console().contains(text.as_str()) {
                result
                    .failures
                    .push(format!("expected {text:?} on the console"));
            }
        }
    }
    Ok(result)
}

/// The expectations that a command did not meet.
fn unmet(output: &Output, code: i32, stdout: &[String], stderr: &[String]) -> Vec<String> {
    let mut failures = Vec::new();
    if output.code != Some(code) {
        let got = output.code.map_or("a signal".to_owned(), |c| c.to_string());
        failures.push(format!("expected exit code {code}, got {got}"));
    }
    for (texts, stream, name) in [
        (stdout, &output.stdout, "standard output"),
        (stderr, &output.stderr, "standard error"),
    ] {
        let missing = texts.iter().filter(|text| !stream.contains(text.as_str()));
        failures.extend(missing.map(|text| format!("expected {text:?} in {name}, got {stream:?}")));
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_apply_to_the_command_before_them() {
        let steps =
            parse("# c\nput a /b\n$ xsplice list\n= 1\n> one\n! two\nconsole x y\n").unwrap();
        assert_eq!(steps.len(), 3);
        assert_eq!(
            steps[1],
            (
                3,
                Step::Run {
                    argv: vec!["xsplice".into(), "list".into()],
                    code: 1,
                    stdout: vec!["one".into()],
                    stderr: vec!["two".into()],
                }
            )
        );
        assert_eq!(steps[2], (7, Step::Console("x y".into())));
    }

    #[test]
    fn quotes_group_words() {
        assert_eq!(words("a 'b c' \"\" d'e'").unwrap(), ["a", "b c", "", "de"]);
        assert_eq!(words("a 'b"), None);
    }

    #[test]
    fn a_bad_line_is_named() {
        assert_eq!(parse("\n> text").unwrap_err().line, 2);
        assert_eq!(parse("$ ls\nwhat").unwrap_err().line, 2);
        assert_eq!(parse("$").unwrap_err().line, 1);
    }
}
