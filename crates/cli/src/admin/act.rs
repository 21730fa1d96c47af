// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changing what the hypervisor holds and has applied.

use super::audit::{Audit, NotBegun, Subject, recorded};
use super::commands::{Change, Limits};
use super::console::Console;
use super::explain::{explain_action, explain_interface, explain_upload};
use super::payload_file::{self, Identity};
use super::preflight::Preflight;
use super::replaced::Replaced;
use super::{name_of, state_word};
use crate::code::{Code, Coded};
use crate::store;
use anyhow::Context;
use schemars::JsonSchema;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use xsplice_abi::sysctl::NAME_SIZE;
use xsplice_abi::text::{escaped, is_deceptive};
use xsplice_dom0::{
    Action, Errno, FORCE_SINCE, Livepatch, Payload, Privcmd, State, build_id, machine, version,
};
use xsplice_store::{Action as Recorded, BuildId, Retries};

/// What is to be done, after everything was refused that can be without the
/// hypervisor.
pub(super) enum Task<'a> {
    Upload {
        candidate: Candidate,
        preflight: &'a Preflight,
    },
    Load {
        candidate: Candidate,
        preflight: &'a Preflight,
        nodeps: bool,
        limits: Limits,
    },
    LoadInstead {
        candidate: Candidate,
        preflight: &'a Preflight,
        on: &'a [PathBuf],
        limits: Limits,
    },
    RevertAll {
        limits: Limits,
    },
    Replace {
        name: &'a str,
        on: &'a [PathBuf],
        limits: Limits,
    },
    Act {
        name: &'a str,
        action: Action,
        nodeps: bool,
        limits: Limits,
    },
}

/// A payload that was read from a file, and its name in the hypervisor.
pub(super) struct Candidate {
    name: String,
    data: Vec<u8>,
    identity: Identity,
    /// Whether the hypervisor is asked to skip the checks that it can skip.
    force: bool,
}

impl Candidate {
    fn read(file: &Path, name: String, force: bool) -> anyhow::Result<Self> {
        let (data, identity) = payload_file::read(file)?;
        check_new_name(&name)?;
        Ok(Self {
            name,
            data,
            identity,
            force,
        })
    }
}

impl<'a> Task<'a> {
    pub(super) fn new(change: &'a Change) -> anyhow::Result<Self> {
        match change {
            Change::Upload {
                name,
                file,
                force,
                preflight,
                ..
            } => Ok(Self::Upload {
                candidate: Candidate::read(file, name.clone(), *force)?,
                preflight,
            }),
            Change::Load {
                file,
                name,
                nodeps,
                replace,
                on,
                force,
                preflight,
                limits,
                ..
            } => {
                let name = name.clone().unwrap_or_else(|| name_of(file));
                let (candidate, limits) = (Candidate::read(file, name, *force)?, *limits);
                Ok(match *replace {
                    true => Self::LoadInstead {
                        candidate,
                        preflight,
                        on,
                        limits,
                    },
                    false => Self::Load {
                        candidate,
                        preflight,
                        nodeps: *nodeps,
                        limits,
                    },
                })
            }
            Change::Replace {
                name, on, limits, ..
            } => Self::replace(name, on, *limits),
            Change::Apply {
                name,
                nodeps,
                limits,
                ..
            } => Self::act(name, Action::Apply, *nodeps, *limits),
            Change::Revert { name, limits, .. } => match name {
                Some(name) => Self::act(name, Action::Revert, false, *limits),
                None => Ok(Self::RevertAll { limits: *limits }),
            },
            Change::Unload { name, .. } => {
                Self::act(name, Action::Unload, false, Limits::default())
            }
        }
    }

    fn replace(name: &'a str, on: &'a [PathBuf], limits: Limits) -> anyhow::Result<Self> {
        check_length(name)?;
        Ok(Self::Replace { name, on, limits })
    }

