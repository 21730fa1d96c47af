// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pieces of patched objects, which become parts of the payload.

use super::{Carried, Hook, Selector};
use crate::code::Code;
use crate::name::payload_name;
use crate::payload::{Align, Kind as PartKind};
use crate::unit::{Unit, UnitId};
use xsplice_abi::payload::hook::{self, POINTER_SIZE};
use xsplice_objdiff::compare::Kind;
use xsplice_objdiff::object::{Class, SectionIx, Span, Symbol, SymbolIx};
use xsplice_objdiff::special::{self, Entry};

/// Alignment of a payload's memory, in bytes.
const PAGE: u64 = 4096;

impl Selector<'_> {
    /// Adds a symbol of a patched object to the draft, with its table entries.
    pub(super) fn take_symbol(&mut self, unit: UnitId, index: SymbolIx) -> Option<(PartKind, u64)> {
        let u = &self.units[unit];
        let symbol = &u.patched.symbols[index];
        if let Some(at) = self.placed.get(&(unit, symbol.section, symbol.offset)) {
            return Some(at.clone());
        }
        let section = &u.patched.sections[symbol.section];
        let kind = match section.class {
            Class::Text => PartKind::Text,
            // Relocated at load time, read-only afterwards.
            Class::ReadOnly => PartKind::RoData,
            Class::Data => PartKind::Data,
            Class::Bss => PartKind::Bss,
            Class::PerCpu => {
                self.refuse(
                    Code::PerCpu,
                    unit,
                    format!(
                        "{} is a per-CPU variable that another one becomes: its value on each CPU \
                         would be lost; give it a name of its own",
                        symbol.name
                    ),
                );
                return None;
            }
            Class::Init | Class::Special | Class::Ignored => {
                let message = format!(
                    "{} in {} has been freed by the time the payload is applied",
                    symbol.name, section.name
                );
                self.refuse(Code::FreedReference, unit, message);
                return None;
            }
        };
        if symbol.size == 0 {
            self.refuse(
                Code::UnknownReference,
                unit,
                format!("{} has no size and cannot be carried", symbol.name),
            );
            return None;
        }
        if let Some(message) = self.lost_value((unit, index)) {
            self.refuse(Code::LostValue, unit, message);
            return None;
        }
        let moved = self
            .moves
            .moved
            .get(&(unit, index))
            .copied()
            .filter(|_| symbol.function);
        let replaces = u
            .comparison
            .changes
            .iter()
            .any(|c| c.kind == Kind::Function && c.patched == Some(index) && !c.name.is_cold());
        let name = if let Some((origin, original)) = moved {
            let before = &self.units[origin].original;
            before.runtime_name(original).to_string()
        } else if replaces {
            u.patched.runtime_name(index).to_string()
        } else {
            payload_name(&u.file, &symbol.name)
        };
        let at = self.place(unit, symbol.span(), kind);
        self.selection
            .draft
            .name(&at, name, symbol.extent(), symbol.function);
        if !replaces && moved.is_none() && !symbol.name.is_cold() {
            self.selection.carried.push(Carried {
                name: symbol.name.to_string(),
                file: u.file.source.clone(),
                size: symbol.extent(),
                used_by: self.follower.clone(),
            });
        }
        let entries: Vec<Entry> = self.tables[unit]
            .iter()
            .filter(|e| e.owner == Some(index))
            .cloned()
            .collect();
        for entry in entries {
            self.take_entry(unit, &entry);
        }
        // A function and its cold part jump into each other.
        let is_its_cold_part = |s: &Symbol| s.name.parent() == Some(&symbol.name);
        if let Some(cold) = u.patched.symbols.position(is_its_cold_part) {
            self.take_symbol(unit, cold);
        }
        Some(at)
    }

    /// Adds the hook sections of patched objects: every function that they point to
    /// goes into the payload.
    pub(super) fn take_hooks(&mut self) {
        let units = self.units;
        for (unit, u) in units.iter_enumerated() {
            for (index, section) in u.patched.sections.iter_enumerated() {
                let Some(stage) = hook::stage(&section.name) else {
                    continue;
                };
                if section.size == 0 {
                    continue;
                }
                let Some(hook) = hook::of_stage(stage) else {
                    let message = format!(
                        "{} is no section of hooks that the hypervisor knows: it would not call \
                         them; the stages are load, unload, preapply, apply, postapply, prerevert, \
                         revert and postrevert",
                        section.name
                    );
                    self.refuse(Code::Hooks, unit, message);
                    continue;
                };
                let taken = self.selection.hooks.iter().filter(|h| h.stage == stage);
                let elsewhere: Vec<String> = taken.map(|hook| hook.file.clone()).collect();
                let Some(pieces) = new_hooks(u, index) else {
                    let message = format!(
                        "the payloads below have {stage} hooks in this file, and nothing tells \
                         which of {} are new",
                        section.name
                    );
                    self.refuse(Code::Hooks, unit, message);
                    continue;
                };
                let functions = pieces
                    .iter()
                    .map(|piece| piece.size / POINTER_SIZE)
                    .sum::<u64>();
                if functions == 0 {
                    continue;
                }
                let several = !hook.is_single();
                if (functions > 1 || !elsewhere.is_empty()) && !several {
                    let places = match elsewhere.as_slice() {
                        [] => String::new(),
                        files => format!(" (here and in {})", files.join(", ")),
                    };
                    let message = format!(
                        "there is more than one {stage} hook{places}, and the hypervisor calls one \
                         only; call the others from it"
                    );
                    self.refuse(Code::Hooks, unit, message);
                    continue;
                }
                for piece in pieces {
                    self.place(unit, piece, PartKind::Hooks(section.name.clone()));
                }
                self.selection.hooks.push(Hook {
                    stage: stage.to_owned(),
                    file: u.file.source.clone(),
                    functions,
                });
            }
        }
    }

    fn take_entry(&mut self, unit: UnitId, entry: &Entry) {
        let object = &self.units[unit].patched;
        let table = object.sections[entry.span.section].name.clone();
        if !entry.table.is_loaded() {
            let message = format!(
                "a changed function has an entry in {table}, which the hypervisor does not read from \
                 payloads"
            );
            self.refuse(Code::UnknownReference, unit, message);
            return;
        }
        for piece in special::pieces(object, entry) {
            // An empty replacement starts at the same place as the next one.
            let start = (unit, piece.section, piece.offset);
            if !self.placed.contains_key(&start) || self.empty.remove(&start) {
                if piece.size == 0 {
                    self.empty.insert(start);
                }
                let kind = PartKind::named_code(&object.sections[piece.section].name);
                self.place(unit, piece, kind);
            }
        }
        self.place(unit, entry.span, PartKind::table(&table));
    }

    /// Adds `piece` of the patched object of `unit` to the draft.
    pub(super) fn place(&mut self, unit: UnitId, piece: Span, kind: PartKind) -> (PartKind, u64) {
        let object = &self.units[unit].patched;
        let from = &object.sections[piece.section];
        let align = Align {
            multiple: from.align,
            behind: piece.offset % from.align,
        };
        if align.multiple > PAGE {
            let message = format!(
                "{} needs an alignment of {} bytes, and the hypervisor places a payload at a \
                 multiple of {PAGE} only; allocate it in a hook",
                object.name_at(piece.section, piece.offset),
                align.multiple
            );
            self.refuse(Code::Placement, unit, message);
        }
        let at = if kind == PartKind::Bss {
            self.selection.draft.zeroes(piece.size, align)
        } else {
            let bytes = object.bytes(piece);
            self.selection.draft.append(&kind, bytes, align)
        };
        let start = (unit, piece.section, piece.offset);
        self.placed.insert(start, (kind.clone(), at));
        self.queue.push_back((unit, piece));
        (kind, at)
    }
}

/// The pointers to hooks in the section at `index` that the original does not have;
/// `None` if that is ambiguous.
fn new_hooks(u: &Unit, index: SectionIx) -> Option<Vec<Span>> {
    let section = &u.patched.sections[index];
    if u.original.sections.iter().all(|s| s.name != section.name) {
        return Some(vec![Span {
            section: index,
            offset: 0,
            size: section.size,
        }]);
    }
    let symbols = u.patched.symbols.iter_enumerated();
    let here: Vec<_> = symbols.filter(|(_, s)| s.section == index).collect();
    let named: u64 = here.iter().map(|(_, symbol)| symbol.size).sum();
    let new = here
        .iter()
        .filter(|(index, _)| u.comparison.correlation.get(*index).is_none());
    let new = new.map(|(_, symbol)| symbol.first(symbol.size));
    (named == section.size).then(|| new.collect())
}
