// SPDX-License-Identifier: MIT OR Apache-2.0
//! Resolves every reference out of the payload's pieces.

use super::private::is_writable;
use super::revived::Former;
use super::{At, Origin, Selector, Usage};
use crate::code::Code;
use crate::name::trap_name;
use crate::payload::{Content, Field, Kind as PartKind, Reaches};
use crate::problem::Problem;
use crate::unit::UnitId;
use crate::warning::Warning;
use xsplice_abi::record::Renewed;
use xsplice_objdiff::compare::{Kind, is_once_flag};
use xsplice_objdiff::object::{
    Class, Merge, Object, Relocation, SectionIx, Symbol, SymbolIx, Target,
};
use xsplice_objdiff::special;

/// A symbol whose memory is freed after boot.
struct Freed<'a> {
    name: &'a str,
    address: u64,
    function: bool,
}

/// The refusal of a reference to no place of `section`.
fn outside(section: &str) -> String {
    format!("a reference leads out of {section}; refer to what is there by its name")
}

/// Whether a symbol is a function, not only the cold part of one.
fn is_whole_function(symbol: &Symbol) -> bool {
    symbol.function && !symbol.name.is_cold()
}

impl Selector<'_> {
    /// Follows every reference out of the pieces taken so far, and out of those that
    /// this adds.
    pub(super) fn follow(&mut self) {
        let units = self.units;
        while let Some((unit, piece)) = self.queue.pop_front() {
            let (section, offset) = (piece.section, piece.offset);
            let (kind, at) = self.placed[&(unit, section, offset)].clone();
            let object = &units[unit].patched;
            self.follower = object.name_at(section, offset).to_owned();
            for relocation in object.relocations(piece) {
                self.usage = match kind {
                    PartKind::Table(_) | PartKind::Hooks(_) => Usage::Table,
                    _ if relocation.branch => Usage::Branch,
                    _ if special::becomes_direct(
                        object,
                        &self.tables[unit],
                        section,
                        relocation.offset,
                    ) =>
                    {
                        Usage::Pointer
                    }
                    _ => Usage::Address,
                };
                if let Some(reaches) = self.reach(unit, relocation) {
                    self.selection.draft.fields.push(Field {
                        part: kind.clone(),
                        offset: at + (relocation.offset - offset),
                        r_type: relocation.r_type,
                        addend: relocation.reference.bias,
                        reaches,
                    });
                }
            }
        }
    }

    /// The target of a relocated field of the payload.
    pub(super) fn reach(&mut self, unit: UnitId, relocation: &Relocation) -> Option<Reaches> {
        let object = &self.units[unit].patched;
        let reference = &relocation.reference;
        match &reference.target {
            Target::External(name) => self.reach_global(unit, name, reference.offset),
            Target::Symbol(index) => self.reach_symbol((unit, *index), reference.offset),
            Target::Anonymous(section) => {
                let from = &object.sections[*section];
                let Ok(offset) = u64::try_from(reference.offset) else {
                    let message = outside(&from.name);
                    self.refuse(Code::UnknownReference, unit, message);
                    return None;
                };
                let Some(merge) = from.merge else {
                    return self.reach_piece(unit, *section, offset);
                };
                let (kind, align) = match merge {
                    Merge::Strings(1) => (PartKind::Strings, 1),
                    Merge::Strings(size) | Merge::Constants(size) => (PartKind::RoData, size),
                };
                let content = object.merged(*section, reference.offset);
                let content = content.map(|(bytes, within)| {
                    let bytes = bytes.to_vec();
                    (Content { kind, bytes, align }, within)
                });
                let Some((content, within)) = content else {
                    let message = outside(&from.name);
                    self.refuse(Code::UnknownReference, unit, message);
                    return None;
                };
                let (kind, at) = self.selection.draft.constant(&content);
                Some(Reaches::Part(kind, (at + within).cast_signed()))
            }
        }
    }

    fn reach_piece(&mut self, unit: UnitId, section: SectionIx, offset: u64) -> Option<Reaches> {
        let object = &self.units[unit].patched;
        let piece = special::piece(object, section, offset);
        let within = (offset - piece.offset).cast_signed();
        if let Some((kind, at)) = self.placed.get(&(unit, section, piece.offset)) {
            return Some(Reaches::Part(kind.clone(), at.cast_signed() + within));
        }
        let from = &object.sections[section];
        let kind = match from.class {
            Class::Text | Class::Special => PartKind::named_code(&from.name),
            Class::ReadOnly => PartKind::RoData,
            Class::Data if from.is_sanitizer_record() => {
                self.tell_reported_again(unit);
                PartKind::Data
            }
            Class::Init | Class::Data | Class::Bss | Class::PerCpu | Class::Ignored => {
                let message = format!(
                    "{} refers to data in {} that has no name; give it one",
                    self.follower, from.name
                );
                self.refuse(Code::UnknownReference, unit, message);
                return None;
            }
        };
        let (kind, at) = self.place(unit, piece, kind);
        Some(Reaches::Part(kind, at.cast_signed() + within))
    }

    fn reach_symbol(&mut self, at: At, offset: i64) -> Option<Reaches> {
        let (unit, index) = at;
        let u = &self.units[unit];
        let symbol = &u.patched.symbols[index];
        if self.is_overridden(unit, index) {
            return self.reach_global(unit, &symbol.name, offset);
        }
        let by_old_place = self.goes_by_old_place(at, offset);
        let stays = by_old_place || !symbol.function;
        if let Some((origin, original)) = self.elsewhere(at)
            && stays
            && !self.homes.is_nowhere(origin, original)
        {
            let place = self.place_of(origin, original, offset);
            return place.map_err(|problem| self.refuse_with(problem)).ok();
        }
        if let Some(former) = self.revived.get(&at).cloned()
            && stays
        {
            return self.reach_former(unit, index, former, offset);
        }
        let Some(original) = u.comparison.correlation.original(index) else {
            return self.reach_new(at, offset);
        };
        if self.has_own(at) && !by_old_place {
            self.tell_handed_out(at, offset);
            return self.carry(unit, index, offset);
        }
        if let Some(labels) = self.reach_labels(unit, index, offset) {
            return labels;
        }
        if self.homes.is_nowhere(unit, original) {
            return self.carry(unit, index, offset);
        }
        self.reach_original(at, original, offset)
    }

    /// Whether a reference to a function uses its old address, as in the hypervisor:
    /// so it has one address, and a payload on top that replaces it again takes effect
    /// here too.
    fn goes_by_old_place(&self, (unit, index): At, offset: i64) -> bool {
        let symbol = &self.units[unit].patched.symbols[index];
        is_whole_function(symbol)
            && offset == 0
            && self.usage != Usage::Table
            && !self.is_only_now_called_through_pointers(unit, index)
    }

    /// The original of a symbol that is in another file, or has another name.
    fn elsewhere(&self, new: At) -> Option<At> {
        let maps = [&self.moves.moved, &self.privates.same, &self.renamed.same];
        maps.into_iter().find_map(|map| map.get(&new)).copied()
    }

    /// Whether the payload has a version of the symbol of its own. The hypervisor's
    /// variables stay in place, even if a change to them is left out.
    fn has_own(&self, (unit, index): At) -> bool {
        let u = &self.units[unit];
        let symbol = &u.patched.symbols[index];
        let start = (unit, symbol.section, symbol.offset);
        let mut changes = u.comparison.changes.iter();
        self.placed.contains_key(&start)
            || changes.any(|c| c.patched == Some(index) && !c.kind.stays())
                && !self.is_changed_in_place(unit, index)
    }

    /// A symbol that the original does not have.
    fn reach_new(&mut self, at: At, offset: i64) -> Option<Reaches> {
        let (unit, index) = at;
        let object = &self.units[unit].patched;
        match is_once_flag(object, &object.symbols[index]) {
            true => self.tell_renewed(unit, index),
            false => self.refuse_unclear(unit, index)?,
        }
        self.tell_handed_out(at, offset);
        self.carry(unit, index, offset)
    }

    /// Warns of the address of a function that is only in the payload, if that is
    /// taken.
    fn tell_handed_out(&mut self, (unit, index): At, offset: i64) {
        let u = &self.units[unit];
        let symbol = &u.patched.symbols[index];
        if is_whole_function(symbol) && offset == 0 && self.usage == Usage::Address {
            self.selection.warnings.insert(Warning::HandedOut {
                function: symbol.name.to_string(),
                file: u.file.source.clone(),
                by: self.follower.clone(),
            });
        }
    }

    /// A symbol that stays where it is.
    fn reach_original(
        &mut self,
        (unit, index): At,
        original: SymbolIx,
        offset: i64,
    ) -> Option<Reaches> {
        let object = &self.units[unit].patched;
        let symbol = &object.symbols[index];
        match self.place_of(unit, original, offset) {
            Ok(Reaches::Address(_, address, _)) if self.image.is_init(address) => {
                let freed = Freed {
                    name: &symbol.name,
                    address,
                    function: symbol.function,
                };
                self.reach_freed(unit, freed, offset)
            }
            Ok(place) => Some(place),
            // A copy of the constant works here too.
            Err(_) if object.sections[symbol.section].class == Class::ReadOnly => {
                self.carry(unit, index, offset)
            }
            Err(problem) => {
                self.refuse_with(problem);
                None
            }
        }
    }

    /// Notes that a report of the sanitizer may be repeated.
    fn tell_reported_again(&mut self, unit: UnitId) {
        self.selection.notes.insert(format!(
            "{}: the undefined-behaviour sanitizer's records of what it has reported start again, \
             so a report may be printed once more",
            self.units[unit].file.source
        ));
    }

    /// Notes a message flag that may be one that is in memory.
    fn tell_renewed(&mut self, unit: UnitId, index: SymbolIx) {
        let u = &self.units[unit];
        if !u.comparison.correlation.ambiguous.contains(&index) {
            return;
        }
        let (file, name) = (&u.file.source, &u.patched.symbols[index].name);
        self.selection.notes.insert(format!(
            "{file}: {name}, which {} uses, records whether a message was printed, and starts \
             again from its initial value: it is unclear which of those in memory it is, so the \
             message may be printed once more",
            self.follower
        ));
        self.selection.renewed.insert(Renewed {
            name: name.to_string(),
            file: file.clone(),
        });
    }

    /// Refuses a variable that may or may not be one of the original's; `None` if
    /// refused.
    fn refuse_unclear(&mut self, unit: UnitId, index: SymbolIx) -> Option<()> {
        let u = &self.units[unit];
        let name = &u.patched.symbols[index].name;
        let ambiguous = u.comparison.correlation.ambiguous.contains(&index);
        let message = if ambiguous && is_writable(&u.patched, index) {
            format!(
                "the variable {name} may be the same as one of those of that name in the original, \
                 and it is unclear which; give it a name of its own, or declare it outside its \
                 function if it is to keep its value"
            )
        } else if self.privates.unclear.contains(&(unit, index)) {
            format!(
                "the variable {name} is new here, another file loses one of that name, and it is \
                 unclear whether it is the same; give it another name if it is new, or leave size, \
                 initial value and a function that uses it as they were if it only moves"
            )
        } else if let Some(message) = self.may_be_renamed((unit, index)) {
            message
        } else {
            return Some(());
        };
        self.refuse(Code::AmbiguousVariable, unit, message);
        None
    }

    /// Whether the address of the function at `index` is taken, and a pointer must
    /// not lead to its old place: that has no landing pad, or, after a revert, a
    /// function with different arguments.
    fn is_only_now_called_through_pointers(&self, unit: UnitId, index: SymbolIx) -> bool {
        let u = &self.units[unit];
        let (origin, original) = match self.moves.moved.get(&(unit, index)) {
            Some(&origin) => origin,
            None => match u.comparison.correlation.original(index) {
                Some(original) => (unit, original),
                None => return false,
            },
        };
        let before = &self.units[origin].original;
        let (old, new) = (&before.symbols[original], &u.patched.symbols[index]);
        let lands = |object: &Object, symbol: &Symbol| {
            self.arch.landing_pad(object.bytes(symbol.span())) > 0
        };
        self.usage == Usage::Address
            && (lands(&u.patched, new) && !lands(before, old)
                || old.name.takes_own_arguments() && !new.name.takes_own_arguments())
    }

    /// Symbols that payloads below no longer use are still in their old place.
    fn reach_former(
        &mut self,
        unit: UnitId,
        index: SymbolIx,
        former: Former,
        offset: i64,
    ) -> Option<Reaches> {
        let name = &self.units[unit].patched.symbols[index].name;
        let message = match former {
            Former::Same { build, index: old } => match self.place_at(unit, build, old, offset) {
                Ok(Some(place)) => return Some(place),
                Ok(None) => {
                    return self.carry(unit, index, offset);
                }
                Err(problem) => {
                    self.problems.push(problem);
                    return None;
                }
            },
            Former::Changed(why) => format!(
                "the variable {name} is in memory, from before a payload below left it out, and is \
                 not what the patched source has ({why}); give it a name of its own if it may begin \
                 with its initial value"
            ),
            Former::Unclear => format!(
                "the variable {name} may be one of those of that name that are in memory, from \
                 before a payload below left them out, and it is unclear which; give it a name of \
                 its own if it may start from its initial value"
            ),
        };
        self.refuse(Code::AmbiguousVariable, unit, message);
        None
    }

    /// The place of a symbol of the original.
    pub(super) fn place_of(
        &self,
        unit: UnitId,
        original: SymbolIx,
        offset: i64,
    ) -> Result<Reaches, Problem> {
        let u = &self.units[unit];
        let place = self.place_at(unit, u.stages.len(), original, offset)?;
        place.ok_or_else(|| {
            let message = format!("{} is nowhere in memory", u.original.symbols[original].name);
            Problem::new(Code::UnknownReference, &u.file.source, message)
        })
    }

    /// The place of the symbol at `index` of a unit's `build`, if any.
    fn place_at(
        &self,
        unit: UnitId,
        build: usize,
        index: SymbolIx,
        offset: i64,
    ) -> Result<Option<Reaches>, Problem> {
        let address = match self.homes.at(unit, build, index)? {
            Origin::Below { name, .. } => return Ok(Some(Reaches::Name(name, offset))),
            Origin::Hypervisor(address) => address,
            Origin::Nowhere => return Ok(None),
        };
        // The patched source may have renamed or moved it.
        let (name, global) = match self.homes.shipped(unit, build, index) {
            Some((shipped, index)) => (
                shipped.runtime_name(index).to_string(),
                shipped.symbols[index].global,
            ),
            None => {
                let name = &self.units[unit].build(build).symbols[index].name;
                (
                    name.to_string(),
                    self.image.address_of(name) == Some(address),
                )
            }
        };
        let by_name = global && !self.rules.prelink;
        if by_name && !self.image.is_init(address) {
            debug_assert_eq!(self.image.address_of(&name), Some(address));
            return Ok(Some(Reaches::Name(name, offset)));
        }
        Ok(Some(Reaches::Address(name, address, offset)))
    }

    /// Resolves a reference to memory freed after boot, which the original also uses
    /// under a condition that is never true after boot. A call leads to a trap
    /// instead of to reused memory. For data, only the address can matter (it locates
    /// a copy in low memory), so replaced code keeps it.
    fn reach_freed(&mut self, unit: UnitId, freed: Freed, offset: i64) -> Option<Reaches> {
        let Freed {
            name,
            address,
            function,
        } = freed;
        if self.usage == Usage::Pointer {
            let message = format!(
                "{} calls through a pointer in {name} at {address:#x}, which is freed after boot: \
                 the hypervisor made its own calls direct while booting, and a payload's when it is \
                 loaded, from memory that is used for something else by then; call the function by \
                 its name, or through a pointer that stays",
                self.follower
            );
            self.refuse(Code::FreedReference, unit, message);
            return None;
        }
        let u = &self.units[unit];
        let original = &u.original;
        let refers = |relocation: &Relocation| match &relocation.reference.target {
            Target::Symbol(index) => original.symbols[*index].name == name,
            Target::External(external) => **external == *name,
            Target::Anonymous(_) => false,
        };
        if function && offset == 0 {
            let mut code = original.sections.iter().filter(|s| s.class == Class::Text);
            if code.any(|section| section.relocations.iter().any(refers)) {
                let at = self.selection.draft.trap(&trap_name(name));
                return Some(Reaches::Part(PartKind::Text, at.cast_signed()));
            }
        } else {
            let changes = u.comparison.changes.iter();
            let mut replaced = changes
                .filter(|change| change.kind == Kind::Function)
                .filter_map(|change| Some(&original.symbols[change.original?]));
            if replaced.any(|s| {
                let fields = original.relocations(s.span());
                fields.iter().any(refers)
            }) {
                return Some(Reaches::Address(name.to_owned(), address, offset));
            }
        }
        let message = format!(
            "{name} at {address:#x} is freed after boot, and {} refers to it; remove the reference, \
             or drop the `__init` of what it refers to",
            self.follower
        );
        self.refuse(Code::FreedReference, unit, message);
        None
    }

    fn reach_global(&mut self, unit: UnitId, name: &str, offset: i64) -> Option<Reaches> {
        if let Some(table) = self.reach_generated(name, offset) {
            return Some(table);
        }
        if let Some(symbol) = self.globals.get(name) {
            return self.reach_symbol(symbol, offset);
        }
        match self.image.address_of(name) {
            Some(address) if self.image.is_init(address) => {
                let function = self
                    .image
                    .global(name)
                    .is_some_and(xsplice_xen_image::Symbol::is_function);
                let freed = Freed {
                    name,
                    address,
                    function,
                };
                self.reach_freed(unit, freed, offset)
            }
            Some(address) if self.rules.prelink => {
                Some(Reaches::Address(name.to_owned(), address, offset))
            }
            Some(_) => Some(Reaches::Name(name.to_owned(), offset)),
            None => {
                self.refuse(
                    Code::UnknownReference,
                    unit,
                    format!(
                        "{name} is neither in the hypervisor nor in a file that the patch reaches; is a \
                         file missing in the patch?"
                    ),
                );
                None
            }
        }
    }
}
