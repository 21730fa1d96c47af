// SPDX-License-Identifier: MIT OR Apache-2.0
//! The proof that an object is the one that a payload below was built from.
//!
//! Every piece of the object that the payload names must be in the payload: every
//! byte outside relocated fields must be equal, and all relocated fields for a symbol
//! must lead to the same place. So the payload itself yields the place of everything
//! that its code uses: in the payload, in one below it, or in the hypervisor.

use super::Level;
use super::contents::{CopyIx, Field, Place, Record, Symbol};
use crate::arch::{self, Arch};
use crate::name::{is_new, is_trap, is_veneer, payload_name};
use crate::tree::ObjectFile;
use std::collections::{BTreeMap, BTreeSet};
use xsplice_objdiff::object::{Object, Relocation, SymbolIx, Target};
use xsplice_xen_image::Image;

/// An object tied to a payload.
#[derive(Debug)]
pub(crate) struct LevelProof<'a> {
    level: &'a Level,
    object: &'a Object,
    image: &'a Image,
    /// The payload's copies of the object's symbols, as indices in the payload.
    copies: BTreeMap<SymbolIx, CopyIx>,
    /// The places of the functions that it replaces.
    replaced: BTreeMap<SymbolIx, Place>,
    /// The targets of its fields.
    implied: BTreeMap<SymbolIx, BTreeSet<Place>>,
}

/// Differences between payload and object: names, each with the reason.
pub(crate) type Wrong = Vec<(String, String)>;

impl<'a> LevelProof<'a> {
    /// Ties `object`, compiled from `file` at `level`, to its payload; `image` is the
    /// hypervisor.
    ///
    /// # Errors
    /// If the payload differs from it.
    pub(crate) fn new(
        level: &'a Level,
        (file, object): (&ObjectFile, &'a Object),
        image: &'a Image,
    ) -> Result<Self, Wrong> {
        let mut proof = Self {
            level,
            object,
            image,
            copies: BTreeMap::new(),
            replaced: BTreeMap::new(),
            implied: BTreeMap::new(),
        };
        let mut wrong = Vec::new();
        for (index, symbol) in object.symbols.iter_enumerated() {
            let names = [
                object.runtime_name(index).to_string(),
                payload_name(file, &symbol.name),
            ];
            let found = level.named(&names).find(|&at| {
                let replaces = level.record_of(at).is_some();
                // The hypervisor's name means the replaced function.
                replaces || is_new(&level.contents.symbols[at].name)
            });
            let Some(at) = found else {
                continue;
            };
            match proof.compare(index, &level.contents.symbols[at]) {
                Ok(()) => drop(proof.copies.insert(index, at)),
                Err(why) => wrong.push((symbol.name.to_string(), why)),
            }
        }
        proof.add_other_names();
        for (&index, &at) in &proof.copies {
            if let Some(record) = level.record_of(at) {
                proof.replaced.insert(index, record.old.clone());
            }
        }
        wrong.extend(proof.misled());
        if wrong.is_empty() {
            Ok(proof)
        } else {
            Err(wrong)
        }
    }

    /// What the payload carries, and its fields have elsewhere.
    fn misled(&self) -> impl Iterator<Item = (String, String)> {
        let carried = self.implied.iter().filter_map(|(index, places)| {
            let copy = &self.level.contents.symbols[*self.copies.get(index)?];
            let at = Place::Here(copy.section, copy.offset.cast_signed());
            let old = self.replaced.get(index);
            let is_right = |place: &Place| {
                *place == at || old.is_some_and(|old| self.address(place) == self.address(old))
            };
            (!places.iter().all(is_right)).then_some(*index)
        });
        carried.map(|index| {
            let name = self.object.symbols[index].name.to_string();
            (name, "references to it lead elsewhere".to_owned())
        })
    }

    /// `place`, by its address if the hypervisor has its name.
    fn address(&self, place: &Place) -> Place {
        match place {
            Place::Name(name, 0) => self.image.address_of(name).map(Place::Address),
            _ => None,
        }
        .unwrap_or_else(|| place.clone())
    }

    /// The payload names each piece once; a function may have several names.
    fn add_other_names(&mut self) {
        let object = self.object;
        for (index, symbol) in object.symbols.iter_enumerated() {
            let mut copies = self.copies.iter();
            let same = copies.find(|&(&other, _)| object.symbols[other].is_at(symbol));
            if let Some((_, &at)) = same.filter(|_| symbol.size > 0) {
                self.copies.entry(index).or_insert(at);
            }
        }
    }

    /// The payload's symbols that the object has.
    pub(crate) fn copies(&self) -> impl Iterator<Item = CopyIx> {
        self.copies.values().copied()
    }

    /// The object's symbols that the payload's fields lead to.
    pub(crate) fn referred(&self) -> impl Iterator<Item = SymbolIx> {
        self.implied.keys().copied()
    }

    /// The place of the symbol at `index` according to the payload: the old place of
    /// a replaced function, the place in the payload for what it carries, otherwise
    /// the target of its fields. `None` if it does not have the symbol.
    ///
    /// # Errors
    /// If its fields lead to several places.
    pub(crate) fn place(&self, index: SymbolIx) -> Result<Option<Place>, String> {
        if let Some(old) = self.replaced.get(&index) {
            return Ok(Some(old.clone()));
        }
        if let Some(&at) = self.copies.get(&index) {
            let symbol = &self.level.contents.symbols[at];
            return Ok(Some(Place::Here(
                symbol.section,
                symbol.offset.cast_signed(),
            )));
        }
        let Some(implied) = self.implied.get(&index) else {
            return Ok(None);
        };
        let mut places = implied.iter();
        match (places.next(), places.next()) {
            (Some(place), None) => Ok(Some(place.clone())),
            _ => Err(format!(
                "the payload {} uses several of it",
                self.level.name
            )),
        }
    }

    /// Whether the payload has the symbol at `index` as `copy`; records the targets
    /// of its fields.
    fn compare(&mut self, index: SymbolIx, copy: &Symbol) -> Result<(), String> {
        let (level, object) = (self.level, self.object);
        let symbol = &object.symbols[index];
        if symbol.extent() != copy.size {
            return Err(format!(
                "it has {} bytes, not {}",
                copy.size,
                symbol.extent()
            ));
        }
        let ours = object.bytes(symbol.span());
        let at = Place::Here(copy.section, copy.offset.cast_signed());
        let theirs = level.contents.bytes(&at).unwrap_or_default();
        let Some(theirs) = theirs.get(..ours.len()) else {
            return Err("it has no contents".to_owned());
        };
        let fields = object.relocations(symbol.span());
        let copied = level.contents.fields(copy.section, copy.offset, copy.size);
        if let Some(at) = object.first_difference(symbol, theirs) {
            return Err(format!("it differs at +{at:#x}"));
        }
        if fields.len() != copied.len() {
            return Err("it refers to other things".to_owned());
        }
        for (field, copied) in fields.iter().zip(copied) {
            let at = field.offset - symbol.offset;
            let same = copied.offset - copy.offset == at && copied.r_type == field.r_type;
            if !same || !self.follows(field, copied) {
                let name = object.label(&field.reference.target);
                return Err(format!("at +{at:#x} it does not lead to {name}"));
            }
        }
        Ok(())
    }

    /// `place`, by the name of the symbol at `index` if the hypervisor has that there: a
    /// payload for ARM32 refers to it by name, but where there is an addend, by address.
    fn by_name(&self, index: SymbolIx, place: Place) -> Place {
        let symbol = &self.object.symbols[index];
        let global = self.image.global(&symbol.name).filter(|_| symbol.global);
        match global {
            Some(there) if place == Place::Address(there.address) => {
                Place::Name(symbol.name.to_string(), 0)
            }
            _ => place,
        }
    }

    /// Whether the payload's field can mean what `relocation` does; records its target.
    fn follows(&mut self, relocation: &Relocation, field: &Field) -> bool {
        let (level, object) = (self.level, self.object);
        let reference = &relocation.reference;
        let mut start = field.leads_to(reference.bias.wrapping_add(reference.offset));
        if relocation.branch {
            start = level.behind_veneer(start, arch::of(self.image.machine()));
        }
        match &reference.target {
            Target::Symbol(index) => {
                let start = self.by_name(*index, start);
                if !level.is_trap(&start) {
                    self.implied.entry(*index).or_default().insert(start);
                }
                true
            }
            // The hypervisor's own names mean themselves.
            Target::External(name) => match start {
                Place::Name(other, 0) => other == **name || self.image.global(name).is_none(),
                Place::Name(..) => false,
                Place::Address(at) => {
                    let there = self.image.global(name);
                    there.is_none_or(|there| there.address == at)
                }
                Place::Here(..) => level.symbol_at(&start).is_some(),
            },
            Target::Anonymous(section) => {
                let Some((content, within)) = object.merged(*section, reference.offset) else {
                    return true;
                };
                let place = field.leads_to(reference.bias.wrapping_add(within.cast_signed()));
                let theirs = level.contents.bytes(&place).unwrap_or_default();
                theirs.starts_with(content)
            }
        }
    }
}

impl Level {
    /// The payload's symbols with one of `names`, without the payload's tag.
    fn named<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = CopyIx> + 'a {
        let found = names.iter().filter_map(|name| self.by_name.get(name));
        found.flatten().copied()
    }

