// SPDX-License-Identifier: MIT OR Apache-2.0
//! Addresses of labels: they belong to one build of a function, and the new function
//! needs its own.

use super::Selector;
use crate::code::Code;
use crate::payload::Reaches;
use crate::unit::UnitId;
use std::collections::BTreeSet;
use xsplice_objdiff::arch::{Does, Instruction};
use xsplice_objdiff::compare::Kind;
use xsplice_objdiff::object::{Class, Object, SymbolIx, Target};

impl Selector<'_> {
    /// The replaced function that the private data at `index` refers into, directly
    /// or through other data.
    fn leads_into(
        &self,
        unit: UnitId,
        index: SymbolIx,
        seen: &mut BTreeSet<SymbolIx>,
    ) -> Option<&str> {
        let u = &self.units[unit];
        let data = &u.patched.symbols[index];
        if data.function || data.is_label() || !seen.insert(index) {
            return None;
        }
        let fields = u.patched.relocations(data.span());
        fields.iter().find_map(|field| {
            let Target::Symbol(target) = field.reference.target else {
                return None;
            };
            let symbol = &u.patched.symbols[target];
            if !symbol.function {
                let private =
                    !symbol.global && u.patched.sections[symbol.section].class == Class::ReadOnly;
                return self.leads_into(unit, target, seen).filter(|_| private);
            }
            let mut changes = u.comparison.changes.iter();
            let replaced = changes.any(|c| c.patched == Some(target) && c.kind == Kind::Function);
            (field.reference.offset != 0 && replaced).then_some(symbol.name.as_str())
        })
    }

    /// The target of a reference to data with addresses of labels, if the code with
    /// the labels is replaced; otherwise the outer option is empty.
    pub(super) fn reach_labels(
        &mut self,
        unit: UnitId,
        index: SymbolIx,
        offset: i64,
    ) -> Option<Option<Reaches>> {
        let function = self
            .leads_into(unit, index, &mut BTreeSet::new())?
            .to_owned();
        let object = &self.units[unit].patched;
        let symbol = &object.symbols[index];
        let constant = object.sections[symbol.section].class == Class::ReadOnly;
        if !constant || symbol.global {
            let message = format!(
                "{} holds addresses of labels in {function}, which is replaced, and may hold others \
                 by now: they lead into the old code; make it a constant of its function",
                symbol.name
            );
            self.refuse(Code::LabelAddress, unit, message);
            return Some(None);
        }
        let place = self.take_symbol(unit, index);
        Some(place.map(|(kind, at)| Reaches::Part(kind, at.cast_signed() + offset)))
    }
}

/// Whether the function at `index` takes addresses within itself: the assembler knows
/// the distance and emits no relocation.
pub(super) fn takes_own_labels(object: &Object, index: SymbolIx) -> bool {
    let symbol = &object.symbols[index];
    let fields = object.relocations(symbol.span());
    let code = object.bytes(symbol.span());
    let all: Vec<Instruction> = object.arch.decode(code, symbol.offset).collect();
    all.iter().enumerate().any(|(at, instruction)| {
        let Does::Address(target) = instruction.does else {
            return false;
        };
        (symbol.offset..symbol.end()).contains(&target)
            && !fields
                .iter()
                .any(|field| instruction.contains(field.offset))
            && !object.arch.only_reads_there(&all, at, code)
    })
}
