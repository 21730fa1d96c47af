// SPDX-License-Identifier: MIT OR Apache-2.0
//! One change of the host at a time.

use crate::{Paths, Root};
use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// Held while the store or the hypervisor is changed. The kernel gives it back when the
/// process ends, however it ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "it is held")] File);

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("another xsplice is at work; try again, or wait for it with --wait")]
    Held,
    /// The file system's answer.
    #[error("{}: {}", Paths::lock().display(), .0)]
    Disk(std::io::Error),
}

/// How often it is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// Opens the file, in a directory for it: who can open it can hold it, so nobody else may.
fn open(path: &Path) -> std::io::Result<File> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory.parent().unwrap_or(directory))?;
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => std::fs::set_permissions(directory, Permissions::from_mode(0o700))?,
        }
    }
    let mut options = File::options();
    let options = options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

impl Lock {
    /// Takes the lock, and waits for it up to `patience`.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process still has it.
    pub fn take(root: &Root, patience: Duration) -> Result<Self, LockError> {
        let file = open(&root.place(&Paths::lock())).map_err(LockError::Disk)?;
        let end = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::WouldBlock) if Instant::now() >= end => {
                    return Err(LockError::Held);
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
                Err(TryLockError::Error(error)) => return Err(LockError::Disk(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_can_hold_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Root::new(directory.path());
        let place = root.place(&Paths::lock());
        let above = place.parent().expect("it has one");
        let mode = |path: &Path| {
            let metadata = std::fs::metadata(path).expect("it is there");
            metadata.permissions().mode() & 0o777
        };
        let modes = || (mode(above), mode(&place));
        drop(Lock::take(&root, Duration::ZERO).expect("it is free"));
        assert_eq!(modes(), (0o700, 0o600));
        // An earlier version may have left them open to all.
        for (path, mode) in [(above, 0o755), (&place, 0o644)] {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("changed");
        }
        drop(Lock::take(&root, Duration::ZERO).expect("it is free"));
        assert_eq!(modes(), (0o700, 0o600));
    }

    #[test]
    fn the_second_says_so_or_waits() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Root::new(directory.path());
        let first = Lock::take(&root, Duration::ZERO).expect("it is free");
        let second = Lock::take(&root, Duration::ZERO);
        assert!(matches!(second, Err(LockError::Held)), "{second:?}");
        let waiting = std::thread::spawn({
            let root = root.clone();
            move || Lock::take(&root, Duration::from_secs(30))
        });
        std::thread::sleep(Duration::from_millis(100));
        assert!(!waiting.is_finished());
        drop(first);
        waiting.join().expect("no panic").expect("it is free now");
    }
}
