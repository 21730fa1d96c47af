// SPDX-License-Identifier: MIT OR Apache-2.0
//! The file system: what the store does with files, so that a host that dies in
//! between finds the old file or the new one, never a half.

use crate::{Error, Result};
use serde::Serialize;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The files of a host. Paths are absolute, as the host sees them.
pub trait Disk {
    /// The contents of a file.
    ///
    /// # Errors
    /// `NotFound` if there is none; those of the file system.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// The last `most` bytes of a file, however large it is; all of it if it has fewer.
    ///
    /// # Errors
    /// `NotFound` if there is none; those of the file system.
    fn tail(&self, path: &Path, most: u64) -> io::Result<Vec<u8>>;
    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// `NotFound` if there is none; those of the file system.
    fn names(&self, directory: &Path) -> io::Result<Vec<String>>;
    /// Creates a directory and those above it, for good; one that is there already is left.
    ///
    /// # Errors
    /// Those of the file system.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// Writes a file, in place of one that is there. It may be half-written.
    ///
    /// # Errors
    /// Those of the file system.
    fn write(&self, path: &Path, data: &[u8]) -> io::Result<()>;
    /// Writes to the end of a file, which is created if it is not there.
    ///
    /// # Errors
    /// Those of the file system.
    fn append(&self, path: &Path, data: &[u8]) -> io::Result<()>;
    /// Returns when the contents of a file, or the names in a directory, are on the disk.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync(&self, path: &Path) -> io::Result<()>;
    /// Gives a file another name, in place of a file that has it.
    ///
    /// # Errors
    /// Those of the file system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// `NotFound` if there is none; those of the file system.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// Names of files that are being written begin with this. No one else reads them.
pub(crate) const TEMPORARY: &str = ".xsplice-new-";

fn parts(path: &Path) -> io::Result<(&Path, PathBuf)> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let mut temporary = OsString::from(TEMPORARY);
    temporary.push(name);
    Ok((directory, directory.join(temporary)))
}

/// Writes `data` to the file at `path`: whenever the host dies, it is as it was, or has
/// `data`. When this returns without an error, it has `data` for good.
///
/// # Errors
/// If it cannot be written. It is then as it was, or has `data`.
pub fn replace(disk: &impl Disk, path: &Path, data: &[u8]) -> Result<()> {
    let at = |error| Error::Disk {
        path: path.to_owned(),
        error,
    };
    let (directory, temporary) = parts(path).map_err(at)?;
    disk.create_directory(directory).map_err(at)?;
    let written = disk
        .write(&temporary, data)
        .and_then(|()| disk.sync(&temporary))
        .and_then(|()| disk.rename(&temporary, path));
    if let Err(error) = written {
        // What is left over is written over the next time.
        let _ = disk.remove(&temporary);
        return Err(at(error));
    }
    disk.sync(directory).map_err(at)
}

/// Writes `line` and a line break to the end of the file at `path`, for good. If the host
/// dies, the line may be incomplete, at the end of the file.
///
/// # Errors
/// If it cannot be written.
pub fn append(disk: &impl Disk, path: &Path, line: &str) -> Result<()> {
    let at = |error| Error::Disk {
        path: path.to_owned(),
        error,
    };
    let (directory, _) = parts(path).map_err(at)?;
    disk.create_directory(directory).map_err(at)?;
    let line = format!("{line}\n");
    disk.append(path, line.as_bytes())
        .and_then(|()| disk.sync(path))
        .and_then(|()| disk.sync(directory))
        .map_err(at)
}

/// `value` in the form that files of the store have; `{:#}` breaks it into lines.
///
/// # Errors
/// If it has no such form: then nothing is written.
pub(crate) fn json(value: &impl Serialize) -> Result<serde_json::Value> {
    let json = serde_json::to_value(value);
    json.map_err(|error| Error::invalid(format!("it cannot be written as JSON: {error}")))
}

