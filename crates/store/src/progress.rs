// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the host has reached, and what is under way: `progress.json`.

use crate::{
    BuildId, Date, Disk, Entry, Error, Identity, Loaded, Moment, Paths, Quarantined, Result, disk,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What is recorded about the host with each hypervisor, by build-id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    hypervisors: BTreeMap<BuildId, HostRecord>,
}

/// What is recorded about the host with one hypervisor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostRecord {
    /// The payload that it was to have and has run with for long enough: after a boot, it
    /// gets it again.
    pub reached: Option<Identity>,
    /// What was begun, and is not yet known to be good.
    pub attempt: Option<Attempt>,
    /// How the last attempt ended, if it failed.
    pub failed: Option<Failed>,
    /// How often the host has gone down with [`reached`](Self::reached) since it last ran
    /// with it for long enough.
    pub deaths: u32,
    /// What syncs of this boot have uploaded, or begun to unload.
    pub managed: Option<Managed>,
}

/// The names of payloads that a sync may unload without a plan that needs it: those that
/// others have uploaded are theirs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Managed {
    /// In which boot.
    pub boot: String,
    /// The names.
    pub names: BTreeSet<String>,
}

/// What was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    /// The payload to apply; `None`: no payload is to be applied.
    pub payload: Option<Identity>,
    /// In which boot.
    pub boot: String,
    /// How long after the boot, in seconds.
    pub uptime: u64,
    /// Whether all of it was done: then the host only has to run with it.
    pub done: bool,
}

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    /// The payload that was to be applied; null: none was to be applied.
    pub payload: Option<Identity>,
    /// Why.
    pub reason: String,
    /// When.
    pub date: Date,
}

impl Progress {
    /// Reads it.
    ///
    /// # Errors
    /// If the file cannot be read, or is not what was written.
    pub fn read(disk: &impl Disk) -> Result<Self> {
        let path = Paths::progress();
        match disk::read(disk, &path)? {
            None => Ok(Self::default()),
            Some(data) => serde_json::from_slice(&data).map_err(|error| {
                let why = format!("{error}; remove it, and the host begins from what is applied");
                Error::damaged(&path, why)
            }),
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// If it cannot be written; then the file is as it was, or as it was to be.
    pub(crate) fn write(&self, disk: &impl Disk) -> Result<()> {
        let json = disk::json(self)?;
        let text = format!("{json:#}\n");
        disk::replace(disk, &Paths::progress(), text.as_bytes())
    }

    /// What is recorded about the hypervisor `base`.
    #[must_use]
    pub fn of(&self, base: &BuildId) -> HostRecord {
        self.hypervisors.get(base).cloned().unwrap_or_default()
    }

    /// The same, to be changed.
    pub(crate) fn entry(&mut self, base: &BuildId) -> &mut HostRecord {
        self.hypervisors.entry(base.clone()).or_default()
    }

    /// What was begun in an earlier boot, and not known to be good: the host went down
    /// with it. Returns what goes into quarantine for that: a payload that was new, and one
    /// that the host has gone down with twice.
    pub fn recover(&mut self, now: &Moment) -> Vec<Quarantined> {
        let mut quarantined = Vec::new();
        for record in self.hypervisors.values_mut() {
            record.managed.take_if(|managed| managed.boot != now.boot);
            let Some(attempt) = record.attempt.take_if(|attempt| attempt.boot != now.boot) else {
                continue;
            };
            let Some(payload) = attempt.payload else {
                continue;
            };
            if record.reached.as_ref() == Some(&payload) && record.deaths == 0 {
                record.deaths = 1;
                continue;
            }
            record.deaths = 0;
            let reason = match attempt.done {
                true => "the host went down soon after it was applied",
                false => "the host went down while it was applied",
            };
            quarantined.push(Quarantined {
                payload,
                reason: reason.to_owned(),
                date: now.date.clone(),
            });
        }
        quarantined
    }

    /// Whether the host gets this payload again after a boot.
    #[must_use]
    pub fn needs(&self, payload: &Identity) -> bool {
        let mut all = self.hypervisors.values();
        all.any(|record| record.has_had(payload))
    }
}

impl HostRecord {
    /// What the host is to have without anybody deciding: what was begun, if it is
    /// `applied`, or what was reached.
    pub(crate) fn kept(&self, applied: &[&Entry]) -> Option<&Identity> {
        let attempt = self.attempt.as_ref();
        let attempted = attempt.and_then(|attempt| attempt.payload.as_ref());
        let is_applied = |payload: &&Identity| {
            let mut applied = applied.iter();
            applied.any(|entry| entry.manifest.identity() == **payload)
        };
        attempted.filter(is_applied).or(self.reached.as_ref())
    }

    /// Whether the sync was to apply the payload, or has applied it.
    pub(crate) fn has_had(&self, payload: &Identity) -> bool {
        let attempt = self.attempt.as_ref();
        let attempted = attempt.and_then(|attempt| attempt.payload.as_ref());
        self.reached.as_ref() == Some(payload) || attempted == Some(payload)
    }

    /// Whether a sync uploaded the payload `name`, or has begun to unload it.
    pub(crate) fn manages(&self, name: &str) -> bool {
        let managed = self.managed.as_ref();
        managed.is_some_and(|managed| managed.names.contains(name))
    }

    /// From now on, these are a sync's to unload, in this `boot`.
    pub(crate) fn manage(&mut self, boot: &str, names: impl IntoIterator<Item = String>) {
        let managed = self.managed.get_or_insert_with(|| Managed {
            boot: boot.to_owned(),
            names: BTreeSet::new(),
        });
        managed.names.extend(names);
    }

    /// What is not there any more is not a sync's any more.
    pub(crate) fn forget_unloaded(&mut self, loaded: &[Loaded]) {
        if let Some(managed) = &mut self.managed {
            let is_there = |name: &String| loaded.iter().any(|payload| payload.name == *name);
            managed.names.retain(is_there);
        }
    }

    /// Whether the host has run for long enough with what was applied.
    pub(crate) fn has_settled(&self, now: &Moment, settle: Duration) -> bool {
        let attempt = self.attempt.as_ref();
        attempt.is_some_and(|attempt| {
            attempt.done
                && attempt.boot == now.boot
                && now
                    .uptime
                    .saturating_sub(Duration::from_secs(attempt.uptime))
                    >= settle
        })
    }

    /// What was begun is done. Without a payload, nothing has to settle.
    pub(crate) fn take_as_done(&mut self) {
        self.failed = None;
        if let Some(attempt) = &mut self.attempt {
            attempt.done = true;
            if attempt.payload.is_none() {
                self.settle();
            }
        }
    }

    /// What was applied is good.
    pub(crate) fn settle(&mut self) {
        if let Some(attempt) = self.attempt.take_if(|attempt| attempt.done) {
            self.reached = attempt.payload;
            self.deaths = 0;
        }
    }
}
