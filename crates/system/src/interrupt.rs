// SPDX-License-Identifier: MIT OR Apache-2.0
//! Directories and processes that end with the program, also where a signal
//! ends it.

use crate::complain;
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::collections::BTreeSet;
use std::io::{Error, IsTerminal, Read, Result, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// What must not outlive the program.
#[derive(Debug)]
struct Kept {
    directories: BTreeSet<PathBuf>,
    /// Processes that lead a group of their own.
    groups: BTreeSet<i32>,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept {
    directories: BTreeSet::new(),
    groups: BTreeSet::new(),
});
static WATCHED: OnceLock<()> = OnceLock::new();

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While this is held, no signal ends the program: for what makes files one
/// after another. Nothing else of this module can be done meanwhile.
#[must_use]
#[derive(Debug)]
pub struct Hold {
    _kept: MutexGuard<'static, Kept>,
}

/// Keeps signals from ending the program.
pub fn hold() -> Hold {
    Hold { _kept: kept() }
}

/// From now on SIGINT, SIGTERM and SIGHUP end the program with everything that
/// is kept here, and with exit code 128 and the signal's number. Signals that
/// are ignored already, as `nohup` does, stay ignored.
///
/// # Errors
/// If they cannot be caught.
pub fn watch() -> Result<()> {
    let ignored = ignored_signals();
    let names = [(SIGHUP, "SIGHUP"), (SIGINT, "SIGINT"), (SIGTERM, "SIGTERM")];
    let caught: Vec<_> = names
        .into_iter()
        .filter(|(number, _)| ignored & (1 << (number - 1)) == 0)
        .collect();
    // A write beyond the limit for files is an error then, and no end.
    signal_hook::flag::register(SIGXFSZ, Arc::default())?;
    let mut signals = Signals::new(caught.iter().map(|(number, _)| number))?;
    WATCHED.get_or_init(|| ());
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let name = caught.iter().find(|(number, _)| *number == signal);
            end(signal, name.map_or("a signal", |(_, name)| name));
        }
    });
    Ok(())
}

/// The mask of signals that this process was started to ignore.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

fn end(signal: i32, name: &str) -> ! {
    // Never given back: nothing new is made.
    let kept = kept();
    for &group in &kept.groups {
        if let Some(group) = Pid::from_raw(group) {
            // It may have ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
    let left: Vec<_> = kept
        .directories
        .iter()
        .filter(|path| !remove(path))
        .collect();
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        // Over what shows the progress.
        let _ = stderr.write_all(b"\r\x1b[2K");
    }
    if left.is_empty() {
        complain!("interrupted by {name}: nothing is left behind");
    } else {
        complain!("interrupted by {name}; cannot remove {left:?}");
    }
    std::process::exit(128 + signal)
}

/// Removes a directory in which processes that were killed just now may still
/// do what they had begun.
fn remove(path: &Path) -> bool {
    for _ in 0..100 {
        match std::fs::remove_dir_all(path) {
            Ok(()) => return true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return true,
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    false
}

/// A temporary directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Makes one for temporary files of this program.
    ///
    /// # Errors
    /// If there is no place for it.
    pub fn new(prefix: &str) -> Result<Self> {
        let mut kept = kept();
        let directory = tempfile::Builder::new().prefix(prefix).tempdir();
        // Without the name that was tried: what fails twice fails alike.
        let directory = directory.map_err(|error| Error::from(error.kind()))?;
        let path = directory.keep();
        kept.directories.insert(path.clone());
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed stays; nobody can be told here.
        let _ = std::fs::remove_dir_all(&self.path);
        kept().directories.remove(&self.path);
    }
}

/// A child process. If signals are watched it leads a group of its own, so
/// that a key pressed on the terminal does not end it before this program
/// knows; when this program ends by a signal, the group does too.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts `command`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        if WATCHED.get().is_some() {
            command.process_group(0);
        }
        let mut kept = kept();
        let child = command.spawn()?;
        if WATCHED.get().is_some() {
            kept.groups.extend(i32::try_from(child.id()));
        }
        Ok(Self { child })
    }
}

impl Deref for Process {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.child
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(id) = i32::try_from(self.child.id()) {
            kept().groups.remove(&id);
        }
    }
}

/// Runs `command` to its end, without input; gives how it ended and what it
/// wrote to standard error.
///
/// # Errors
/// If it cannot be started or waited for.
pub fn run(command: &mut Command) -> Result<(ExitStatus, Vec<u8>)> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut process = Process::spawn(command.stderr(Stdio::piped()))?;
    let mut words = Vec::new();
    if let Some(mut pipe) = process.stderr.take() {
        pipe.read_to_end(&mut words)?;
    }
    Ok((process.wait()?, words))
}
