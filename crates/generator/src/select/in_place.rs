// SPDX-License-Identifier: MIT OR Apache-2.0
//! Data that hooks change in place, at the caller's request.

use super::{Origin, Selector, Usage};
use crate::below::Level;
use crate::code::Code;
use crate::name::VERSION_SUFFIX;
use crate::patched_data::{contents, differences, is_chosen};
use crate::payload::{Align, Field, Kind as PartKind, Reaches};
use crate::unit::UnitId;
use object::elf::R_X86_64_64;
use std::ops::Range;
use xsplice_abi::hooks::{self, Table};
use xsplice_abi::record::PatchedData;
use xsplice_objdiff::compare::{Change, Kind};
use xsplice_objdiff::object::{Class, Object, Span, Symbol, SymbolIx, Target};
use zerocopy::IntoBytes as _;

/// A change made by hooks.
pub(super) struct InPlace {
    /// The unit of the original, and the symbol there.
    origin: (UnitId, SymbolIx),
    /// The unit of the patched symbol, and the symbol.
    patched: (UnitId, SymbolIx),
    /// The ranges that differ.
    ranges: Vec<Range<u64>>,
    /// Address in the hypervisor.
    address: u64,
}

impl Selector<'_> {
    /// Whether the caller wants `change` in place; if that is impossible, it is
    /// refused.
    pub(super) fn takes_in_place(&mut self, origin: UnitId, unit: UnitId, change: &Change) -> bool {
        let file = &self.units[unit].file.source;
        if !is_chosen(self.rules.patch_data, file, change) {
            return false;
        }
        match self.in_place(origin, unit, change) {
            Ok(in_place) => self.in_place.push(in_place),
            Err(why) => {
                let message = format!("{} cannot be changed in place: {why}", change.name);
                self.refuse(Code::InPlace, unit, message);
            }
        }
        true
    }

    /// Prepares `change` in place.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(super) fn in_place(
        &self,
        origin: UnitId,
        unit: UnitId,
        change: &Change,
    ) -> Result<InPlace, String> {
        match change.kind {
            Kind::Data | Kind::Constant => {}
            Kind::Init => return Err("it was freed after boot".to_owned()),
            Kind::Function
            | Kind::Added
            | Kind::Removed
            | Kind::Resized
            | Kind::Misplaced
            | Kind::Alignment
            | Kind::Elsewhere
            | Kind::Renamed
            | Kind::Unsized => {
                return Err(format!("not only its contents change ({})", change.why));
            }
        }
        let (Some(original), Some(patched)) = (change.original, change.patched) else {
            return Err("only one of the two builds has it".to_owned());
        };
        let (before, after) = (&self.units[origin].original, &self.units[unit].patched);
        let (old, new) = (&before.symbols[original], &after.symbols[patched]);
        let class = |object: &Object, symbol: &Symbol| object.sections[symbol.section].class;
        let kept = [Class::ReadOnly, Class::Data, Class::Bss];
        if !kept.contains(&class(before, old)) || !kept.contains(&class(after, new)) {
            return Err("it is per-CPU data, of which each CPU has a copy".to_owned());
        }
        if old.size != new.size || old.size == 0 {
            return Err(format!(
                "its size goes from {} to {} bytes",
                old.size, new.size
            ));
        }
        let file = &self.units[unit].file.source;
        let mut levels = self.below.levels.iter();
        let changes_it = |level: &&Level| {
            let mut data = level.patched_data().iter();
            data.any(|data| data.name == change.name && data.file == *file)
        };
        if let Some(level) = levels.find(changes_it) {
            return Err(format!(
                "the payload {} changes it in place already; give all patches to one build, to be \
                 used instead of that payload",
                level.name
            ));
        }
        let address = match self.origin(origin, original).map_err(|p| p.message)? {
            Origin::Hypervisor(address) => address,
            Origin::Below { .. } | Origin::Nowhere => {
                return Err(
                    "the hypervisor does not have it, but a payload below; give all patches to \
                     one build, to be used with `replace`"
                        .to_owned(),
                );
            }
        };
        let correlation = &self.units[unit].comparison.correlation;
        let ranges = differences((before, old), (after, new), |was, now| match (was, now) {
            (Target::Symbol(was), Target::Symbol(now)) => {
                origin == unit && correlation.original(*now) == Some(*was)
            }
            (Target::External(was), Target::External(now)) => was == now,
            _ => false,
        });
        let fields = after.relocations(new.first(new.size)).iter();
        let odd = fields.map(|field| (field.offset - new.offset, field.r_type));
        let mut odd = odd.filter(|(_, r_type)| *r_type != R_X86_64_64.0);
        if let Some((at, r_type)) = odd.find(|(at, _)| ranges.iter().any(|r| r.contains(at))) {
            return Err(format!(
                "what it has at +{at:#x} depends on where it lies (relocation type {r_type})"
            ));
        }
        Ok(InPlace {
            origin: (origin, original),
            patched: (unit, patched),
            ranges,
            address,
        })
    }

    /// Whether hooks change the patched symbol at `index` in place.
    pub(super) fn is_changed_in_place(&self, unit: UnitId, index: SymbolIx) -> bool {
        let mut all = self.in_place.iter();
        all.any(|in_place| in_place.patched == (unit, index))
    }

    /// Creates the table that the hooks read.
    pub(super) fn patch_data(&mut self) {
        let mut fields = Vec::new();
        let mut rows = Vec::new();
        for at in 0..self.in_place.len() {
            self.add_rows(at, &mut rows, &mut fields);
        }
        let draft = &mut self.selection.draft;
        let at = draft.append(&PartKind::RoData, &rows, Align::to(8));
        for mut field in fields {
            field.offset += at;
            draft.fields.push(field);
        }
        let table = (at, rows.len() as u64);
        self.generated.insert(Table::PatchedData, table);
    }

    /// Appends the rows for one symbol, and their fields.
    fn add_rows(&mut self, at: usize, rows: &mut Vec<u8>, fields: &mut Vec<Field>) {
        let InPlace {
            origin,
            patched: (unit, index),
            ref ranges,
            address,
        } = self.in_place[at];
        let ranges = ranges.clone();
        let (before, after) = (&self.units[origin.0].original, &self.units[unit].patched);
        let new = &after.symbols[index];
        let class = before.sections[before.symbols[origin.1].section].class;
        let variable = class != Class::ReadOnly;
        let name = [new.name.as_bytes(), &[0]].concat();
        let name_at = self
            .selection
            .draft
            .append(&PartKind::Strings, &name, Align::to(1));
        let was = match class {
            // Its zeros are not in the file.
            Class::Bss => Some(contents(before, &before.symbols[origin.1])),
            _ => self.image.bytes(address, new.size).map(<[u8]>::to_vec),
        };
        let now = contents(after, new);
        self.follower = new.name.to_string();
        self.usage = Usage::Address;
        for range in &ranges {
            let bytes = |of: &[u8]| -> Vec<u8> {
                let range = usize::try_from(range.start)
                    .ok()
                    .zip(usize::try_from(range.end).ok());
                let bytes = range.and_then(|(start, end)| of.get(start..end));
                bytes.unwrap_or_default().to_vec()
            };
            let draft = &mut self.selection.draft;
            let old_at = draft.append(
                &PartKind::RoData,
                &bytes(was.as_deref().unwrap_or_default()),
                Align::to(8),
            );
            let new_at = draft.append(&PartKind::RoData, &bytes(&now), Align::to(8));
            let copy = format!(
                "{}.hooks.c#{}{VERSION_SUFFIX}",
                self.units[unit].file.source, new.name
            );
            draft.name(
                &(PartKind::RoData, new_at),
                copy,
                range.end - range.start,
                false,
            );
            let size = range.end - range.start;
            for relocation in after.relocations(Span {
                offset: new.offset + range.start,
                ..new.first(size)
            }) {
                if let Some(reaches) = self.reach(unit, relocation) {
                    self.selection.draft.fields.push(Field {
                        part: PartKind::RoData,
                        offset: new_at + (relocation.offset - new.offset - range.start),
                        r_type: relocation.r_type,
                        addend: relocation.reference.bias,
                        reaches,
                    });
                }
            }
            let place = match self.place_of(origin.0, origin.1, range.start.cast_signed()) {
                Ok(place) => place,
                Err(problem) => {
                    self.problems.push(problem);
                    continue;
                }
            };
            let row = rows.len() as u64;
            let leads_to = [
                place,
                Reaches::Part(PartKind::RoData, old_at.cast_signed()),
                Reaches::Part(PartKind::RoData, new_at.cast_signed()),
                Reaches::Part(PartKind::Strings, name_at.cast_signed()),
            ];
            fields.extend((0..).zip(leads_to).map(|(pointer, reaches)| Field {
                part: PartKind::RoData,
                offset: row + 8 * pointer,
                r_type: R_X86_64_64.0,
                addend: 0,
                reaches,
            }));
            // Relocations fill in the addresses.
            let bytes = hooks::PatchedData {
                place: 0.into(),
                was: 0.into(),
                now: 0.into(),
                name: 0.into(),
                size: u32::try_from(size).unwrap_or(u32::MAX).into(),
                variable: u32::from(variable).into(),
            };
            rows.extend_from_slice(bytes.as_bytes());
        }
        self.selection.patched_data.push(PatchedData {
            name: new.name.to_string(),
            file: self.units[unit].file.source.clone(),
            address,
            size: new.size,
            written: ranges.iter().map(|range| range.end - range.start).sum(),
            variable,
        });
    }
}
