// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test`: everything that must hold before a change lands.

use crate::{Architecture, axe, docs, promtool, publish, suite};
use anyhow::{Context as _, anyhow};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_testbed::arm32::ARM32;
use xsplice_testbed::arm64::ARM64;
use xsplice_testbed::keys::Keys;
use xsplice_testbed::shipped::{self, Release};
use xsplice_testbed::{Machine, base, cache, command, dom0, packages, println, programs, xen, xl};

/// What to run.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    instead: Option<Instead>,
    /// Skip the tests that need Xen or QEMU.
    #[arg(long, conflicts_with_all = ["all", "only"])]
    fast: bool,
    /// Run exhaustive tests in full instead of a sample; takes hours.
    #[arg(long)]
    all: bool,
    /// Seed for the samples.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Run only this test program on the real Xen; repeat it for several.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Also check the deny-list against these `xen-syms` files of other versions.
    #[arg(long, value_name = "DIR", conflicts_with = "fast")]
    xen_syms: Option<PathBuf>,
}

/// A single test, longer than in the suite.
#[derive(clap::Subcommand)]
enum Instead {
    /// Make random edits to the hypervisor's source, and compare the generator's
    /// result for each with a real build.
    Mutate {
        /// Number of edits.
        #[arg(long, value_name = "N", default_value_t = 200)]
        count: u64,
        /// Seed for the edits.
        #[arg(long, value_name = "S", default_value_t = 1)]
        seed: u64,
        /// Where to keep patches that led to a wrong payload.
        #[arg(long, value_name = "DIR", default_value = "target/mutations")]
        faults: PathBuf,
        /// The architecture of the hypervisor.
        #[arg(long, value_enum, default_value = "x86-64")]
        arch: Architecture,
    },
}

/// Runs the checks and tests; without `fast`, those on the real Xen too.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    packages::ensure(packages::TESTS)?;
    if let Some(Instead::Mutate {
        count,
        seed,
        faults,
        arch,
    }) = &args.instead
    {
        return mutate(*count, *seed, faults, *arch);
    }
    if args.only.is_empty() {
        check_without_xen(args.fast)?;
    }
    if args.fast {
        return Ok(());
    }
    let _hypervisors = cache::hold_hypervisors()?;
    let mut variables = std::thread::scope(|scope| {
        // It takes a minute of one CPU.
        let model = args.only.is_empty().then(|| scope.spawn(check_model));
        let programs = build_programs()?;
        if args.only.is_empty() {
            // The engine on running code.
            programs::test_on_arm64("xsplice-host-process", "life")?;
        }
        if let Some(model) = model {
            let model = model.join();
            model.map_err(|_| anyhow!("the model could not be checked"))??;
        }
        anyhow::Ok(programs)
    })?;
    variables.push(("XSPLICE_SEED", args.seed.to_string().into()));
    if args.all {
        variables.push(("XSPLICE_ALL", "1".into()));
        variables.push(("XSPLICE_DOM0", dom0::description()?.into()));
        variables.push(("XSPLICE_XL", xl::get()?.into()));
    }
    if let Some(directory) = &args.xen_syms {
        let directory = directory.canonicalize();
        let directory = directory.context("the directory of xen-syms files")?;
        variables.push(("XSPLICE_XEN_SYMS", directory.into()));
    }
    suite::run("xsplice-e2e", &args.only, &variables)
}

fn mutate(count: u64, seed: u64, faults: &Path, arch: Architecture) -> anyhow::Result<()> {
    std::fs::create_dir_all(faults)?;
    let base = match arch {
        Architecture::X86_64 => base::description()?,
        Architecture::Arm64 => ARM64.description()?,
        Architecture::Arm32 => ARM32.description()?,
    };
    let variables = [
        ("XSPLICE_BIN", programs::build_xsplice()?.into()),
        ("XSPLICE_BASE", base.into()),
        ("XSPLICE_SEED", seed.to_string().into()),
        ("XSPLICE_MUTATIONS", count.to_string().into()),
        ("XSPLICE_FAULTS", faults.canonicalize()?.into()),
    ];
    suite::run("xsplice-e2e", &["mutate".to_owned()], &variables)
}

/// Documents, formatting, lints, dependencies and the tests that need neither Xen nor QEMU.
fn check_without_xen(fast: bool) -> anyhow::Result<()> {
    docs::check()?;
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ])?;
    check_freestanding()?;
    cargo(&["test", "--workspace", "--exclude", "xsplice-e2e", "--quiet"])?;
    if !fast {
        publish::check()?;
    }
    check_dependencies(fast)
}

