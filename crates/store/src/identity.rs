// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which payload, and when.

use crate::Date;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A payload, as records name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Its build-id.
    pub build_id: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Its level.
    pub level: u32,
}

/// When something happens. Ages are measured with the time since the boot, which,
/// unlike the date, never goes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// Identifies the boot.
    pub boot: String,
    /// Since the boot.
    pub uptime: Duration,
    /// What the clock says.
    pub date: Date,
}
