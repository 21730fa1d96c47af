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
const BUILT: [&str; 9] = ["o", "a", "d", "cmd", "tmp", "s", "efi", "gz", "livepatch"];

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
    std::fs::create_dir_all(to).map_err(|e| Refused::io(to, &e))?;
    for entry in std::fs::read_dir(from).map_err(|e| Refused::io(from, &e))? {
        let entry = entry.map_err(|e| Refused::io(from, &e))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(|e| Refused::io(&path, &e))?;
        let built = path
            .extension()
            .and_then(|e| e.to_str())
            .is_some_and(|e| BUILT.contains(&e));
        if kind.is_dir() {
            link(&path, &target)?;
        } else if !built {
            symlink(&path, &target).map_err(|e| Refused::io(&target, &e))?;
        }
    }
    Ok(())
}
