//! The one directory for everything that can be made again.
//!
//! An entry is a directory named by what it was made from. It is made under
//! its final name (Xen's build records absolute paths) and is valid once its
//! stamp, written last, is there; what an interruption left is made anew.

use anyhow::Context;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// File that makes an entry valid.
const STAMP: &str = ".complete";

/// Raised when what entries hold or how they are made changes.
const FORMAT: &str = "1";

/// `$XDG_CACHE_HOME/xsplice`, or `~/.cache/xsplice`.
pub(crate) fn root() -> anyhow::Result<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    variable("XDG_CACHE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("xsplice"))
        .context("neither XDG_CACHE_HOME nor HOME says where to cache")
}

/// The entry `kind` made from `inputs`; `make` fills its directory if it is
/// not there yet.
pub(crate) fn entry(
    kind: &str,
    inputs: &[&str],
    make: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let mut hash = Sha256::new();
    for part in [FORMAT].iter().chain(inputs) {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let key: String = hash.finalize()[..8]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let directory = root()?.join(format!("{kind}-{key}"));
    let context = || directory.display().to_string();
    if directory.join(STAMP).exists() {
        return Ok(directory);
    }
    if directory.exists() {
        std::fs::remove_dir_all(&directory).with_context(context)?;
    }
    std::fs::create_dir_all(&directory).with_context(context)?;
    make(&directory)?;
    std::fs::write(directory.join(STAMP), inputs.join("\n")).with_context(context)?;
    Ok(directory)
}

/// Shows the entries with their sizes, or deletes them.
pub(crate) fn run(clear: bool) -> anyhow::Result<()> {
    let root = root()?;
    if !root.exists() {
        println!("{}: nothing is cached", root.display());
        return Ok(());
    }
    if clear {
        std::fs::remove_dir_all(&root).with_context(|| root.display().to_string())?;
        println!("{}: cleared", root.display());
        return Ok(());
    }
    println!("{}", root.display());
    for entry in std::fs::read_dir(&root)? {
        let path = entry?.path();
        let state = if path.join(STAMP).exists() {
            ""
        } else {
            "  (incomplete)"
        };
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        println!("  {name:<32} {:>8} MiB{state}", size(&path)? >> 20);
    }
    Ok(())
}

fn size(path: &Path) -> anyhow::Result<u64> {
    let metadata = path.symlink_metadata()?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    std::fs::read_dir(path)?
        .map(|entry| size(&entry?.path()))
        .sum()
}
