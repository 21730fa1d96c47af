// SPDX-License-Identifier: MIT OR Apache-2.0
//! The running hypervisor, as the store needs it.

use super::commands::Limits;
use super::console::Console;
use super::explain::{explain_action, explain_interface, explain_upload};
use super::payload_file;
use super::preflight::Preflight;
use anyhow::Context as _;
use std::time::Duration;
use xsplice_dom0::{Action, Errno, Livepatch, Payload, Privcmd, VersionInfo, version_info};
use xsplice_store::{BuildId, Change, Fault, Host, Loaded, State};

/// The running hypervisor.
pub(crate) struct Dom0<'a> {
    livepatch: Livepatch<'a, Privcmd>,
    /// What it prints from now on.
    console: Console,
    limits: Limits,
}

/// Why there is none.
pub(crate) enum Missing {
    /// It was built without live patching.
    LivePatching,
    /// It cannot be asked.
    Answer(anyhow::Error),
}

impl<'a> Dom0<'a> {
    /// What the hypervisor says of itself.
    pub(crate) fn version(hypervisor: &Privcmd) -> anyhow::Result<(VersionInfo, BuildId)> {
        let version = version_info(hypervisor).map_err(explain_interface)?;
        let id = version.build_id.clone();
        let id =
            id.context("this hypervisor has no build-id, so payloads cannot be matched to it")?;
        let id = id.try_into().map_err(anyhow::Error::msg)?;
        Ok((version, id))
    }

    /// Asks for live patching; a rendezvous takes at most `timeout` milliseconds.
    pub(crate) fn new(hypervisor: &'a Privcmd, timeout: u32) -> Result<Self, Missing> {
        match Livepatch::negotiate(hypervisor) {
            Ok(livepatch) => Ok(Self {
                console: Console::from_now(&livepatch),
                livepatch,
                limits: Limits {
                    timeout,
                    ..Limits::default()
                },
            }),
            Err(Errno::ENOSYS | Errno::EOPNOTSUPP) => Err(Missing::LivePatching),
            Err(errno) => Err(Missing::Answer(explain_interface(errno))),
        }
    }

    /// What it printed about the payload `name`.
    fn said(&self, name: &str) -> Vec<String> {
        let there = self.livepatch.list().unwrap_or_default();
        let others = there.iter().map(|payload| payload.name.as_str());
        let others = others.filter(|other| *other != name);
        self.console.about(&self.livepatch, name, others)
    }
}

/// The payloads that a hypervisor has listed, as the store needs them.
pub(super) fn loaded(livepatch: &Livepatch<Privcmd>, payloads: &[Payload]) -> Vec<Loaded> {
    let tells = livepatch.interface_version().has_flags_and_metadata();
    let loaded = payloads.iter().map(|payload| Loaded {
        state: match payload.status.state {
            xsplice_dom0::State::Checked => State::Checked,
            xsplice_dom0::State::Applied => State::Applied,
            xsplice_dom0::State::Unknown(_) => State::Unknown,
        },
        busy: payload.status.rc == -Errno::EAGAIN.0,
        metadata: tells.then(|| payload.metadata.clone()),
        name: payload.name.clone(),
    });
    loaded.collect()
}

/// What the hypervisor answered.
fn fault(errno: Errno, console: Vec<String>, why: &anyhow::Error) -> Fault {
    Fault {
        errno: Some(errno),
        message: format!("{why:#}"),
        console,
    }
}

impl Host for Dom0<'_> {
    fn list(&self) -> Result<Vec<Loaded>, Fault> {
        let payloads = self.livepatch.list();
        let payloads = payloads.map_err(|e| fault(e, Vec::new(), &explain_interface(e)))?;
        Ok(loaded(&self.livepatch, &payloads))
    }

    fn check(&self, name: &str, data: &[u8]) -> Result<(), Fault> {
        let identity = payload_file::identify(data);
        let refusal = identity.and_then(|id| Preflight::default().refusal(name, data, &id));
        let message = match refusal {
            Ok(None) => return Ok(()),
            Ok(Some(refusal)) => refusal,
            Err(error) => format!("{error:#}"),
        };
        Err(Fault {
            errno: None,
            message,
            console: Vec::new(),
        })
    }

    fn upload(&mut self, name: &str, data: &[u8]) -> Result<(), Fault> {
        self.livepatch.upload(name, data, false).map_err(|errno| {
            let said = self.said(name);
            let why = explain_upload(errno, name, &said);
            fault(errno, said, &why)
        })
    }

    fn change(&mut self, name: &str, change: Change) -> Result<(), Fault> {
        let action = match change {
            Change::Apply => Action::Apply,
            Change::Replace => Action::Replace,
            Change::Revert => Action::Revert,
            Change::Unload => Action::Unload,
        };
        let timeout = self.limits.timeout * 1_000_000;
        let done = self.livepatch.act(name, action, timeout, false);
        done.map_err(|errno| {
            let said = self.said(name);
            let why = explain_action(errno, name, action, (0, self.limits), &said);
            fault(errno, said, &why)
        })
    }

    fn pause(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}
