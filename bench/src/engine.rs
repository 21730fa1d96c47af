// SPDX-License-Identifier: MIT OR Apache-2.0
//! The engine: tables in Markdown, and a plot.

use crate::{cpus, depth, plot};
use anyhow::Context as _;
use std::process::Command;
use xsplice_testbed::command;
use xsplice_testbed::{print, println};

/// The file for the tables, between these lines, and for the plot.
const REPORT: &str = "BENCHMARKS.md";
const BEGIN: &str = "<!-- begin: written by `cargo xtask bench engine --write` -->\n";
const END: &str = "<!-- end -->\n";
const PLOT: &str = "docs/bench/engine.svg";

/// Measures the engine and prints the tables; `write` also puts them into the report,
/// with a plot.
pub(crate) fn run(write: bool) -> anyhow::Result<()> {
    let benchmark = ["--package", "xsplice-host-process", "--bench", "engine"];
    let mut bench = Command::new("cargo");
    let tables = command::output(bench.args(["bench", "--quiet"]).args(benchmark))?;
    let processors = cpus();
    let tables = format!(
        "On {processors} CPUs.\n{}\n{}",
        tables.trim_end(),
        depth::report()?
    );
    print!("{tables}");
    if !write {
        return Ok(());
    }
    std::fs::create_dir_all("docs/bench").context("docs/bench")?;
    std::fs::write(PLOT, plot::svg(&tables)?).context(PLOT)?;
    let report = std::fs::read_to_string(REPORT).context(REPORT)?;
    let (before, rest) = report.split_once(BEGIN).context("no place for tables")?;
    let (_, after) = rest.split_once(END).context("no end of the tables")?;
    let image = format!("![How times grow]({PLOT})\n");
    let report = format!("{before}{BEGIN}\n{image}\n{tables}\n{END}{after}");
    std::fs::write(REPORT, report).context(REPORT)?;
    println!("{REPORT} and {PLOT} are written");
    Ok(())
}
