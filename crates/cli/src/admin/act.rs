// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changing what the hypervisor holds and has applied.

use super::commands::{Change, Limits};
use super::console::Console;
use super::explain::{explain_action, explain_interface, explain_upload};
use super::payload_file::{self, Identity};
use super::preflight::Preflight;
use super::replaced::Replaced;
use super::{name_of, state_word};
use anyhow::{Context, anyhow, bail};
use schemars::JsonSchema;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use xsplice_abi::sysctl::NAME_SIZE;
use xsplice_abi::text::{escaped, is_deceptive};
use xsplice_dom0::{Action, Errno, Livepatch, Payload, Privcmd, State, version_info};

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

/// A payload that was read from a file, and what it is to be called.
pub(super) struct Candidate {
    name: String,
    data: Vec<u8>,
    identity: Identity,
}

impl Candidate {
    fn read(file: &Path, name: String) -> anyhow::Result<Self> {
        let (data, identity) = payload_file::read(file)?;
        check_new_name(&name)?;
        Ok(Self {
            name,
            data,
            identity,
        })
    }
}

impl<'a> Task<'a> {
    pub(super) fn new(change: &'a Change) -> anyhow::Result<Self> {
        let act = |name: &'a str, action, nodeps, limits| {
            // Another tool may have uploaded a payload under any name.
            check_length(name)?;
            Ok(Self::Act {
                name,
                action,
                nodeps,
                limits,
            })
        };
        match change {
            Change::Upload {
                name,
                file,
                preflight,
            } => Ok(Self::Upload {
                candidate: Candidate::read(file, name.clone())?,
                preflight,
            }),
            Change::Load {
                file,
                name,
                nodeps,
                preflight,
                limits,
            } => {
                let name = name.clone().unwrap_or_else(|| name_of(file));
                Ok(Self::Load {
                    candidate: Candidate::read(file, name)?,
                    preflight,
                    nodeps: *nodeps,
                    limits: *limits,
                })
            }
            Change::Replace { name, on, limits } => {
                check_length(name)?;
                Ok(Self::Replace {
                    name,
                    on,
                    limits: *limits,
                })
            }
            Change::Apply {
                name,
                nodeps,
                limits,
            } => act(name, Action::Apply, *nodeps, *limits),
            Change::Revert { name, limits } => act(name, Action::Revert, false, *limits),
            Change::Unload { name } => act(name, Action::Unload, false, Limits::default()),
        }
    }

    /// The payload that it is about.
    fn name(&self) -> &str {
        match self {
            Self::Upload { candidate, .. } | Self::Load { candidate, .. } => &candidate.name,
            Self::Replace { name, .. } | Self::Act { name, .. } => name,
        }
    }
}

/// What was done with a payload.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Acted {
    /// The payload.
    name: String,
    /// What was done, in words.
    done: String,
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
                name: name.to_owned(),
                done: what.to_owned(),
                variables: None,
            },
            changed: true,
            state: state.map(state_word),
        }
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

