// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask mutants`: the code of the engine's crates is changed in one place
//! at a time, and their tests have to notice.

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whose code is changed; each change is tried with these crates' own tests.
const PACKAGES: [&str; 3] = ["xsplice-engine", "xsplice-reloc", "xsplice-rendezvous"];

/// What is changed.
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
    /// How many are tried at a time.
    #[arg(long, default_value_t = 1)]
    jobs: u32,
}

/// What came of it all, in cargo-mutants' own file.
#[derive(Deserialize)]
struct Outcomes {
    outcomes: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    summary: String,
    scenario: serde_json::Value,
}

/// Tries the changes, and says what share of them the tests noticed, and which they
/// did not. What is known to survive is in `.cargo/mutants.toml`, with the reason.
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
    let mut mutants = Command::new("cargo");
    mutants.args(["mutants", "--no-shuffle", "--colors=never"]);
    mutants.arg("--output").arg(output);
    mutants.args(PACKAGES.map(|package| format!("--package={package}")));
    mutants.arg(format!("--jobs={}", args.jobs));
    if let Some(diff) = &args.in_diff {
        mutants.arg("--in-diff").arg(diff);
    }
    for file in &args.file {
        mutants.arg("--file").arg(file);
    }
    if let Some(shard) = &args.shard {
        mutants.arg("--shard").arg(shard);
    }
    // It fails when one survives; what it wrote says more.
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
    let noticed = count("CaughtMutant") + count("Timeout");
    let survived = count("MissedMutant");
    println!("{noticed} of {} changes are noticed", noticed + survived);
    ensure!(status.success(), "{survived} changes are not noticed");
    Ok(())
}
