// SPDX-License-Identifier: MIT OR Apache-2.0
//! Data that hooks change in place, at the caller's request.

use super::{At, Counterparts, Origin, Selector, Usage};
use crate::below::Level;
use crate::code::Code;
use crate::name::contents_name;
use crate::patched_data::{contents, differences, is_chosen};
use crate::payload::{Align, Field, Kind as PartKind, Reaches};
use crate::unit::UnitId;
use std::ops::Range;
use xsplice_abi::hooks::{self, Table};
use xsplice_abi::machine::Width;
use xsplice_abi::record::PatchedData;
use xsplice_objdiff::compare::{Change, Kind};
use xsplice_objdiff::object::{Class, Object, Span, Symbol, SymbolIx, Target};
use xsplice_objdiff::placement;
use zerocopy::IntoBytes as _;
use zerocopy::little_endian::{U32, U64};

/// The largest alignment of a pointer.
const POINTER: u64 = 8;

/// A change made by hooks.
#[derive(Clone)]
pub(super) struct InPlace {
    /// The symbol.
    pair: Counterparts,
    /// The ranges that differ.
    ranges: Vec<Range<u64>>,
    /// Address in the hypervisor.
    address: u64,
}

/// The table of the changes, as the hooks read it.
struct Rows {
    /// The type of the relocation for a pointer.
    pointer: u32,
    /// The width of a pointer.
    width: Width,
    bytes: Vec<u8>,
    fields: Vec<Field>,
}

impl Rows {
    /// Adds a row, of which relocations fill in the pointers.
    fn push(&mut self, size: u64, variable: bool, pointers: [Reaches; 4]) {
        let row = self.bytes.len() as u64;
        let pointers = (0..).zip(pointers).map(|(pointer, reaches)| Field {
            part: PartKind::RoData,
            offset: row + self.width.bytes() as u64 * pointer,
            r_type: self.pointer,
            addend: 0,
            reaches,
        });
        self.fields.extend(pointers);
        let size = u32::try_from(size).unwrap_or(u32::MAX).into();
        let variable = u32::from(variable).into();
        let wide = hooks::PatchedData::<U64> {
            size,
            variable,
            ..Default::default()
        };
        let narrow = hooks::PatchedData::<U32> {
            size,
            variable,
            ..Default::default()
        };
        self.bytes.extend_from_slice(match self.width {
            Width::Bits32 => narrow.as_bytes(),
            Width::Bits64 => wide.as_bytes(),
        });
    }
}

