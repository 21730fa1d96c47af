// SPDX-License-Identifier: MIT OR Apache-2.0
//! A copy of a source tree with some files changed, mostly made of links.

use crate::code::Code;
use crate::problem::{Problem, Refused};
use crate::tree::Tree;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use xsplice_system::file;
use xsplice_system::interrupt::{self, Directory};

/// The files that differ from the tree, by path from its top; `None` for a removed
/// file.
pub(crate) type Changes = BTreeMap<String, Option<Vec<u8>>>;

/// A source tree's `xen` directory with some files changed, to run compilers in.
/// Their output stays in it.
///
/// Directories on the path to a changed file, or that a command writes to, are real
/// and contain links to the tree's files. All others are links to the tree's
/// directories.
#[derive(Debug)]
pub(crate) struct Shadow {
    directory: Directory,
    /// The real directories, relative to `xen`, which itself is the empty path.
    real: BTreeSet<PathBuf>,
    /// Everything that was created here and must stay.
    made: Mutex<BTreeSet<PathBuf>>,
}

/// A link to the original tree. Other links go through it, because file systems keep
/// short links in the inode and long ones in a separate block.
const TREE: &str = "tree";

/// Suffixes of build products; a link to one would let a compiler write into the
/// original tree.
const BUILT: [&str; 8] = ["o", "a", "d", "cmd", "tmp", "s", "efi", "livepatch"];

impl Shadow {
    /// Creates a shadow of `tree` with `changes`, in which commands can write to the
    /// directories `writable`. `left` are the directories that includes leave
    /// upwards.
    ///
    /// # Errors
    /// If files cannot be listed, linked or written.
    pub(crate) fn of(
        tree: &Tree,
        changes: &Changes,
        writable: &BTreeSet<PathBuf>,
        left: &BTreeSet<PathBuf>,
    ) -> Result<Self, Refused> {
        let directory = Directory::new("xsplice-").map_err(|e| no_work_directory(&e))?;
        let mut shadow = Self {
            directory,
            real: real(changes, writable, left),
            made: Mutex::default(),
        };
        let way = shadow.top().join(TREE);
        // Released before the shadow is dropped, which happens on failure.
        let undisturbed = interrupt::hold();
        let filled = symlink(tree.top.join("xen"), &way)
            .map_err(|e| Refused::io(&way, &e))
            .and_then(|()| shadow.fill(tree, changes));
        drop(undisturbed);
        match filled {
            // Regardless of the first file that could not be created.
            Err(_) if !shadow.top().is_dir() => Err(Refused(vec![deleted()])),
            filled => filled.map(|()| shadow),
        }
    }

    /// The directory that contains `xen`.
    pub(crate) fn top(&self) -> &Path {
        self.directory.path()
    }

    /// The `xen` directory, where compile commands run.
    pub(crate) fn xen(&self) -> PathBuf {
        self.top().join("xen")
    }

    /// Whether commands can write to all of `directories`.
    pub(crate) fn is_writable(&self, directories: &BTreeSet<PathBuf>) -> bool {
        directories.is_subset(&self.real)
    }

    /// Whether everything that was created here still exists.
    pub(crate) fn is_whole(&self) -> bool {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.iter().all(|path| path.symlink_metadata().is_ok())
    }

    /// Removes the file at `path`, relative to `xen`, if it exists, before a command
    /// writes it. Returns its full path.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub(crate) fn make_way(&self, path: &str) -> std::io::Result<PathBuf> {
        let path = self.xen().join(path);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.remove(&path);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(path),
        }
    }

    fn fill(&mut self, tree: &Tree, changes: &Changes) -> Result<(), Refused> {
        let (xen, original) = (self.xen(), tree.top.join("xen"));
        let mut made = BTreeSet::new();
        for directory in &self.real {
            let here = xen.join(directory);
            std::fs::create_dir_all(&here).map_err(|e| Refused::io(&here, &e))?;
            let there = original.join(directory);
            // A directory can be new.
            let Ok(entries) = std::fs::read_dir(&there) else {
                continue;
            };
            let up: PathBuf = std::iter::repeat_n("..", directory.iter().count() + 1).collect();
            for entry in entries {
                let entry = entry.map_err(|e| Refused::io(&there, &e))?;
                let path = directory.join(entry.file_name());
                if self.real.contains(&path) || is_built(&path) || changes.contains_key(&key(&path))
                {
                    continue;
                }
                let kind = entry.file_type().map_err(|e| Refused::io(&there, &e))?;
                let target = match inner_link(&original, &entry.path(), kind) {
                    Some(target) => up.join("xen").join(target),
                    None => up.join(TREE).join(&path),
                };
                let link = xen.join(path);
                symlink(target, &link).map_err(|e| Refused::io(&link, &e))?;
                made.insert(link);
            }
        }
        for (path, contents) in changes {
            if let Some(contents) = contents {
                let path = self.top().join(path);
                std::fs::write(&path, contents).map_err(|e| Refused::io(&path, &e))?;
                made.insert(path);
            }
        }
        self.made = Mutex::new(made);
        Ok(())
    }
}

fn no_work_directory(error: &std::io::Error) -> Refused {
    Refused::one(
        Code::WorkDirectory,
        file::shown(&std::env::temp_dir()),
        format!("no work directory can be made here ({error}); set TMPDIR to another directory"),
    )
}

/// The problem that the work directory was deleted while in use.
pub(crate) fn deleted() -> Problem {
    Problem::new(
        Code::WorkDirectory,
        file::shown(&std::env::temp_dir()),
        "files of this build that were here were deleted while it ran; make sure that nothing cleans \
         this directory, or set TMPDIR to another one, and build again",
    )
}

/// The key in `Changes` of a path relative to `xen`.
fn key(path: &Path) -> String {
    format!("xen/{}", path.to_string_lossy())
}

fn is_built(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| BUILT.contains(&e))
}

/// The target, relative to `xen`, of the entry at `path`, if it is a link within the
/// tree: in a shadow, it must lead to the shadow's file.
fn inner_link(xen: &Path, path: &Path, kind: std::fs::FileType) -> Option<PathBuf> {
    let target = kind.is_symlink().then(|| path.canonicalize().ok())??;
    Some(target.strip_prefix(xen).ok()?.to_owned())
}

/// The directories that must be real: those to write to, and all on the path to a
/// change. If an include leaves a directory upwards to a real one, the system must
/// not end up in the original tree.
fn real(
    changes: &Changes,
    writable: &BTreeSet<PathBuf>,
    left: &BTreeSet<PathBuf>,
) -> BTreeSet<PathBuf> {
    let changed = changes.keys().filter_map(|path| {
        let path = Path::new(path).strip_prefix("xen").ok()?;
        path.parent()
    });
    let mut real = BTreeSet::from([PathBuf::new()]);
    for directory in changed.chain(writable.iter().map(PathBuf::as_path)) {
        real.extend(directory.ancestors().map(Path::to_owned));
    }
    // In this order, parent directories come first.
    for directory in left {
        if directory
            .parent()
            .is_some_and(|parent| real.contains(parent))
        {
            real.insert(directory.clone());
        }
    }
    real
}

/// Calls `with` for every file under `directory` that is not a build product, in a
/// fixed order.
///
/// # Errors
/// If a directory cannot be read, or the error of `with`.
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
        if entry.file_type().map_err(io)?.is_dir() {
            for_each_source(&path, with)?;
        } else if !is_built(&path) {
            with(&path)?;
        }
    }
    Ok(())
}