    /// What the history says about it, on the hypervisor with the build-id `base`.
    fn subject(&self, base: Option<BuildId>) -> Subject<'_> {
        let data = match self {
            Self::Upload { candidate, .. }
            | Self::Load { candidate, .. }
            | Self::LoadInstead { candidate, .. } => Some(&*candidate.data),
            Self::Replace { .. } | Self::Act { .. } | Self::RevertAll { .. } => None,
        };
        let action = match self {
            Self::Upload { .. } => Recorded::Upload,
            Self::Load { .. } | Self::LoadInstead { .. } => Recorded::Load,
            Self::RevertAll { .. } => Recorded::Revert,
            Self::Replace { .. } => Recorded::Replace,
            Self::Act { action, .. } => recorded(*action),
        };
        Subject {
            action,
            base,
            name: self.name(),
            data,
        }
    }

    fn act(name: &'a str, action: Action, nodeps: bool, limits: Limits) -> anyhow::Result<Self> {
        // Another tool may have uploaded a payload under any name.
        check_length(name)?;
        Ok(Self::Act {
            name,
            action,
            nodeps,
            limits,
        })
    }

    /// The payload that it is about; none if it is about all.
    fn name(&self) -> Option<&str> {
        match self {
            Self::Upload { candidate, .. }
            | Self::Load { candidate, .. }
            | Self::LoadInstead { candidate, .. } => Some(&candidate.name),
            Self::Replace { name, .. } | Self::Act { name, .. } => Some(name),
            Self::RevertAll { .. } => None,
        }
    }
}

/// What was done with a payload.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Acted {
    /// The payload; null if it was done with several.
    name: Option<String>,
    /// What was done, in words.
    done: String,
    /// The payloads that were reverted because all were to be, or unloaded because they
    /// were replaced, in this order.
    others: Vec<String>,
    /// Whose variables went, if it replaced others.
    variables: Option<Replaced>,
}

/// How an action ended that did not fail.
pub(super) struct Done {
    pub(super) text: String,
    pub(super) acted: Acted,
    /// Whether the hypervisor did something.
    pub(super) changed: bool,
    /// The payload's state now, if it is there.
    pub(super) state: Option<String>,
}

impl Done {
    fn new(name: &str, what: &str, state: Option<State>) -> Self {
        Self {
            text: format!("{}: {what}", escaped(name)),
            acted: Acted {
                name: Some(name.to_owned()),
                done: what.to_owned(),
                others: Vec::new(),
                variables: None,
            },
            changed: true,
            state: state.map(state_word),
        }
    }

    /// Another payload was `done` something with, too.
    fn also(&mut self, name: &str, done: &str) {
        let line = format!("{}: {done}", escaped(name));
        self.text = match self.changed {
            true => format!("{}\n{line}", self.text),
            false => line,
        };
        self.changed = true;
        self.acted.others.push(name.to_owned());
    }
}

/// How an action ended that failed.
pub(super) struct Failed {
    pub(super) error: anyhow::Error,
    /// Whether the hypervisor's payloads are not what they were.
    pub(super) changed: bool,
    /// The payload's state now, if it is there.
    pub(super) state: Option<String>,
    /// What the hypervisor printed about it.
    pub(super) console: Vec<String>,
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self {
            error,
            changed: false,
            state: None,
            console: Vec::new(),
        }
    }
}

/// Does what is to be done, after waiting up to `patience` for another xsplice.
pub(super) fn run(task: &Task, patience: Duration) -> Result<Done, Failed> {
    let hypervisor = Privcmd::open().map_err(anyhow::Error::from)?;
    let running = build_id(&hypervisor);
    let base = running.clone().ok().flatten();
    let base = base.and_then(|id| id.try_into().ok());
    let audit = Audit::begin(&task.subject(base), patience).map_err(NotBegun::into_error)?;
    let done = run_on(&hypervisor, running, task);
    audit.end(
        done.as_ref()
            .err()
            .map(|failed| format!("{:#}", failed.error)),
    );
    done
}