/// Does what is to be done.
pub(super) fn run(task: Task) -> Result<Done, Failed> {
    let hypervisor = Privcmd::open().map_err(anyhow::Error::from)?;
    let livepatch = Livepatch::negotiate(&hypervisor).map_err(explain_interface)?;
    let before = livepatch.list().map_err(explain_interface)?;
    let host = Host {
        hypervisor: &hypervisor,
        console: Console::from_now(&livepatch),
        livepatch,
        before,
    };
    let done = match &task {
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

/// The running hypervisor, and the payloads that it held before the command.
struct Host<'a> {
    hypervisor: &'a Privcmd,
    livepatch: Livepatch<'a, Privcmd>,
    before: Vec<Payload>,
    /// What it prints from then on.
    console: Console,
}

impl Host<'_> {
    fn upload(&self, candidate: &Candidate, preflight: &Preflight) -> anyhow::Result<Done> {
        let Candidate {
            name,
            data,
            identity,
        } = candidate;
        check_belongs(self.hypervisor, identity)?;
        preflight.run(name, data, identity)?;
        if let Some(there) = self.before.iter().find(|payload| payload.name == *name) {
            let state = state_word(there.status.state);
            bail!("{name}: a payload of this name is there already ({state})");
        }
        self.livepatch
            .upload(name, data)
            .map_err(|errno| explain_upload(errno, name, &self.said(name)))?;
        Ok(Done::new(name, "uploaded", Some(State::Checked)))
    }

    fn load(
        &self,
        candidate: &Candidate,
        preflight: &Preflight,
        nodeps: bool,
        limits: Limits,
    ) -> anyhow::Result<Done> {
        self.upload(candidate, preflight)?;
        let name = &candidate.name;
        let applied = self.act(name, Action::Apply, nodeps, limits);
        applied.map_err(
            |error| match self.act(name, Action::Unload, false, Limits::default()) {
                Ok(_) => error.context(format!("{name} was unloaded again")),
                Err(_) => error.context(format!("{name} stays uploaded")),
            },
        )
    }

    /// Replaces the applied payloads, and reports whose variables were lost.
    fn replace(&self, name: &str, on: &[PathBuf], limits: Limits) -> anyhow::Result<Done> {
        let applied = self
            .before
            .iter()
            .filter(|payload| payload.status.state == State::Applied && payload.name != name);
        let applied: Vec<String> = applied.map(|payload| payload.name.clone()).collect();
        let running = version_info(self.hypervisor).map_err(explain_interface)?;
        let replaced = Replaced::look(&applied, on, running.build_id.as_deref())?;
        let mut done = self.act(name, Action::Replace, false, limits)?;
        if done.changed {
            let lines = [vec![done.text], replaced.lines(name)].concat();
            done.text = lines.join("\n");
            done.acted.variables = Some(replaced);
        }
        Ok(done)
    }

    /// Starts an action, waits until it completes, and retries after a rendezvous
    /// timeout.
    fn act(
        &self,
        name: &str,
        action: Action,
        nodeps: bool,
        limits: Limits,
    ) -> anyhow::Result<Done> {
        let called = &*escaped(name).to_string();
        let missing = |e: Errno| match e {
            Errno::ENOENT => {
                anyhow!("{called}: the hypervisor has no payload of this name; see `xsplice list`")
            }
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
            bail!("{called} is applied: revert it before it is unloaded");
        }
        let mut tries = 0;
        loop {
            let timeout = limits.timeout * 1_000_000;
            let started = self.livepatch.action(name, action, timeout, nodeps);
            if action == Action::Revert && started == Err(Errno::EBUSY) {
                self.check_top(name)?;
            }
            match started.and_then(|()| self.livepatch.wait(name, action, timeout)) {
                Ok(()) => {
                    let what = match action {
                        Action::Apply => "applied",
                        Action::Revert => "reverted",
                        Action::Replace => "applied, all others reverted",
                        Action::Unload => "unloaded",
                    };
                    return Ok(Done::new(name, what, wanted));
                }
                Err(Errno::EBUSY | Errno::EAGAIN) if tries < limits.retries => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(20 << tries.min(5)));
                }
                Err(errno) => {
                    let limits = (tries, limits);
                    return Err(explain_action(
                        errno,
                        called,
                        action,
                        limits,
                        &self.said(name),
                    ));
                }
            }
        }
    }

    /// Finds out why a revert could not even start: Xen gives one error number for
    /// two reasons, and only one of them passes.
    fn check_top(&self, name: &str) -> anyhow::Result<()> {
        let payloads = self.livepatch.list().map_err(explain_interface)?;
        let under_way = |payload: &Payload| payload.status.rc == -Errno::EAGAIN.0;
        let applied = payloads
            .iter()
            .filter(|payload| payload.status.state == State::Applied && payload.name != name);
        let applied: Vec<String> = applied
            .map(|payload| escaped(&payload.name).to_string())
            .collect();
        if applied.is_empty() || payloads.iter().any(under_way) {
            return Ok(());
        }
        bail!(
            "{}: it is not the topmost payload: revert those applied after it first (applied: {})",
            escaped(name),
            applied.join(", ")
        );
    }

    /// What the hypervisor has printed about the payload `name` since the command began.
    fn said(&self, name: &str) -> Vec<String> {
        let others = self.before.iter().map(|payload| payload.name.as_str());
        let others = others.filter(|other| *other != name);
        self.console.about(&self.livepatch, name, others)
    }

    /// What became of the payloads although the command failed.
    fn failed(&self, name: &str, error: anyhow::Error) -> Failed {
        let console = self.said(name);
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
        let payload = after.iter().find(|payload| payload.name == name);
        Failed {
            error,
            changed: states(&after) != states(&self.before),
            state: payload.map(|payload| state_word(payload.status.state)),
            console,
        }
    }
}

fn check_length(name: &str) -> anyhow::Result<()> {
    if name.len() >= NAME_SIZE {
        bail!(
            "a payload's name has at most {} bytes, this one {}",
            NAME_SIZE - 1,
            name.len()
        );
    }
    Ok(())
}

fn check_new_name(name: &str) -> anyhow::Result<()> {
    if name.is_empty() {
        bail!("a payload's name must not be empty");
    }
    check_length(name)?;
    if let Some(bad) = name
        .chars()
        .find(|c| is_deceptive(*c) || c.is_whitespace() || *c == '/')
    {
        bail!("the name {name:?} has the character {bad:?}: use letters, digits, '-', '_', '.'");
    }
    Ok(())
}

fn check_belongs(hypervisor: &Privcmd, identity: &payload_file::Identity) -> anyhow::Result<()> {
    let running = version_info(hypervisor)
        .map_err(explain_interface)?
        .build_id;
    let running =
        running.context("this hypervisor has no build-id, so payloads cannot be matched to it")?;
    if running != identity.hypervisor {
        let below = if identity.depends == identity.hypervisor {
            String::new()
        } else {
            format!(", on top of the payload with build-id {}", identity.depends)
        };
        bail!(
            "the payload is for the hypervisor with build-id {}{below}; \
             this host runs {running}: use the payload that was built from its xen-syms",
            identity.hypervisor
        );
    }
    Ok(())
}
