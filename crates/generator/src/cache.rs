// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cache of objects and generated files.

use crate::problem::Refused;
use crate::shadow::{self, Changes};
use crate::tree::Tree;
use sha2::{Digest, Sha256};
use std::fs::DirBuilder;
use std::io::{Error, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use xsplice_system::file;

/// Raised when objects are compiled differently, or entries have another form.
const FORMAT: &str = "3";
/// Length of the hash that each entry begins with.
const HASH: usize = 32;
/// Number of directories that the cache creates: the user's cache directory, the
/// program's in it, and its own. A missing home directory is not created.
const MADE: usize = 3;
/// Size limit of the cache in bytes: objects are small, a wide header change adds 15
/// MB.
const LIMIT: u64 = 512 << 20;

/// A directory of objects and generated files, keyed by all inputs.
#[derive(Debug, Clone)]
pub(crate) struct ObjectCache {
    directory: PathBuf,
    /// Hash of the inputs common to all objects of a build.
    base: Sha256,
    /// Why it cannot be written.
    unwritable: Arc<OnceLock<String>>,
}

impl ObjectCache {
    /// The cache at `directory` for the files of `tree`, which are identified by size
    /// and times.
    pub(crate) fn open(directory: &Path, tree: &Tree) -> Result<Self, Refused> {
        let mut base = Sha256::new();
        base.update(FORMAT);
        base.update(tree.top.as_os_str().as_bytes());
        for compiler in compilers(tree) {
            add_identity(&mut base, &compiler);
        }
        shadow::for_each_source(&tree.top.join("xen"), &mut |path| {
            add_identity(&mut base, path);
            Ok(())
        })?;
        let cache = Self {
            directory: directory.to_owned(),
            base,
            unwritable: Arc::default(),
        };
        cache.note(create(directory));
        Ok(cache)
    }

    /// The same for the tree with `changes`, which are identified by content.
    pub(crate) fn with(&self, changes: &Changes) -> Self {
        let mut cache = self.clone();
        for (path, contents) in changes {
            add_text(&mut cache.base, path.as_bytes());
            add_text(&mut cache.base, contents.as_deref().unwrap_or(b"\0removed"));
        }
        cache
    }

    /// The entry for `names`, made by `make` if it is not cached.
    pub(crate) fn get<E>(
        &self,
        names: &[&str],
        make: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let mut hash = self.base.clone();
        for name in names {
            add_text(&mut hash, name.as_bytes());
        }
        let name = xsplice_abi::note::hex(&hash.finalize()[..16]);
        let path = self.directory.join(name);
        if let Some(bytes) = std::fs::read(&path).ok().and_then(intact) {
            return Ok(bytes);
        }
        let bytes = make()?;
        self.note(file::replace(&path, &entry(&bytes)));
        Ok(bytes)
    }

    /// Why nothing is cached, if so: an unwritable cache only costs time.
    pub(crate) fn unwritable(&self) -> Option<&str> {
        self.unwritable.get().map(String::as_str)
    }

    fn note(&self, written: std::io::Result<()>) {
        if let Err(error) = written {
            let place = file::shown(&self.directory);
            self.unwritable
                .get_or_init(|| format!("{place}: {error}: compiled objects are not cached"));
        }
    }

    /// Deletes the oldest objects until the rest is within the limit.
    pub(crate) fn trim(&self) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return;
        };
        let mut files: Vec<_> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let metadata = entry.metadata().ok()?;
                Some((metadata.modified().ok()?, metadata.len(), entry.path()))
            })
            .collect();
        files.sort();
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in files {
            if total <= LIMIT {
                break;
            }
            if std::fs::remove_file(path).is_ok() {
                total -= size;
            }
        }
    }
}

/// What is written for `bytes`. No build waits for the disk, so after a loss of power an
/// entry can be there without its contents.
fn entry(bytes: &[u8]) -> Vec<u8> {
    [&Sha256::digest(bytes), bytes].concat()
}

/// The bytes of an entry, if it is as it was written.
fn intact(mut entry: Vec<u8>) -> Option<Vec<u8>> {
    let (hash, bytes) = entry.split_at_checked(HASH)?;
    if Sha256::digest(bytes).as_slice() != hash {
        return None;
    }
    entry.drain(..HASH);
    Some(entry)
}

/// Creates the cache's directory, accessible only to its user.
fn create(directory: &Path) -> std::io::Result<()> {
    let made: Vec<&Path> = directory.ancestors().take(MADE).collect();
    for path in made.into_iter().rev().filter(|path| !path.is_dir()) {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let parent = path.parent().unwrap_or(path);
                let message = format!("there is no directory {}", file::shown(parent));
                return Err(Error::new(ErrorKind::NotFound, message));
            }
            // Another build created it at the same time.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
            made => made?,
        }
    }
    Ok(())
}

/// The programs that the recorded commands start with, as found in `PATH`.
fn compilers(tree: &Tree) -> Vec<PathBuf> {
    let mut names: Vec<&str> = tree
        .objects
        .iter()
        .filter_map(|object| object.command.split_whitespace().next())
        .collect();
    names.sort_unstable();
    names.dedup();
    let path = std::env::var_os("PATH").unwrap_or_default();
    names
        .iter()
        .filter_map(|name| {
            let mut places = std::env::split_paths(&path).map(|dir| dir.join(name));
            places.find(|place| place.is_file())?.canonicalize().ok()
        })
        .collect()
}

fn add_identity(hash: &mut Sha256, path: &Path) {
    hash.update(path.as_os_str().as_bytes());
    if let Ok(metadata) = path.metadata() {
        for number in [
            metadata.len().cast_signed(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            // The only time that cannot be set back.
            metadata.ctime(),
            metadata.ctime_nsec(),
        ] {
            hash.update(number.to_le_bytes());
        }
    }
}

fn add_text(hash: &mut Sha256, text: &[u8]) {
    hash.update(text.len().to_le_bytes());
    hash.update(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_entry_is_made_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = ObjectCache {
            directory: directory.path().to_owned(),
            base: Sha256::new(),
            unwritable: Arc::default(),
        };
        let get = |made: &[u8]| {
            let made = cache.get(&["a.o"], || Ok::<_, ()>(made.to_vec()));
            made.expect("it is made")
        };
        assert_eq!(get(b"contents"), b"contents");
        assert_eq!(get(b"others"), b"contents");
        let mut entries = std::fs::read_dir(directory.path()).expect("read");
        let path = entries.next().expect("one").expect("read").path();
        let whole = std::fs::read(&path).expect("read");
        let mut flipped = whole.clone();
        flipped[HASH] ^= 1;
        for damaged in [&[][..], &whole[..HASH - 1], &whole[..HASH + 1], &flipped] {
            std::fs::write(&path, damaged).expect("written");
            assert_eq!(get(b"contents"), b"contents");
            assert_eq!(std::fs::read(&path).expect("read"), whole);
        }
        // An entry can be empty.
        assert_eq!(intact(entry(b"")).as_deref(), Some(&b""[..]));
    }
}
