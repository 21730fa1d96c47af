// SPDX-License-Identifier: MIT OR Apache-2.0
//! The result of a selection.

use crate::arch::Arch;
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

/// The first difference between the old and the new function.
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

/// The selection.
#[derive(Debug)]
pub struct Selection {
    /// The contents of the payload.
    pub draft: Draft,
    /// Functions that are replaced.
    pub replaced: Vec<Replaced>,
    /// New functions and variables.
    pub carried: Vec<Carried>,
    /// Data that hooks change in place.
    pub patched_data: Vec<PatchedData>,
    /// New per-CPU variables.
    pub per_cpu: Vec<PerCpuVariable>,
    /// Hooks: the section and the functions that it points to.
    pub hooks: Vec<Hook>,
    /// Changes that were left out.
    pub left_out: Vec<LeftOut>,
    /// Message flags that start again, although they may be in memory.
    pub renewed: BTreeSet<Renewed>,
    /// Names of symbols that the patches change back to what is in memory: payloads
    /// below left out the change.
    pub restored: BTreeSet<String>,
    /// Notes for the reader.
    pub notes: BTreeSet<String>,
    /// Warnings about things that no tool can handle.
    pub warnings: BTreeSet<Warning>,
}

impl Selection {
    /// An empty selection for a machine.
    pub(super) fn new(arch: &'static dyn Arch) -> Self {
        Self {
            draft: Draft::new(arch),
            replaced: Vec::new(),
            carried: Vec::new(),
            patched_data: Vec::new(),
            per_cpu: Vec::new(),
            hooks: Vec::new(),
            left_out: Vec::new(),
            renewed: BTreeSet::new(),
            restored: BTreeSet::new(),
            notes: BTreeSet::new(),
            warnings: BTreeSet::new(),
        }
    }
}

/// A hook of the payload.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Hook {
    /// The stage: `load`, `unload`, `preapply`, `apply`, `postapply`,
    /// `prerevert`, `revert`, `postrevert`.
    pub stage: String,
    /// Source file.
    pub file: String,
    /// Number of functions to call.
    pub functions: u64,
}
