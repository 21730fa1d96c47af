// SPDX-License-Identifier: MIT OR Apache-2.0
//! Constants whose addresses the hypervisor may have stored.

use crate::unit::Unit;
use xsplice_abi::record::PatchedData;
use xsplice_objdiff::Kind;
use xsplice_objdiff::object::SymbolIx;

/// Notes on changed tables of functions: a payload cannot undo earlier uses of their
/// addresses, such as registered handlers.
pub(crate) fn notes(unit: &Unit, in_place: &[PatchedData]) -> impl Iterator<Item = String> {
    let changed = unit.comparison.changes.iter().filter(|change| {
        let table = |index: SymbolIx| {
            let symbol = &unit.patched.symbols[index];
            let fields = unit.patched.relocations(symbol.first(symbol.size));
            change.original.is_some() && !fields.is_empty()
        };
        let stays = in_place
            .iter()
            .any(|data| data.name == change.name && data.file == unit.file.source);
        !stays && change.kind == Kind::Constant && change.patched.is_some_and(table)
    });
    changed.map(|change| {
        format!(
            "{}: {} changed ({}); where its address was stored before, the old one stays in use: \
             change the functions in it instead, if that matters",
            unit.file.source, change.name, change.why
        )
    })
}