/// Removes the file at `path` for good, if it is there.
///
/// # Errors
/// If it cannot be removed.
pub(crate) fn remove(disk: &impl Disk, path: &Path) -> Result<bool> {
    let at = |error| Error::Disk {
        path: path.to_owned(),
        error,
    };
    match disk.remove(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(at(error)),
    }
    let (directory, _) = parts(path).map_err(at)?;
    disk.sync(directory).map_err(at)?;
    Ok(true)
}

/// The file at `path`; `None` if there is none.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn read(disk: &impl Disk, path: &Path) -> Result<Option<Vec<u8>>> {
    if_there(disk.read(path), path)
}

/// The last `most` bytes of the file at `path`; `None` if there is none.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn tail(disk: &impl Disk, path: &Path, most: u64) -> Result<Option<Vec<u8>>> {
    if_there(disk.tail(path, most), path)
}

/// What was read at `path`; `None` if there is nothing.
fn if_there<T>(read: io::Result<T>, path: &Path) -> Result<Option<T>> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::Disk {
            path: path.to_owned(),
            error,
        }),
    }
}

/// The names in a directory; `None` if there is none. Files that are being written are
/// not among them.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn names(disk: &impl Disk, path: &Path) -> Result<Option<Vec<String>>> {
    let mut names = if_there(disk.names(path), path)?;
    if let Some(names) = &mut names {
        names.retain(|name| !name.starts_with(TEMPORARY));
    }
    Ok(names)
}

/// The directory that stands for `/`.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

/// The largest file that is read, but for the history: a payload has at most 2 MiB.
const LARGEST: u64 = 16 << 20;

impl Root {
    /// The files below `directory`.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// Where the file at `path` is.
    #[must_use]
    pub fn place(&self, path: &Path) -> PathBuf {
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn open(&self, path: &Path, options: &mut OpenOptions) -> io::Result<File> {
        options.mode(0o644).open(self.place(path))
    }

    /// The file at `path`, to be read. Whoever opens a pipe waits until somebody writes.
    fn open_to_read(&self, path: &Path) -> io::Result<File> {
        let path = self.place(path);
        let kind = path.metadata()?.file_type();
        if !kind.is_file() && !kind.is_dir() {
            return Err(io::Error::other("it is not a regular file"));
        }
        File::open(path)
    }
}

impl Disk for Root {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open_to_read(path)?;
        let mut data = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, LARGEST + 1), &mut data)?;
        if data.len() as u64 > LARGEST {
            return Err(ErrorKind::FileTooLarge.into());
        }
        Ok(data)
    }

    fn tail(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        let mut file = self.open_to_read(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(most)))?;
        let mut data = Vec::new();
        file.read_to_end(&mut data)?;
        Ok(data)
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.place(directory))? {
            // A name that is not UTF-8 is none of the store's.
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let Some(above) = path.parent() else {
            return Ok(());
        };
        if self.place(path).is_dir() {
            return Ok(());
        }
        self.create_directory(above)?;
        match std::fs::create_dir(self.place(path)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => self.sync(above),
        }
    }

    fn write(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = self.open(path, options.write(true).create(true).truncate(true))?;
        file.write_all(data)
    }

    fn append(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        let mut file = self.open(path, OpenOptions::new().append(true).create(true))?;
        file.write_all(data)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(self.place(path))?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(self.place(from), self.place(to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(self.place(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_pipe() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Root::new(directory.path());
        let pipe = Path::new("/pipe");
        let mut mkfifo = std::process::Command::new("mkfifo");
        let made = mkfifo.arg(root.place(pipe)).status();
        assert!(made.is_ok_and(|made| made.success()));
        for read in [read(&root, pipe), tail(&root, pipe, 10)] {
            let error = read.expect_err("it is no file").to_string();
            assert!(
                error.ends_with("/pipe: it is not a regular file"),
                "{error}"
            );
        }
    }
}
