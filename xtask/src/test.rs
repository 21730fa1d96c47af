// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test`: everything that must hold before a change lands.

use crate::suite::{self, Beside, Selection};
use crate::{Architecture, ansible_lint, axe, docs, promtool, publish};
use anyhow::{Context as _, anyhow};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use xsplice_testbed::arm32::ARM32;
use xsplice_testbed::arm64::ARM64;
use xsplice_testbed::keys::Keys;
use xsplice_testbed::shipped::{self, Release};
use xsplice_testbed::{base, cache, command, dom0, packages, println, programs, xen, xl};

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
    /// Of the tests on the real Xen, run only those for this architecture; repeat it for
    /// several.
    #[arg(long, value_enum, conflicts_with = "fast")]
    arch: Vec<Architecture>,
    /// Also check the deny-list against these `xen-syms` files of other versions.
    #[arg(long, value_name = "DIR", conflicts_with = "fast")]
    xen_syms: Option<PathBuf>,
}

/// Test programs that boot no host, so that it does not matter how much time they get.
const WITHOUT_HOST: [&str; 18] = [
    "accounting",
    "alerts",
    "ansible",
    "changed_tree",
    "damaged_payloads",
    "damaged_proofs",
    "failing_host",
    "generated_hooks",
    "inspect",
    "mutate",
    "own_payloads",
    "packages",
    "real_objects",
    "report",
    "series",
    "unpatchable",
    "verify",
    "wrong_payloads",
];

/// Something alone.
#[derive(clap::Subcommand)]
enum Instead {
    /// Check the lints, the crates that are published, the rendezvous under the model
    /// checker, and licences and sources of dependencies.
    Checks,
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
    match &args.instead {
        Some(Instead::Checks) => return check(Extent::All),
        Some(Instead::Mutate {
            count,
            seed,
            faults,
            arch,
        }) => return mutate(*count, *seed, faults, *arch),
        None => {}
    }
    if args.fast {
        check(Extent::Fast)?;
    }
    if args.only.is_empty() {
        test_without_xen()?;
    }
    if args.fast {
        return Ok(());
    }
    let _hypervisors = cache::hold_hypervisors()?;
    let chosen = if args.arch.is_empty() {
        &Architecture::ALL
    } else {
        args.arch.as_slice()
    };
    let mut variables = timed("building what the tests on the real Xen use", || {
        build_programs(chosen)
    })?;
    if args.only.is_empty() && chosen.contains(&Architecture::Arm64) {
        // The engine on running code.
        programs::test_on_arm64("xsplice-host-process", "life")?;
    }
    variables.push(("XSPLICE_SEED", args.seed.to_string().into()));
    if args.all {
        variables.push(("XSPLICE_ALL", "1".into()));
        variables.push(("XSPLICE_DOM0", dom0::description()?.into()));
        variables.push(("XSPLICE_XL", xl::get()?.into()));
        variables.push(("XSPLICE_ANSIBLE_LINT", ansible_lint::get()?.into()));
    }
    if let Some(directory) = &args.xen_syms {
        let directory = directory.canonicalize();
        let directory = directory.context("the directory of xen-syms files")?;
        variables.push(("XSPLICE_XEN_SYMS", directory.into()));
    }
    suite::run("xsplice-e2e", &selection(args, chosen), &variables)
}

/// The names of tests on the real Xen have the architectures that they need; without one
/// they need x86-64.
fn selection<'a>(args: &'a Args, chosen: &[Architecture]) -> Selection<'a> {
    let (with, without) = Architecture::ALL
        .iter()
        .partition(|arch| chosen.contains(arch));
    let names = |architectures: Vec<&Architecture>| {
        let names = architectures.iter().map(|arch| arch.in_test_names());
        names.collect::<Vec<_>>()
    };
    // Not this program itself: the tests may have built it again.
    let checks = || {
        let words = ["cargo", "xtask", "test", "checks"];
        ("checks", words.map(OsString::from).into())
    };
    Selection {
        programs: &args.only,
        with: if chosen.contains(&Architecture::X86_64) {
            Vec::new()
        } else {
            names(with)
        },
        without: names(without),
        beside: Beside {
            first: args.only.is_empty().then(checks),
            programs: &WITHOUT_HOST,
        },
    }
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
    let selection = Selection {
        programs: &["mutate".to_owned()],
        ..Selection::default()
    };
    suite::run("xsplice-e2e", &selection, &variables)
}

