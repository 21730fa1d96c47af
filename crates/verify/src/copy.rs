// SPDX-License-Identifier: MIT OR Apache-2.0
//! The copy of a tree in which the patched hypervisor is built.
//!
//! A copy can be kept for the next run. If that builds the same inputs from the same
//! tree, the result is reused. Otherwise the copy is synced with the tree: every file
//! with a different size, mode or modification time, or that was changed after it was
//! copied, is copied, and files that the tree lacks are removed. Patched files get the current time, so nothing of an
//! earlier build survives.

use crate::types::Types;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, FileTimes, Metadata};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use xsplice_system::file;
use xsplice_system::interrupt::Directory;

/// Number of trees whose copies are kept.
const KEPT: usize = 2;
/// Records the tree of a copy.
const ORIGIN: &str = "origin";
/// Its name.
const COPY: &str = "copy";
/// What the name of one ends with that is being removed.
const REMOVED: &str = "removed";
/// Records what was built in it, and its inputs.
const BUILT: &str = "built";

/// A copy of a tree.
#[derive(Debug)]
pub(crate) struct Copy {
    path: PathBuf,
    /// The temporary directory, or the lock on a kept one.
    hold: Hold,
}

#[derive(Debug)]
#[expect(dead_code, reason = "what counts is that they are dropped")]
enum Hold {
    Temporary(Directory),
    Kept(File),
}

/// What was built in a copy.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Built {
    /// All its inputs.
    pub(crate) from: String,
    pub(crate) types: Types,
    pub(crate) files: BTreeMap<String, String>,
}

impl Copy {
    /// The directory for a copy of the tree at `top`. It is kept in `cache`, if that
    /// is given, usable, and not locked by another process.
    pub(crate) fn place(top: &Path, cache: Option<&Path>) -> Result<Self> {
        if let Some(Ok(copy)) = cache.map(|cache| Self::kept(top, cache)) {
            return Ok(copy);
        }
        let directory = Directory::new("xsplice-verify-")?;
        Ok(Self {
            path: directory.path().to_owned(),
            hold: Hold::Temporary(directory),
        })
    }

    fn kept(top: &Path, cache: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(cache)?;
        let mut hasher = DefaultHasher::new();
        top.hash(&mut hasher);
        let entry = cache.join(format!("{:016x}", hasher.finish()));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&entry)?;
        let origin = entry.join(ORIGIN);
        let lock = File::options().create(true).append(true).open(&origin)?;
        lock.try_lock()?;
        // It may have been removed after it was opened.
        if !is_at(&lock, &origin)? {
            return Err(ErrorKind::ResourceBusy.into());
        }
        lock.set_modified(SystemTime::now())?;
        remove_oldest(cache);
        let path = entry.join(COPY);
        DirBuilder::new().recursive(true).create(&path)?;
        Ok(Self {
            path,
            hold: Hold::Kept(lock),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Copies from the tree at `top` the files that the hypervisor is built from, and
    /// links all others.
    pub(crate) fn fill(&self, top: &Path) -> Result<()> {
        if let Some(built) = self.record() {
            remove_if_there(&built)?;
        }
        let xen = OsStr::new("xen");
        remove_others(&self.path, |name| name == xen)?;
        for entry in std::fs::read_dir(top)? {
            let entry = entry?;
            if entry.file_name() != xen {
                symlink(entry.path(), self.path.join(entry.file_name()))?;
            }
        }
        duplicate(&top.join(xen), &self.path.join(xen))
    }

    /// Path of the record of what was built, if the copy is kept.
    fn record(&self) -> Option<PathBuf> {
        match self.hold {
            Hold::Temporary(_) => None,
            Hold::Kept(_) => Some(self.path.with_file_name(BUILT)),
        }
    }

    /// The result of the last build, if its inputs were `from`.
    pub(crate) fn built(&self, from: &str) -> Option<Built> {
        let built = std::fs::read(self.record()?).ok()?;
        let built: Built = serde_json::from_slice(&built).ok()?;
        (built.from == from).then_some(built)
    }

    /// Records what was built.
    pub(crate) fn keep(&self, built: &Built) {
        if let Some(record) = self.record()
            && let Ok(text) = serde_json::to_vec(built)
        {
            // If this fails, the next run builds it again.
            let _ = file::replace(&record, &text);
        }
    }
}

/// A listing of the files below `directory` with everything that matters.
pub(crate) fn listing(directory: &Path) -> Result<String> {
    let mut text = String::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = std::fs::read_dir(&directory)?;
        let mut paths: Vec<PathBuf> = entries.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
        paths.sort();
        for path in paths {
            let metadata = path.symlink_metadata()?;
            if metadata.is_dir() {
                directories.push(path);
            } else {
                let known = (known(&metadata), changed(&metadata));
                text.push_str(&format!("{path:?} {known:?}\n"));
            }
        }
    }
    Ok(text)
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether `file` is the one at `path`.
fn is_at(file: &File, path: &Path) -> Result<bool> {
    let (ours, there) = (file.metadata()?, path.metadata()?);
    Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino()))
}

