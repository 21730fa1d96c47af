// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hooks that the generator adds to a payload ([`xsplice_abi::hooks`]).

use crate::choice::Choices;
use crate::given::File;
use crate::patch::Edits;
use crate::patched_data::is_chosen;
use crate::select::brings_per_cpu;
use crate::unit::{Unit, Units};
use xsplice_abi::hooks::{Need, SOURCE};
use xsplice_objdiff::compare::{Change, Kind};

/// Name of their file.
const NAME: &str = "xsplice";

/// The hooks that a payload of `units` needs, given the patches' `edits`; `None` if
/// it needs none.
pub(crate) fn needed(units: &Units, patch_data: &Choices, edits: &Edits) -> Option<File> {
    let any = |wanted: &dyn Fn(&Unit, &Change) -> bool| {
        let mut units = units.iter();
        units.any(|u| u.comparison.changes.iter().any(|change| wanted(u, change)))
    };
    let in_place = |u: &Unit, change: &Change| is_chosen(patch_data, &u.file.source, change);
    let needs = [
        (Need::PatchedData, any(&in_place)),
        (
            Need::PatchedVariables,
            any(&|u, change| change.kind == Kind::Data && in_place(u, change)),
        ),
        (Need::PerCpu, brings_per_cpu(units, edits)),
    ];
    let needs = needs.into_iter().filter(|(_, needed)| *needed);
    let defines: String = needs.map(|(need, _)| need.definition()).collect();
    (!defines.is_empty()).then(|| File {
        path: NAME.into(),
        contents: (defines + SOURCE).into_bytes(),
    })
}
