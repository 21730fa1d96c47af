// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the host has reached, and what is under way: `progress.json`.

use crate::{Date, Disk, Entry, Error, Identity, Moment, Places, Quarantined, Result, disk};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// How the host stands with each hypervisor, by build-id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    hypervisors: BTreeMap<String, Standing>,
}

/// How the host stands with one hypervisor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Standing {
    /// The payload that it was to have and has lived with: after a boot, it gets it
    /// again.
    pub reached: Option<Identity>,
    /// What was begun, and is not yet known to be good.
    pub attempt: Option<Attempt>,
    /// How the last attempt ended, if it failed.
    pub failed: Option<Failed>,
    /// How often the host has died with [`reached`](Self::reached) since it last lived
    /// long enough with it.
    pub deaths: u32,
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
    /// Whether all of it was done: then the host only has to live with it.
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
        let path = Places::progress();
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
        disk::replace(disk, &Places::progress(), text.as_bytes())
    }

    /// How the host stands with the hypervisor `base`.
    #[must_use]
    pub fn of(&self, base: &str) -> Standing {
        self.hypervisors.get(base).cloned().unwrap_or_default()
    }

    /// The same, to be changed.
    pub(crate) fn entry(&mut self, base: &str) -> &mut Standing {
        self.hypervisors.entry(base.to_owned()).or_default()
    }

    /// What was begun in an earlier boot, and not known to be good: the host went down
    /// with it. Says what goes into quarantine for that: a payload that was new, and one
    /// that the host has died with twice.
    pub fn recover(&mut self, now: &Moment) -> Vec<Quarantined> {
        let mut quarantined = Vec::new();
        for standing in self.hypervisors.values_mut() {
            let Some(attempt) = standing.attempt.take_if(|attempt| attempt.boot != now.boot) else {
                continue;
            };
            let Some(payload) = attempt.payload else {
                continue;
            };
            if standing.reached.as_ref() == Some(&payload) && standing.deaths == 0 {
                standing.deaths = 1;
                continue;
            }
            standing.deaths = 0;
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
        all.any(|standing| {
            let attempt = standing.attempt.as_ref();
            let attempted = attempt.and_then(|attempt| attempt.payload.as_ref());
            standing.reached.as_ref() == Some(payload) || attempted == Some(payload)
        })
    }
}

impl Standing {
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

    /// Whether the host has lived long enough with what was applied.
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

    /// What was begun is done. With no payload, there is nothing to live with.
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
