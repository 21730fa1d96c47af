// SPDX-License-Identifier: MIT OR Apache-2.0
//! Payloads that are no longer applied, because the hypervisor refused them or the
//! host died with them.

use crate::{Date, Disk, Error, Identity, Paths, Result, disk};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A payload that is no longer applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Quarantined {
    /// The payload.
    pub payload: Identity,
    /// Why.
    pub reason: String,
    /// Since when.
    pub date: Date,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Quarantine(Vec<Quarantined>);

/// A build-id names the file, and so must be one: it may come from any manifest.
fn path(payload: &Identity) -> PathBuf {
    Paths::quarantine().join(format!("{}.json", payload.build_id))
}

impl Quarantine {
    /// Reads it.
    ///
    /// # Errors
    /// If a file cannot be read, or is not what was written: then it is not known which
    /// payload must not be applied.
    pub fn read(disk: &impl Disk) -> Result<Self> {
        let directory = Paths::quarantine();
        let mut all = Vec::new();
        for name in disk::names(disk, &directory)?.unwrap_or_default() {
            let path = directory.join(&name);
            let data = disk::read(disk, &path)?.unwrap_or_default();
            let quarantined = serde_json::from_slice(&data);
            all.push(quarantined.map_err(|error| Error::damaged(&path, error.to_string()))?);
        }
        Ok(Self(all))
    }

    /// Why the payload is no longer applied; `None` if it may be.
    #[must_use]
    pub fn of(&self, payload: &Identity) -> Option<&Quarantined> {
        let mut all = self.0.iter();
        all.find(|quarantined| quarantined.payload.build_id == payload.build_id)
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Quarantined] {
        &self.0
    }

    /// Puts a payload into it.
    ///
    /// # Errors
    /// If that cannot be written.
    pub(crate) fn add(&mut self, disk: &impl Disk, quarantined: Quarantined) -> Result<()> {
        let json = disk::json(&quarantined)?;
        let text = format!("{json:#}\n");
        disk::replace(disk, &path(&quarantined.payload), text.as_bytes())?;
        self.insert(quarantined);
        Ok(())
    }

    /// Takes a payload as in quarantine, although that is not written.
    pub fn insert(&mut self, quarantined: Quarantined) {
        self.0
            .retain(|other| other.payload.build_id != quarantined.payload.build_id);
        self.0.push(quarantined);
    }

    /// Lets the payload go.
    ///
    /// # Errors
    /// If its file cannot be removed.
    pub fn release(&mut self, disk: &impl Disk, payload: &Identity) -> Result<()> {
        disk::remove(disk, &path(payload))?;
        self.0
            .retain(|quarantined| quarantined.payload.build_id != payload.build_id);
        Ok(())
    }
}
