// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask mutants`: changes the code of the engine's crates in one place at a
//! time; their tests must catch it.

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_testbed::command;
use xsplice_testbed::println;

/// The crates to mutate; each change is tried with these crates' own tests.
const PACKAGES: [&str; 3] = ["xsplice-engine", "xsplice-reloc", "xsplice-rendezvous"];

/// Which changes to try.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only what this diff touches.
    #[arg(long, value_name = "FILE")]
    in_diff: Option<PathBuf>,
    /// Only these files, by a pattern; repeat it for several.
    #[arg(long, value_name = "GLOB")]
    file: Vec<String>,
    /// Only one part of it all, such as 0/8.
    #[arg(long, value_name = "K/N")]
    shard: Option<String>,
    /// Only so many, chosen by the seed.
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Which of them `--sample` chooses.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "sample")]
    seed: u64,
    /// Number of parallel jobs.
    #[arg(long, default_value_t = 1)]
    jobs: u32,
}

/// The outcome, from cargo-mutants' own file.
#[derive(Deserialize)]
struct Outcomes {
    outcomes: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    summary: String,
    scenario: serde_json::Value,
}

/// Tries the changes, and reports what share of them the tests caught, and which they
/// missed. Known survivors are in `.cargo/mutants.toml`, with the reason.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let version = Command::new("cargo")
        .args(["mutants", "--version"])
        .output();
    ensure!(
        version.is_ok_and(|output| output.status.success()),
        "cargo-mutants is missing; run: cargo install --locked cargo-mutants"
    );
    let output = Path::new("target/mutants");
    std::fs::create_dir_all(output)?;
    let mut mutants = mutants(args);
    if let Some(count) = args.sample {
        let all = command::output(mutants.arg("--list"))?;
        mutants = self::mutants(args);
        for name in sample(all.lines(), count, args.seed) {
            mutants.arg("--re").arg(exactly(name));
        }
    }
    mutants.arg("--output").arg(output);
    mutants.arg(format!("--jobs={}", args.jobs));
    // It fails if one survives; its output file has the details.
    let status = mutants.status().context("cargo mutants")?;
    let outcomes = output.join("mutants.out/outcomes.json");
    let text = std::fs::read_to_string(&outcomes)
        .with_context(|| format!("cargo mutants ended with {status}, without an outcome"))?;
    let Outcomes { outcomes } = serde_json::from_str(&text).context("outcomes.json")?;
    let tried = outcomes.iter().filter(|o| o.scenario != "Baseline");
    let mut counts = BTreeMap::new();
    for outcome in tried {
        *counts.entry(outcome.summary.as_str()).or_insert(0_u32) += 1;
    }
    let count = |summary| counts.get(summary).copied().unwrap_or(0);
    let (caught, endless) = (count("CaughtMutant"), count("Timeout"));
    let (missed, unviable) = (count("MissedMutant"), count("Unviable"));
    println!(
        "{} of {} changes are caught ({caught} by a test, {endless} by a test that does not end); \
         {unviable} more do not compile",
        caught + endless,
        caught + endless + missed
    );
    ensure!(status.success(), "{missed} changes are not caught");
    Ok(())
}

/// `cargo mutants` for the selected changes.
fn mutants(args: &Args) -> Command {
    let mut mutants = Command::new("cargo");
    mutants.args(["mutants", "--no-shuffle", "--colors=never"]);
    mutants.args(PACKAGES.map(|package| format!("--package={package}")));
    if let Some(diff) = &args.in_diff {
        mutants.arg("--in-diff").arg(diff);
    }
    for file in &args.file {
        mutants.arg("--file").arg(file);
    }
    if let Some(shard) = &args.shard {
        mutants.arg("--shard").arg(shard);
    }
    mutants
}

/// `count` of the names, in order. The choice depends on the seed and on each name,
/// so one more or less name changes little.
fn sample<'n>(names: impl Iterator<Item = &'n str>, count: usize, seed: u64) -> Vec<&'n str> {
    let rank = |name: &str| {
        let digest = Sha256::new().chain_update(seed.to_le_bytes());
        digest.chain_update(name).finalize()
    };
    let mut ranked: Vec<_> = names
        .enumerate()
        .map(|(at, name)| (rank(name), at, name))
        .collect();
    ranked.sort_unstable();
    ranked.truncate(count);
    ranked.sort_unstable_by_key(|(_, at, _)| *at);
    ranked.into_iter().map(|(_, _, name)| name).collect()
}

/// A regular expression that matches exactly this text.
fn exactly(text: &str) -> String {
    let escaped = text.chars().flat_map(|c| {
        let special = r"\.+*?()|[]{}^$#&-~".contains(c).then_some('\\');
        special.into_iter().chain([c])
    });
    format!("^{}$", escaped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::{exactly, sample};

    #[test]
    fn a_sample_depends_on_the_seed_and_little_on_what_is_new() {
        let names: Vec<String> = (0..100).map(|n| format!("mutant {n}")).collect();
        let choose = |names: &[String], seed| -> Vec<String> {
            let names = names.iter().map(String::as_str);
            sample(names, 10, seed)
                .into_iter()
                .map(str::to_owned)
                .collect()
        };
        let one = choose(&names, 1);
        assert_eq!(one.len(), 10);
        assert_eq!(one, choose(&names, 1));
        assert_ne!(one, choose(&names, 2));
        let fewer = choose(&names[..99], 1);
        let kept = one.iter().filter(|name| fewer.contains(name)).count();
        assert!(kept >= 9, "{one:?} {fewer:?}");
        assert_eq!(choose(&names[..5], 1), names[..5]);
    }

    #[test]
    fn names_of_mutants_are_matched_literally() {
        assert_eq!(exactly("a.rs:1: f() -> x"), r"^a\.rs:1: f\(\) \-> x$");
    }
}
