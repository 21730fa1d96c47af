// SPDX-License-Identifier: MIT OR Apache-2.0

//! A host that runs one of the hypervisors, and what is measured on it.

use super::Subject;
use super::debugger::{self, Watch};
use super::payload::Payload;
use crate::command;
use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use xsplice_lab::{Host, HostConfig};

/// How long the operations of one measurement may take.
const LIMIT: Duration = Duration::from_secs(240);
/// How often each is measured when time is time, and a window also when
/// instructions are counted: another CPU may have its turn in it. The least is
/// taken.
const TIMES: usize = 3;

/// A running host.
pub(super) struct Lab<'a> {
    subject: &'a Subject,
    host: Host,
    debugger: PathBuf,
    /// How often an upload is measured: instructions are the same every time.
    uploads: usize,
    _directory: tempfile::TempDir,
}

impl<'a> Lab<'a> {
    /// Boots it; with `count`, a tick is an instruction.
    pub(super) fn boot(subject: &'a Subject, count: bool) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let debugger = directory.path().join("debugger");
        let base = &subject.base;
        let [xsplice, meter] = [("xsplice", &subject.xsplice), ("meter", &subject.meter)]
            .map(|(name, program)| strip(program, directory.path().join(name)));
        let mut files = Vec::new();
        for payload in subject.plan.payloads() {
            let path = directory.path().join(&payload.name);
            std::fs::write(&path, &payload.data)?;
            files.push((file(payload), path));
        }
        let config = HostConfig {
            files,
            programs: vec![("bin/meter".to_owned(), meter?)],
            cpus: 2,
            timeout: LIMIT,
            count_instructions: count,
            ..HostConfig::new(
                base.xen.clone(),
                base.kernel.clone(),
                Some(base.privcmd.clone()),
                xsplice?,
            )
        };
        let host = Host::boot(&config)?;
        let place = format!("unix:{},server=on,wait=off", debugger.display());
        host.monitor()?.command(&format!("gdbserver {place}"))?;
        Ok(Self {
            subject,
            host,
            debugger,
            uploads: if count { 1 } else { TIMES },
            _directory: directory,
        })
    }

    /// The time of an upload of `payload`, which is unloaded then.
    pub(super) fn upload(&mut self, payload: &Payload) -> anyhow::Result<u64> {
        let mut least = u64::MAX;
        for _ in 0..self.uploads {
            let times = self.run(&[("upload", payload), ("unload", payload)])?;
            least = times.into_iter().next().unwrap_or(least).min(least);
        }
        Ok(least)
    }

    /// Uploads `payload`.
    pub(super) fn leave(&mut self, payload: &Payload) -> anyhow::Result<()> {
        self.run(&[("upload", payload)])?;
        Ok(())
    }

    /// The window of an apply of `payload`, which is unloaded then.
    pub(super) fn apply(&mut self, payload: &Payload) -> anyhow::Result<u64> {
        let mut least = u64::MAX;
        for _ in 0..TIMES {
            self.run(&[("upload", payload)])?;
            least = least.min(self.window(("apply", payload))?);
            self.run(&[("revert", payload), ("unload", payload)])?;
        }
        Ok(least)
    }

    /// The window of a replace of `stack` by `top`; all are unloaded then.
    pub(super) fn replace(&mut self, stack: &[Payload], top: &Payload) -> anyhow::Result<u64> {
        let mut least = u64::MAX;
        for _ in 0..TIMES {
            let applied = stack
                .iter()
                .flat_map(|payload| [("upload", payload), ("apply", payload)]);
            let mut before: Vec<_> = applied.collect();
            before.push(("upload", top));
            self.run(&before)?;
            least = least.min(self.window(("replace", top))?);
            let mut after = vec![("revert", top), ("unload", top)];
            after.extend(stack.iter().rev().map(|payload| ("unload", payload)));
            self.run(&after)?;
        }
        Ok(least)
    }

    /// The window of an action.
    fn window(&mut self, action: (&str, &Payload)) -> anyhow::Result<u64> {
        let watch = Watch::start(&self.debugger, self.subject.places)?;
        let ran = self.run(&[action]);
        let windows = watch.windows()?;
        ran?;
        let &[window] = windows.as_slice() else {
            anyhow::bail!("one action had {} windows", windows.len());
        };
        Ok(window)
    }

    /// How many instructions a CPU needs to see that nothing is to be done.
    pub(super) fn idle(&mut self) -> anyhow::Result<u64> {
        debugger::instructions(&self.debugger, self.subject.places.check)
    }

    /// Does operations in dom0; says how many nanoseconds each took.
    fn run(&mut self, operations: &[(&str, &Payload)]) -> anyhow::Result<Vec<u64>> {
        let mut words = vec!["meter".to_owned()];
        for (operation, payload) in operations {
            words.extend([(*operation).to_owned(), payload.name.clone()]);
            if *operation == "upload" {
                words.push(format!("/{}", file(payload)));
            }
        }
        let output = self.host.run(&words)?;
        ensure!(
            output.code == Some(0),
            "{}: {}",
            words.join(" "),
            output.stderr
        );
        let times = output
            .stdout
            .lines()
            .map(str::parse)
            .collect::<Result<_, _>>();
        times.context("the times are no numbers")
    }
}

/// Where a payload is in dom0.
fn file(payload: &Payload) -> String {
    format!("lab/{}.livepatch", payload.name)
}

/// A copy of `program` without what debuggers need: the emulated machine takes
/// its time to read it.
fn strip(program: &Path, to: PathBuf) -> anyhow::Result<PathBuf> {
    command::output(
        Command::new("objcopy")
            .arg("--strip-all")
            .arg(program)
            .arg(&to),
    )?;
    Ok(to)
}
