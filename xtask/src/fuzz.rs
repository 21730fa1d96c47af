// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask fuzz`: the engine fed by libFuzzer.

use crate::command;
use anyhow::{Context, ensure};
use std::path::Path;
use std::process::Command;

/// What is fuzzed, and the directory of seeds for it, if it needs any.
const TARGETS: [(&str, Option<&str>); 4] = [
    ("parse", Some("fuzz/corpus/payloads")),
    ("relocation", None),
    ("load", Some("fuzz/corpus/payloads")),
    ("actions", None),
];

/// The tests of the engine, and those on real code and pages, with
/// AddressSanitizer; the targets have it as well.
fn sanitize() -> anyhow::Result<()> {
    let mut tests = Command::new("cargo");
    tests.args(["+nightly", "test", "--quiet", "--target-dir", "target/asan"]);
    tests.args([
        "--package",
        "xsplice-engine",
        "--package",
        "xsplice-inprocess",
    ]);
    tests.args(["--test", "actions", "--test", "load", "--test", "life"]);
    command::run(tests.env("RUSTFLAGS", "-Zsanitizer=address"))
}

/// Fuzzes everything, each target for its share of the time. What the fuzzer
/// learns is kept for the next time, next to its build.
pub(crate) fn run(minutes: u32) -> anyhow::Result<()> {
    let version = Command::new("cargo")
        .args(["+nightly", "fuzz", "--version"])
        .output();
    ensure!(
        version.is_ok_and(|output| output.status.success()),
        "the fuzzer is missing; run: rustup toolchain install nightly && cargo install cargo-fuzz"
    );
    sanitize()?;
    let targets = u32::try_from(TARGETS.len())?;
    let seconds = minutes.checked_mul(60).context("too many minutes")? / targets;
    for (target, seeds) in TARGETS {
        let corpus = Path::new("fuzz/target/corpus").join(target);
        std::fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
        println!("{target}, {seconds} s");
        let mut fuzzer = Command::new("cargo");
        fuzzer.args(["+nightly", "fuzz", "run", "--release", target]);
        fuzzer.arg(&corpus).args(seeds).arg("--");
        // It says how many inputs it tried. Too slow is an error as well.
        fuzzer.args([&format!("-max_total_time={seconds}"), "-timeout=10"]);
        command::run(fuzzer.args(["-verbosity=0", "-print_final_stats=1"]))?;
    }
    Ok(())
}
