// SPDX-License-Identifier: MIT OR Apache-2.0

//! A host that runs one of the hypervisors, and measurements on it.

use super::Subject;
use super::payload::Payload;
use crate::Arch;
use anyhow::{Context as _, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use xsplice_lab::{Host, HostConfig};
use xsplice_stopwatch::{Line, Request};
use xsplice_testbed::command;

/// Timeout for the operations of one measurement.
const LIMIT: Duration = Duration::from_secs(240);
/// Indices of the measured stretches.
const WINDOW: usize = 0;
const CALL: usize = 1;
const CHECK: usize = 2;

/// The program that runs the operations in dom0.
pub(super) const OPERATE: &str = "operate";

/// What is measured on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    /// Which pages of the hypervisor run.
    Pages,
    Instructions,
    Ticks,
}

impl Measure {
    /// Number of repetitions; the minimum is taken. The other CPU runs in between,
    /// even when instructions are counted.
    fn rounds(self) -> usize {
        match self {
            Self::Pages => 1,
            Self::Instructions => 5,
            // The first ones run code that has not been translated yet.
            Self::Ticks => 15,
        }
    }
}

/// A running host.
pub(super) struct Lab {
    pub(super) measure: Measure,
    host: Host,
    /// The stopwatch's output file.
    output: PathBuf,
    _directory: tempfile::TempDir,
}

/// An operation on a payload.
type Operation<'a> = (&'static str, &'a Payload);

