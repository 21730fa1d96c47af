// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench`: benchmarks of xsplice and its peers, in the same run.
#![forbid(unsafe_code)]

mod cost;
mod depth;
mod engine;
mod generator;
mod microcode;
mod plot;
mod xen;

use clap::{Parser, ValueEnum};
use std::process::ExitCode;
use xsplice_testbed::Machine;

#[derive(Parser)]
#[command(
    bin_name = "cargo xtask bench",
    about = "Benchmarks of xsplice and its peers, in the same run"
)]
enum Bench {
    /// The generator: from patch to payload, and comparing objects.
    Generator {
        /// The architecture of the payloads.
        #[arg(long, value_enum, default_value = "x86-64")]
        arch: Arch,
        /// A built livepatch-build-tools to compare with.
        #[arg(long, value_name = "DIR")]
        peer: Option<std::path::PathBuf>,
    },
    /// The engine: loads and actions, by number of functions, symbols and payloads.
    Engine {
        /// Write tables and plot to BENCHMARKS.md and docs/bench.
        #[arg(long)]
        write: bool,
    },
    /// Xen with our engine, compared with Debian's: uploads, windows, size.
    Xen {
        /// The architecture of both.
        #[arg(long, value_enum, default_value = "x86-64")]
        arch: Arch,
    },
    /// Loading microcode on our rendezvous, compared with Debian's Xen.
    Microcode,
}

/// An architecture that payloads are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Arch {
    #[value(name = "x86-64")]
    X86_64,
    #[value(name = "arm64")]
    Arm64,
}

impl Arch {
    const fn machine(self) -> Machine {
        match self {
            Self::X86_64 => Machine::X86_64,
            Self::Arm64 => Machine::Arm64,
        }
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn main() -> ExitCode {
    let result = match Bench::parse() {
        Bench::Generator { arch, peer } => generator::run(arch, peer.as_deref()),
        Bench::Engine { write } => engine::run(write),
        Bench::Xen { arch } => xen::run(arch),
        Bench::Microcode => microcode::run(),
    };
    xsplice_testbed::end(result)
}
