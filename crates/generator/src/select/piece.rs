// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pieces of patched objects, which become parts of the payload.

use super::{At, Carried, Hook, Refusal, Selector};
use crate::code::Code;
use crate::name::payload_name;
use crate::payload::{Align, Kind as PartKind, PAGE};
use crate::unit::{Unit, UnitId};
use xsplice_abi::payload::hook;
use xsplice_objdiff::compare::Kind;
use xsplice_objdiff::object::{Class, SectionIx, Span, Symbol, SymbolIx};
use xsplice_objdiff::special::{self, Entry};

impl Selector<'_> {
    /// Adds a symbol of a patched object to the draft, with its table entries.
    pub(super) fn take_symbol(&mut self, unit: UnitId, index: SymbolIx) -> Option<(PartKind, u64)> {
        let u = &self.units[unit];
        let symbol = &u.patched.symbols[index];
        if let Some(at) = self.placed.get(&(unit, symbol.section, symbol.offset)) {
            return Some(at.clone());
        }
        let kind = match self.part_for((unit, index)) {
            Ok(kind) => kind,
            Err((code, message)) => {
                self.refuse(code, unit, message);
                return None;
            }
        };
        let replaces = self.replaced_by((unit, index));
        let name = replaces
            .clone()
            .unwrap_or_else(|| payload_name(&u.file, &symbol.name));
        let at = self.place(unit, symbol.span(), kind);
        let draft = &mut self.selection.draft;
        draft.name(&at, name, symbol.extent(), symbol.function);
        if replaces.is_none() && !symbol.name.is_cold() {
            self.selection.carried.push(Carried {
                name: symbol.name.to_string(),
                file: u.file.source.clone(),
                size: symbol.extent(),
                used_by: self.follower.clone(),
            });
        }
        let entries = self.tables[unit].iter();
        let entries = entries.filter(|entry| entry.owner == Some(index)).cloned();
        for entry in entries.collect::<Vec<Entry>>() {
            self.take_entry(unit, &entry);
        }
        // A function and its cold part jump into each other.
        let is_its_cold_part = |s: &Symbol| s.name.parent() == Some(&symbol.name);
        if let Some(cold) = u.patched.symbols.position(is_its_cold_part) {
            self.take_symbol(unit, cold);
        }
        Some(at)
    }

    /// The part of the payload that a symbol goes into.
    ///
    /// # Errors
    /// If no payload can carry it.
    fn part_for(&self, at: At) -> Result<PartKind, Refusal> {
        let object = &self.units[at.0].patched;
        let symbol = &object.symbols[at.1];
        let section = &object.sections[symbol.section];
        let kind = match section.class {
            Class::Text => PartKind::Text,
            // Relocated at load time, read-only afterwards.
            Class::ReadOnly => PartKind::RoData,
            Class::Data => PartKind::Data,
            Class::Bss => PartKind::Bss,
            Class::PerCpu => {
                let message = format!(
                    "{} is a per-CPU variable that another one becomes: its value on each CPU \
                     would be lost; give it a name of its own",
                    symbol.name
                );
                return Err((Code::PerCpu, message));
            }
            Class::Init | Class::Special | Class::Ignored => {
                let message = format!(
                    "{} in {} is freed after boot, before a payload is applied; do not use it, or \
                     drop its `__init`",
                    symbol.name, section.name
                );
                return Err((Code::FreedReference, message));
            }
        };
        if symbol.size == 0 {
            let message = format!(
                "{} has no size and cannot be carried; give it one (`.size`)",
                symbol.name
            );
            return Err((Code::UnknownReference, message));
        }
        match self.lost_value(at) {
            Some(message) => Err((Code::LostValue, message)),
            None => Ok(kind),
        }
    }

    /// The hypervisor's name of the function that the one of the patched source
    /// replaces, if it replaces one.
    fn replaced_by(&self, at: At) -> Option<String> {
        let u = &self.units[at.0];
        if let Some(&(origin, original)) = self.moves.moved.get(&at)
            && u.patched.symbols[at.1].function
        {
            let before = &self.units[origin].original;
            return Some(before.runtime_name(original).to_string());
        }
        let mut changes = u.comparison.changes.iter();
        let replaces = changes
            .any(|c| c.kind == Kind::Function && c.patched == Some(at.1) && !c.name.is_cold());
        replaces.then(|| u.patched.runtime_name(at.1).to_string())
    }

    /// Adds the hook sections of patched objects: every function that they point to
    /// goes into the payload.
    pub(super) fn take_hooks(&mut self) {
        let units = self.units;
        for (unit, u) in units.iter_enumerated() {
            for (index, section) in u.patched.sections.iter_enumerated() {
                let Some(stage) = hook::stage(&section.name).filter(|_| section.size > 0) else {
                    continue;
                };
                match self.hooks_in((unit, index), stage) {
                    Ok(pieces) => self.take_hooks_of(unit, stage, &pieces),
                    Err(message) => self.refuse(Code::Hooks, unit, message),
                }
            }
        }
    }

    /// The pointers in a section to hooks of `stage`.
    ///
    /// # Errors
    /// If the hypervisor would not call them all, or it is unclear which are new.
    fn hooks_in(
        &self,
        (unit, index): (UnitId, SectionIx),
        stage: &str,
    ) -> Result<Vec<Span>, String> {
        let u = &self.units[unit];
        let name = &u.patched.sections[index].name;
        let hook = hook::of_stage(stage).ok_or_else(|| {
            format!(
                "{name} is no section of hooks that the hypervisor knows: it would not call \
                 them; the stages are load, unload, preapply, apply, postapply, prerevert, \
                 revert and postrevert"
            )
        })?;
        let pieces = new_hooks(u, index).ok_or_else(|| {
            format!(
                "the payloads below have {stage} hooks in this file, and it is unclear \
                 which of {name} are new"
            )
        })?;
        let taken = self.selection.hooks.iter().filter(|h| h.stage == stage);
        let elsewhere: Vec<&str> = taken.map(|hook| hook.file.as_str()).collect();
        let functions = functions(&pieces, self.pointer_size());
        if hook.is_single() && (functions > 1 || functions > 0 && !elsewhere.is_empty()) {
            let places = match elsewhere.as_slice() {
                [] => String::new(),
                files => format!(" (here and in {})", files.join(", ")),
            };
            return Err(format!(
                "there is more than one {stage} hook{places}, and the hypervisor calls one \
                 only; call the others from it"
            ));
        }
        Ok(pieces)
    }

    /// Size of a pointer to a hook.
    fn pointer_size(&self) -> u64 {
        self.image.machine().width().bytes() as u64
    }

    fn take_hooks_of(&mut self, unit: UnitId, stage: &str, pieces: &[Span]) {
        let functions = functions(pieces, self.pointer_size());
        if functions == 0 {
            return;
        }
        let u = &self.units[unit];
        for &piece in pieces {
            let section = &u.patched.sections[piece.section];
            self.place(unit, piece, PartKind::Hooks(section.name.clone()));
        }
        self.selection.hooks.push(Hook {
            stage: stage.to_owned(),
            file: u.file.source.clone(),
            functions,
        });
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
        let why = entry.read(object);
        if let Some(why) = why.and_then(|entry| self.arch.refuses_entry(&entry, self.image)) {
            let name = object.name_at(entry.span.section, entry.span.offset);
            let owner = entry
                .owner
                .map_or(name, |owner| &object.symbols[owner].name);
            let message = format!("{owner} cannot be in a payload: {why}");
            self.refuse(Code::UnknownTable, unit, message);
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
        let least = match kind {
            PartKind::Text | PartKind::Code(_) | PartKind::Table(_) => self.arch.least_alignment(),
            _ => 1,
        };
        let multiple = from.align.max(least);
        let align = Align {
            multiple,
            behind: piece.offset % multiple,
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
            let at = self.selection.draft.append(&kind, bytes, align);
            if kind == PartKind::Text && self.arch.meets_erratum(bytes, at) {
                let message = format!(
                    "{} has code that some processors run wrongly wherever a payload has it \
                     (erratum 843419); split the function, or ask for a smaller alignment",
                    object.name_at(piece.section, piece.offset),
                );
                self.refuse(Code::Placement, unit, message);
            }
            at
        };
        let start = (unit, piece.section, piece.offset);
        self.placed.insert(start, (kind.clone(), at));
        self.queue.push_back((unit, piece));
        (kind, at)
    }
}

/// Number of functions that hook sections point to, by pointers of this size.
fn functions(pieces: &[Span], pointer: u64) -> u64 {
    pieces.iter().map(|piece| piece.size / pointer).sum()
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
