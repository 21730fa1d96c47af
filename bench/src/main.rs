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

use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    bin_name = "cargo xtask bench",
    about = "Benchmarks of xsplice and its peers, in the same run"
)]
enum Bench {
    /// The generator: from patch to payload, and comparing objects.
    Generator {
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
    Xen,
    /// Loading microcode on our rendezvous, compared with Debian's Xen.
    Microcode,
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn main() -> ExitCode {
    let result = match Bench::parse() {
        Bench::Generator { peer } => generator::run(peer.as_deref()),
        Bench::Engine { write } => engine::run(write),
        Bench::Xen => xen::run(),
        Bench::Microcode => microcode::run(),
    };
    xsplice_testbed::end(result)
}
