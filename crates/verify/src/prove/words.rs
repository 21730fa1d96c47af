// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compares code whose instructions are words.
//!
//! An instruction has a whole address, or half of one: `adrp` the page on ARM64, `movt` the
//! upper 16 bits on ARM32, and another one the rest.
//! Which halves belong together is known from the relocations of the patched hypervisor:
//! they name the same symbol and the same distance from it. All other bits of both
//! functions are equal, so their halves meet in the same registers, and those of the
//! running hypervisor lead to the upper part of the one and the rest of the other.

use super::step::Passed;
use super::{Origin, Place, Walk};
use crate::arch::{Bits, Operand, Part, WORD, Words, word};
use crate::class::Class;
use crate::objects::Field;
use crate::verdict::Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Size of an instruction in bytes.
const SIZE: u64 = WORD as u64;

/// The index of the symbol and the distance from it that a half names.
type Key = (usize, i64);
/// An address in the patched hypervisor, and one in the running one.
type Both = (u64, u64);

/// Half of an address.
#[derive(Debug)]
pub(super) struct Half {
    origin: Origin,
    /// The instruction in the patched hypervisor.
    at: u64,
    field: Field,
    value: Both,
    accessed: u64,
}

impl Walk<'_> {
    /// Compares an instruction of a function with the given bounds in both.
    pub(super) fn word(
        &mut self,
        words: &dyn Words,
        origin: &Origin,
        (patched, running): Both,
        own: Option<(Range<u64>, u64)>,
    ) -> Result<Passed, String> {
        let field = self.objects.field(patched).cloned();
        if let Some(field) = field.as_ref().filter(|field| field.part == Part::Bytes) {
            return self.data_in_code(origin, (patched, running), field);
        }
        let both = (
            word(self.patched, patched),
            word(&self.running.image, running),
        );
        let (Some(old), Some(new)) = both else {
            return self.byte(patched, running);
        };
        let data = self.patched.is_marked_data(patched);
        let part = field.as_ref().map_or(Part::Word, |field| field.part);
        let operand = |word: u32, at: u64| (!data).then(|| words.operand(word, at, part))?;
        let (ours, theirs) = (operand(old, patched), operand(new, running));
        let mask = ours.map_or(0, |operand| operand.mask);
        let unclear = ours.is_none() && (field.is_some() || !data && words.is_incomplete(old));
        if unclear || ours.is_some() != theirs.is_some() || old & !mask != new & !mask {
            let text = |image: &crate::image::Image, at: u64| image.arch.text(image, at);
            return Err(format!(
                "{}: it has `{}` and not `{}`",
                self.place(origin.place),
                text(&self.running.image, running),
                text(self.patched, patched)
            ));
        }
        if let (Some(ours), Some(theirs)) = (ours, theirs) {
            let offset = own.as_ref().map_or(0, |(range, _)| patched - range.start);
            let origin = origin.at(Place::Instruction(patched, offset));
            let value = (ours.value, theirs.value);
            match field.filter(|field| field.part != Part::Word) {
                Some(field) => match field.part {
                    Part::Distance(bit) => {
                        let targets = self.sixteen_bits(&field, bit, value, (patched, running))?;
                        self.lead(&origin, Some(&field), targets);
                    }
                    _ => self.halves.push(Half {
                        origin,
                        at: patched,
                        field,
                        value,
                        accessed: ours.accessed,
                    }),
                },
                None => self.whole(words, &origin, patched, (ours, theirs), own),
            }
        }
        let trap = data || words.traps(old) && !self.tables.goes_on(patched);
        Ok(Passed {
            length: SIZE,
            ends: words.ends(old) || trap,
        })
    }

    /// An instruction that has a whole address; within the function, it is right if it is
    /// equally far from the start of both.
    fn whole(
        &mut self,
        words: &dyn Words,
        origin: &Origin,
        at: u64,
        (ours, mut theirs): (Bits, Bits),
        own: Option<(Range<u64>, u64)>,
    ) {
        let within = own.is_some_and(|(range, start)| {
            let offset = ours.value.wrapping_sub(range.start);
            range.contains(&ours.value) && theirs.value == start.wrapping_add(offset)
        });
        if !within {
            // What Xen's own core cannot lead to, a payload leads to by a veneer of its own.
            if theirs.branch && self.running.image.class(theirs.value) == Some(Class::PayloadText) {
                let veneer = words.veneer(&self.running.image, theirs.value);
                theirs.value = veneer.unwrap_or(theirs.value);
            }
            let operand = |bits: Bits| Operand::of_word(bits.value, bits.accessed, bits.branch);
            self.operand(origin, at, &operand(ours), &operand(theirs));
        }
    }

    /// A number among code that leads somewhere: a literal.
    fn data_in_code(
        &mut self,
        origin: &Origin,
        (patched, running): Both,
        field: &Field,
    ) -> Result<Passed, String> {
        let length = u64::from(field.size);
        self.same_contents(origin, (patched, running), length)?;
        // Nothing runs it.
        Ok(Passed { length, ends: true })
    }

    /// Compares code with `compare`, and follows the addresses of which it has the halves.
    pub(super) fn with_halves<T>(
        &mut self,
        compare: impl FnOnce(&mut Self) -> Result<T, String>,
    ) -> Result<T, String> {
        let mark = self.halves.len();
        let result = compare(self);
        let halves = self.halves.split_off(mark);
        if result.is_ok() {
            self.join(&halves);
        }
        result
    }

    fn join(&mut self, halves: &[Half]) {
        let bits = self.patched.arch.words().map_or(0, Words::rest);
        let (uppers, rests): (Vec<&Half>, Vec<&Half>) = halves
            .iter()
            .partition(|half| half.field.part == Part::Upper);
        let mut known: BTreeMap<Key, BTreeSet<Both>> = BTreeMap::new();
        for upper in &uppers {
            let there = known.entry(upper.field.key).or_default();
            there.insert(upper.value);
        }
        let mut used = BTreeSet::new();
        for rest in rests {
            let Some((keys, upper)) = upper_of(&known, &rest.field, bits) else {
                let message = "the upper part that belongs to this rest of an address is not known";
                self.leads_astray(&rest.origin, Kind::Reference, message);
                continue;
            };
            used.extend(keys);
            let target = (upper.0 | rest.value.0 & bits, upper.1 | rest.value.1 & bits);
            if rest.field.target.is_some_and(|known| known != target.0) {
                let message = "its address in two halves is not that of the object";
                self.leads_astray(&rest.origin, Kind::Reference, message);
                continue;
            }
            let operand = |target| Operand::of_word(target, rest.accessed, false);
            let (ours, theirs) = (operand(target.0), operand(target.1));
            self.operand(&rest.origin, rest.at, &ours, &theirs);
        }
        for upper in uppers
            .iter()
            .filter(|upper| !used.contains(&upper.field.key))
        {
            let message =
                "nothing completes the upper part of an address, so it cannot be compared";
            self.leads_astray(&upper.origin, Kind::Reference, message);
        }
    }
}

/// The upper part that belongs to the rest of an address, which has `bits`, and the keys of
/// the halves that have it: that of the same place; or of another place of the symbol, with
/// the same upper part.
fn upper_of(
    known: &BTreeMap<Key, BTreeSet<Both>>,
    rest: &Field,
    bits: u64,
) -> Option<(Vec<Key>, Both)> {
    let upper = rest.target.map(|target| target & !bits);
    let near = |(key, uppers): &(&Key, &BTreeSet<Both>)| {
        key.0 == rest.key.0 && uppers.iter().any(|both| Some(both.0) == upper)
    };
    let found: Vec<_> = match known.get_key_value(&rest.key) {
        Some(same) => vec![same],
        None => known.iter().filter(near).collect(),
    };
    let keys = found.iter().map(|(key, _)| **key).collect();
    let all: BTreeSet<Both> = found
        .iter()
        .flat_map(|(_, uppers)| uppers.iter().copied())
        .collect();
    let mut all = all.into_iter();
    match (all.next(), all.next()) {
        (Some(only), None) => Some((keys, only)),
        _ => None,
    }
}