/// Builds what the tests on the real Xen use; returns environment variables with the
/// paths.
fn build_programs() -> anyhow::Result<Vec<(&'static str, OsString)>> {
    packages::ensure(packages::ANSIBLE)?;
    let (xsplice, arm64, arm32) = build_xsplice()?;
    base::get()?;
    // Only what is built for tests trusts these.
    let keys = Keys {
        directory: Some("tests/keys/trusted".into()),
        ..Keys::NONE
    };
    let plain = xen::Build::new(xen::Engine::Rust);
    let debug = xen::Build {
        debug: true,
        microcode: true,
        keys: keys.clone(),
        ..plain.clone()
    };
    let locked = xen::Build {
        keys: Keys {
            lock_signatures: true,
            ..keys
        },
        ..plain.clone()
    };
    let build = |what| xen::build(Machine::X86_64, what);
    let build_arm64 = |what| xen::build(Machine::Arm64, what);
    let build_arm32 = |what| xen::build(Machine::Arm32, what);
    Ok(vec![
        ("XSPLICE_BIN", xsplice.into()),
        ("XSPLICE_BASE", base::description()?.into()),
        ("XSPLICE_ARM64_BIN", arm64.into()),
        ("XSPLICE_ARM64_BASE", ARM64.description()?.into()),
        ("XSPLICE_ARM64_RUST_BASE", build_arm64(&plain)?.into()),
        ("XSPLICE_ARM64_LOCKED_BASE", build_arm64(&locked)?.into()),
        ("XSPLICE_ARM32_BIN", arm32.into()),
        ("XSPLICE_ARM32_BASE", ARM32.description()?.into()),
        ("XSPLICE_ARM32_RUST_BASE", build_arm32(&plain)?.into()),
        ("XSPLICE_ARM32_LOCKED_BASE", build_arm32(&locked)?.into()),
        ("XSPLICE_AXE", axe::get()?.into()),
        ("XSPLICE_PROMTOOL", promtool::get()?.into()),
        (
            "XSPLICE_TRIXIE",
            shipped::description(Release::Trixie)?.into(),
        ),
        (
            "XSPLICE_BULLSEYE",
            shipped::description(Release::Bullseye)?.into(),
        ),
        ("XSPLICE_RUST_BASE", build(&plain)?.into()),
        ("XSPLICE_DEBUG_BASE", build(&debug)?.into()),
        ("XSPLICE_LOCKED_BASE", build(&locked)?.into()),
    ])
}

/// Builds `xsplice` for this machine, ARM64 and ARM32; returns the paths.
fn build_xsplice() -> anyhow::Result<(PathBuf, PathBuf, PathBuf)> {
    std::thread::scope(|scope| {
        // The optimised build ends with minutes of one CPU.
        let foreign = scope.spawn(|| anyhow::Ok((ARM64.build_xsplice()?, ARM32.build_xsplice()?)));
        let xsplice = programs::build_xsplice()?;
        let foreign = foreign.join();
        let foreign = foreign.map_err(|_| anyhow!("xsplice for ARM could not be built"))?;
        let (arm64, arm32) = foreign?;
        Ok((xsplice, arm64, arm32))
    })
}

/// Checks that hypervisor code compiles for a target without an operating system.
fn check_freestanding() -> anyhow::Result<()> {
    const TARGET: &str = "x86_64-unknown-none";
    let print = ["--print", "target-libdir", "--target", TARGET];
    let library = command::output(Command::new("rustc").args(print))?;
    if !Path::new(library.trim()).exists() {
        println!("installing the Rust target {TARGET}");
        let added = command::output(Command::new("rustup").args(["target", "add", TARGET]));
        if let Err(error) = added {
            // Building Xen with the engine, with Debian's compiler, also checks this.
            println!("{error:#}\nwithout {TARGET} this is only checked when Xen is built");
            return Ok(());
        }
    }
    let packages = [
        "abi",
        "reloc",
        "signature",
        "engine",
        "engine-c",
        "rendezvous",
    ];
    let packages = packages.map(|name| format!("--package=xsplice-{name}"));
    let mut command = Command::new("cargo");
    command.args(["check", "--quiet", "--target", TARGET]);
    command::run(command.args(packages))
}

/// The rendezvous under the model checker.
fn check_model() -> anyhow::Result<()> {
    let mut command = Command::new("cargo");
    command.args([
        "test",
        "--quiet",
        "--release",
        "--package",
        "xsplice-rendezvous",
    ]);
    // A separate directory: the flag would make cargo recompile everything else.
    command.args(["--test", "loom", "--target-dir", "target/loom"]);
    command::run(command.env("RUSTFLAGS", "--cfg loom"))
}

/// Checks licences and sources of dependencies. The checker is not part of a Rust
/// toolchain, and building it takes minutes, so `--fast` does not.
fn check_dependencies(fast: bool) -> anyhow::Result<()> {
    let installed = command::output(Command::new("cargo").args(["deny", "--version"])).is_ok();
    if !installed && fast {
        println!("cargo-deny is not installed: dependencies are only checked without --fast");
        return Ok(());
    }
    if !installed {
        println!("installing cargo-deny");
        // Into a separate target directory, not this workspace's.
        command::output(
            Command::new("cargo")
                .args(["install", "cargo-deny", "--locked"])
                .current_dir("/"),
        )?;
    }
    cargo(&[
        "deny",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ])
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    command::run(Command::new("cargo").args(arguments))
}
