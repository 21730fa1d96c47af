// SPDX-License-Identifier: MIT OR Apache-2.0
//! Warnings for those who apply or unload the payload.

use crate::unit::Units;
use std::collections::BTreeSet;
use std::fmt;
use xsplice_objdiff::Kind;

/// Something that no tool can handle.
#[derive(
    Debug,
    Clone,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Warning {
    /// The hypervisor may keep the address of a function in the payload, and call it
    /// after the payload is unloaded.
    HandedOut {
        /// The function.
        function: String,
        /// Its source file.
        file: String,
        /// The function in the payload that takes its address.
        by: String,
    },
    /// The hypervisor may keep the address of a function that the patched source no
    /// longer has, and keep calling the old code.
    OldCodeStays {
        /// The function.
        function: String,
        /// Its source file.
        file: String,
        /// The function in the original that takes its address.
        by: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HandedOut { function, file, by } => write!(
                f,
                "{file}: {by} takes the address of {function}, which is only in the payload: if the \
                 hypervisor keeps it (for a timer, a tasklet, a key, a table of handlers), it must \
                 be out of use before the payload is reverted and unloaded, or the host crashes"
            ),
            Self::OldCodeStays { function, file, by } => write!(
                f,
                "{file}: {function} is not in the patched source, and {by} takes its address: where \
                 the hypervisor keeps that, the old code stays in use"
            ),
        }
    }
}

/// Functions that the patched source lacks and whose address may be stored.
pub(crate) fn old_code(units: &Units) -> BTreeSet<Warning> {
    let mut found = BTreeSet::new();
    for unit in units {
        let removed = unit.comparison.changes.iter().filter_map(|change| {
            let index = change.original.filter(|_| change.kind == Kind::Removed)?;
            let symbol = &unit.original.symbols[index];
            // A global function that moved to another file is replaced.
            (symbol.function && !symbol.global).then_some((index, symbol))
        });
        for (index, symbol) in removed {
            for (section, relocation) in unit.original.uses(index).filter(|(_, r)| !r.branch) {
                let by = unit.original.name_at(section, relocation.offset);
                found.insert(Warning::OldCodeStays {
                    function: symbol.name.to_string(),
                    file: unit.file.source.clone(),
                    by: by.to_owned(),
                });
            }
        }
    }
    found
}