/// Documents, formatting and the tests that need neither Xen nor QEMU.
fn test_without_xen() -> anyhow::Result<()> {
    docs::check()?;
    cargo(&["fmt", "--all", "--check"])?;
    timed("tests without Xen", || {
        cargo(&["test", "--workspace", "--exclude", "xsplice-e2e", "--quiet"])
    })
}

/// How much is checked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// What takes no minutes.
    Fast,
    /// All of it.
    All,
}

/// Lints, dependencies, and what is published.
fn check(extent: Extent) -> anyhow::Result<()> {
    timed("lints", || {
        cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ])?;
        check_freestanding()
    })?;
    if extent == Extent::All {
        timed("published crates", publish::check)?;
        timed("the model of the rendezvous", check_model)?;
    }
    check_dependencies(extent)
}

/// Prints how long `work` takes.
fn timed<T>(what: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    let done = work();
    println!("{what}: {:.1} s", start.elapsed().as_secs_f64());
    done
}

/// Builds what the tests of the `chosen` architectures use; returns environment variables
/// with the paths.
fn build_programs(chosen: &[Architecture]) -> anyhow::Result<Vec<(&'static str, OsString)>> {
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
    let mut variables = build_xsplice(chosen)?;
    for arch in chosen {
        let build = |what| anyhow::Ok(OsString::from(xen::build(arch.machine(), what)?));
        variables.extend(match arch {
            Architecture::X86_64 => {
                packages::ensure(packages::ANSIBLE)?;
                base::get()?;
                vec![
                    ("XSPLICE_BASE", base::description()?.into()),
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
                    ("XSPLICE_RUST_BASE", build(&plain)?),
                    ("XSPLICE_DEBUG_BASE", build(&debug)?),
                    ("XSPLICE_LOCKED_BASE", build(&locked)?),
                ]
            }
            Architecture::Arm64 => vec![
                ("XSPLICE_ARM64_BASE", ARM64.description()?.into()),
                ("XSPLICE_ARM64_RUST_BASE", build(&plain)?),
                ("XSPLICE_ARM64_LOCKED_BASE", build(&locked)?),
            ],
            Architecture::Arm32 => vec![
                ("XSPLICE_ARM32_BASE", ARM32.description()?.into()),
                ("XSPLICE_ARM32_RUST_BASE", build(&plain)?),
                ("XSPLICE_ARM32_LOCKED_BASE", build(&locked)?),
            ],
        });
    }
    Ok(variables)
}

/// Builds `xsplice` for this machine, and those for the hosts of the `chosen`
/// architectures; returns environment variables with the paths.
fn build_xsplice(chosen: &[Architecture]) -> anyhow::Result<Vec<(&'static str, OsString)>> {
    std::thread::scope(|scope| {
        // The optimised build ends with minutes of one CPU.
        let foreign = scope.spawn(|| {
            let mut variables: Vec<(&str, OsString)> = Vec::new();
            if chosen.contains(&Architecture::Arm64) {
                variables.push(("XSPLICE_ARM64_BIN", ARM64.build_xsplice()?.into()));
            }
            if chosen.contains(&Architecture::Arm32) {
                variables.push(("XSPLICE_ARM32_BIN", ARM32.build_xsplice()?.into()));
            }
            anyhow::Ok(variables)
        });
        let xsplice = programs::build_xsplice()?;
        let foreign = foreign.join();
        let mut variables =
            foreign.map_err(|_| anyhow!("xsplice for ARM could not be built"))??;
        variables.push(("XSPLICE_BIN", xsplice.into()));
        Ok(variables)
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
fn check_dependencies(extent: Extent) -> anyhow::Result<()> {
    let installed = command::output(Command::new("cargo").args(["deny", "--version"])).is_ok();
    if !installed && extent == Extent::Fast {
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
