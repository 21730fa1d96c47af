// SPDX-License-Identifier: MIT OR Apache-2.0
//! The commands that developers and CI run in this repository: `cargo xtask help`.
#![forbid(unsafe_code)]

mod ansible_lint;
mod axe;
mod demo;
mod docs;
mod fuzz;
mod man;
mod mutants;
mod package;
mod promtool;
mod publish;
mod sanitize;
mod suite;
mod test;
mod versions;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::{Command as Process, ExitCode};
use xsplice_testbed::compiler::Compiler;
use xsplice_testbed::upstream::{self, Variant};
use xsplice_testbed::{Machine, base, cache, command, hypervisor, println, xen};

#[derive(Parser)]
#[command(about = "The commands that developers and CI run in this repository")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Download Debian's Xen, patch it while it runs, and revert it.
    Demo {
        /// The architecture of the emulated host.
        #[arg(long, value_enum, default_value = "x86-64")]
        arch: Architecture,
    },
    /// Run the whole test suite, including the tests that boot a real Xen.
    Test(test::Args),
    /// Download Debian's Xen and rebuild it; print the paths.
    Base {
        /// Look for a newer version even if one is cached.
        #[arg(long, conflicts_with = "arch")]
        update: bool,
        /// The architecture. For ARM it is Debian's source, built with live patching.
        #[arg(long, value_enum, default_value = "x86-64")]
        arch: Architecture,
    },
    /// Debian's Xen with the engine as its live-patch core.
    Xen {
        #[command(subcommand)]
        what: Xen,
    },
    /// Build Xen of several versions, test it, and write docs/versions.md.
    Versions(versions::Args),
    /// Run benchmarks; see `cargo xtask bench --help`.
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on to the benchmarks.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Fuzz the engine.
    Fuzz {
        /// Total time.
        #[arg(long, value_name = "N", default_value_t = 4,
              value_parser = clap::value_parser!(u32).range(1..))]
        minutes: u32,
        /// Try every value of every header field of Xen's own test payloads first.
        #[arg(long)]
        xen: bool,
    },
    /// Run the tests of engine, rendezvous and in-process host under
    /// AddressSanitizer, valgrind and Miri.
    Sanitize {
        /// Use only this one.
        #[arg(value_enum)]
        only: Option<sanitize::Sanitizer>,
    },
    /// Mutation testing of engine, reloc and rendezvous: make one change at a time
    /// and see whether a test fails.
    Mutants(mutants::Args),
    /// Check the documents and build the book from them.
    Docs {
        /// Only check them; this needs no mdbook.
        #[arg(long)]
        check: bool,
    },
    /// Write the manual pages and the completions for shells to target/man.
    Man,
    /// Make packages for Debian, and for RPM, in target/package.
    Package(package::Args),
    /// Show or clear the cache.
    Cache {
        /// Delete everything.
        #[arg(long)]
        clear: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Architecture {
    #[value(name = "x86-64", alias = "x86_64")]
    X86_64,
    #[value(name = "arm64")]
    Arm64,
    #[value(name = "arm32")]
    Arm32,
}

impl Architecture {
    const ALL: [Self; 3] = [Self::X86_64, Self::Arm64, Self::Arm32];

    /// How the names of tests name it.
    const fn in_test_names(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "arm64",
            Self::Arm32 => "arm32",
        }
    }

    /// Its machine.
    const fn machine(self) -> Machine {
        match self {
            Self::X86_64 => Machine::X86_64,
            Self::Arm64 => Machine::Arm64,
            Self::Arm32 => Machine::Arm32,
        }
    }
}

#[derive(Subcommand)]
enum Xen {
    /// Build it; print the file with all paths.
    Build {
        /// The machine that it is for.
        #[arg(long, value_enum, default_value = "x86-64")]
        arch: Architecture,
        /// Build this source tree of Xen 4.17 or later, with its configuration if it has
        /// one, and not Debian's Xen. The tree stays as it is.
        #[arg(long, value_name = "DIR", conflicts_with = "arch")]
        source: Option<PathBuf>,
        /// Build it with this program, gcc or clang.
        #[arg(long, value_name = "PROGRAM", requires = "source")]
        compiler: Option<Compiler>,
        #[command(flatten)]
        build: xen::Build,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo { arch } => demo::run(arch),
        Command::Test(args) => test::run(&args),
        Command::Base { update, arch } => {
            let base = if update {
                base::update()
            } else {
                hypervisor::base(arch.machine())
            };
            base.map(|base| println!("{}", base.summary()))
        }
        Command::Xen {
            what:
                Xen::Build {
                    arch,
                    source,
                    compiler,
                    build,
                },
        } => cache::hold_hypervisors()
            .and_then(|_hypervisors| match source {
                Some(source) => {
                    let compiler = compiler.unwrap_or_default();
                    let settings = Vec::new();
                    upstream::build(&source, &Variant { compiler, settings }, &build)
                }
                None => xen::build(arch.machine(), &build),
            })
            .map(|description| println!("{}", description.display())),
        Command::Versions(args) => versions::run(&args),
        Command::Bench { arguments } => {
            let bench = ["run", "--quiet", "--package", "xsplice-bench", "--"];
            command::run(Process::new("cargo").args(bench).args(arguments))
        }
        Command::Fuzz { minutes, xen } => fuzz::run(minutes, xen),
        Command::Sanitize { only } => sanitize::run(only),
        Command::Mutants(args) => mutants::run(&args),
        Command::Docs { check: true } => docs::check(),
        Command::Docs { check: false } => docs::build(),
        Command::Man => man::run(),
        Command::Package(args) => package::run(&args),
        Command::Cache { clear } => cache::run(clear),
    };
    xsplice_testbed::end(result)
}
