// SPDX-License-Identifier: MIT OR Apache-2.0
//! The executable as it is released: no path of the machine that built it, no symbols, and
//! a list of its crates that `cargo audit bin` reads.

use anyhow::Context as _;
use std::path::Path;
use std::process::Command;
use xsplice_testbed::{command, println, programs};

/// Builds it, and puts it at `path`.
pub(super) fn build(path: &Path) -> anyhow::Result<()> {
    ensure_tool("auditable")?;
    let built = programs::build_released()?;
    let strip = ["--strip-all", "--remove-section=.comment", "-o"];
    std::fs::create_dir_all(path.parent().context("a path without a directory")?)?;
    command::output(Command::new("strip").args(strip).arg(path).arg(built))?;
    Ok(())
}

/// Installs the subcommand `name` of cargo if it is not there.
pub(super) fn ensure_tool(name: &str) -> anyhow::Result<()> {
    let tool = format!("cargo-{name}");
    // Not all of them know --version.
    if command::output(Command::new("cargo").args([name, "--help"])).is_ok() {
        return Ok(());
    }
    println!("installing {tool}");
    let install = ["install", &tool, "--locked"];
    // Into a separate target directory, not this workspace's.
    command::output(Command::new("cargo").args(install).current_dir("/"))?;
    Ok(())
}