    /// The record of the function at `symbol`, if it replaces another.
    pub(crate) fn record_of(&self, symbol: CopyIx) -> Option<&Record> {
        let symbol = &self.contents.symbols[symbol];
        let place = Place::Here(symbol.section, symbol.offset.cast_signed());
        self.contents
            .records
            .iter()
            .find(|record| record.new == place)
    }

    /// Where a place leads to if it is a veneer.
    fn behind_veneer(&self, place: Place, arch: &dyn Arch) -> Place {
        let symbol = self.symbol_at(&place);
        let target = symbol.and_then(|symbol| self.veneer(symbol, arch));
        target.unwrap_or(place)
    }

    /// Where `symbol` leads to if it is a veneer as the generator makes them.
    pub(crate) fn veneer(&self, symbol: &Symbol, arch: &dyn Arch) -> Option<Place> {
        let code = arch.veneer().filter(|_| is_veneer(&symbol.name))?;
        let Symbol {
            section,
            offset,
            size,
            ..
        } = *symbol;
        let at = Place::Here(section, offset.cast_signed());
        let is_code = self.contents.bytes(&at)?.starts_with(code);
        let [pointer] = self.contents.fields(section, offset, size) else {
            return None;
        };
        let whole = code.len() + arch.objects().machine().width().bytes();
        let is_whole = size == whole as u64 && pointer.offset - offset == code.len() as u64;
        let is_pointer = pointer.r_type == arch.objects().pointer();
        (is_code && is_whole && is_pointer).then(|| pointer.leads_to(0))
    }

    /// Whether a place is the trap in place of boot-only code.
    fn is_trap(&self, place: &Place) -> bool {
        self.symbol_at(place)
            .is_some_and(|symbol| is_trap(&symbol.name))
    }

    /// The payload's symbol at `place`.
    pub(crate) fn symbol_at(&self, place: &Place) -> Option<&Symbol> {
        let &Place::Here(section, offset) = place else {
            return None;
        };
        let mut symbols = self.contents.symbols.iter();
        symbols.find(|symbol| (symbol.section, symbol.offset.cast_signed()) == (section, offset))
    }
}
