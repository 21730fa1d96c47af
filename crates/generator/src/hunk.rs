// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hunk of a patch, and what it does.

use std::collections::BTreeSet;

/// The effect of a hunk.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case", tag = "effect")]
pub enum Effect {
    /// It changes the payload.
    InPayload {
        /// The symbols of the payload that differ without it, from the first object
        /// that differs. If the rest of the patch does not compile without it, those
        /// in a function, or else a file, that does not compile.
        names: BTreeSet<String>,
    },
    /// The payload is the same without it, but not if others are left out too.
    Alternative {
        /// The others, as `FILE:LINE`.
        others: BTreeSet<String>,
        /// The symbols of the payload that differ without it and all of these.
        names: BTreeSet<String>,
    },
    /// It changes only what was left out (`--leave-out`).
    LeftOut {
        /// What that is.
        names: BTreeSet<String>,
    },
    /// It changes something back to what is in memory: a payload below left out the
    /// change.
    Restored {
        /// What that is.
        names: BTreeSet<String>,
    },
    /// It changes only what the running hypervisor does not use.
    Unused {
        /// What that is.
        names: BTreeSet<String>,
    },
    /// It changes only the placement of variables, and the running hypervisor's is as
    /// good.
    Placement {
        /// What that is.
        names: BTreeSet<String>,
    },
    /// Every object that it affects, and every file generated from its file, is the
    /// same without it.
    None {
        /// Number of these objects.
        objects: usize,
    },
    /// Nothing in this hypervisor is compiled from the file.
    NotBuilt,
}

impl Effect {
    /// Whether it has an effect on the payload.
    pub fn is_in_payload(&self) -> bool {
        matches!(self, Self::InPayload { .. } | Self::Alternative { .. })
    }
}

/// A hunk and its effect.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Hunk {
    /// The patch it is in.
    pub patch: String,
    /// The file it changes.
    pub file: String,
    /// The line it starts at in the old file.
    pub line: usize,
    /// Its effect.
    #[serde(flatten)]
    pub effect: Effect,
}