/// Removes the least recently used copies, and what is left of earlier ones.
fn remove_oldest(cache: &Path) {
    let entries = std::fs::read_dir(cache).into_iter().flatten().flatten();
    let (gone, there): (Vec<PathBuf>, Vec<PathBuf>) = entries
        .map(|entry| entry.path())
        .partition(|path| path.extension().is_some_and(|end| end == REMOVED));
    for path in gone {
        // If this fails, the next run tries again.
        let _ = std::fs::remove_dir_all(path);
    }
    let used = |entry: &Path| entry.join(ORIGIN).metadata()?.modified();
    let mut entries: Vec<_> = there
        .into_iter()
        .filter_map(|entry| Some((used(&entry).ok()?, entry)))
        .collect();
    entries.sort();
    let old = entries.len().saturating_sub(KEPT);
    for (_, entry) in &entries[..old] {
        let _ = remove_unused(entry);
    }
}

/// Removes a copy that no process uses. It loses its name first: under that, another
/// process may make a new one meanwhile.
fn remove_unused(entry: &Path) -> Result<()> {
    let origin = entry.join(ORIGIN);
    let lock = File::open(&origin)?;
    lock.try_lock()?;
    if !is_at(&lock, &origin)? {
        return Ok(());
    }
    let removed = entry.with_extension(REMOVED);
    std::fs::rename(entry, &removed)?;
    std::fs::remove_dir_all(removed)
}

/// Makes the directory `to` equal to `from`.
pub(crate) fn duplicate(from: &Path, to: &Path) -> Result<()> {
    match to.symlink_metadata() {
        Ok(there) if there.is_dir() => {}
        Ok(_) => std::fs::remove_file(to).and_then(|()| std::fs::create_dir(to))?,
        Err(_) => std::fs::create_dir(to)?,
    }
    remove_others(to, |name| from.join(name).symlink_metadata().is_ok())?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (ours, theirs) = (entry.path(), to.join(entry.file_name()));
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            duplicate(&ours, &theirs)?;
        } else if !theirs
            .symlink_metadata()
            .is_ok_and(|there| same(&metadata, &there))
        {
            duplicate_file(&ours, &metadata, &theirs)
                .map_err(|e| Error::new(e.kind(), format!("{}: {e}", ours.display())))?;
        }
    }
    Ok(())
}

/// Whether neither was written since `theirs` was copied from `ours`.
fn same(ours: &Metadata, theirs: &Metadata) -> bool {
    ours.is_file() && known(ours) == known(theirs) && changed(ours) < changed(theirs)
}

/// When a file was changed: the only time that cannot be set back.
fn changed(file: &Metadata) -> (i64, i64) {
    (file.ctime(), file.ctime_nsec())
}

/// The properties that identify a file's contents.
fn known(file: &Metadata) -> (u64, u32, i64, i64) {
    (file.len(), file.mode(), file.mtime(), file.mtime_nsec())
}

fn duplicate_file(from: &Path, metadata: &Metadata, to: &Path) -> Result<()> {
    match to.symlink_metadata() {
        Ok(there) if there.is_dir() => std::fs::remove_dir_all(to)?,
        Ok(_) => std::fs::remove_file(to)?,
        Err(_) => {}
    }
    if metadata.is_symlink() {
        return symlink(std::fs::read_link(from)?, to);
    }
    if !metadata.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is no file"));
    }
    std::fs::copy(from, to)?;
    // Last, so that an incomplete copy has a different time.
    let times = FileTimes::new().set_modified(metadata.modified()?);
    File::open(to)?.set_times(times)
}

