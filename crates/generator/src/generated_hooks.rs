// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hooks that the generator adds to a payload by itself: one source, of which
//! each payload gets what it needs, and tables that the source only declares.

use crate::choice::Choices;
use crate::patch::Edits;
use crate::patched_data::is_chosen;
use crate::record::File;
use crate::select::brings_per_cpu;
use crate::unit::Unit;
use xsplice_objdiff::compare::{Change, Kind};

/// The hooks.
const SOURCE: &str = include_str!("generated_hooks.c");
/// The name of their file.
const NAME: &str = "xsplice";

/// A table that [`SOURCE`] declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// What is changed in place.
    PatchedData,
    /// New per-CPU variables.
    PerCpu,
    /// The bits of the padding that they are in.
    PerCpuClaims,
}

impl Table {
    /// The table that `name` is the start or the end of in [`SOURCE`], and whether
    /// it is the end.
    pub(crate) fn named(name: &str) -> Option<(Self, bool)> {
        Some(match name {
            "xsplice_patched_data" => (Self::PatchedData, false),
            "xsplice_patched_data_end" => (Self::PatchedData, true),
            "xsplice_per_cpu" => (Self::PerCpu, false),
            "xsplice_per_cpu_end" => (Self::PerCpu, true),
            "xsplice_per_cpu_mine" => (Self::PerCpuClaims, false),
            "xsplice_per_cpu_mine_end" => (Self::PerCpuClaims, true),
            _ => return None,
        })
    }
}

/// What [`SOURCE`] calls the claims of all payloads, which are in the hypervisor.
pub(crate) const ALL_CLAIMS: &str = "xsplice_per_cpu_claims";

/// The hooks that a payload of `units`, which the patches' `edits` led to, needs;
/// `None` if it needs none.
pub(crate) fn needed(units: &[Unit], patch_data: &Choices, edits: &Edits) -> Option<File> {
    let any = |wanted: &dyn Fn(&Unit, &Change) -> bool| {
        let mut units = units.iter();
        units.any(|u| u.comparison.changes.iter().any(|change| wanted(u, change)))
    };
    let in_place = |u: &Unit, change: &Change| is_chosen(patch_data, &u.file.source, change);
    let needs = [
        ("XSPLICE_PATCHES_DATA", any(&in_place)),
        (
            "XSPLICE_PATCHES_VARIABLES",
            any(&|u, change| change.kind == Kind::Data && in_place(u, change)),
        ),
        ("XSPLICE_PER_CPU", brings_per_cpu(units, edits)),
    ];
    let needs = needs.into_iter().filter(|(_, needed)| *needed);
    let defines: String = needs.map(|(name, _)| format!("#define {name}\n")).collect();
    (!defines.is_empty()).then(|| File {
        path: NAME.into(),
        contents: (defines + SOURCE).into_bytes(),
    })
}
