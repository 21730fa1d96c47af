// SPDX-License-Identifier: MIT OR Apache-2.0
//! What compilers said, as far as it helps: one missing semicolon in a header has
//! hundreds of them say the same.

use crate::code::Code;
use crate::problem::{Problem, Refused};

/// How many errors of a file are shown.
const ERRORS: usize = 5;
/// How many lines are, of a file.
const LINES: usize = 60;
/// How many files.
const FILES: usize = 5;

/// The refusal, with the first errors of the first files that do not compile, and how
/// many more there are.
pub(crate) fn bounded(refused: Refused) -> Refused {
    let mut problems = Vec::new();
    let (mut shown, mut more) = (0, 0);
    for problem in refused.0 {
        if problem.code != Code::DoesNotCompile {
            problems.push(problem);
        } else if shown < FILES {
            shown += 1;
            problems.push(Problem {
                message: first(&problem.message),
                ..problem
            });
        } else {
            more += 1;
        }
    }
    if more > 0 {
        let message = match more {
            1 => "1 more file does not compile".to_owned(),
            _ => format!("{more} more files do not compile"),
        };
        problems.push(Problem::new(Code::DoesNotCompile, "compiler", message));
    }
    Refused(problems)
}

/// What is said up to the last error that is shown, and how much more there is.
fn first(said: &str) -> String {
    let lines: Vec<&str> = said.lines().collect();
    let is_error =
        |line: &str| [": error: ", ": fatal error: ", ": Error: "].map(|e| line.contains(e));
    let errors = lines.iter().enumerate();
    let errors = errors.filter(|(_, line)| is_error(line).contains(&true));
    let errors: Vec<usize> = errors.map(|(index, _)| index).collect();
    let end = errors
        .get(ERRORS)
        .copied()
        .unwrap_or(lines.len())
        .min(LINES);
    let more = match errors.iter().filter(|&&error| error >= end).count() {
        _ if end >= lines.len() => return said.to_owned(),
        0 => format!("{} more lines", lines.len() - end),
        1 => "1 more error".to_owned(),
        errors => format!("{errors} more errors"),
    };
    format!("{}\n... and {more}", lines[..end].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// What gcc says of a function that uses `names` names that nobody declares.
    fn gcc_says(names: usize) -> String {
        let directory = tempfile::tempdir().expect("a directory");
        let source = directory.path().join("x.c");
        let uses: String = (0..names).map(|i| format!("    name_{i} = 0;\n")).collect();
        std::fs::write(&source, format!("void f(void)\n{{\n{uses}}}\n")).expect("written");
        let gcc = Command::new("gcc")
            .args(["-fsyntax-only", "x.c"])
            .current_dir(directory.path())
            .output()
            .expect("this test needs gcc");
        assert!(!gcc.status.success());
        String::from_utf8_lossy(&gcc.stderr).into_owned()
    }

    fn problem(file: usize, said: &str) -> Problem {
        let place = format!("common/{file}.c");
        Problem::new(
            Code::DoesNotCompile,
            place,
            format!("does not compile:\n{said}"),
        )
    }

    #[test]
    fn the_first_errors_of_a_file_are_shown_and_the_others_counted() {
        let Refused(problems) = bounded(Refused(vec![problem(0, &gcc_says(40))]));
        let message = &problems[0].message;
        assert!(
            message.contains("name_0") && message.contains("name_4"),
            "{message}"
        );
        assert!(!message.contains("name_5"), "{message}");
        assert!(message.ends_with("\n... and 35 more errors"), "{message}");
        let few = problem(0, &gcc_says(5));
        let Refused(problems) = bounded(Refused(vec![few.clone()]));
        assert_eq!(problems, [few]);
    }

    #[test]
    fn output_without_errors_is_cut_off_too() {
        let said = "note: here we are\n".repeat(1000);
        let Refused(problems) = bounded(Refused(vec![problem(0, &said)]));
        let message = &problems[0].message;
        assert_eq!(message.lines().count(), LINES + 1);
        assert!(message.ends_with("... and 941 more lines"), "{message}");
    }

    #[test]
    fn the_first_files_are_shown_and_the_others_counted() {
        let other = Problem::new(Code::BootOnly, "common/boot.c", "it changed");
        let mut all: Vec<Problem> = (0..300)
            .map(|file| problem(file, "x.c:1: error: e"))
            .collect();
        all.push(other.clone());
        let Refused(problems) = bounded(Refused(all));
        assert_eq!(problems.len(), FILES + 2);
        assert!(problems.contains(&other), "{problems:?}");
        assert_eq!(problems[FILES + 1].message, "295 more files do not compile");
    }
}
