// SPDX-License-Identifier: MIT OR Apache-2.0
//! Temporary directories and child processes that do not outlive the program, even if
//! a signal kills it.

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
    /// Leaders of process groups.
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

/// While this is held, no signal ends the program, for code that creates several
/// files in a row. It blocks everything else in this module.
#[must_use]
#[derive(Debug)]
pub struct Hold {
    _kept: MutexGuard<'static, Kept>,
}

/// Prevents signals from ending the program.
pub fn hold() -> Hold {
    Hold { _kept: kept() }
}

/// From now on SIGINT, SIGTERM and SIGHUP end the program, clean up everything
/// registered here, and exit with code 128 plus the signal number. Signals that are
/// already ignored, as under `nohup`, stay ignored.
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
    // This turns a write beyond the file size limit into an error instead of a kill.
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

/// The mask of signals that this process inherited as ignored.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

fn end(signal: i32, name: &str) -> ! {
    // Never released, so that nothing new is created.
    let kept = kept();
    for &group in &kept.groups {
        if let Some(group) = Pid::from_raw(group) {
            // It may already have exited.
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
        // Overwrites the progress bar.
        let _ = stderr.write_all(b"\r\x1b[2K");
    }
    if left.is_empty() {
        complain!("interrupted by {name}: nothing is left behind");
    } else {
        complain!("interrupted by {name}; cannot remove {left:?}");
    }
    std::process::exit(128 + signal)
}

/// Removes a directory in which processes that were just killed may still be
/// finishing a system call.
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
    /// Creates one for temporary files of this program.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn new(prefix: &str) -> Result<Self> {
        let mut kept = kept();
        let directory = tempfile::Builder::new().prefix(prefix).tempdir();
        // Drop the random name from the error, so that repeated failures look the
        // same.
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
        // If it cannot be removed, it stays; an error cannot be reported here.
        let _ = std::fs::remove_dir_all(&self.path);
        kept().directories.remove(&self.path);
    }
}

/// A child process. If signals are watched, it leads its own process group, so that
/// Ctrl-C on the terminal does not kill it before this program handles the signal; if
/// a signal ends this program, the group is killed too.
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

/// Runs `command` to completion, without input; returns its exit status and standard
/// error.
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
