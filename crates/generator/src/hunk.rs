// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hunk of a patch, and what it does.

use std::collections::BTreeSet;

/// What a hunk does.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case", tag = "effect")]
pub enum Effect {
    /// It changes what is in the payload.
    InPayload {
        /// What the payload has that differs without it, of the first object
        /// that does. If the rest of the patch does not compile without it, what
        /// is in a function, or else a file, that does not.
        names: BTreeSet<String>,
    },
    /// The payload comes out the same without it, but not if others are left
    /// out too.
    Alternative {
        /// The others, as `FILE:LINE`.
        others: BTreeSet<String>,
        /// What the payload has that differs without all of these and it.
        names: BTreeSet<String>,
    },
    /// It changes only what was left out (`--leave-out`).
    LeftOut {
        /// What that is.
        names: BTreeSet<String>,
    },
    /// It makes something what it is in memory: a payload below left out what its
    /// patch made of it.
    Restored {
        /// What that is.
        names: BTreeSet<String>,
    },
    /// It changes only what the running hypervisor does not use.
    Unused {
        /// What that is.
        names: BTreeSet<String>,
    },
    /// It changes only where variables lie, and those of the running hypervisor
    /// lie as well.
    Placement {
        /// What that is.
        names: BTreeSet<String>,
    },
    /// Every object that it reaches, and all that the build makes from its file, is
    /// the same without it.
    None {
        /// How many objects that are.
        objects: usize,
    },
    /// Nothing that is compiled into this hypervisor reads the file.
    NotBuilt,
}

impl Effect {
    /// Whether the payload has something of it.
    pub fn is_in_payload(&self) -> bool {
        matches!(self, Self::InPayload { .. } | Self::Alternative { .. })
    }
}

/// A hunk and what it does.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Hunk {
    /// The patch it is in.
    pub patch: String,
    /// The file it changes.
    pub file: String,
    /// The line it starts at in the old file.
    pub line: usize,
    /// What it does.
    #[serde(flatten)]
    pub effect: Effect,
}
