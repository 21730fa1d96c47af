// SPDX-License-Identifier: MIT OR Apache-2.0
//! The linker's choice among definitions of a global name: a strong one over weak
//! ones.

use super::moved::Moves;
use super::{At, Selector};
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
    taken: HashMap<&'a str, At>,
}

impl<'a> Globals<'a> {
    /// The linker's choices, and where it differs from the hypervisor's or is
    /// ambiguous.
    pub(super) fn new(units: &'a Units, moves: &Moves, image: &Image) -> (Self, Vec<Problem>) {
        let mut globals = Self::default();
        let mut problems = globals.choose(units);
        problems.extend(globals.compare(units, moves, image));
        (globals, problems)
    }

    /// Chooses among the definitions in `units`.
    fn choose(&mut self, units: &'a Units) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (unit, u) in units.iter_enumerated() {
            for (index, symbol) in u.patched.symbols.iter_enumerated() {
                let section = &u.patched.sections[symbol.section];
                if !symbol.global || hook::stage(&section.name).is_some() {
                    continue;
                }
                let Some(&(other, at)) = self.taken.get(symbol.name.as_str()) else {
                    self.taken.insert(&symbol.name, (unit, index));
                    continue;
                };
                match (units[other].patched.symbols[at].weak, symbol.weak) {
                    (_, false) => {
                        self.taken.insert(&symbol.name, (unit, index));
                    }
                    (false, true) => {}
                    (true, true) => problems.push(Problem::new(
                        Code::NameTaken,
                        &u.file.source,
                        format!(
                            "{} is defined here and in {}, and it is unclear which of them the \
                             linker takes",
                            symbol.name, units[other].file.source
                        ),
                    )),
                }
            }
        }
        problems
    }

    /// Compares new definitions with those of the hypervisor, which may have been
    /// chosen instead.
    fn compare(&mut self, units: &Units, moves: &Moves, image: &Image) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (unit, u) in units.iter_enumerated() {
            let changes = u.comparison.changes.iter();
            let added = changes.filter(|c| c.kind == Kind::Added && c.original.is_none());
            for index in added.filter_map(|change| change.patched) {
                let (new, symbol) = ((unit, index), &u.patched.symbols[index]);
                let known = moves.moved.contains_key(&new) || moves.renewed.contains_key(&new);
                if !symbol.global || known {
                    continue;
                }
                match image.global(&symbol.name).map(|known| known.binding) {
                    None => {}
                    // The hypervisor's definition is used.
                    Some(binding) if binding != Binding::Weak && symbol.weak => {
                        self.taken.remove(symbol.name.as_str());
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
        problems
    }

    /// The linker's choice for `name`, if it is in a patched object.
    pub(super) fn get(&self, name: &str) -> Option<At> {
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
