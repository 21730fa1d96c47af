// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask xen build`: Debian's Xen with the engine of our choice.
//!
//! The tree is a copy of the base's, with the patches of `crates/host-xen`, and
//! stays in the cache; the shim and the Rust object are put into it whenever
//! they change, and make does the rest.

use crate::base::{self, Base};
use crate::debian_build::DebianBuild;
use crate::keys::Keys;
use crate::size::{MOST, Size};
use crate::{cache, command, rust_core};
use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which live-patch core the hypervisor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// Xen's own.
    C,
    /// Ours.
    Rust,
}

/// How a tree is made: this file, how Debian builds, and the patches.
const RECIPE: &str = concat!(
    include_str!("xen.rs"),
    include_str!("debian_build.rs"),
    include_str!("../../host-xen/patches/0001-sysctl-continuation.patch"),
    include_str!("../../host-xen/patches/0002-choice-of-engine.patch"),
    include_str!("../../host-xen/patches/0003-events-wait.patch"),
);

/// Our part of the tree.
const SOURCES: &str = "crates/host-xen";
/// Where the shim and the Rust object go.
const PLACE: &str = "xen/arch/x86";
/// The Rust object, which the makefile copies to its place.
const OBJECT: &str = "livepatch-core.o_shipped";
/// The shim's table of keys.
const KEYS: &str = "livepatch-keys.h";
/// The shim.
const SHIM: [&str; 4] = [
    "livepatch-rust.c",
    "livepatch-rust.h",
    "livepatch-xen.h",
    KEYS,
];

/// Builds the hypervisor, the Rust engine with these keys; returns the file that says
/// where everything is, in the form of the base's.
pub fn build(engine: Engine, debug: bool, keys: &Keys) -> anyhow::Result<PathBuf> {
    check_keys(engine, keys)?;
    let base = base::get()?;
    let kind = match (engine, debug) {
        (Engine::C, false) => "xen-c",
        (Engine::C, true) => "xen-c-debug",
        (Engine::Rust, false) => "xen-rust",
        (Engine::Rust, true) => "xen-rust-debug",
    };
    // In its own tree: a build would otherwise undo the other's.
    let locked = if keys.lock_signatures { "-locked" } else { "" };
    let version = base.version.replace(['/', ':'], "_");
    let directory = cache::entry(&format!("{kind}{locked}"), &version, RECIPE, |directory| {
        println!("copying Xen {}", base.version);
        prepare(&base, &directory.join("source"), engine, debug)
    })?;
    let tree = directory.join("source");
    if engine == Engine::Rust {
        put_core(&tree, keys)?;
    }
    forget_payloads(&tree.join("xen/test/livepatch"))?;
    println!("building it");
    DebianBuild::new(&tree)?.build()?;
    let built = Base {
        xen: tree.join("xen/xen.gz"),
        xen_syms: tree.join("xen/xen-syms"),
        identical: true,
        test_payloads: tree.join("xen/test/livepatch"),
        tree,
        ..base
    };
    if engine == Engine::Rust && !debug {
        let Size { bytes, more } = Size::of(&built.xen, &base.xen)?;
        println!("xen.gz has {bytes} bytes, {more} more than Debian's ({MOST} are the limit)");
    }
    let description = directory.join("base.json");
    std::fs::write(&description, built.summary())?;
    Ok(description)
}

pub(crate) fn check_keys(engine: Engine, keys: &Keys) -> anyhow::Result<()> {
    ensure!(
        engine == Engine::Rust || keys.directory.is_none(),
        "Xen's own engine does not look at signatures"
    );
    Ok(())
}

/// Copies the base's tree to `tree` and patches it; nothing is compiled yet.
fn prepare(base: &Base, tree: &Path, engine: Engine, debug: bool) -> anyhow::Result<()> {
    command::run(Command::new("cp").arg("-a").arg(&base.tree).arg(tree))?;
    patch(tree)?;
    configure(tree, engine, debug)
}

/// Puts the Rust object, the shim and the table of keys into the tree.
pub(crate) fn put_core(tree: &Path, keys: &Keys) -> anyhow::Result<()> {
    let object = rust_core::object()?;
    refresh(&read(&object)?, &tree.join(PLACE).join(OBJECT))?;
    for name in SHIM {
        let shim = read(&Path::new(SOURCES).join("shim").join(name))?;
        let header = if name == KEYS { keys.header()? } else { None };
        let data = header.map_or(shim, String::into_bytes);
        refresh(&data, &tree.join(PLACE).join(name))?;
    }
    Ok(())
}

/// Applies our patches, which are the same for every version.
pub(crate) fn patch(tree: &Path) -> anyhow::Result<()> {
    let mut patches: Vec<PathBuf> = std::fs::read_dir(Path::new(SOURCES).join("patches"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    patches.sort();
    for patch in patches {
        let apply = [
            "--strip=1",
            "--fuzz=0",
            "--no-backup-if-mismatch",
            "--input",
        ];
        let patch = patch.canonicalize()?;
        command::output(
            Command::new("patch")
                .current_dir(tree)
                .args(apply)
                .arg(patch),
        )?;
    }
    Ok(())
}

/// Chooses the engine, and Xen's assertions, in the tree's configuration.
pub(crate) fn configure(tree: &Path, engine: Engine, debug: bool) -> anyhow::Result<()> {
    let config = tree.join("xen/.config");
    let mut text = std::fs::read_to_string(&config)?;
    if engine == Engine::Rust {
        text.push_str("CONFIG_LIVEPATCH_RUST=y\n");
    }
    if debug {
        text = text.replace("# CONFIG_DEBUG is not set\n", "CONFIG_DEBUG=y\n");
    }
    std::fs::write(config, text)?;
    Ok(())
}

/// Removes the test payloads and what they are made from: they have addresses
/// of the hypervisor in them, and their makefile does not see that it changed.
pub(crate) fn forget_payloads(directory: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let extension = path.extension().unwrap_or_default();
        if ["h", "o", "livepatch"]
            .iter()
            .any(|made| extension == *made)
        {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}

/// Writes `data` to `to` if it differs, so that make sees changes only.
fn refresh(data: &[u8], to: &Path) -> anyhow::Result<()> {
    if std::fs::read(to).is_ok_and(|there| there == data) {
        return Ok(());
    }
    std::fs::write(to, data).with_context(|| to.display().to_string())
}
