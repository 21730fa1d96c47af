// SPDX-License-Identifier: MIT OR Apache-2.0
//! The engine: tables in Markdown, and a plot of them.

use crate::{cpus, depth, plot};
use anyhow::Context as _;
use std::process::Command;
use xsplice_testbed::command;
use xsplice_testbed::{print, println};

/// Where the tables go, between these lines, and the plot.
const REPORT: &str = "BENCHMARKS.md";
const BEGIN: &str = "<!-- what `cargo xtask bench engine --write` writes begins here -->\n";
const END: &str = "<!-- it ends here -->\n";
const PLOT: &str = "docs/bench/engine.svg";

/// Measures the engine. The tables are printed, and with `write` put into the
/// report, with a plot next to it.
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
