// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds this repository's programs.

use crate::arm::Arm;
use crate::arm64::ARM64;
use crate::command;
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the root of this repository is called in optimised programs.
pub const SOURCE: &str = "/usr/src/xsplice";

/// Builds the optimised `xsplice` executable; returns its path.
pub fn build_xsplice() -> anyhow::Result<PathBuf> {
    let what = ["--package", "xsplice"];
    let mut command = Command::new("cargo");
    command::run(command.arg("build").args(release()?).args(what))?;
    Ok(release_directory(&target_directory()?).join("xsplice"))
}

/// Builds the `xsplice` executable as it is released, with the list of its crates in it
/// (`cargo-auditable`); returns its path.
pub fn build_released() -> anyhow::Result<PathBuf> {
    let what = ["--locked", "--package", "xsplice"];
    let mut command = Command::new("cargo");
    command.args(["auditable", "build"]).args(release()?);
    command::run(command.args(what))?;
    Ok(release_directory(&target_directory()?).join("xsplice"))
}

/// The options of optimised builds: no path of this machine is in what they make.
fn release() -> anyhow::Result<Vec<String>> {
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")))
        .context("neither CARGO_HOME nor HOME says where the crates are")?;
    let here = std::env::current_dir()?;
    let flags = [
        format!("--remap-path-prefix={}={SOURCE}", here.display()),
        format!("--remap-path-prefix={home}=/cargo"),
    ];
    // These come after those of `.cargo/config.toml`.
    let setting = format!("target.x86_64-unknown-linux-gnu.rustflags={flags:?}");
    let options = ["--release", "--quiet", "--config", &setting];
    Ok(options.map(str::to_owned).into())
}

/// How programs for another architecture are built.
pub struct Foreign<'a> {
    /// Rust's name of the target.
    pub target: &'a str,
    /// The C compiler that links for it.
    pub linker: &'a str,
    /// The directory of Debian's standard library for it.
    pub library: &'a Path,
}

/// Builds the static `xsplice` executable for another architecture with Debian's
/// compiler; returns its path. It is not optimised: only the lab runs it, and building
/// takes a third of the time.
pub fn build_foreign(foreign: &Foreign<'_>) -> anyhow::Result<PathBuf> {
    let target = foreign_directory()?;
    let libraries = target.join("sysroot/lib/rustlib");
    std::fs::create_dir_all(&libraries)?;
    let place = libraries.join(foreign.target);
    // It may be there, and lead to an older library.
    let _ = std::fs::remove_file(&place);
    std::os::unix::fs::symlink(foreign.library, &place)?;
    let mut cargo = foreign_cargo("build", &target, foreign.target, foreign.linker);
    command::run(cargo.args(["--package", "xsplice"]))?;
    Ok(target.join(foreign.target).join("debug/xsplice"))
}

/// Runs the test program `name` of `package`, which needs no test harness, for ARM64 in
/// QEMU's emulation of one process. [`Arm::build_xsplice`] has made the library.
pub fn test_on_arm64(package: &str, name: &str) -> anyhow::Result<()> {
    let mut cargo = foreign_cargo(
        "test",
        &foreign_directory()?,
        ARM64.target,
        &format!("{}-gcc", ARM64.triple),
    );
    cargo.env(
        "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
        "qemu-aarch64",
    );
    command::run(cargo.args(["--package", package, "--test", name]))
}

/// Builds the example `name` of `package` for the architecture, with the library that
/// [`Arm::build_xsplice`] made; returns its path.
pub fn build_example_for(arm: &Arm, package: &str, name: &str) -> anyhow::Result<PathBuf> {
    let target = foreign_directory()?;
    let mut cargo = foreign_cargo("build", &target, arm.target, &format!("{}-gcc", arm.triple));
    command::run(cargo.args(["--package", package, "--example", name]))?;
    let directory = target.join(arm.target).join("debug/examples");
    Ok(directory.join(name))
}

/// Debian's compiler has its own objects.
fn foreign_directory() -> anyhow::Result<PathBuf> {
    Ok(target_directory()?.join("foreign"))
}

fn foreign_cargo(verb: &str, directory: &Path, target: &str, linker: &str) -> Command {
    let flags = [
        format!("--sysroot={}", directory.join("sysroot").display()),
        format!("-Clinker={linker}"),
        "-Ctarget-feature=+crt-static".to_owned(),
    ];
    let mut cargo = Command::new("/usr/bin/cargo");
    cargo
        .args([verb, "--locked", "--quiet", "--target", target])
        .arg("--target-dir")
        .arg(directory)
        .env("RUSTC", "/usr/bin/rustc")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // Not optimized, the code for ARM32 is larger than one of its branches reaches, and
        // the linker's way around that loses which functions are Thumb code.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env_remove("RUSTUP_TOOLCHAIN");
    cargo
}

/// Builds the optimised example `name` of `package`; returns its path.
pub fn build_example(package: &str, name: &str) -> anyhow::Result<PathBuf> {
    let what = ["--package", package, "--example", name];
    let mut command = Command::new("cargo");
    command::run(command.arg("build").args(release()?).args(what))?;
    let directory = release_directory(&target_directory()?);
    Ok(directory.join("examples").join(name))
}

/// Builds the library `package` as a shared library; returns its path.
pub fn build_shared(package: &str) -> anyhow::Result<PathBuf> {
    // A separate directory: different flags would make cargo recompile everything
    // else.
    let target = target_directory()?.join("shared");
    let mut command = Command::new("cargo");
    command.args(["rustc", "--release", "--quiet", "--package", package]);
    command.args(["--crate-type", "cdylib", "--target-dir"]);
    // A static library cannot be loaded.
    let command = command
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=-crt-static");
    command::run(command)?;
    let name = format!("lib{}.so", package.replace('-', "_"));
    Ok(release_directory(&target).join(name))
}

fn target_directory() -> anyhow::Result<PathBuf> {
    let metadata = command::output(Command::new("cargo").args([
        "metadata",
        "--no-deps",
        "--format-version=1",
    ]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let target = metadata["target_directory"]
        .as_str()
        .context("cargo names no target directory")?;
    Ok(PathBuf::from(target))
}

/// The directory of release builds in a target directory.
fn release_directory(target: &Path) -> PathBuf {
    target.join("x86_64-unknown-linux-gnu/release")
}
