// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cache directory for all derived data.
//!
//! An entry is a directory named by its inputs. It is built under its final name
//! (Xen's build records absolute paths) and is valid once its stamp, written last,
//! exists; the rest of an interrupted build is discarded.

use anyhow::Context;
use sha2::{Digest, Sha256};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// File that makes an entry valid.
const STAMP: &str = ".complete";

/// Not entries, but always valid: the objects compiled by `xsplice build`, the trees
/// kept by `xsplice verify`, Debian's package lists, hypervisors built from trees that
/// callers have, the lock file.
const WITHOUT_STAMP: [&str; 5] = ["objects", "trees", APT, VERSIONS, LOCK];
/// The directory of Debian's package lists.
pub const APT: &str = "apt";
/// The directory of hypervisors built from other trees than Debian's.
pub const VERSIONS: &str = "versions";

/// Locked while hypervisors are built or used.
const LOCK: &str = "hypervisors.lock";

/// Raised when the contents of entries or their recipes change.
const FORMAT: &str = "2";

/// `$XDG_CACHE_HOME/xsplice`, or `~/.cache/xsplice`.
pub fn root() -> anyhow::Result<PathBuf> {
    xsplice_system::cache::root().context("neither XDG_CACHE_HOME nor HOME says where to cache")
}

/// The newest valid entry of `kind` made with `recipe`, of any version.
pub fn newest(kind: &str, recipe: &str) -> anyhow::Result<Option<PathBuf>> {
    let root = root()?;
    let Ok(entries) = std::fs::read_dir(&root) else {
        return Ok(None);
    };
    let end = format!("-{}", key(recipe));
    let made = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = path.file_name()?.to_str()?;
        let fits = name.starts_with(&format!("{kind}-")) && name.ends_with(&end);
        let stamp = path.join(STAMP).metadata().ok().filter(|_| fits)?;
        Some((stamp.modified().ok()?, path))
    });
    Ok(made.max().map(|(_, path)| path))
}

/// The entry for `version` of `kind`, made with `recipe`; `make` fills its directory
/// if it does not exist yet.
pub fn entry(
    kind: &str,
    version: &str,
    recipe: &str,
    make: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let directory = root()?.join(format!("{kind}-{version}-{}", key(recipe)));
    let context = || directory.display().to_string();
    if directory.join(STAMP).exists() {
        return Ok(directory);
    }
    if directory.exists() {
        std::fs::remove_dir_all(&directory).with_context(context)?;
    }
    std::fs::create_dir_all(&directory).with_context(context)?;
    if let Err(error) = make(&directory) {
        // A failure only wastes space: without a stamp it is not an entry.
        let _ = std::fs::remove_dir_all(&directory);
        return Err(error);
    }
    std::fs::write(directory.join(STAMP), version).with_context(context)?;
    Ok(directory)
}

/// Locks other processes out of the cached hypervisors until dropped.
#[must_use]
pub struct Hold {
    _locked: File,
}

/// Waits until no other process builds or uses hypervisors: all checkouts share the
/// cache.
pub fn hold_hypervisors() -> anyhow::Result<Hold> {
    let root = root()?;
    std::fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
    hold(&root.join(LOCK))
}

fn hold(path: &Path) -> anyhow::Result<Hold> {
    let context = || path.display().to_string();
    let file = File::options().create(true).append(true).open(path);
    let file = file.with_context(context)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(error)) => return Err(error).with_context(context),
        Err(TryLockError::WouldBlock) => {
            println!(
                "waiting for another run, which has locked {}",
                path.display()
            );
            file.lock().with_context(context)?;
        }
    }
    Ok(Hold { _locked: file })
}

fn key(recipe: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(FORMAT);
    hash.update(recipe);
    hash.finalize()[..8]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// Shows the entries with their sizes, or deletes them.
pub fn run(clear: bool) -> anyhow::Result<()> {
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
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let valid = WITHOUT_STAMP.contains(&name.as_str()) || path.join(STAMP).exists();
        let state = if valid { "" } else { "  (incomplete)" };
        println!("  {name:<48} {:>8} MiB{state}", size(&path)? >> 20);
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

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn cache_lock_is_exclusive() -> anyhow::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let held = hold(file.path())?;
        let other = File::open(file.path())?;
        let refused = other.try_lock();
        assert!(matches!(refused, Err(TryLockError::WouldBlock)));
        drop(held);
        assert!(other.try_lock().is_ok());
        Ok(())
    }

    #[test]
    fn an_interrupted_entry_is_made_again() -> anyhow::Result<()> {
        let kind = format!("test-{}", std::process::id());
        let directory = root()?.join(format!("{kind}-1-{}", key("recipe")));
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join("half"), "x")?;
        assert_eq!(newest(&kind, "recipe")?, None);
        assert!(entry(&kind, "2", "recipe", |_| bail!("no network")).is_err());
        let made = entry(&kind, "1", "recipe", |directory| {
            assert!(!directory.join("half").exists());
            Ok(std::fs::write(directory.join("whole"), "x")?)
        })?;
        assert_eq!(newest(&kind, "recipe")?, Some(made.clone()));
        assert_eq!(newest(&kind, "another recipe")?, None);
        let again = entry(&kind, "1", "recipe", |_| bail!("it is there"))?;
        assert!(again.join("whole").exists());
        std::fs::remove_dir_all(made)?;
        Ok(())
    }
}
