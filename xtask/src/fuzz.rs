// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask fuzz`: fuzzes the engine, and the parsers of the store, with libFuzzer.

use anyhow::{Context, ensure};
use std::path::Path;
use std::process::Command;
use xsplice_testbed::println;
use xsplice_testbed::{base, command};

/// The fuzz targets, with their seed directories.
const TARGETS: [(&str, &str); 6] = [
    ("parse", "fuzz/corpus/payloads"),
    ("relocation", "fuzz/corpus/relocation"),
    ("load", "fuzz/corpus/payloads"),
    ("actions", "fuzz/corpus/actions"),
    ("manifest", "fuzz/corpus/manifest"),
    ("fleet", "fuzz/corpus/fleet"),
];

/// Runs all targets, each for its share of the time. The corpus that the fuzzer finds
/// is kept next to its build. `xen` also tries all values of all header fields of
/// Xen's own test payloads.
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
        // It prints the number of inputs. A slow input is an error too.
        fuzzer.args([&format!("-max_total_time={seconds}"), "-timeout=10"]);
        command::run(fuzzer.args(["-verbosity=0", "-print_final_stats=1"]))?;
    }
    Ok(())
}