impl Lab {
    /// Boots it.
    pub(super) fn boot(subject: &Subject, measure: Measure) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let (base, places) = (&subject.base, &subject.places);
        let [xsplice, operate] = [("xsplice", &subject.xsplice), (OPERATE, &subject.operate)]
            .map(|(name, program)| strip(subject.arch, program, directory.path().join(name)));
        let mut files = Vec::new();
        for payload in subject.plan.payloads() {
            let path = directory.path().join(&payload.name);
            std::fs::write(&path, &payload.data)?;
            files.push((file(payload), path));
        }
        let mut request = Request {
            output: directory.path().join("measured"),
            stretches: vec![places.window.clone(), places.call.clone()],
            counted: None,
            pages: None,
        };
        let text = Some(places.text.clone());
        match measure {
            Measure::Pages => request.pages = text,
            Measure::Instructions => {
                request.stretches.push(places.check.clone());
                request.counted = text;
            }
            Measure::Ticks => {}
        }
        let config = HostConfig {
            files,
            programs: vec![(format!("bin/{OPERATE}"), operate?)],
            cpus: Some(2),
            timeout: LIMIT,
            count_instructions: measure == Measure::Instructions && subject.arch == Arch::X86_64,
            plugin: Some(format!("{},{request}", subject.stopwatch.display())),
            ..HostConfig::new(
                base.xen.clone(),
                base.kernel.clone(),
                Some(base.privcmd.clone()),
                xsplice?,
            )
        };
        Ok(Self {
            measure,
            host: Host::boot(&config)?,
            output: request.output,
            _directory: directory,
        })
    }

    /// Measures the hypercall that uploads `payload`, then unloads it.
    pub(super) fn upload(&mut self, payload: &Payload) -> anyhow::Result<u64> {
        let mut least = u64::MAX;
        for _ in 0..self.measure.rounds() {
            let calls = self.passages_of(CALL, &[("upload", payload)])?;
            // A few query hypercalls precede it.
            let upload = calls.into_iter().max().context("there was no hypercall")?;
            least = least.min(upload);
            self.unload(payload)?;
        }
        Ok(least)
    }

    pub(super) fn load(&mut self, payload: &Payload) -> anyhow::Result<()> {
        self.run(&[("upload", payload)])
    }

    pub(super) fn unload(&mut self, payload: &Payload) -> anyhow::Result<()> {
        self.run(&[("unload", payload)])
    }

    /// Measures the window of an apply of `payload`, then unloads it.
    pub(super) fn apply(&mut self, payload: &Payload) -> anyhow::Result<u64> {
        self.load(payload)?;
        let least = self.window(&[], ("apply", payload), payload)?;
        self.unload(payload)?;
        Ok(least)
    }

    /// Measures the window of a replace of `stack` by `top`, then unloads all.
    pub(super) fn replace(&mut self, stack: &[Payload], top: &Payload) -> anyhow::Result<u64> {
        let all = || stack.iter().chain([top]);
        let each = |operation| all().map(move |payload| (operation, payload));
        self.run(&each("upload").collect::<Vec<_>>())?;
        let before: Vec<_> = stack.iter().map(|payload| ("apply", payload)).collect();
        let least = self.window(&before, ("replace", top), top)?;
        self.run(&each("unload").rev().collect::<Vec<_>>())?;
        Ok(least)
    }

    /// The shortest window of several runs of `action`, which applies `payload`. Each
    /// run does the actions `before` first, and reverts afterwards.
    fn window(
        &mut self,
        before: &[Operation<'_>],
        action: Operation<'_>,
        payload: &Payload,
    ) -> anyhow::Result<u64> {
        let actions = [before, &[action, ("revert", payload)]].concat();
        let mut least = u64::MAX;
        for _ in 0..self.measure.rounds() {
            let windows = self.passages_of(WINDOW, &actions)?;
            let (done, seen) = (actions.len(), windows.len());
            ensure!(seen == done, "{done} actions had {seen} windows");
            least = windows[before.len()].min(least);
        }
        Ok(least)
    }

    /// Number of instructions that a CPU needs to see that nothing is pending; for a
    /// host without any actions so far.
    pub(super) fn idle(&self) -> anyhow::Result<u64> {
        let mut lengths = self.passages(CHECK)?;
        lengths.sort_unstable();
        // Near the maximum, without those with an interrupt.
        let most = lengths.get(lengths.len() * 9 / 10);
        most.copied().context("no CPU was on its way to a guest")
    }

    /// The addresses of the hypervisor's pages that have run so far.
    pub(super) fn pages(&self) -> anyhow::Result<BTreeSet<u64>> {
        let pages = self.lines()?.into_iter().filter_map(|line| match line {
            Line::Page(address) => Some(address),
            Line::Passage { .. } => None,
        });
        Ok(pages.collect())
    }

    /// Runs operations in dom0; returns the lengths of a stretch's passages
    /// meanwhile.
    fn passages_of(
        &mut self,
        stretch: usize,
        operations: &[Operation<'_>],
    ) -> anyhow::Result<Vec<u64>> {
        let earlier = self.passages(stretch)?.len();
        self.run(operations)?;
        Ok(self.passages(stretch)?.split_off(earlier))
    }

    /// The lengths of all passages of a stretch so far.
    fn passages(&self, of: usize) -> anyhow::Result<Vec<u64>> {
        let lengths = self.lines()?.into_iter().filter_map(|line| match line {
            Line::Passage { stretch, length } if stretch == of => Some(length),
            _ => None,
        });
        Ok(lengths.collect())
    }

    fn lines(&self) -> anyhow::Result<Vec<Line>> {
        let text = std::fs::read_to_string(&self.output)?;
        // The last line may be incomplete.
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        let lines = whole.lines().map(str::parse);
        Ok(lines.collect::<Result<_, _>>()?)
    }

    /// Runs operations in dom0.
    fn run(&mut self, operations: &[Operation<'_>]) -> anyhow::Result<()> {
        let mut words = vec![OPERATE.to_owned()];
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
        Ok(())
    }
}

/// The path of a payload in dom0.
fn file(payload: &Payload) -> String {
    format!("lab/{}.livepatch", payload.name)
}

/// A copy of `program` without debugging information, because the emulated machine is
/// slow to read it.
fn strip(arch: Arch, program: &Path, to: PathBuf) -> anyhow::Result<PathBuf> {
    let objcopy = match arch {
        Arch::X86_64 => "objcopy",
        Arch::Arm64 => "aarch64-linux-gnu-objcopy",
    };
    command::output(
        Command::new(objcopy)
            .arg("--strip-all")
            .arg(program)
            .arg(&to),
    )?;
    Ok(to)
}
