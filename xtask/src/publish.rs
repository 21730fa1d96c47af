// SPDX-License-Identifier: MIT OR Apache-2.0
//! The crates that others embed: what `cargo package` makes of them compiles by itself,
//! and with the oldest Rust that they promise.

use anyhow::Context as _;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_testbed::{command, println};

/// A crate that is published.
struct Package {
    name: String,
    /// The oldest Rust that compiles it.
    rust: String,
}

/// Packages each of them, and compiles what is packaged.
pub(crate) fn check() -> anyhow::Result<()> {
    let packages = published()?;
    let mut command = Command::new("cargo");
    // Uncommitted changes are no reason to fail; dependencies were fetched before.
    command.args(["package", "--quiet", "--allow-dirty", "--offline"]);
    command.env("CARGO_HOME", cargo_home()?);
    for package in &packages {
        command.args(["--package", &package.name]);
    }
    command::run(&mut command)?;
    check_oldest(&packages)
}

/// A home of Cargo's with what the user's has, but without unpacked sources: Cargo knows
/// those by name and version, and would compile what an earlier run packaged.
fn cargo_home() -> anyhow::Result<PathBuf> {
    let user = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let user = user.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let user = user.context("neither CARGO_HOME nor the home directory is known")?;
    let ours = std::path::absolute("target/package-home")?;
    if ours.exists() {
        fs::remove_dir_all(&ours)?;
    }
    link_all_but("registry", &user, &ours)?;
    link_all_but("src", &user.join("registry"), &ours.join("registry"))?;
    Ok(ours)
}

/// Makes `to` a directory with a link to each entry of `from` but one.
fn link_all_but(name: &str, from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    let entries = fs::read_dir(from).with_context(|| format!("reading {}", from.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_name() != name {
            symlink(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// The crates that `Cargo.toml` does not keep from being published.
fn published() -> anyhow::Result<Vec<Package>> {
    let mut command = Command::new("cargo");
    command.args(["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&command::output(&mut command)?)?;
    let packages = metadata["packages"].as_array();
    let packages = packages.context("cargo lists no packages")?.iter();
    let published = packages.filter(|package| package["publish"].is_null());
    let text = |package: &Value, key| {
        let text = package[key].as_str().map(str::to_owned);
        text.with_context(|| format!("{} has no {key}", package["name"]))
    };
    published
        .map(|package| {
            Ok(Package {
                name: text(package, "name")?,
                rust: text(package, "rust_version")?,
            })
        })
        .collect()
}

/// Compiles each with the oldest Rust that it promises.
fn check_oldest(packages: &[Package]) -> anyhow::Result<()> {
    if Command::new("rustup").arg("--version").output().is_err() {
        println!("without rustup, only the lints see what is too new for `rust-version`");
        return Ok(());
    }
    let mut versions: Vec<&str> = packages.iter().map(|package| &*package.rust).collect();
    versions.sort_unstable();
    versions.dedup();
    for version in versions {
        let mut install = Command::new("rustup");
        install.args(["toolchain", "install", version, "--profile", "minimal"]);
        if let Err(error) = command::output(install.arg("--no-self-update")) {
            // As above: not every place that runs the tests may fetch compilers.
            println!("{error:#}\nRust {version} is not installed: `rust-version` is not checked");
            continue;
        }
        let mut check = Command::new("rustup");
        check.args(["run", version, "cargo", "check", "--quiet"]);
        // Its own directory: another compiler would compile everything again.
        check.args(["--target-dir", "target/oldest"]);
        for package in packages.iter().filter(|package| package.rust == version) {
            check.args(["--package", &package.name]);
        }
        command::run(&mut check)?;
    }
    Ok(())
}