fn run_on(
    hypervisor: &Privcmd,
    running: Result<Option<String>, Errno>,
    task: &Task,
) -> Result<Done, Failed> {
    let livepatch = Livepatch::negotiate(hypervisor).map_err(explain_interface)?;
    let before = livepatch.list().map_err(explain_interface)?;
    let host = Host {
        hypervisor,
        running,
        console: Console::from_now(&livepatch),
        livepatch,
        before,
    };
    let done = match task {
        Task::Upload {
            candidate,
            preflight,
        } => host.upload(candidate, preflight),
        Task::Load {
            candidate,
            preflight,
            nodeps,
            limits,
        } => host.load(candidate, preflight, *nodeps, *limits),
        Task::LoadInstead {
            candidate,
            preflight,
            on,
            limits,
        } => host.load_instead(candidate, preflight, on, *limits),
        Task::RevertAll { limits } => host.revert_all(*limits),
        Task::Replace { name, on, limits } => host.replace(name, on, *limits),
        Task::Act {
            name,
            action,
            nodeps,
            limits,
        } => host.act(name, *action, *nodeps, *limits),
    };
    done.map_err(|error| host.failed(task.name(), error))
}

/// Since when a payload that is to be applied has been in the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Since {
    /// This command has uploaded it.
    Now,
    /// It was there before.
    Before,
}

/// The running hypervisor, and the payloads that it held before the command.
struct Host<'a> {
    hypervisor: &'a Privcmd,
    /// Its build-id, if it has one, or why it does not say.
    running: Result<Option<String>, Errno>,
    livepatch: Livepatch<'a, Privcmd>,
    before: Vec<Payload>,
    /// What it prints from then on.
    console: Console,
}

