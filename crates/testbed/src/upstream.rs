// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask xen build --source DIR`: any supported Xen, from a tree that the
//! caller has, with the engine of our choice.
//!
//! The tree stays as it is: a copy is patched and built, a new one each time. Objects
//! that the tree was built to are copied too, and make decides which of them it needs
//! again.

use crate::Machine;
use crate::base::{self, Base};
use crate::compiler::Compiler;
use crate::xen::{self, Build};
use crate::{cache, command};
use anyhow::{Context as _, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest version that the engine can be part of.
const OLDEST: (u32, u32) = (4, 17);
/// For a tree without a configuration.
const CONFIG: &str = "CONFIG_EXPERT=y\n# CONFIG_DEBUG is not set\n";
/// What the hypervisor must have been configured with afterwards.
const LIVEPATCH: &str = "CONFIG_LIVEPATCH=y";

/// Builds the hypervisor of the tree `source` with `compiler`; returns the file that says
/// where everything is, in the form of the base's. Kernel and tools are Debian's.
pub fn build(source: &Path, compiler: &Compiler, what: &Build) -> anyhow::Result<PathBuf> {
    what.check(Machine::X86_64)?;
    let version = version(source)?;
    let base = base::get()?;
    let directory = cache::root()?.join(cache::VERSIONS);
    let directory = directory.join(format!("{version}-{}", what.name()));
    if directory.exists() {
        std::fs::remove_dir_all(&directory)?;
    }
    std::fs::create_dir_all(&directory)?;
    let tree = directory.join("source");
    println!("copying Xen {version}");
    command::run(Command::new("cp").arg("-a").arg(source).arg(&tree))?;
    xen::patch(&tree)?;
    let config = tree.join("xen/.config");
    let text = std::fs::read_to_string(&config).unwrap_or_else(|_| CONFIG.to_owned());
    std::fs::write(&config, format!("{text}{LIVEPATCH}\n"))?;
    xen::configure(&tree, what)?;
    xen::put_core(&tree, Machine::X86_64, what)?;
    xen::forget_payloads(&tree.join("xen/test/livepatch"))?;
    println!("building it");
    let make = |arguments: &[&str]| make(&tree, compiler, arguments);
    make(&["olddefconfig"])?;
    let text = std::fs::read_to_string(&config)?;
    for option in what.options().into_iter().chain([LIVEPATCH]) {
        ensure!(
            text.lines().any(|line| line == option),
            "{}: the configuration does not allow {option}: look for what excludes it",
            source.display()
        );
    }
    let jobs = std::thread::available_parallelism().map_or(2, |n| n.get() + 1);
    make(&[&format!("-j{jobs}"), "build"])?;
    make(&["tests"])?;
    let built = Base {
        version,
        xen: tree.join("xen/xen.gz"),
        xen_syms: tree.join("xen/xen-syms"),
        // There is no other build to compare with.
        identical: false,
        test_payloads: tree.join("xen/test/livepatch"),
        tree,
        ..base
    };
    let description = directory.join("base.json");
    std::fs::write(&description, built.summary())?;
    Ok(description)
}

/// The version of a tree, as its makefile has it.
fn version(source: &Path) -> anyhow::Result<String> {
    let makefile = source.join("xen/Makefile");
    let text = std::fs::read_to_string(&makefile).with_context(|| {
        let source = source.display();
        format!("{source} is not the top of a Xen tree: it has no xen/Makefile")
    })?;
    let value = |name: &str| {
        let mut values = text.lines().filter_map(|line| {
            let (left, right) = line.trim_start_matches("export ").split_once('=')?;
            let left = left.trim_end_matches([' ', '\t', '?', ':']);
            (left == name).then(|| right.trim())
        });
        values.next().unwrap_or_default()
    };
    let number = |name: &str| value(name).parse::<u32>();
    let (Ok(major), Ok(minor)) = (number("XEN_VERSION"), number("XEN_SUBVERSION")) else {
        bail!(
            "{}: it does not say which version it is",
            makefile.display()
        );
    };
    ensure!(
        (major, minor) >= OLDEST,
        "{}: Xen {major}.{minor} is older than 4.17",
        source.display()
    );
    // Without what the environment may add.
    let extra = value("XEN_EXTRAVERSION");
    let extra = extra.split('$').next().unwrap_or_default();
    Ok(format!("{major}.{minor}{extra}"))
}

fn make(tree: &Path, compiler: &Compiler, arguments: &[&str]) -> anyhow::Result<()> {
    let mut make = Command::new("make");
    make.current_dir(tree)
        .args(["-C", "xen"])
        .args(["XEN_COMPILE_ARCH=x86_64", "XEN_TARGET_ARCH=x86_64"])
        .arg("PYTHON=/usr/bin/python3")
        .args(compiler.make_arguments())
        .args(arguments)
        .env_remove("MAKEFLAGS");
    command::output(&mut make).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version_of(makefile: &str) -> anyhow::Result<String> {
        let tree = tempfile::tempdir()?;
        std::fs::create_dir(tree.path().join("xen"))?;
        std::fs::write(tree.path().join("xen/Makefile"), makefile)?;
        version(tree.path())
    }

    #[test]
    fn the_version_is_the_makefiles() -> anyhow::Result<()> {
        let makefile = |minor: &str, extra: &str| {
            format!(
                "export XEN_VERSION       = 4\nexport XEN_SUBVERSION    = {minor}\n\
                 export XEN_EXTRAVERSION ?= {extra}$(XEN_VENDORVERSION)\n\
                 export XEN_FULLVERSION   = $(XEN_VERSION).$(XEN_SUBVERSION)\n"
            )
        };
        assert_eq!(version_of(&makefile("20", ".4"))?, "4.20.4");
        assert_eq!(version_of(&makefile("23", "-unstable"))?, "4.23-unstable");
        for (wrong, why) in [
            (makefile("16", ".7"), "Xen 4.16 is older than 4.17"),
            (String::new(), "does not say which version"),
        ] {
            let error = version_of(&wrong).err().context("it is taken")?;
            assert!(error.to_string().contains(why), "{error}");
        }
        let nothing = tempfile::tempdir()?;
        let error = version(nothing.path()).err().context("it is taken")?;
        assert!(
            error.to_string().contains("not the top of a Xen tree"),
            "{error}"
        );
        Ok(())
    }
}
