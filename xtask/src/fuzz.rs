// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask fuzz`: the engine fed by libFuzzer.

use anyhow::{Context, ensure};
use std::path::Path;
use std::process::Command;
use xsplice_testbed::println;
use xsplice_testbed::{base, command};

/// What is fuzzed, and the directory of seeds for it.
const TARGETS: [(&str, &str); 4] = [
    ("parse", "fuzz/corpus/payloads"),
    ("relocation", "fuzz/corpus/relocation"),
    ("load", "fuzz/corpus/payloads"),
    ("actions", "fuzz/corpus/actions"),
];

/// Fuzzes everything, each target for its share of the time. What the fuzzer
/// learns is kept for the next time, next to its build. With `xen`, all values of
/// all headers of Xen's own test payloads are tried as well.
pub(crate) fn run(minutes: u32, xen: bool) -> anyhow::Result<()> {
    if xen {
        base::get()?;
        let mut test = Command::new("cargo");
        test.args(["test", "--release", "--package", "xsplice-e2e"]);
        test.args(["--test", "damaged_payloads"]);
        test.env("XSPLICE_BASE", base::description()?);
        command::run(test.env("XSPLICE_ALL", "1"))?;
    }
    let version = Command::new("cargo")
        .args(["+nightly", "fuzz", "--version"])
        .output();
    ensure!(
        version.is_ok_and(|output| output.status.success()),
        "the fuzzer is missing; run: rustup toolchain install nightly && cargo install cargo-fuzz"
    );
    let targets = u32::try_from(TARGETS.len())?;
    let seconds = minutes.checked_mul(60).context("too many minutes")? / targets;
    for (target, seeds) in TARGETS {
        let corpus = Path::new("fuzz/target/corpus").join(target);
        std::fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
        println!("{target}, {seconds} s");
        let mut fuzzer = Command::new("cargo");
        fuzzer.args(["+nightly", "fuzz", "run", "--release", target]);
        fuzzer.arg(&corpus).arg(seeds).arg("--");
        // It says how many inputs it tried. Too slow is an error as well.
        fuzzer.args([&format!("-max_total_time={seconds}"), "-timeout=10"]);
        command::run(fuzzer.args(["-verbosity=0", "-print_final_stats=1"]))?;
    }
    Ok(())
}