impl Host<'_> {
    /// Build-id of the running hypervisor, if it has one.
    fn running(&self) -> anyhow::Result<Option<&str>> {
        let running = self
            .running
            .as_ref()
            .map_err(|errno| explain_interface(*errno));
        Ok(running?.as_deref())
    }

    /// Refuses a payload for another machine or hypervisor.
    fn check_belongs(&self, identity: &Identity) -> anyhow::Result<()> {
        let machine = machine(self.hypervisor).map_err(explain_interface)?;
        if let Some(machine) = machine.filter(|&m| m != identity.machine) {
            let words = format!(
                "the payload is for {}; this host runs on {machine}",
                identity.machine
            );
            return Err(Code::WrongMachine.error(words));
        }
        let running = self.running()?;
        let running = running
            .context("this hypervisor has no build-id, so payloads cannot be matched to it")?;
        if running != identity.hypervisor {
            let below = if identity.depends == identity.hypervisor {
                String::new()
            } else {
                format!(", on top of the payload with build-id {}", identity.depends)
            };
            let words = format!(
                "the payload is for the hypervisor with build-id {}{below}; \
                 this host runs {running}: use the payload that was built from its xen-syms",
                identity.hypervisor
            );
            return Err(Code::WrongHypervisor.error(words));
        }
        Ok(())
    }

    fn upload(&self, candidate: &Candidate, preflight: &Preflight) -> anyhow::Result<Done> {
        let Candidate {
            name,
            data,
            identity,
            force,
        } = candidate;
        if *force {
            check_knows_force(self.hypervisor)?;
        }
        self.check_belongs(identity)?;
        preflight.run(name, data, identity)?;
        if let Some(there) = self.there(name) {
            return Err(taken(there, "a payload of this name is already loaded").into());
        }
        self.livepatch
            .upload(name, data, *force)
            .map_err(|errno| explain_upload(errno, name, &self.said(name)))?;
        Ok(Done::new(name, "uploaded", Some(State::Checked)))
    }

    /// The payload of this name, if it was there before the command.
    fn there(&self, name: &str) -> Option<&Payload> {
        self.before.iter().find(|payload| payload.name == name)
    }

    /// Uploads a payload, unless it is known to be there already.
    fn provide(&self, candidate: &Candidate, preflight: &Preflight) -> anyhow::Result<Since> {
        let name = &candidate.name;
        let Some(there) = self.there(name) else {
            return self.upload(candidate, preflight).map(|_| Since::Now);
        };
        self.check_belongs(&candidate.identity)?;
        let interface = self.livepatch.interface_version();
        let metadata = xsplice_review::Payload::read(&candidate.data, None)?.metadata;
        if interface.has_flags_and_metadata() && there.metadata != metadata {
            return Err(taken(there, "another payload of this name is loaded").into());
        }
        match store::is_uploaded(name, &candidate.data) {
            Ok(true) => Ok(Since::Before),
            Ok(false) => Err(taken(
                there,
                "a payload of this name is already loaded, and it is not recorded that it is \
                 from this file",
            )
            .into()),
            Err(error) => Err(error.context(taken(
                there,
                "a payload of this name is already loaded, and whether it is from this file \
                 cannot be found out",
            ))),
        }
    }

    fn load(
        &self,
        candidate: &Candidate,
        preflight: &Preflight,
        nodeps: bool,
        limits: Limits,
    ) -> anyhow::Result<Done> {
        let since = self.provide(candidate, preflight)?;
        let name = &candidate.name;
        let applied = self.act(name, Action::Apply, nodeps, limits);
        applied.map_err(|error| self.take_back(name, since, error))
    }

    /// Loads a payload in place of what is applied, which is unloaded then.
    fn load_instead(
        &self,
        candidate: &Candidate,
        preflight: &Preflight,
        on: &[PathBuf],
        limits: Limits,
    ) -> anyhow::Result<Done> {
        let since = self.provide(candidate, preflight)?;
        let name = &candidate.name;
        let mut before = applied(&self.before);
        if before.contains(&name.as_str()) {
            before.retain(|other| other != name);
            if !before.is_empty() {
                return Err(Code::IsApplied.error(format!(
                    "{name} is applied already, and cannot replace what is applied with it: \
                     revert that ({})",
                    listed(&before)
                )));
            }
            return self.act(name, Action::Apply, false, limits);
        }
        let replaced = self.replace(name, on, limits);
        let mut done = replaced.map_err(|error| self.take_back(name, since, error))?;
        for other in before.into_iter().rev() {
            self.act(other, Action::Unload, false, Limits::default())
                .with_context(|| format!("{name} is applied, but {} stays", escaped(other)))?;
            done.also(other, "unloaded");
        }
        Ok(done)
    }

    /// Unloads a payload that was uploaded for an action that failed with `error`.
    fn take_back(&self, name: &str, since: Since, error: anyhow::Error) -> anyhow::Error {
        if since == Since::Before {
            return error;
        }
        match self.act(name, Action::Unload, false, Limits::default()) {
            Ok(_) => error.context(format!("{name} was unloaded again")),
            Err(_) => error.context(format!("{name} stays uploaded")),
        }
    }

    /// Reverts every applied payload. The interface does not tell their order: the
    /// topmost is the one that the hypervisor reverts.
    fn revert_all(&self, limits: Limits) -> anyhow::Result<Done> {
        let mut done = Done {
            text: "no payloads are applied".to_owned(),
            acted: Acted {
                name: None,
                done: "all reverted".to_owned(),
                others: Vec::new(),
                variables: None,
            },
            changed: false,
            state: None,
        };
        loop {
            let payloads = self.livepatch.list().map_err(explain_interface)?;
            let mut left = applied(&payloads).into_iter().rev();
            let mut not_on_top = None;
            let reverted =
                left.find_map(|name| match self.act(name, Action::Revert, false, limits) {
                    Ok(_) => Some(Ok(name)),
                    Err(error) if Code::of(&error) == Some(Code::NotOnTop) => {
                        not_on_top = Some(error);
                        None
                    }
                    Err(error) => Some(Err(error)),
                });
            match (reverted.transpose()?, not_on_top) {
                (Some(name), _) => done.also(name, "reverted"),
                (None, Some(error)) => return Err(error),
                (None, None) => return Ok(done),
            }
        }
    }

    /// Replaces the applied payloads, and reports whose variables were lost.
    fn replace(&self, name: &str, on: &[PathBuf], limits: Limits) -> anyhow::Result<Done> {
        let applied = applied(&self.before).into_iter();
        let applied = applied.filter(|other| *other != name);
        let applied: Vec<String> = applied.map(str::to_owned).collect();
        let replaced = Replaced::look(&applied, on, self.running()?)?;
        let mut done = self.act(name, Action::Replace, false, limits)?;
        if done.changed {
            let lines = [vec![done.text], replaced.lines(name)].concat();
            done.text = lines.join("\n");
            done.acted.variables = Some(replaced);
        }
        Ok(done)
    }

    /// Does an action, unless the payload is in the wanted state already.
    fn act(
        &self,
        name: &str,
        action: Action,
        nodeps: bool,
        limits: Limits,
    ) -> anyhow::Result<Done> {
        let called = &*escaped(name).to_string();
        let missing = |e: Errno| match e {
            Errno::ENOENT => Code::NotThere.error(format!(
                "{called}: the hypervisor has no payload of this name; see `xsplice list`"
            )),
            other => explain_interface(other),
        };
        let wanted = match action {
            Action::Apply | Action::Replace => Some(State::Applied),
            Action::Revert => Some(State::Checked),
            Action::Unload => None,
        };
        let before = self.livepatch.get(name).map_err(missing)?;
        if Some(before.state) == wanted && before.rc != -Errno::EAGAIN.0 {
            let what = match action {
                Action::Replace => {
                    "no action needed: it is applied already, and replace is for a payload that is \
                     not; to make it the only one, revert the others"
                }
                _ => "no action needed",
            };
            return Ok(Done {
                changed: false,
                ..Done::new(name, what, wanted)
            });
        }
        if action == Action::Unload && before.state == State::Applied {
            let words = format!("{called} is applied: revert it before it is unloaded");
            return Err(Code::IsApplied.error(words));
        }
        self.attempt(name, action, nodeps, limits)?;
        let what = match action {
            Action::Apply => "applied",
            Action::Revert => "reverted",
            Action::Replace => "applied, all others reverted",
            Action::Unload => "unloaded",
        };
        Ok(Done::new(name, what, wanted))
    }

    /// Starts an action, waits until it completes, and retries after a rendezvous
    /// timeout.
    fn attempt(
        &self,
        name: &str,
        action: Action,
        nodeps: bool,
        limits: Limits,
    ) -> anyhow::Result<()> {
        let mut retries = Retries::new(limits.retries);
        loop {
            let timeout = limits.timeout * 1_000_000;
            let started = self.livepatch.action(name, action, timeout, nodeps);
            if action == Action::Revert && started == Err(Errno::EBUSY) {
                self.check_top(name)?;
            }
            match started.and_then(|()| self.livepatch.wait(name, action, timeout)) {
                Ok(()) => return Ok(()),
                Err(errno) => {
                    let busy = matches!(errno, Errno::EBUSY | Errno::EAGAIN);
                    if let Some(pause) = busy.then(|| retries.next()).flatten() {
                        std::thread::sleep(pause);
                        continue;
                    }
                    let (called, said) = (escaped(name).to_string(), self.said(name));
                    let limits = (retries.taken(), limits);
                    return Err(explain_action(errno, &called, action, limits, &said));
                }
            }
        }
    }

    /// Finds out why a revert could not even start: Xen gives one error number for
    /// two reasons, and only one of them passes.
    fn check_top(&self, name: &str) -> anyhow::Result<()> {
        let payloads = self.livepatch.list().map_err(explain_interface)?;
        let under_way = |payload: &Payload| payload.status.rc == -Errno::EAGAIN.0;
        let others = applied(&payloads).into_iter();
        let others: Vec<&str> = others.filter(|other| *other != name).collect();
        if others.is_empty() || payloads.iter().any(under_way) {
            return Ok(());
        }
        Err(Code::NotOnTop.error(format!(
            "{}: it is not the topmost payload: revert those applied after it first (applied: {})",
            escaped(name),
            listed(&others)
        )))
    }

    /// What the hypervisor has printed about the payload `name` since the command began.
    fn said(&self, name: &str) -> Vec<String> {
        let others = self.before.iter().map(|payload| payload.name.as_str());
        let others = others.filter(|other| *other != name);
        self.console.about(&self.livepatch, name, others)
    }

    /// The same about all payloads.
    fn said_of_all(&self) -> Vec<String> {
        self.console.about(&self.livepatch, "", std::iter::empty())
    }

    /// What became of the payloads although the command failed.
    fn failed(&self, name: Option<&str>, error: anyhow::Error) -> Failed {
        let console = name.map_or_else(|| self.said_of_all(), |name| self.said(name));
        let Ok(after) = self.livepatch.list() else {
            return Failed {
                console,
                ..error.into()
            };
        };
        let states = |payloads: &[Payload]| {
            let states = payloads.iter();
            let states = states.map(|payload| (payload.name.clone(), payload.status.state));
            states.collect::<Vec<_>>()
        };
        let payload = after
            .iter()
            .find(|payload| Some(payload.name.as_str()) == name);
        // Nothing goes without a word: Xen's replace can fail after the reverts.
        let still = applied(&after);
        let mut gone = applied(&self.before);
        gone.retain(|name| !still.contains(name));
        let error = match gone.as_slice() {
            [] => error,
            gone => error.context(format!("no longer applied: {}", listed(gone))),
        };
        Failed {
            error,
            changed: states(&after) != states(&self.before),
            state: payload.map(|payload| state_word(payload.status.state)),
            console,
        }
    }
}

