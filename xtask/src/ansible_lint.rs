// SPDX-License-Identifier: MIT OR Apache-2.0
//! ansible-lint, from the Python package index, in an environment of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_testbed::println;
use xsplice_testbed::{cache, command, packages};

const VERSION: &str = "26.10.1";

/// The directory of its programs, from the cache if possible.
pub(crate) fn get() -> anyhow::Result<PathBuf> {
    packages::ensure(packages::ANSIBLE_LINT)?;
    let recipe = include_str!("ansible_lint.rs");
    let directory = cache::entry("ansible-lint", VERSION, recipe, install)?;
    Ok(directory.join("bin"))
}

fn install(directory: &Path) -> anyhow::Result<()> {
    println!("installing ansible-lint {VERSION}");
    command::output(Command::new("python3").args(["-m", "venv"]).arg(directory))?;
    let mut pip = Command::new(directory.join("bin/pip"));
    pip.args(["install", "--quiet", &format!("ansible-lint=={VERSION}")]);
    command::output(&mut pip).map(drop)
}
