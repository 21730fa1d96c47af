// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs the test programs of a package in sequence, shows which one runs and how many
//! are left, and prints the time of each.

use anyhow::{Context, bail, ensure};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
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

/// Runs the test programs of `package`, all of them or those named in `only`. A
/// failure does not stop the rest.
///
/// # Errors
/// Names all that failed.
pub(crate) fn run(package: &str, only: &[String], variables: Variables) -> anyhow::Result<()> {
    run_without(package, only, &[], variables)
}

/// [`run`], but not the tests named in `without`.
///
/// # Errors
/// As there.
pub(crate) fn run_without(
    package: &str,
    only: &[String],
    without: &[&str],
    variables: Variables,
) -> anyhow::Result<()> {
    let programs = compile(package)?;
    for name in only {
        let known = programs.iter().map(|program| program.name.as_str());
        ensure!(
            known.clone().any(|known| known == name),
            "there is no test program {name}; there are {}",
            known.collect::<Vec<_>>().join(", ")
        );
    }
    let chosen: Vec<&Program> = programs
        .iter()
        .filter(|program| only.is_empty() || only.contains(&program.name))
        .collect();
    let mut results = Vec::new();
    for (index, program) in chosen.iter().enumerate() {
        println!(
            "test program {} ({} of {})",
            program.name,
            index + 1,
            chosen.len()
        );
        let start = Instant::now();
        let passed = command::run(
            Command::new(&program.executable)
                .arg("--test-threads=1")
                .args(without.iter().flat_map(|name| ["--skip", name]))
                .current_dir(&program.directory)
                .envs(variables.iter().map(|(name, value)| (name, value))),
        );
        results.push((program.name.as_str(), start.elapsed(), passed.is_ok()));
    }
    report(&mut results)
}

/// Prints the table of times, longest first.
fn report(results: &mut [(&str, Duration, bool)]) -> anyhow::Result<()> {
    results.sort_by_key(|(_, time, _)| std::cmp::Reverse(*time));
    println!("{:<24} {:>8}", "test program", "seconds");
    for (name, time, passed) in results.iter() {
        let failed = if *passed { "" } else { "  failed" };
        println!("{name:<24} {:>8.1}{failed}", time.as_secs_f64());
    }
    let total: Duration = results.iter().map(|(_, time, _)| *time).sum();
    println!("{:<24} {:>8.1}", "together", total.as_secs_f64());
    let failed: Vec<&str> = results
        .iter()
        .filter_map(|(name, _, passed)| (!passed).then_some(*name))
        .collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
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