/// The names of the payloads that are applied, in the order of upload.
fn applied(payloads: &[Payload]) -> Vec<&str> {
    let applied = payloads.iter();
    let applied = applied.filter(|payload| payload.status.state == State::Applied);
    applied.map(|payload| payload.name.as_str()).collect()
}

/// A payload is in the way, which has the name of the one that is to be uploaded.
fn taken(there: &Payload, what: &str) -> Coded {
    let (name, state) = (escaped(&there.name), state_word(there.status.state));
    Code::NameTaken.says(format!(
        "{name}: {what} ({state}); unload it first, or use another name"
    ))
}

/// Names for a message.
fn listed(names: &[&str]) -> String {
    let names = names.iter().map(|name| escaped(name).to_string());
    names.collect::<Vec<_>>().join(", ")
}

fn check_length(name: &str) -> anyhow::Result<()> {
    if name.len() >= NAME_SIZE {
        return Err(Code::BadName.error(format!(
            "a payload's name has at most {} bytes, this one {}",
            NAME_SIZE - 1,
            name.len()
        )));
    }
    Ok(())
}

fn check_new_name(name: &str) -> anyhow::Result<()> {
    if name.is_empty() {
        return Err(Code::BadName.error("a payload's name must not be empty"));
    }
    check_length(name)?;
    if let Some(bad) = name
        .chars()
        .find(|c| is_deceptive(*c) || c.is_whitespace() || *c == '/')
    {
        return Err(Code::BadName.error(format!(
            "the name {name:?} has the character {bad:?}: use letters, digits, '-', '_', '.'"
        )));
    }
    Ok(())
}

fn check_knows_force(hypervisor: &Privcmd) -> anyhow::Result<()> {
    let (major, minor) = version(hypervisor).map_err(explain_interface)?;
    if (major, minor) < FORCE_SINCE {
        return Err(Code::InterfaceUnknown.error(format!(
            "--force: this host runs Xen {major}.{minor}, which does not know the flag; Xen 4.19 \
             and later do"
        )));
    }
    Ok(())
}
