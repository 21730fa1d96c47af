// SPDX-License-Identifier: MIT OR Apache-2.0
//! New per-CPU variables, and the tables that generated hooks read.

use super::moved::Moves;
use super::private::Privates;
use super::renamed::Renamed;
use super::{At, Place, Selector};
use crate::code::Code;
use crate::patch::Edits;
use crate::payload::{Align, Field, Kind as PartKind, Reaches};
use crate::unit::{UnitId, Units};
use xsplice_abi::hooks::{self, Row as _, Table};
use xsplice_abi::record::PerCpuVariable;
use xsplice_objdiff::compare::Kind;
use xsplice_objdiff::object::{Class, SymbolIx};
use xsplice_objdiff::placement;

/// Whether `units` add a per-CPU variable that no original has, under any name or in
/// any file.
pub(crate) fn brings_per_cpu(units: &Units, edits: &Edits) -> bool {
    let mut added = added(units).peekable();
    if added.peek().is_none() {
        return false;
    }
    let moves = Moves::new(units);
    let privates = Privates::find(units);
    let renamed = Renamed::find(units, (&moves, &privates), edits);
    added.any(|symbol| !is_known(symbol, &moves, &privates, &renamed))
}

/// Per-CPU variables that the originals of their units do not have: unit and symbol.
fn added(units: &Units) -> impl Iterator<Item = At> {
    units.iter_enumerated().flat_map(|(unit, u)| {
        let changes = u.comparison.changes.iter();
        let added = changes.filter(|change| change.kind == Kind::Added);
        let symbols = added.filter_map(|change| change.patched);
        let section = |index: SymbolIx| &u.patched.sections[u.patched.symbols[index].section];
        let per_cpu = symbols.filter(move |&index| section(index).class == Class::PerCpu);
        per_cpu.map(move |index| (unit, index))
    })
}

/// Whether the original of another unit, or another name, has it.
fn is_known(symbol: At, moves: &Moves, privates: &Privates, renamed: &Renamed) -> bool {
    moves.moved.contains_key(&symbol)
        || privates.same.contains_key(&symbol)
        || renamed.same.contains_key(&symbol)
}

impl Selector<'_> {
    /// Places every new per-CPU variable, and creates the tables of them.
    pub(super) fn place_per_cpu(&mut self) {
        for symbol in added(self.units) {
            if !is_known(symbol, &self.moves, &self.privates, &self.renamed) {
                self.place_one(symbol.0, symbol.1);
            }
        }
        if !self.per_cpu.is_empty() {
            self.add_tables();
        }
    }

    fn place_one(&mut self, unit: UnitId, index: SymbolIx) {
        let u = &self.units[unit];
        let symbol = &u.patched.symbols[index];
        let place: Place = (unit, symbol.section, symbol.offset);
        let alignment = placement::alignment(&u.patched, index).most;
        match self.room.take(symbol.size, Align::to(alignment.max(1))) {
            Ok(address) => {
                self.per_cpu.insert(place, Some(address));
                self.selection.per_cpu.push(PerCpuVariable {
                    name: symbol.name.to_string(),
                    file: u.file.source.clone(),
                    address,
                    size: symbol.size,
                });
            }
            Err(longest) => {
                let message = format!(
                    "{} is a new per-CPU variable of {} bytes, aligned to {alignment}: the CPUs' \
                     areas were laid out at boot, and the longest padding in them that is free has \
                     {longest} bytes; use an array indexed by CPU",
                    symbol.name, symbol.size
                );
                self.per_cpu.insert(place, None);
                self.refuse(Code::PerCpu, unit, message);
            }
        }
    }

    /// The tables: address and size of each variable, and the bits of the padding.
    fn add_tables(&mut self) {
        let pointer = self.arch.objects().pointer();
        let variables = &self.selection.per_cpu;
        let draft = &mut self.selection.draft;
        let width = self.image.machine().width();
        // The address, which a relocation fills in, and the size.
        let rows = variables.iter().flat_map(|v| [0, v.size]);
        let rows = rows.flat_map(|word| word.to_le_bytes().into_iter().take(width.bytes()));
        let rows: Vec<u8> = rows.collect();
        let at = draft.append(&PartKind::RoData, &rows, Align::to(8));
        self.generated
            .insert(Table::PerCpu, (at, rows.len() as u64));
        let fields = (at..)
            .step_by(hooks::PerCpu::size(width))
            .zip(variables)
            .map(|(at, v)| Field {
                part: PartKind::RoData,
                offset: at,
                r_type: pointer,
                addend: 0,
                reaches: Reaches::Address(v.name.clone(), v.address, 0),
            });
        draft.fields.extend(fields);
        let bits = self.room.bits(variables);
        let bits: Vec<u8> = bits.into_iter().flat_map(u64::to_le_bytes).collect();
        let at = draft.append(&PartKind::RoData, &bits, Align::to(8));
        let claims = (at, bits.len() as u64);
        self.generated.insert(Table::PerCpuClaims, claims);
    }

    /// The target of a reference to a symbol that the payload carries.
    pub(super) fn carry(&mut self, unit: UnitId, index: SymbolIx, offset: i64) -> Option<Reaches> {
        let symbol = &self.units[unit].patched.symbols[index];
        let place: Place = (unit, symbol.section, symbol.offset);
        if let Some(&address) = self.per_cpu.get(&place) {
            return Some(Reaches::Address(symbol.name.to_string(), address?, offset));
        }
        let (kind, at) = self.take_symbol(unit, index)?;
        Some(Reaches::Part(kind, at.cast_signed() + offset))
    }

    /// So many bytes behind the start or end of the table that generated hooks call `name`.
    pub(super) fn reach_generated(&self, name: &str, offset: i64) -> Option<Reaches> {
        let (table, is_end) = match hooks::Place::named(name)? {
            hooks::Place::Start(table) => (table, false),
            hooks::Place::End(table) => (table, true),
            hooks::Place::AllClaims => {
                return Some(Reaches::Address(
                    name.to_owned(),
                    self.room.claims(),
                    offset,
                ));
            }
        };
        let &(at, size) = self.generated.get(&table)?;
        let at = if is_end { at + size } else { at };
        Some(Reaches::Part(PartKind::RoData, at.cast_signed() + offset))
    }
}