fn remove_others(directory: &Path, stays: impl Fn(&OsStr) -> bool) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if stays(&entry.file_name()) {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(entry.path())?,
            false => std::fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    /// How often each thread takes a copy.
    const TIMES: usize = 100;

    /// A tree with a file of each kind.
    fn tree(directory: &Path) -> PathBuf {
        let top = directory.join("tree");
        fs::create_dir_all(top.join("xen/common")).expect("made");
        fs::create_dir_all(top.join("tools")).expect("made");
        fs::write(top.join("xen/common/a.c"), "one").expect("written");
        fs::write(top.join("xen/common/b.c"), "two").expect("written");
        fs::write(top.join("xen/common/d.c"), "four").expect("written");
        symlink("a.c", top.join("xen/common/link.c")).expect("linked");
        top
    }

    fn filled(top: &Path, cache: &Path) -> Copy {
        let copy = Copy::place(top, Some(cache)).expect("there is place");
        copy.fill(top).expect("copied");
        copy
    }

    fn text(copy: &Copy, name: &str) -> Option<String> {
        fs::read_to_string(copy.path().join("xen/common").join(name)).ok()
    }

    #[test]
    fn what_is_kept_is_equal_to_the_tree_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let top = tree(directory.path());
        // The clock of the file system has ticks of milliseconds.
        std::thread::sleep(Duration::from_millis(50));
        let cache = directory.path().join("cache");
        let copy = filled(&top, &cache);
        let place = copy.path().to_owned();
        assert!(place.starts_with(&cache));
        assert_eq!(text(&copy, "link.c").as_deref(), Some("one"));
        assert!(copy.path().join("tools").is_symlink());
        let untouched = place.join("xen/common/d.c");
        let before = fs::metadata(&untouched).expect("there").ino();
        // Of equal length, as an object of another build may be.
        fs::write(place.join("xen/common/a.c"), "ONE").expect("written");
        fs::write(place.join("xen/common/new.c"), "new").expect("written");
        fs::create_dir_all(place.join("xen-level-0/common")).expect("made");
        fs::remove_file(place.join("xen/common/link.c")).expect("removed");
        fs::create_dir(place.join("xen/common/link.c")).expect("made");
        drop(copy);
        fs::write(top.join("xen/common/c.c"), "three").expect("written");
        // Of equal length, and with the time that it had.
        let changed = top.join("xen/common/b.c");
        let time = fs::metadata(&changed).and_then(|m| m.modified());
        fs::write(&changed, "TWO").expect("written");
        let times = FileTimes::new().set_modified(time.expect("it has one"));
        let file = File::options().write(true).open(&changed);
        file.and_then(|f| f.set_times(times)).expect("set");
        let copy = filled(&top, &cache);
        assert_eq!(copy.path(), place);
        assert_eq!(text(&copy, "a.c").as_deref(), Some("one"));
        assert_eq!(text(&copy, "b.c").as_deref(), Some("TWO"));
        assert_eq!(text(&copy, "c.c").as_deref(), Some("three"));
        assert_eq!(text(&copy, "link.c").as_deref(), Some("one"));
        assert_eq!(text(&copy, "new.c"), None);
        assert!(!place.join("xen-level-0").exists());
        assert_eq!(fs::metadata(&untouched).expect("there").ino(), before);
    }

    #[test]
    fn what_was_built_is_there_until_something_else_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let top = tree(directory.path());
        let cache = directory.path().join("cache");
        let from = listing(&top).expect("listed");
        let copy = filled(&top, &cache);
        assert!(copy.built(&from).is_none());
        let built = Built {
            from: from.clone(),
            types: Types::default(),
            files: BTreeMap::new(),
        };
        copy.keep(&built);
        drop(copy);
        let copy = Copy::place(&top, Some(&cache)).expect("there is place");
        assert!(copy.built(&from).is_some());
        fs::write(top.join("xen/common/a.c"), "changed").expect("written");
        assert!(copy.built(&listing(&top).expect("listed")).is_none());
        copy.fill(&top).expect("copied");
        assert!(copy.built(&from).is_none());
    }

    #[test]
    fn one_that_is_in_use_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let top = tree(directory.path());
        let cache = directory.path().join("cache");
        let first = filled(&top, &cache);
        let second = filled(&top, &cache);
        assert!(!second.path().starts_with(&cache));
        let place = second.path().to_owned();
        drop(second);
        assert!(!place.exists() && first.path().exists());
    }

    /// Each has a tree of its own: there are always too many copies.
    #[test]
    fn what_is_in_use_stays_while_others_are_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = directory.path().join("cache");
        let trees = (0..KEPT + 2).map(|number| {
            let top = tree(&directory.path().join(number.to_string()));
            fs::write(top.join("xen/common/a.c"), number.to_string()).expect("written");
            top
        });
        let trees: Vec<PathBuf> = trees.collect();
        let use_one = |number: usize| {
            for _ in 0..TIMES {
                let copy = filled(&trees[number], &cache);
                std::thread::yield_now();
                assert_eq!(text(&copy, "a.c"), Some(number.to_string()));
                assert_eq!(text(&copy, "b.c").as_deref(), Some("two"));
            }
        };
        std::thread::scope(|scope| {
            for number in (0..trees.len()).chain(0..trees.len()) {
                let use_one = &use_one;
                scope.spawn(move || use_one(number));
            }
        });
        assert!(fs::read_dir(&cache).expect("there").count() <= KEPT + 2);
    }

    #[test]
    fn a_cache_that_cannot_be_used_is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let top = tree(directory.path());
        let copy = filled(&top, Path::new("/dev/null/cache"));
        assert_eq!(text(&copy, "a.c").as_deref(), Some("one"));
    }

    #[test]
    fn the_oldest_are_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = directory.path().join("cache");
        for number in 0..KEPT + 2 {
            let top = tree(&directory.path().join(number.to_string()));
            drop(filled(&top, &cache));
        }
        assert_eq!(fs::read_dir(&cache).expect("there").count(), KEPT);
    }
}
