// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask sanitize`: the tests under memory-error detectors.

use anyhow::Context as _;
use std::process::Command;
use xsplice_testbed::println;
use xsplice_testbed::{command, packages};

/// The detector to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sanitizer {
    /// AddressSanitizer, on the engine and `host-process`.
    Address,
    /// Valgrind, on the same.
    Valgrind,
    /// Miri, on pure Rust: engine, rendezvous, relocations.
    Miri,
}

const ALL: [Sanitizer; 3] = [Sanitizer::Address, Sanitizer::Valgrind, Sanitizer::Miri];

/// Crates that run as machine code.
const NATIVE: [&str; 3] = [
    "--package=xsplice-engine",
    "--package=xsplice-host-process",
    "--package=xsplice-rendezvous",
];

/// Tests with very many cases: they would take an hour under instrumentation.
/// AddressSanitizer covers them.
const EXHAUSTIVE: [&str; 7] = [
    "--skip=every_value_of_every_header_byte",
    "--skip=every_byte_with_each_bit_flipped",
    "--skip=every_opcode",
    "--skip=every_vector_opcode",
    "--skip=every_sequence_goes_as_the_model_says",
    "--skip=cut_off_at_every_length",
    "--skip=a_failure_at_every_point",
];

/// Runs the tests under `only`, or under each of them.
pub(crate) fn run(only: Option<Sanitizer>) -> anyhow::Result<()> {
    for sanitizer in ALL
        .into_iter()
        .filter(|s| only.is_none_or(|only| only == *s))
    {
        println!("{sanitizer:?}");
        let tests = match sanitizer {
            Sanitizer::Address => address(),
            Sanitizer::Valgrind => valgrind(),
            Sanitizer::Miri => miri(),
        };
        command::run(&mut tests?).with_context(|| format!("{sanitizer:?}"))?;
    }
    Ok(())
}

/// A cargo with its own target directory.
fn cargo(arguments: &[&str], directory: &str) -> Command {
    let mut cargo = Command::new("cargo");
    cargo
        .args(arguments)
        .args(["--quiet", "--target-dir", directory]);
    cargo
}

fn address() -> anyhow::Result<Command> {
    nightly(&["--version"], "rustc")?;
    let mut tests = cargo(&["+nightly", "test"], "target/asan");
    tests.args(NATIVE).args(["--lib", "--tests"]);
    tests.env("RUSTFLAGS", "-Zsanitizer=address");
    Ok(tests)
}

fn valgrind() -> anyhow::Result<Command> {
    // The test harness keeps only an interior pointer to its thread's data, which
    // valgrind always reports as possibly lost. Code is modified while it runs.
    // Valgrind can only intercept an allocator in a shared library.
    const RUNNER: &str = "valgrind --quiet --error-exitcode=1 --smc-check=all-non-file \
                          --leak-check=full --errors-for-leak-kinds=definite \
                          --show-leak-kinds=definite";
    packages::ensure(packages::SANITIZERS)?;
    let mut tests = cargo(&["test"], "target/valgrind");
    tests
        .args(NATIVE)
        .args(["--lib", "--tests", "--"])
        .args(EXHAUSTIVE);
    tests.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", RUNNER);
    tests.env("RUSTFLAGS", "-Ctarget-feature=-crt-static");
    Ok(tests)
}

fn miri() -> anyhow::Result<Command> {
    nightly(&["miri", "--version"], "miri,rust-src")?;
    let mut tests = cargo(&["+nightly", "miri", "test"], "target/miri");
    tests.args(["--package=xsplice-engine", "--package=xsplice-rendezvous"]);
    tests.args(["--package=xsplice-reloc", "--lib"]);
    // The tests against the linker run ld, which Miri cannot do.
    for test in ["load", "actions", "arm64", "hold"] {
        tests.args(["--test", test]);
    }
    tests.arg("--").args(EXHAUSTIVE);
    // The decoder that serves as oracle for instruction lengths casts integers to
    // pointers; the engine does not.
    tests.env("PROPTEST_CASES", "4");
    // proptest looks for a file of previous failures.
    tests.env(
        "MIRIFLAGS",
        "-Zmiri-permissive-provenance -Zmiri-disable-isolation",
    );
    Ok(tests)
}

/// Installs the nightly toolchain with `components` if `probe` does not run.
pub(crate) fn nightly(probe: &[&str], components: &str) -> anyhow::Result<()> {
    let mut probe_it = Command::new("cargo");
    if command::output(probe_it.arg("+nightly").args(probe)).is_ok() {
        return Ok(());
    }
    println!("installing the nightly toolchain ({components})");
    let install = ["toolchain", "install", "nightly", "--profile=minimal"];
    command::output(
        Command::new("rustup")
            .args(install)
            .args(["-c", components]),
    )
    .with_context(|| format!("run: rustup toolchain install nightly -c {components}"))?;
    Ok(())
}
