// SPDX-License-Identifier: MIT OR Apache-2.0
//! What was built.

use crate::hunk::Hunk;
use crate::select::{Carried, Hook, Replaced};
use crate::warning::Warning;
use std::collections::BTreeSet;
use std::path::PathBuf;
use xsplice_abi::record::{LeftOut, PatchedData, PerCpuVariable};

/// A function that the payload replaces.
pub type PatchedFunction = Replaced;

/// What was built.
#[derive(Debug, Clone, serde::Serialize, schemars::JsonSchema)]
pub struct Report {
    /// Path of the payload.
    pub output: PathBuf,
    /// Its size in bytes.
    pub size: usize,
    /// The hypervisor's build-id in hexadecimal.
    pub hypervisor: String,
    /// Number of objects that the patch affects.
    pub objects: usize,
    /// Everything that differs between the two builds, used or not.
    pub changes: Vec<String>,
    /// Functions that are replaced.
    pub functions: Vec<Replaced>,
    /// New functions and variables.
    pub carried: Vec<Carried>,
    /// Variables and constants that are changed in place (`--patch-data`).
    pub patched_data: Vec<PatchedData>,
    /// New per-CPU variables, in padding of the per-CPU areas.
    pub per_cpu: Vec<PerCpuVariable>,
    /// The payload's hooks.
    pub hooks: Vec<Hook>,
    /// Changes that were left out (`--leave-out`).
    pub left_out: Vec<LeftOut>,
    /// Determines the effect of each hunk of the patches.
    pub hunks: Vec<Hunk>,
    /// Warnings for those who apply or unload the payload.
    pub warnings: BTreeSet<Warning>,
    /// What a reader should know.
    pub notes: Vec<String>,
}