/// What the hooks need to know of a symbol besides the ranges.
struct Values {
    /// Where its name is among the payload's strings.
    name: u64,
    /// Its contents in the hypervisor.
    was: Vec<u8>,
    /// Its contents according to the patched source.
    now: Vec<u8>,
    /// Whether the hypervisor may write to it.
    variable: bool,
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
        changes_contents_only(change)?;
        let (Some(original), Some(patched)) = (change.original, change.patched) else {
            return Err("only one of the two builds has it".to_owned());
        };
        let pair = Counterparts {
            old: (origin, original),
            new: (unit, patched),
        };
        let (before, after) = (&self.units[origin].original, &self.units[unit].patched);
        let (old, new) = (&before.symbols[original], &after.symbols[patched]);
        let class = |object: &Object, symbol: &Symbol| object.sections[symbol.section].class;
        let kept = [Class::ReadOnly, Class::Data, Class::Bss];
        if !kept.contains(&class(before, old)) || !kept.contains(&class(after, new)) {
            return Err("it is per-CPU data, of which each CPU has a copy".to_owned());
        }
        let is_constant = class(before, old) == Class::ReadOnly
            || before.sections[old.section].home == placement::LOCKED;
        let locked = self.arch.locks_constants().filter(|_| is_constant);
        if let Some(why) = locked {
            return Err(why.to_owned());
        }
        if old.size != new.size || old.size == 0 {
            return Err(format!(
                "its size goes from {} to {} bytes",
                old.size, new.size
            ));
        }
        self.is_unchanged_below(&self.units[unit].file.source, change)?;
        Ok(InPlace {
            pair,
            address: self.address_in_place(pair)?,
            ranges: self.ranges(pair)?,
        })
    }

    /// # Errors
    /// If a payload below changes the same data in place.
    fn is_unchanged_below(&self, file: &str, change: &Change) -> Result<(), String> {
        let mut levels = self.below.levels.iter();
        let changes_it = |level: &&Level| {
            let mut data = level.patched_data().iter();
            data.any(|data| data.name == change.name && data.file == *file)
        };
        levels.find(changes_it).map_or(Ok(()), |level| {
            Err(format!(
                "the payload {} changes it in place already; give all patches to one build, to be \
                 used instead of that payload",
                level.name
            ))
        })
    }

    /// The address in the hypervisor of what is to be changed.
    fn address_in_place(&self, pair: Counterparts) -> Result<u64, String> {
        let origin = self.origin(pair.old.0, pair.old.1);
        match origin.map_err(|problem| problem.message)? {
            Origin::Hypervisor(address) => Ok(address),
            Origin::Below { .. } | Origin::Nowhere => Err(
                "the hypervisor does not have it, but a payload below; give all patches to \
                     one build, to be used with `replace`"
                    .to_owned(),
            ),
        }
    }

    /// The ranges that differ.
    fn ranges(&self, pair: Counterparts) -> Result<Vec<Range<u64>>, String> {
        let (unit, patched) = pair.new;
        let before = &self.units[pair.old.0].original;
        let after = &self.units[unit].patched;
        let (old, new) = (&before.symbols[pair.old.1], &after.symbols[patched]);
        let correlation = &self.units[unit].comparison.correlation;
        let ranges = differences((before, old), (after, new), |was, now| match (was, now) {
            (Target::Symbol(was), Target::Symbol(now)) => {
                !pair.moves() && correlation.original(*now) == Some(*was)
            }
            (Target::External(was), Target::External(now)) => was == now,
            _ => false,
        });
        let fields = after.relocations(new.first(new.size)).iter();
        let odd = fields.map(|field| (field.offset - new.offset, field.r_type));
        let mut odd = odd.filter(|(_, r_type)| *r_type != after.arch.pointer());
        if let Some((at, r_type)) = odd.find(|(at, _)| ranges.iter().any(|r| r.contains(at))) {
            return Err(format!(
                "the field at +{at:#x} depends on its own address (relocation type {r_type})"
            ));
        }
        Ok(ranges)
    }

    /// Whether hooks change the patched symbol at `index` in place.
    pub(super) fn is_changed_in_place(&self, unit: UnitId, index: SymbolIx) -> bool {
        let mut all = self.in_place.iter();
        all.any(|in_place| in_place.pair.new == (unit, index))
    }

    /// Creates the table that the hooks read.
    pub(super) fn patch_data(&mut self) {
        let mut rows = Rows {
            pointer: self.arch.objects().pointer(),
            width: self.image.machine().width(),
            bytes: Vec::new(),
            fields: Vec::new(),
        };
        for in_place in self.in_place.clone() {
            self.add_rows(&in_place, &mut rows);
        }
        let draft = &mut self.selection.draft;
        let at = draft.append(&PartKind::RoData, &rows.bytes, Align::to(8));
        for mut field in rows.fields {
            field.offset += at;
            draft.fields.push(field);
        }
        let table = (at, rows.bytes.len() as u64);
        self.generated.insert(Table::PatchedData, table);
    }

    /// Adds the rows for one symbol.
    fn add_rows(&mut self, in_place: &InPlace, rows: &mut Rows) {
        let (unit, patched) = in_place.pair.new;
        let new = &self.units[unit].patched.symbols[patched];
        let values = self.values(in_place);
        self.follower = new.name.to_string();
        self.usage = Usage::Address;
        for range in &in_place.ranges {
            self.add_row(in_place, range, &values, rows);
        }
        let ranges = in_place.ranges.iter();
        self.selection.patched_data.push(PatchedData {
            name: new.name.to_string(),
            file: self.units[unit].file.source.clone(),
            address: in_place.address,
            size: new.size,
            written: ranges.map(|range| range.end - range.start).sum(),
            variable: values.variable,
        });
    }

    fn values(&mut self, in_place: &InPlace) -> Values {
        let ((origin, original), (unit, patched)) = (in_place.pair.old, in_place.pair.new);
        let (before, after) = (&self.units[origin].original, &self.units[unit].patched);
        let (old, new) = (&before.symbols[original], &after.symbols[patched]);
        let class = before.sections[old.section].class;
        let name = [new.name.as_bytes(), &[0]].concat();
        let draft = &mut self.selection.draft;
        Values {
            name: draft.append(&PartKind::Strings, &name, Align::to(1)),
            was: match class {
                // Its zeros are not in the file.
                Class::Bss => contents(before, old),
                _ => {
                    let bytes = self.image.bytes(in_place.address, new.size);
                    bytes.unwrap_or_default().to_vec()
                }
            },
            now: contents(after, new),
            variable: class != Class::ReadOnly,
        }
    }

    /// Adds the row for one range, with its old and its new bytes.
    fn add_row(
        &mut self,
        in_place: &InPlace,
        range: &Range<u64>,
        values: &Values,
        rows: &mut Rows,
    ) {
        let Counterparts { old, new } = in_place.pair;
        let size = range.end - range.start;
        let was = slice(&values.was, range);
        let draft = &mut self.selection.draft;
        let old_at = draft.append(&PartKind::RoData, was, Align::to(8));
        let start = in_place.address.wrapping_add(range.start);
        let new_at = self.add_new_bytes(new, range, slice(&values.now, range), start);
        let place = self.place_of(old.0, old.1, range.start.cast_signed());
        match place {
            Ok(place) => {
                let pointers = [
                    place,
                    Reaches::Part(PartKind::RoData, old_at.cast_signed()),
                    Reaches::Part(PartKind::RoData, new_at.cast_signed()),
                    Reaches::Part(PartKind::Strings, values.name.cast_signed()),
                ];
                rows.push(size, values.variable, pointers);
            }
            Err(problem) => self.refuse_with(problem),
        }
    }

    /// Adds the new bytes of a range, with all that they lead to; returns their place. Their
    /// pointers are aligned as in the hypervisor, where the range starts at `address`.
    fn add_new_bytes(
        &mut self,
        (unit, index): At,
        range: &Range<u64>,
        bytes: &[u8],
        address: u64,
    ) -> u64 {
        let u = &self.units[unit];
        let symbol = &u.patched.symbols[index];
        let draft = &mut self.selection.draft;
        let align = Align {
            multiple: POINTER,
            behind: address % POINTER,
        };
        let at = draft.append(&PartKind::RoData, bytes, align);
        let copy = contents_name(&u.file.source, &symbol.name);
        let size = range.end - range.start;
        draft.name(&(PartKind::RoData, at), copy, size, false);
        let start = symbol.offset + range.start;
        let span = Span {
            offset: start,
            ..symbol.first(size)
        };
        for relocation in u.patched.relocations(span) {
            if let Some(reaches) = self.reach(unit, relocation) {
                self.selection.draft.fields.push(Field {
                    part: PartKind::RoData,
                    offset: at + (relocation.offset - start),
                    r_type: relocation.r_type,
                    addend: relocation.reference.bias,
                    reaches,
                });
            }
        }
        at
    }
}

/// # Errors
/// If not only the contents of existing data change.
fn changes_contents_only(change: &Change) -> Result<(), String> {
    match change.kind {
        Kind::Data | Kind::Constant => Ok(()),
        Kind::Init => Err("it was freed after boot".to_owned()),
        Kind::Function
        | Kind::Added
        | Kind::Removed
        | Kind::Resized
        | Kind::Misplaced
        | Kind::Alignment
        | Kind::Elsewhere
        | Kind::Renamed
        | Kind::Unsized => Err(format!("not only its contents change ({})", change.why)),
    }
}

/// The bytes in `range`; empty if some are missing.
fn slice<'a>(bytes: &'a [u8], range: &Range<u64>) -> &'a [u8] {
    let start = usize::try_from(range.start).ok();
    let range = start.zip(usize::try_from(range.end).ok());
    let bytes = range.and_then(|(start, end)| bytes.get(start..end));
    bytes.unwrap_or_default()
}
