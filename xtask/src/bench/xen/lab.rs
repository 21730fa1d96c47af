// SPDX-License-Identifier: MIT OR Apache-2.0

//! A host that runs one of the hypervisors, and what is measured on it.

use super::Subject;
use super::payload::Payload;
use crate::command;
use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use xsplice_lab::{Host, HostConfig};
use xsplice_stopwatch::{Passage, Request};

/// How long the operations of one measurement may take.
const LIMIT: Duration = Duration::from_secs(240);
/// The stretches that are measured.
const WINDOW: usize = 0;
const CHECK: usize = 1;

/// A running host.
pub(super) struct Lab {
    host: Host,
    /// What the stopwatch writes.
    passages: PathBuf,
    /// How often everything is measured; the least is taken. The other CPU has
    /// its turns meanwhile, also when instructions are counted.
    rounds: usize,
    _directory: tempfile::TempDir,
}

/// An operation of the meter.
type Operation<'a> = (&'static str, &'a Payload);

impl Lab {
    /// Boots it; with `count`, instructions are measured instead of time.
    pub(super) fn boot(subject: &Subject, count: bool) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let (base, places) = (&subject.base, &subject.places);
        let [xsplice, meter] = [("xsplice", &subject.xsplice), ("meter", &subject.meter)]
            .map(|(name, program)| strip(program, directory.path().join(name)));
        let mut files = Vec::new();
        for payload in subject.plan.payloads() {
            let path = directory.path().join(&payload.name);
            std::fs::write(&path, &payload.data)?;
            files.push((file(payload), path));
        }
        let mut request = Request {
            output: directory.path().join("passages"),
            stretches: vec![places.window.clone()],
            counted: None,
        };
        if count {
            request.stretches.push(places.check.clone());
            request.counted = Some(places.text.clone());
        }
        let config = HostConfig {
            files,
            programs: vec![("bin/meter".to_owned(), meter?)],
            cpus: 2,
            timeout: LIMIT,
            count_instructions: count,
            plugin: Some(format!("{},{request}", subject.stopwatch.display())),
            ..HostConfig::new(
                base.xen.clone(),
                base.kernel.clone(),
                Some(base.privcmd.clone()),
                xsplice?,
            )
        };
        Ok(Self {
            host: Host::boot(&config)?,
            passages: request.output,
            // The first ones are in code that was not emulated before.
            rounds: if count { 5 } else { 15 },
            _directory: directory,
        })
    }

    /// The time of an upload of `payload`, which is unloaded then.
    pub(super) fn upload(&mut self, payload: &Payload) -> anyhow::Result<u64> {
        let mut least = u64::MAX;
        for _ in 0..self.rounds {
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
        self.run(&[("upload", payload)])?;
        let least = self.window(&[], ("apply", payload), payload)?;
        self.run(&[("unload", payload)])?;
        Ok(least)
    }

    /// The window of a replace of `stack` by `top`; all are unloaded then.
    pub(super) fn replace(&mut self, stack: &[Payload], top: &Payload) -> anyhow::Result<u64> {
        let all = || stack.iter().chain([top]);
        let each = |operation| all().map(move |payload| (operation, payload));
        self.run(&each("upload").collect::<Vec<_>>())?;
        let before: Vec<_> = stack.iter().map(|payload| ("apply", payload)).collect();
        let least = self.window(&before, ("replace", top), top)?;
        self.run(&each("unload").rev().collect::<Vec<_>>())?;
        Ok(least)
    }

    /// The window of `action`, which applies `payload`: the least of some. Each
    /// time the actions `before` it are done, and it is reverted afterwards.
    fn window(
        &mut self,
        before: &[Operation<'_>],
        action: Operation<'_>,
        payload: &Payload,
    ) -> anyhow::Result<u64> {
        let actions = [before, &[action, ("revert", payload)]].concat();
        let mut least = u64::MAX;
        for _ in 0..self.rounds {
            let earlier = self.passages(WINDOW)?.len();
            self.run(&actions)?;
            let windows = self.passages(WINDOW)?.split_off(earlier);
            let (done, seen) = (actions.len(), windows.len());
            ensure!(seen == done, "{done} actions had {seen} windows");
            least = windows[before.len()].min(least);
        }
        Ok(least)
    }

    /// How many instructions a CPU needs to see that nothing is to be done; for a
    /// host that was asked to do nothing yet.
    pub(super) fn idle(&self) -> anyhow::Result<u64> {
        let mut lengths = self.passages(CHECK)?;
        lengths.sort_unstable();
        // The most, but for those in which an interrupt came.
        let most = lengths.get(lengths.len() * 9 / 10);
        most.copied().context("no CPU was on its way to a guest")
    }

    /// The lengths of all passages of a stretch so far.
    fn passages(&self, stretch: usize) -> anyhow::Result<Vec<u64>> {
        let text = std::fs::read_to_string(&self.passages)?;
        // The last one may be being written.
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        let mut lengths = Vec::new();
        for line in whole.lines() {
            let passage: Passage = line.parse()?;
            if passage.stretch == stretch {
                lengths.push(passage.length);
            }
        }
        Ok(lengths)
    }

    /// Does operations in dom0; says how many nanoseconds each took.
    fn run(&mut self, operations: &[Operation<'_>]) -> anyhow::Result<Vec<u64>> {
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
