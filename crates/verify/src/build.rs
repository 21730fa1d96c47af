// SPDX-License-Identifier: MIT OR Apache-2.0
//! Building the patched hypervisor, all of it, as the tree was built.

use crate::Unusable;
use crate::source::Source;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A build of the patched source.
#[derive(Debug)]
pub struct Patched {
    /// `xen-syms`.
    pub syms: Vec<u8>,
    /// The object that it was linked from.
    pub objects: Vec<u8>,
}

/// Builds the hypervisor of `tree` with `patches` in a copy of the tree, with
/// the tree's objects where they are up to date, as the tree was built. Lines
/// that the patches only move keep their numbers.
///
/// # Errors
/// If a patch does not apply, if the tree cannot be copied, or if the build
/// fails.
pub fn build(tree: &Path, patches: &[PathBuf]) -> Result<Patched, Unusable> {
    let unusable =
        |path: &Path, e: &dyn std::fmt::Display| Unusable::new(&path.display().to_string(), e);
    let tree = tree.canonicalize().map_err(|e| unusable(tree, &e))?;
    let top = match tree.parent() {
        Some(parent) if tree.join("Rules.mk").is_file() => parent.to_owned(),
        _ => tree,
    };
    let mut source = Source::default();
    for path in patches {
        let text = std::fs::read(path).map_err(|e| unusable(path, &e))?;
        let name = path.display().to_string();
        source.apply(&top, &name, &String::from_utf8_lossy(&text))?;
    }
    let directory = tempfile::Builder::new().prefix("xsplice-verify-").tempdir();
    let directory = directory.map_err(|e| unusable(&std::env::temp_dir(), &e))?;
    let copy = directory.path();
    copy_tree(&top, copy).map_err(|e| unusable(&top, &e))?;
    source.write(copy).map_err(|e| unusable(copy, &e))?;
    let arguments = arguments(&top.join("xen")).map_err(|e| unusable(&top, &e))?;
    make(copy, &arguments)?;
    let read = |name: &str| {
        let path = copy.join("xen").join(name);
        std::fs::read(&path).map_err(|e| unusable(&path, &e))
    };
    Ok(Patched {
        syms: read("xen-syms")?,
        objects: read("prelink.o")?,
    })
}

/// What the hypervisor is built from is copied, everything else is linked.
fn copy_tree(top: &Path, copy: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(top)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if name != OsStr::new("xen") {
            std::os::unix::fs::symlink(&path, copy.join(name))?;
        }
    }
    let status = Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .arg(top.join("xen"))
        .arg(copy)
        .status()?;
    if status.success() {
        return Ok(());
    }
    Err(std::io::Error::other("cp cannot copy it"))
}

/// What make must be told so that it takes the tree's objects as they are.
fn arguments(xen: &Path) -> std::io::Result<Vec<String>> {
    let mut arguments = vec![
        // The date of the build stays what it is.
        "cmd_compile.h=:".to_owned(),
        // No second hypervisor for UEFI.
        "efi-y=".to_owned(),
        "WGET=false".to_owned(),
        "GIT=false".to_owned(),
        "PYTHON=/usr/bin/python3".to_owned(),
    ];
    let command = |name: &str| std::fs::read_to_string(xen.join(name));
    let link = command(".prelink.o.cmd")?;
    if let Some(linker) = words(&link).first() {
        arguments.push(format!("LD={linker}"));
    }
    let compile = command("common/.version.o.cmd")?;
    let words = words(&compile);
    if let Some(compiler) = words.first() {
        arguments.push(format!("CC={compiler}"));
    }
    let maps = words.iter().filter(|word| {
        let options = [
            "-ffile-prefix-map=",
            "-fdebug-prefix-map=",
            "-fmacro-prefix-map=",
        ];
        options.iter().any(|option| word.starts_with(option))
    });
    let maps: Vec<&str> = maps.copied().collect();
    if !maps.is_empty() {
        arguments.push(format!("EXTRA_CFLAGS_XEN_CORE={}", maps.join(" ")));
    }
    Ok(arguments)
}

/// The words of a recorded command.
fn words(record: &str) -> Vec<&str> {
    let first = record.lines().next().unwrap_or_default();
    let (_, command) = first.split_once(":=").unwrap_or_default();
    command.split_whitespace().collect()
}

fn make(copy: &Path, arguments: &[String]) -> Result<(), Unusable> {
    let jobs = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let output = Command::new("make")
        .arg("-C")
        .arg(copy.join("xen"))
        .args(arguments)
        .arg(format!("-j{jobs}"))
        .arg("xen")
        .env_remove("MAKEFLAGS")
        .output()
        .map_err(|e| Unusable::new("make", &e))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = errors
        .lines()
        .filter(|line| line.contains("rror"))
        .collect();
    let errors = errors.get(..10).unwrap_or(&errors).join("\n");
    Err(Unusable::new(
        "the patched hypervisor does not build",
        &errors,
    ))
}
