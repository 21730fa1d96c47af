// SPDX-License-Identifier: MIT OR Apache-2.0
//! The linker's choice among definitions of a global name: a strong one over weak
//! ones.

use super::Selector;
use super::moved::Moves;
use crate::code::Code;
use crate::problem::Problem;
use crate::unit::{UnitId, Units};
use std::collections::HashMap;
use xsplice_abi::payload::hook;
use xsplice_objdiff::compare::Kind;
use xsplice_objdiff::object::SymbolIx;
use xsplice_xen_image::{Binding, Image};

/// The definitions of global names in the patched objects.
#[derive(Debug, Default)]
pub(super) struct Globals<'a> {
    /// The linker's choice by name: unit and index.
    taken: HashMap<&'a str, (UnitId, SymbolIx)>,
}

impl<'a> Globals<'a> {
    /// # Errors If the choice differs from the hypervisor's, or is ambiguous.
    pub(super) fn new(units: &'a Units, moves: &Moves, image: &Image) -> (Self, Vec<Problem>) {
        let mut globals = Self::default();
        let mut problems = Vec::new();
        for (unit, u) in units.iter_enumerated() {
            for (index, symbol) in u.patched.symbols.iter_enumerated() {
                let section = &u.patched.sections[symbol.section];
                if !symbol.global || hook::stage(&section.name).is_some() {
                    continue;
                }
                let Some(&(other, at)) = globals.taken.get(symbol.name.as_str()) else {
                    globals.taken.insert(&symbol.name, (unit, index));
                    continue;
                };
                match (units[other].patched.symbols[at].weak, symbol.weak) {
                    (_, false) => {
                        globals.taken.insert(&symbol.name, (unit, index));
                    }
                    (false, true) => {}
                    (true, true) => problems.push(Problem::new(
                        Code::NameTaken,
                        &u.file.source,
                        format!(
                            "{} is defined here and in {}, and nothing tells which of them the \
                             linker takes",
                            symbol.name, units[other].file.source
                        ),
                    )),
                }
            }
        }
        for (unit, u) in units.iter_enumerated() {
            let changes = u.comparison.changes.iter();
            for change in changes.filter(|c| c.kind == Kind::Added && c.original.is_none()) {
                let Some(index) = change.patched else {
                    continue;
                };
                let symbol = &u.patched.symbols[index];
                let known = moves.moved.contains_key(&(unit, index))
                    || moves.renewed.contains_key(&(unit, index));
                if !symbol.global || known {
                    continue;
                }
                match image
                    .global(&symbol.name)
                    .map(|known| known.binding == Binding::Weak)
                {
                    None => {}
                    // The hypervisor's definition is used.
                    Some(false) if symbol.weak => {
                        globals.taken.remove(symbol.name.as_str());
                    }
                    Some(_) => problems.push(Problem::new(
                        Code::NameTaken,
                        &u.file.source,
                        format!(
                            "{} is new here, and the hypervisor has one of that name from a file \
                             that keeps it: a payload cannot let the new one take its place; give \
                             it a name of its own, or change the other",
                            symbol.name
                        ),
                    )),
                }
            }
        }
        (globals, problems)
    }

    /// The linker's choice for `name`, if it is in a patched object.
    pub(super) fn get(&self, name: &str) -> Option<(UnitId, SymbolIx)> {
        self.taken.get(name).copied()
    }
}

impl Selector<'_> {
    /// Whether another definition overrides the weak one at `index`.
    pub(super) fn is_overridden(&self, unit: UnitId, index: SymbolIx) -> bool {
        let symbol = &self.units[unit].patched.symbols[index];
        symbol.weak && self.globals.get(&symbol.name) != Some((unit, index))
    }
}
