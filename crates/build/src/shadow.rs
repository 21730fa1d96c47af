// SPDX-License-Identifier: MIT OR Apache-2.0
//! A tree of links to another tree, in which files can differ.

use crate::Refused;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A copy of a source tree's `xen` directory made of symbolic links. Compilers
/// run in it as in the original; what they write stays in it.
#[derive(Debug)]
pub struct Shadow {
    directory: tempfile::TempDir,
}

/// What the build made; a link to one of these would let a compiler write
/// into the original tree.
const BUILT: [&str; 8] = ["o", "a", "d", "cmd", "tmp", "s", "efi", "livepatch"];

impl Shadow {
    /// Makes a shadow of the source tree at `top`.
    ///
    /// # Errors
    /// If files cannot be listed or linked.
    pub fn of(top: &Path) -> Result<Self, Refused> {
        let directory = tempfile::Builder::new()
            .prefix("xsplice-")
            .tempdir()
            .map_err(|e| Refused::io(&std::env::temp_dir(), &e))?;
        let shadow = Self { directory };
        link(&top.join("xen"), &shadow.xen())?;
        Ok(shadow)
    }

    /// The directory that holds `xen`.
    pub fn top(&self) -> &Path {
        self.directory.path()
    }

    /// The `xen` directory, where compile commands run.
    pub fn xen(&self) -> PathBuf {
        self.top().join("xen")
    }

    /// Puts `text` in place of the file `path`, given from the top.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn replace(&self, path: &str, text: &str) -> Result<(), Refused> {
        let path = self.top().join(path);
        self.remove(&path)?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| Refused::io(parent, &e))?;
        }
        std::fs::write(&path, text).map_err(|e| Refused::io(&path, &e))
    }

    /// Takes the file `path`, given from the top, away.
    ///
    /// # Errors
    /// If it is there and cannot be removed.
    pub fn remove(&self, path: &Path) -> Result<(), Refused> {
        let path = self.top().join(path);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Refused::io(&path, &error))
            }
            _ => Ok(()),
        }
    }
}

fn link(from: &Path, to: &Path) -> Result<(), Refused> {
    let io = |path: &Path, e: std::io::Error| Refused::io(path, &e);
    std::fs::create_dir_all(to).map_err(|e| io(to, e))?;
    let mut made = PathBuf::new();
    for_each_source(from, &mut |path| {
        let target = to.join(path.strip_prefix(from).unwrap_or(path));
        if let Some(parent) = target.parent().filter(|parent| *parent != made) {
            std::fs::create_dir_all(parent).map_err(|e| io(parent, e))?;
            made = parent.to_owned();
        }
        symlink(path, &target).map_err(|e| io(&target, e))
    })
}

/// Calls `with` for every file under `directory` that the build did not make
/// by compiling, in a fixed order.
///
/// # Errors
/// If a directory cannot be read; whatever `with` gives.
pub(crate) fn for_each_source(
    directory: &Path,
    with: &mut dyn FnMut(&Path) -> Result<(), Refused>,
) -> Result<(), Refused> {
    let io = |e: std::io::Error| Refused::io(directory, &e);
    let mut entries: Vec<_> = std::fs::read_dir(directory)
        .map_err(io)?
        .collect::<Result<_, _>>()
        .map_err(io)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let built = path
            .extension()
            .and_then(|e| e.to_str())
            .is_some_and(|e| BUILT.contains(&e));
        if entry.file_type().map_err(io)?.is_dir() {
            for_each_source(&path, with)?;
        } else if !built {
            with(&path)?;
        }
    }
    Ok(())
}
