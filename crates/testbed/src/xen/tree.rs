// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tree that a hypervisor is built in: a copy of the base's, patched and configured.

use super::{Build, Engine};
use crate::base::Base;
use crate::command;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The patches of Xen.
const PATCHES: &str = "crates/host-xen/patches";

/// Copies the base's tree to `tree` and patches it; nothing is compiled yet.
pub(super) fn prepare(base: &Base, tree: &Path, what: &Build) -> anyhow::Result<()> {
    command::run(Command::new("cp").arg("-a").arg(&base.tree).arg(tree))?;
    patch(tree)?;
    configure(tree, what)
}

/// Applies our patches, which are the same for every version.
pub(crate) fn patch(tree: &Path) -> anyhow::Result<()> {
    let mut patches: Vec<PathBuf> = std::fs::read_dir(PATCHES)?
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

/// Chooses what is built in the tree's configuration.
pub(crate) fn configure(tree: &Path, what: &Build) -> anyhow::Result<()> {
    let config = tree.join("xen/.config");
    let mut text = std::fs::read_to_string(&config)?;
    for option in options(what) {
        text.push_str(option);
        text.push('\n');
    }
    if what.debug {
        text = text.replace("# CONFIG_DEBUG is not set\n", "CONFIG_DEBUG=y\n");
    }
    std::fs::write(config, text)?;
    Ok(())
}

/// What the configuration must have because of what is built.
pub(crate) fn options(what: &Build) -> Vec<&'static str> {
    let rust = what.engine == Engine::Rust;
    let mut options = Vec::new();
    options.extend(rust.then_some("CONFIG_LIVEPATCH_RUST=y"));
    options.extend(what.microcode.then_some("CONFIG_MICROCODE_RUST=y"));
    options
}
