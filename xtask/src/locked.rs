// SPDX-License-Identifier: MIT OR Apache-2.0

//! The debug hypervisor with `--lock-signatures`, for tests. It is built in the tree of
//! the one without, which is then built again: only one object differs.

use anyhow::Context as _;
use std::path::{Path, PathBuf};
use xsplice_testbed::keys::Keys;
use xsplice_testbed::xen;

/// The hypervisor's `xen.gz`. `debug` is the description of the one that is not locked,
/// built with `keys`.
pub(crate) fn build(debug: &Path, keys: &Keys) -> anyhow::Result<PathBuf> {
    let description: serde_json::Value = serde_json::from_slice(&std::fs::read(debug)?)?;
    let built = description["xen"].as_str().context("xen is missing")?;
    let directory = debug.parent().context("no directory")?;
    let (locked, of) = (directory.join("locked.gz"), directory.join("locked.of.gz"));
    // Builds are reproducible: while the other one stays the same, so does this.
    if locked.exists()
        && std::fs::read(&of).is_ok_and(|of| std::fs::read(built).is_ok_and(|built| built == of))
    {
        return Ok(locked);
    }
    let with_lock = Keys {
        lock_signatures: true,
        ..keys.clone()
    };
    xen::build(xen::Engine::Rust, true, &with_lock)?;
    std::fs::copy(built, &locked)?;
    xen::build(xen::Engine::Rust, true, keys)?;
    std::fs::copy(built, &of)?;
    Ok(locked)
}
