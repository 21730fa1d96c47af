// SPDX-License-Identifier: MIT OR Apache-2.0
//! The store, and what the host has of it: install, remove, status, plan, sync,
//! history, metrics, coverage.

mod coverage;
mod failure;
mod install;
mod status;
mod sync;

pub(crate) use coverage::Covers;
pub(crate) use install::{Installed, Removed, manifest};
pub(crate) use status::{Exposed, Past, Status, details, is_uploaded, known};
pub(crate) use sync::{Planned, Synced};

use crate::admin::Dom0;
use crate::output::{complain, failure};
use anyhow::Context as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use xsplice_dom0::Privcmd;
use xsplice_store::{BuildId, Date, Event, Lock, Log, Moment, Outcome, Policy, Recorder, Root};

/// The commands about the store.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Put payloads into the store of this host, without applying them.
    Install(install::InstallArgs),
    /// Remove a payload from the store.
    Remove(install::RemoveArgs),
    /// Show whether this host has the payload that its policy wants.
    Status(status::StatusArgs),
    /// Show what `sync` would do.
    Plan(sync::PlanArgs),
    /// Bring this host to the payload that its policy wants.
    Sync(sync::SyncArgs),
    /// Show what was done on this host.
    History(status::HistoryArgs),
    /// Write the state of this host as metrics for Prometheus.
    Metrics(status::MetricsArgs),
    /// Show which hosts of a fleet a store has payloads for.
    Coverage(coverage::Args),
}

impl Command {
    /// Whether it creates files that must not be left behind half-written.
    pub(crate) fn makes_files(&self) -> bool {
        matches!(self, Self::Metrics(_))
    }
}

/// Where the files are.
#[derive(clap::Args)]
pub(crate) struct At {
    /// Directory to use as `/`, for tests and for images of hosts.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// How long to wait for another run.
#[derive(clap::Args, Clone, Copy)]
pub(crate) struct Wait {
    /// Wait up to S seconds while another xsplice is at work.
    #[arg(long = "wait", value_name = "S", default_value_t = 0)]
    seconds: u32,
}

impl At {
    fn root(&self) -> Root {
        Root::new(&self.root)
    }
}

impl Wait {
    /// How long that is.
    pub(crate) fn patience(self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }

    fn take(self, root: &Root) -> anyhow::Result<Lock> {
        Ok(Lock::take(root, self.patience())?)
    }
}

/// What the kernel says about this boot.
fn now() -> anyhow::Result<Moment> {
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| path.to_owned());
    let uptime = read("/proc/uptime")?;
    let seconds = uptime.split(['.', ' ']).next().unwrap_or_default();
    Ok(Moment {
        boot: read("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
        uptime: Duration::from_secs(seconds.parse().context("/proc/uptime")?),
        date: Date::new(SystemTime::now()),
    })
}

/// Who logged in; nobody, if a service does this.
fn user() -> Option<u32> {
    let id = std::fs::read_to_string("/proc/self/loginuid").ok()?;
    id.trim().parse().ok().filter(|id| *id != u32::MAX)
}

/// Writes the history of the host at `root`.
pub(crate) fn recorder<'a>(root: &'a Root, log: &'a dyn Log) -> anyhow::Result<Recorder<'a, Root>> {
    Ok(Recorder {
        disk: root,
        now: now()?,
        user: user(),
        log,
    })
}

/// Makes a change of the store, and records it: that `event` begins, and how it ended. If
/// that it begins cannot be recorded, the policy decides.
fn recorded(
    recorder: &Recorder<Root>,
    event: Event,
    change: impl FnOnce() -> xsplice_store::Result<()>,
) -> anyhow::Result<()> {
    begin(
        recorder.disk,
        recorder.record(event.clone()).map_err(Into::into),
    )?;
    let changed = change();
    let (outcome, message) = match &changed {
        Ok(()) => (Outcome::Done, None),
        Err(error) => (Outcome::Failed, Some(error.to_string())),
    };
    let ended = recorder.record(Event {
        outcome,
        message,
        ..event
    });
    changed?;
    ended.context("it is done, but not recorded")
}

/// Goes on although what begins is not `recorded`, with a warning, if the policy of the
/// host permits that.
///
/// # Errors
/// If not.
pub(crate) fn begin(disk: &Root, recorded: anyhow::Result<()>) -> xsplice_store::Result<()> {
    let Err(error) = recorded else {
        return Ok(());
    };
    let cause = format!("{error:#}");
    Policy::permit_unrecorded(disk, &cause)?;
    complain!("warning: not recorded: {cause}");
    Ok(())
}

/// The hypervisor, and its build-id.
fn hypervisor() -> anyhow::Result<(Privcmd, BuildId, String)> {
    let hypervisor = Privcmd::open()?;
    let (version, base) = Dom0::version(&hypervisor)?;
    let version = format!("{}.{}{}", version.major, version.minor, version.extra);
    Ok((hypervisor, base, version))
}

pub(crate) fn run(command: &Command, json: bool) -> ExitCode {
    let done = match command {
        Command::Install(args) => install::install(args, json),
        Command::Remove(args) => install::remove(args, json),
        Command::Status(args) => status::status(args, json),
        Command::Plan(args) => sync::plan(args, json),
        Command::Sync(args) => sync::sync(args, json),
        Command::History(args) => status::history(args, json),
        Command::Metrics(args) => status::metrics(args, json),
        Command::Coverage(args) => coverage::coverage(args, json),
    };
    match done {
        Ok(code) => code,
        Err(error) => failure(&error, json),
    }
}
