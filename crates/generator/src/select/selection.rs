// SPDX-License-Identifier: MIT OR Apache-2.0
//! What was selected, as the caller gets it.

use crate::payload::Draft;
use crate::warning::Warning;
use std::collections::BTreeSet;
use xsplice_abi::record::{LeftOut, PatchedData, PerCpuVariable, Renewed};
use xsplice_objdiff::explain;

/// A function that the payload replaces.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Replaced {
    /// Name in the source.
    pub name: String,
    /// Source file.
    pub file: String,
    /// Address in the hypervisor.
    pub old_address: u64,
    /// Size in the hypervisor in bytes.
    pub old_size: u64,
    /// Size in the payload in bytes.
    pub new_size: u64,
    /// Why it is in the payload.
    pub why: String,
    /// The first instruction that changed, if one did.
    pub first_change: Option<FirstChange>,
}

/// Where the old and the new function part.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct FirstChange {
    /// Offset in the old function.
    pub old_offset: u64,
    /// The old instruction; empty at the function's end.
    pub old: String,
    /// Offset in the new function.
    pub new_offset: u64,
    /// The new instruction; empty at the function's end.
    pub new: String,
    /// The line of the patched source, if the objects have debugging
    /// information.
    pub line: Option<String>,
}

impl From<explain::FirstChange> for FirstChange {
    fn from(change: explain::FirstChange) -> Self {
        Self {
            old_offset: change.old_offset,
            old: change.old,
            new_offset: change.new_offset,
            new: change.new,
            line: change.new_line.map(|line| line.to_string()),
        }
    }
}

/// Something new that the payload carries.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Carried {
    /// Name in the source.
    pub name: String,
    /// Source file.
    pub file: String,
    /// Size in bytes.
    pub size: u64,
    /// What in the payload refers to it.
    pub used_by: String,
}

/// What was selected.
#[derive(Debug, Default)]
pub struct Selection {
    /// The contents of the payload.
    pub draft: Draft,
    /// Functions that are replaced.
    pub replaced: Vec<Replaced>,
    /// New functions and variables.
    pub carried: Vec<Carried>,
    /// What hooks change in place.
    pub patched_data: Vec<PatchedData>,
    /// New per-CPU variables.
    pub per_cpu: Vec<PerCpuVariable>,
    /// Hooks: the section and the functions that it points to.
    pub hooks: Vec<Hook>,
    /// Changes that the payload does without.
    pub left_out: Vec<LeftOut>,
    /// Flags that may be in memory, and begin anew.
    pub renewed: BTreeSet<Renewed>,
    /// Names of what the patches make what it is in memory: payloads below left out
    /// what theirs made of it.
    pub restored: BTreeSet<String>,
    /// What a reader should know.
    pub notes: BTreeSet<String>,
    /// What no tool can see to.
    pub warnings: BTreeSet<Warning>,
}

/// A function that the hypervisor calls at a stage of the payload's life.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Hook {
    /// The stage: `load`, `unload`, `preapply`, `apply`, `postapply`,
    /// `prerevert`, `revert`, `postrevert`.
    pub stage: String,
    /// Source file.
    pub file: String,
    /// How many functions are called.
    pub functions: u64,
}
