// SPDX-License-Identifier: MIT OR Apache-2.0
//! axe-core, the accessibility checker that runs in a browser, from the Python
//! package that contains it.

use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_testbed::println;
use xsplice_testbed::{cache, command, packages};

const PACKAGE: &str = "axe-playwright-python";
const VERSION: &str = "0.1.8";
/// Its path in the package.
const SCRIPT: &str = "axe_playwright_python/axe.min.js";

/// The script, from the cache if possible.
pub(crate) fn get() -> anyhow::Result<PathBuf> {
    packages::ensure(packages::BROWSER)?;
    let directory = cache::entry("axe-core", VERSION, include_str!("axe.rs"), unpack)?;
    Ok(directory.join(SCRIPT))
}

fn unpack(directory: &Path) -> anyhow::Result<()> {
    println!("downloading {PACKAGE} {VERSION}");
    let python = |arguments: &[&str]| {
        command::output(
            Command::new("python3")
                .args(arguments)
                .current_dir(directory),
        )
    };
    let wanted = format!("{PACKAGE}=={VERSION}");
    python(&["-m", "pip", "download", "--quiet", "--no-deps", &wanted])?;
    let mut wheels = std::fs::read_dir(directory)?;
    let wheel = wheels.next().context("pip downloaded nothing")??;
    let wheel = wheel.path().display().to_string();
    python(&["-m", "zipfile", "--extract", &wheel, "."])?;
    Ok(())
}
