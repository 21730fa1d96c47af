// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs the test programs of a package, shows which one runs and how many are left, and
//! prints the time of each.

use anyhow::{Context, anyhow, ensure};
use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};
use xsplice_testbed::command;
use xsplice_testbed::println;

/// A compiled test program.
struct Program {
    name: String,
    executable: PathBuf,
    directory: PathBuf,
}

/// Environment variables for test programs.
pub(crate) type Variables<'a> = &'a [(&'a str, OsString)];

/// Which tests to run.
#[derive(Default)]
pub(crate) struct Selection<'a> {
    /// Test programs; none for all.
    pub(crate) programs: &'a [String],
    /// Parts of the names of tests, of which one must be there; none for all.
    pub(crate) with: Vec<&'a str>,
    /// Parts of the names of tests that are left out.
    pub(crate) without: Vec<&'a str>,
    /// What does not care how much time it gets: it runs beside the others, when these leave
    /// a CPU idle.
    pub(crate) beside: Beside<'a>,
}

/// What runs beside the test programs that boot hosts.
#[derive(Default)]
pub(crate) struct Beside<'a> {
    /// Something else than a test program, which comes first: its name, and the words of the
    /// command.
    pub(crate) first: Option<(&'a str, Vec<OsString>)>,
    /// Test programs.
    pub(crate) programs: &'a [&'a str],
}

/// Something to run.
struct Job {
    name: String,
    command: Command,
}

/// How a job ended.
struct Outcome {
    name: String,
    time: Duration,
    passed: bool,
}

/// Runs the selected tests of `package`. A failure does not stop the rest.
///
/// # Errors
/// Names all that failed.
pub(crate) fn run(
    package: &str,
    selection: &Selection<'_>,
    variables: Variables<'_>,
) -> anyhow::Result<()> {
    let programs = compile(package)?;
    let named = selection.programs.iter().map(String::as_str);
    for name in named.chain(selection.beside.programs.iter().copied()) {
        let known = programs.iter().map(|program| program.name.as_str());
        ensure!(
            known.clone().any(|known| known == name),
            "there is no test program {name}; there are {}",
            known.collect::<Vec<_>>().join(", ")
        );
    }
    let chosen = programs.iter().filter(|program| {
        selection.programs.is_empty() || selection.programs.contains(&program.name)
    });
    let (beside, alone): (Vec<&Program>, Vec<&Program>) =
        chosen.partition(|program| selection.beside.programs.contains(&program.name.as_str()));
    let first = selection.beside.first.iter();
    let first = first.map(|(name, words)| Job {
        name: (*name).to_owned(),
        command: idle(words.iter().map(OsString::as_os_str)),
    });
    let beside = beside.into_iter().map(|program| {
        let command = idle([program.executable.as_os_str()]);
        program.job(command, selection, variables)
    });
    let beside: Vec<Job> = first.chain(beside).collect();
    let start = Instant::now();
    let outcomes = std::thread::scope(|scope| {
        let idle = scope.spawn(|| {
            let outcomes = beside.into_iter().map(Job::run_quietly);
            outcomes.collect::<Vec<_>>()
        });
        let mut outcomes = Vec::new();
        for (index, program) in alone.iter().enumerate() {
            let place = format!("{} of {}", index + 1, alone.len());
            println!("test program {} ({place})", program.name);
            let command = Command::new(&program.executable);
            outcomes.push(program.job(command, selection, variables).run());
        }
        let idle = idle.join();
        let idle = idle.map_err(|_| anyhow!("what runs beside the hosts panicked"))?;
        outcomes.extend(idle);
        anyhow::Ok(outcomes)
    })?;
    report(outcomes, start.elapsed())
}

/// A command that only gets time that nobody else wants; its children, too.
fn idle<'a>(words: impl IntoIterator<Item = &'a OsStr>) -> Command {
    let mut command = Command::new("chrt");
    command.args(["--idle", "0"]).args(words);
    command
}

impl Program {
    /// The job to run it, with the `command` that does.
    fn job(
        &self,
        mut command: Command,
        selection: &Selection<'_>,
        variables: Variables<'_>,
    ) -> Job {
        let without = selection.without.iter();
        command
            .arg("--test-threads=1")
            .args(&selection.with)
            .args(without.flat_map(|name| ["--skip", name]))
            .current_dir(&self.directory)
            .envs(variables.iter().map(|(name, value)| (name, value)));
        Job {
            name: self.name.clone(),
            command,
        }
    }
}

impl Job {
    /// Runs it, and shows what it prints.
    fn run(mut self) -> Outcome {
        let start = Instant::now();
        let passed = command::run(&mut self.command).is_ok();
        Outcome {
            name: self.name,
            time: start.elapsed(),
            passed,
        }
    }

    /// Runs it, and shows what it printed when it has ended.
    fn run_quietly(self) -> Outcome {
        let start = Instant::now();
        let (text, passed) = match collect(self.command) {
            Ok((text, status)) => (text, status.success()),
            Err(error) => (format!("it cannot be run: {error}"), false),
        };
        println!("{}, beside the others:\n{}", self.name, text.trim());
        Outcome {
            name: self.name,
            time: start.elapsed(),
            passed,
        }
    }
}

/// Runs `command`; returns what it prints, and how it ended.
fn collect(mut command: Command) -> std::io::Result<(String, ExitStatus)> {
    let (mut printed, writer) = std::io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // Its ends of the pipe.
    drop(command);
    let mut text = Vec::new();
    printed.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok((text, child.wait()?))
}

/// Prints the table of times, longest first.
fn report(mut outcomes: Vec<Outcome>, time: Duration) -> anyhow::Result<()> {
    outcomes.sort_by_key(|outcome| std::cmp::Reverse(outcome.time));
    println!("{:<24} {:>8}", "test program", "seconds");
    for Outcome { name, time, passed } in &outcomes {
        let failed = if *passed { "" } else { "  failed" };
        println!("{name:<24} {:>8.1}{failed}", time.as_secs_f64());
    }
    println!("{:<24} {:>8.1}", "together", time.as_secs_f64());
    let failed = outcomes.iter().filter(|outcome| !outcome.passed);
    let failed: Vec<&str> = failed.map(|outcome| outcome.name.as_str()).collect();
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Compiles the test programs of `package`, sorted by name.
fn compile(package: &str) -> anyhow::Result<Vec<Program>> {
    let messages = command::output(Command::new("cargo").args([
        "test",
        "--no-run",
        "--quiet",
        "--message-format=json",
        "--package",
        package,
    ]))?;
    let mut programs = Vec::new();
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let Some(executable) = message["executable"].as_str() else {
            continue;
        };
        if message["profile"]["test"] != true {
            continue;
        }
        let manifest = message["manifest_path"].as_str().map(PathBuf::from);
        let directory = manifest.as_deref().and_then(|path| path.parent());
        programs.push(Program {
            name: message["target"]["name"]
                .as_str()
                .context("cargo names no target")?
                .to_owned(),
            executable: executable.into(),
            directory: directory.context("cargo names no manifest")?.to_owned(),
        });
    }
    ensure!(!programs.is_empty(), "{package} has no test programs");
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_started_has_failed() {
        let job = |program: &str| Job {
            name: program.to_owned(),
            command: Command::new(program),
        };
        assert!(job("true").run_quietly().passed);
        assert!(!job("false").run_quietly().passed);
        assert!(!job("/there/is/none").run_quietly().passed);
    }
}
