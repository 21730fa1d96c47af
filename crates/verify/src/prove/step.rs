// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compares code, instruction by instruction.

use super::{Origin, Place, Walk};
use crate::arch::{Code, Operand};
use crate::class::Class;
use crate::image::EntityId;
use crate::objects::{Extent, Field, Meant};
use crate::tables::{self, Entry, Says};
use crate::verdict::Kind;
use std::ops::Range;

/// The successors of an instruction that both have.
pub(super) struct Passed {
    pub(super) length: u64,
    pub(super) ends: bool,
}

impl Walk<'_> {
    /// Compares the function `id` with the code at `at`.
    pub(super) fn function(&mut self, id: EntityId, at: u64) {
        let entity = &self.patched.entities[id];
        let Some(class) = self.running.image.class(at) else {
            return self.differ(Kind::Code, &entity.name(), format!("nothing is at {at:#x}"));
        };
        let kind = match class {
            Class::PayloadText => Kind::Code,
            _ if entity.class.is_init() => Kind::BootOnly,
            _ => Kind::NotReplaced,
        };
        if let Err(message) = self.same_shape(id, at, class) {
            return self.differ(self.misplaced(id, at), &entity.name(), message);
        }
        if let Err(message) = self.same_function(id, at) {
            let whose = match kind {
                Kind::Code => "the payload's code differs",
                Kind::BootOnly => "it is used only while booting, and changed",
                _ if self.running.replaced.contains_key(&at) => {
                    "the code that was replaced is still reached"
                }
                _ => "it differs, and nothing replaces it",
            };
            self.differ(kind, &entity.name(), format!("{whose}: {message}"));
        }
    }

    fn same_shape(&self, id: EntityId, at: u64, class: Class) -> Result<(), String> {
        let entity = &self.patched.entities[id];
        if !entity.class.allows(class) {
            return Err(format!(
                "it is {} and not {}",
                class.name(),
                entity.class.name()
            ));
        }
        let alignment = self.objects.alignment(id);
        let wanted = entity.address % alignment;
        if class.is_payload() && self.running.image.modulo(at, alignment) != Some(wanted) {
            let message = match self.running.image.modulo(at, alignment) {
                Some(at) => {
                    format!("it is at {at:#x} of {alignment:#x} bytes and not at {wanted:#x}")
                }
                None => format!("the payload does not align it to {alignment} bytes"),
            };
            return Err(message);
        }
        Ok(())
    }

    pub(super) fn same_function(&mut self, id: EntityId, at: u64) -> Result<(), String> {
        let entity = &self.patched.entities[id];
        let there = self.running.image.starting_at(at);
        let there = there
            .ok_or_else(|| format!("no function begins at {}", self.running.image.place(at)))?;
        let size = self.running.image.entities[there].size;
        let behind = entity.end()..entity.address.saturating_add(size);
        if size != entity.size && !self.objects.is_behind(self.patched, &behind) {
            let there = self.running.image.place(at);
            return Err(format!("{there} has {size} bytes and not {}", entity.size));
        }
        // Including out-of-line code of inline assembly after the function's end.
        let range = entity.address..entity.address.saturating_add(size);
        let mut origin = self.origin(id, at);
        self.with_halves(|walk| {
            let mut offset = 0;
            while offset < size {
                let places = (range.start + offset, at + offset);
                origin.place = Place::Offset(offset);
                let own = (range.clone(), at);
                offset += walk.instruction(&origin, places, Some(own))?.length;
            }
            Ok(())
        })?;
        origin.place = Place::Offset(0);
        self.same_entries(&origin, range, at)
    }

    pub(super) fn origin(&self, id: EntityId, at: u64) -> Origin {
        let class = self.running.image.class(at);
        let entity = &self.patched.entities[id];
        Origin {
            name: entity.name().into(),
            place: Place::Offset(0),
            // Code freed after boot no longer runs, even if the patched one keeps it.
            init: entity.class.is_init() || class.is_some_and(Class::is_init),
            payload: class.is_some_and(Class::is_payload),
        }
    }

    /// Follows the execution of code without a name or size.
    pub(super) fn nameless_code(&mut self, patched: u64, running: u64, origin: Origin) {
        let _: Result<(), String> = self.with_halves(|walk| {
            walk.follow(patched, running, origin);
            Ok(())
        });
    }

    fn follow(&mut self, mut patched: u64, mut running: u64, mut origin: Origin) {
        while self.compared.insert((patched, running)) && !self.is_in_stretch(patched, running) {
            if let Some(id) = self.patched.containing(patched) {
                let offset = patched - self.patched.entities[id].address;
                return self.pair(id, running.wrapping_sub(offset));
            }
            origin.place = Place::Address(patched);
            let passed = self.instruction(&origin, (patched, running), None);
            let passed = match passed {
                Ok(passed) => passed,
                Err(message) => {
                    let kind = if origin.init {
                        Kind::BootOnly
                    } else {
                        Kind::Code
                    };
                    return self.differ(kind, &origin.name, message);
                }
            };
            let range = patched..patched + passed.length;
            if let Err(message) = self.same_entries(&origin, range, running) {
                return self.leads_astray(&origin, Kind::Table, &message);
            }
            if passed.ends {
                return;
            }
            patched += passed.length;
            running += passed.length;
        }
    }

    /// Compares an instruction of a function with the given bounds in both.
    pub(super) fn instruction(
        &mut self,
        origin: &Origin,
        (patched, running): (u64, u64),
        own: Option<(Range<u64>, u64)>,
    ) -> Result<Passed, String> {
        match self.patched.arch.words() {
            Some(words) => self.word(words, origin, (patched, running), own),
            None => self.bytes(origin, (patched, running), own),
        }
    }

    /// The same for instructions of any number of bytes, on x86-64.
    fn bytes(
        &mut self,
        origin: &Origin,
        (patched, running): (u64, u64),
        own: Option<(Range<u64>, u64)>,
    ) -> Result<Passed, String> {
        let old = Code::at(self.patched, patched);
        let new = Code::at(&self.running.image, running);
        let (Some(old), Some(new)) = (old, new) else {
            return self.byte(patched, running);
        };
        let differs = || {
            format!(
                "{}: it has `{}` and not `{}`",
                self.place(origin.place),
                new.text(),
                old.text()
            )
        };
        let fields: Vec<_> = old.operands.iter().map(|o| o.field.clone()).collect();
        let new_fields: Vec<_> = new.operands.iter().map(|o| o.field.clone()).collect();
        let values = self.values(patched, &old, &fields);
        let mut masked = fields.clone();
        masked.extend(values.iter().map(|(range, _)| range.clone()));
        if fields != new_fields || without(&old.bytes, &masked) != without(&new.bytes, &masked) {
            return Err(differs());
        }
        for (ours, theirs) in old.operands.iter().zip(&new.operands) {
            let within = own.as_ref().is_some_and(|(range, start)| {
                let offset = ours.target.wrapping_sub(range.start);
                range.contains(&ours.target) && theirs.target == start.wrapping_add(offset)
            });
            if !within {
                let offset = own.as_ref().map_or(0, |(range, _)| patched - range.start);
                let origin = origin.at(Place::Instruction(patched, offset));
                self.operand(&origin, patched, ours, theirs);
            }
        }
        for (range, field) in values {
            let (Some(ours), Some(theirs)) = (value(&old.bytes, &range), value(&new.bytes, &range))
            else {
                return Err("a relocated value is truncated".to_owned());
            };
            self.value(origin, &field, ours, theirs);
        }
        let trap = old.traps() && !self.tables.goes_on(patched);
        Ok(Passed {
            length: old.len(),
            ends: old.ends() || trap,
        })
    }

    /// Compares a byte where no instruction can be decoded.
    pub(super) fn byte(&self, patched: u64, running: u64) -> Result<Passed, String> {
        let (old, new) = (
            self.patched.bytes(patched, 1),
            self.running.image.bytes(running, 1),
        );
        if old.is_some() && old == new {
            return Ok(Passed {
                length: 1,
                ends: false,
            });
        }
        Err(format!(
            "there is no instruction at {} or at {}",
            self.patched.place(patched),
            self.running.image.place(running)
        ))
    }

    /// Relocated fields of the instruction that are not complete operands: an address
    /// minus a constant.
    fn values(
        &self,
        patched: u64,
        code: &Code,
        operands: &[Range<usize>],
    ) -> Vec<(Range<usize>, Field)> {
        let fields = self.objects.fields(patched..patched + code.len());
        fields
            .filter_map(|(at, field)| {
                let from = usize::try_from(at - patched).ok()?;
                let range = from..from + usize::from(field.size);
                let operand = operands.iter().any(|operand| operand.start == from);
                (!operand).then(|| (range, field.clone()))
            })
            .collect()
    }

    /// Values with the same distance from an address.
    pub(super) fn value(&mut self, origin: &Origin, field: &Field, patched: i64, running: i64) {
        let (Meant::Symbol(start) | Meant::Marker(start) | Meant::Section { start, .. }) =
            field.meant
        else {
            if patched != running {
                self.leads_astray(origin, Kind::Reference, "an offset to a constant differs");
            }
            return;
        };
        let there = start.wrapping_add_signed(running.wrapping_sub(patched));
        self.lead(origin, Some(field), (start, there));
    }

    pub(super) fn operand(
        &mut self,
        origin: &Origin,
        patched: u64,
        ours: &Operand,
        theirs: &Operand,
    ) {
        let (old, new) = (ours.target, theirs.target);
        let field = self.objects.field(patched + ours.field.start as u64);
        // The hypervisor ends at a page boundary, after all contents.
        let marked = field.is_some_and(|field| matches!(field.meant, Meant::Marker(_)));
        if !marked && !self.patched.spans(old) {
            if old != new {
                let message = format!("it has {new:#x} and not {old:#x}");
                self.leads_astray(origin, Kind::Reference, &message);
            }
            return;
        }
        let field = field.cloned();
        // At least as many bytes as are accessed.
        let field = field.map(|mut field| {
            field.accessed = ours.accessed != 0;
            if let Meant::Constant(Extent::Text) = field.meant
                && ours.accessed != 0
            {
                field.meant = Meant::Constant(Extent::AtMost(ours.accessed));
            }
            field
        });
        self.lead(origin, field.as_ref(), (old, new));
    }

    /// Compares the table entries about code in `range` with those about code of the
    /// same length at `at`.
    pub(super) fn same_entries(
        &mut self,
        origin: &Origin,
        range: Range<u64>,
        at: u64,
    ) -> Result<(), String> {
        let running = self.running;
        let there = at..at + (range.end - range.start);
        let theirs = running.tables.about(there);
        let ours: Vec<(u64, Entry)> = self.tables.about(range.clone());
        let place = |(place, entry): &(u64, Entry), start: u64| (place - start, entry.table);
        let own: Vec<_> = ours.iter().map(|entry| place(entry, range.start)).collect();
        let other: Vec<_> = theirs.iter().map(|entry| place(entry, at)).collect();
        if let Some((offset, table)) = missing(&own, &other) {
            return Err(format!(
                "+{offset:#x}: its {} is missing",
                tables::name(table)
            ));
        }
        if let Some((offset, table)) = missing(&other, &own) {
            return Err(format!(
                "+{offset:#x}: it has one more {}",
                tables::name(table)
            ));
        }
        for ((place, ours), (_, theirs)) in ours.iter().zip(&theirs) {
            self.entries.insert(theirs.at);
            let origin = origin.at(Place::Entry(ours.table, place - range.start));
            if !self.same_terms(&origin, &ours.says, &theirs.says) {
                return Err(format!("{} differs", self.place(origin.place)));
            }
        }
        Ok(())
    }

    fn same_terms(&mut self, origin: &Origin, ours: &Says, theirs: &Says) -> bool {
        match (ours, theirs) {
            (
                Says::Bug {
                    line,
                    file,
                    message,
                },
                Says::Bug {
                    line: line_there,
                    file: file_there,
                    message: message_there,
                },
            ) => {
                if let (Some(ours), Some(theirs)) = (file, file_there) {
                    self.lead_from_frame(origin, *ours, *theirs);
                }
                if let (Some(ours), Some(theirs)) = (message, message_there) {
                    self.lead_from_frame(origin, *ours, *theirs);
                }
                line == line_there
                    && file.is_some() == file_there.is_some()
                    && message.is_some() == message_there.is_some()
            }
            (Says::Exception { continues }, Says::Exception { continues: there }) => {
                self.lead(origin, None, (*continues, *there));
                true
            }
            (
                Says::Alternative {
                    replacement,
                    replacement_size,
                    terms,
                },
                Says::Alternative {
                    replacement: there,
                    replacement_size: size_there,
                    terms: terms_there,
                },
            ) => {
                if *replacement_size == 0 && self.patched.arch.has_writers() {
                    self.lead(origin, None, (*replacement, *there));
                }
                terms == terms_there
                    && replacement_size == size_there
                    && self.same_replacement(origin, *replacement, *there, *replacement_size)
            }
            (Says::AltCall, Says::AltCall) => true,
            _ => false,
        }
    }

    /// A bug frame refers to a file name, or to a function to call.
    fn lead_from_frame(&mut self, origin: &Origin, patched: u64, running: u64) {
        if self.patched.class(patched).is_some_and(Class::is_code) {
            self.lead(origin, None, (patched, running));
        } else {
            self.constant(origin, (patched, running), Extent::Text);
        }
    }

    fn same_replacement(&mut self, origin: &Origin, patched: u64, running: u64, size: u8) -> bool {
        let same = self.with_halves(|walk| {
            let mut offset = 0;
            while offset < u64::from(size) {
                let mut origin = origin.clone();
                // The replaced code decides, not the place of the replacement.
                origin.init = false;
                let places = (patched + offset, running + offset);
                // A jump to its end continues behind the replaced code.
                let own = (patched..patched + u64::from(size) + 1, running);
                offset += walk.instruction(&origin, places, Some(own))?.length;
            }
            Ok(())
        });
        same.is_ok()
    }
}

fn missing<T: PartialEq + Copy>(from: &[T], of: &[T]) -> Option<T> {
    let mut of = of.to_vec();
    from.iter()
        .copied()
        .find(|item| match of.iter().position(|other| other == item) {
            Some(found) => {
                of.remove(found);
                false
            }
            None => true,
        })
}

fn without(bytes: &[u8], fields: &[Range<usize>]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for field in fields {
        let end = field.end.min(bytes.len());
        if let Some(field) = bytes.get_mut(field.start..end) {
            field.fill(0);
        }
    }
    bytes
}

/// The signed number in `range`.
pub(super) fn value(bytes: &[u8], range: &Range<usize>) -> Option<i64> {
    number(bytes.get(range.clone())?)
}

/// The signed number that `bytes` are.
pub(crate) fn number(bytes: &[u8]) -> Option<i64> {
    let mut wide = [if bytes.last()? & 0x80 != 0 { 0xff } else { 0 }; 8];
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(wide))
}
