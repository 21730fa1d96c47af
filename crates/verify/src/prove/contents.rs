// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compares data.

use super::{Origin, Place, Walk, step};
use crate::arch::Part;
use crate::class::Class;
use crate::generated;
use crate::image::{EntityId, Name};
use crate::objects::{Extent, Field};
use crate::verdict::Kind;
use xsplice_abi::suffix;

/// How the names of the list of all symbols begin (`tools/symbols.c`).
const SYMBOLS: &str = "symbols_";

impl Walk<'_> {
    /// Compares the object `id` with the memory at `at`.
    pub(super) fn object(&mut self, id: EntityId, at: u64) {
        let entity = &self.patched.entities[id];
        let name = entity.name();
        let Some(class) = self.running.image.class(at) else {
            return self.differ(Kind::Reference, &name, format!("nothing is at {at:#x}"));
        };
        // From Xen 4.22 on, the list of all symbols has names with a size. The running
        // hypervisor has its own, and payloads bring theirs.
        let listed = entity.names.iter().any(|n| n.symbol.starts_with(SYMBOLS));
        if listed && !self.objects.has(entity) && self.namesake(id) == Some(at) {
            return;
        }
        if let Err(message) = self.same_memory(id, at, class) {
            let kind = match entity.class.is_init() {
                true => Kind::BootOnly,
                false => self.misplaced(id, at),
            };
            return self.differ(kind, &name, message);
        }
        if entity.class.has_state() && !self.has_one_place(id, at) {
            return;
        }
        if entity.class != class && !class.is_payload()
            || entity.class == Class::RoAfterInit && class.is_payload()
        {
            self.notes.insert(format!(
                "{name} is {} and not {}, which it can be as well",
                class.name(),
                entity.class.name()
            ));
        }
        let origin = self.origin(id, at);
        if let Err(message) = self.same_contents(&origin, (entity.address, at), entity.size) {
            let (kind, what) = match entity.class {
                class if class.is_init() => (Kind::BootOnly, "it is used only while booting"),
                Class::ReadOnly => (Kind::Constant, "the constant differs"),
                _ => (Kind::InitialValue, "its initial value differs"),
            };
            self.differ(kind, &name, format!("{what}: {message}"));
        }
    }

    /// The kind of a difference of memory: only what has the name can be accepted as it is,
    /// anything else is another thing.
    pub(super) fn misplaced(&self, id: EntityId, at: u64) -> Kind {
        // A payload's names have the file and a hash as well.
        let base = |name: &Name| suffix::unnumbered(generated::base(&name.symbol)).to_owned();
        let ours = &self.patched.entities[id].names;
        let theirs = self.running.image.at.get(&at).into_iter().flatten();
        match theirs
            .map(base)
            .any(|theirs| ours.iter().any(|name| name.base() == theirs))
        {
            true => Kind::Class,
            false => Kind::Reference,
        }
    }

    fn same_memory(&self, id: EntityId, at: u64, class: Class) -> Result<(), String> {
        let entity = &self.patched.entities[id];
        let there = self.running.image.place(at);
        if !entity.class.allows(class) {
            return Err(format!(
                "{there} is {} and not {}",
                class.name(),
                entity.class.name()
            ));
        }
        let size = match self.running.image.starting_at(at) {
            Some(there) => self.running.image.entities[there].size,
            // Constants of a payload may be unnamed.
            None if class == Class::PayloadReadOnly => entity.size,
            None => return Err(format!("no object begins at {there}")),
        };
        if size != entity.size {
            return Err(format!("{there} has {size} bytes and not {}", entity.size));
        }
        let alignment = self.objects.alignment(id);
        // Where the running hypervisor has a variable, its compiler put it; that the type is
        // the same is compared as well. On ARM32, two pointers look like a number of 8 bytes.
        if self.objects.shares_section(id) && self.namesake(id) == Some(at) {
            return Ok(());
        }
        if self.running.image.modulo(at, alignment) != Some(entity.address % alignment) {
            return Err(format!("{there} is not aligned to {alignment} bytes"));
        }
        Ok(())
    }

    /// Checks that a variable has exactly one address, which no other shares.
    fn has_one_place(&mut self, id: EntityId, at: u64) -> bool {
        let name = self.patched.entities[id].name();
        let there = self.running.image.place(at);
        let first = self.mates.get(&id).and_then(|mates| mates.first()).copied();
        if let Some(first) = first.filter(|&first| first != at) {
            let other = self.running.image.place(first);
            self.differ(
                Kind::Reference,
                &name,
                format!("some code uses {there} for it, and some {other}"),
            );
            return false;
        }
        let owner = *self.taken.entry(at).or_insert(id);
        if owner != id {
            let other = self.patched.entities[owner].name();
            self.differ(
                Kind::Reference,
                &name,
                format!("{there} stands for it and for {other}"),
            );
        }
        owner == id
    }

    /// The addresses of which `old` and `new` are the 16 bits from `bit` on, or of the
    /// distances to which from `places`.
    pub(super) fn sixteen_bits(
        &self,
        field: &Field,
        bit: u8,
        (old, new): (u64, u64),
        places: (u64, u64),
    ) -> Result<(u64, u64), String> {
        let part = |target: u64, place: u64| {
            let place = if field.relative { place } else { 0 };
            let value = target.wrapping_add_signed(field.key.1).wrapping_sub(place);
            value >> bit & 0xffff
        };
        let target = field
            .target
            .map(|target| target.wrapping_add_signed(-field.key.1));
        let old_target = target.filter(|&target| part(target, places.0) == old & 0xffff);
        let old_target = old_target.ok_or("what the linker computes is not known")?;
        let names = self.patched.at.get(&old_target).into_iter().flatten();
        let mut there = names.filter_map(|name| self.running.image.names.get(name));
        let new_target = there.find(|&&target| part(target, places.1) == new & 0xffff);
        let new_target = new_target.ok_or_else(|| {
            let name = self.patched.place(old_target);
            format!("{new:#x} is no part of the address of {name}, or of the distance to it")
        })?;
        Ok((old_target, *new_target))
    }

    pub(super) fn same_contents(
        &mut self,
        origin: &Origin,
        (patched, running): (u64, u64),
        size: u64,
    ) -> Result<(), String> {
        let ours = self.patched.bytes(patched, size);
        let theirs = self.running.image.bytes(running, size);
        let (Some(mut ours), Some(mut theirs)) = (ours, theirs) else {
            return Err("it is truncated".to_owned());
        };
        let fields = self.objects.fields(patched..patched + size);
        let fields: Vec<(u64, Field)> = fields.map(|(at, field)| (at, field.clone())).collect();
        for (at, field) in fields {
            if !matches!(field.part, Part::Bytes | Part::Computed(_)) {
                return Err(format!("{} has an instruction", self.patched.place(at)));
            }
            let offset = usize::try_from(at - patched).unwrap_or(usize::MAX);
            let range = offset..offset.saturating_add(field.size.into());
            let old = step::value(&ours, &range);
            let new = step::value(&theirs, &range);
            let (Some(old), Some(new)) = (old, new) else {
                return Err("a pointer is truncated".to_owned());
            };
            let origin = origin.at(Place::Offset(offset as u64));
            if let Part::Computed(bit) = field.part {
                let values = (old.cast_unsigned(), new.cast_unsigned());
                let targets = self.sixteen_bits(&field, bit, values, (at, running))?;
                self.lead(&origin, Some(&field), targets);
            } else if field.relative && self.patched.class(at).is_some_and(Class::is_code) {
                // In an instruction, it is relative to the instruction's end, which
                // is not known here.
                let relative = |start: u64, value: i64| start.wrapping_add_signed(value);
                let old = relative(at, old).cast_signed();
                let new = relative(running + offset as u64, new).cast_signed();
                self.value(&origin, &field, old, new);
            } else if field.relative {
                let targets = (
                    at.wrapping_add_signed(old),
                    (running + offset as u64).wrapping_add_signed(new),
                );
                self.lead(&origin, Some(&field), targets);
            } else if usize::from(field.size) == self.patched.width().bytes()
                && self.patched.spans(old.cast_unsigned())
            {
                let targets = (old.cast_unsigned(), new.cast_unsigned());
                self.lead(&origin, Some(&field), targets);
            } else {
                self.value(&origin, &field, old, new);
            }
            ours[range.clone()].fill(0);
            theirs[range].fill(0);
        }
        match ours.iter().zip(&theirs).position(|(a, b)| a != b) {
            Some(at) => Err(format!(
                "+{at:#x} is {:#x} and not {:#x}",
                theirs[at], ours[at]
            )),
            None => Ok(()),
        }
    }

    /// Compares unnamed constants.
    pub(super) fn constant(
        &mut self,
        origin: &Origin,
        (patched, running): (u64, u64),
        extent: Extent,
    ) {
        if !self.compared.insert((patched, running)) {
            return;
        }
        let ours = self.patched.class(patched);
        let theirs = self.running.image.class(running);
        let (Some(ours), Some(theirs)) = (ours, theirs) else {
            if self.patched.class(patched).is_some() || patched != running {
                self.leads_astray(origin, Kind::Reference, "it leads out of the hypervisor");
            }
            return;
        };
        if !ours.allows(theirs) {
            let message = format!("it leads to {} and not to {}", theirs.name(), ours.name());
            let freed = theirs.is_init();
            let kind = if freed { Kind::Freed } else { Kind::Class };
            return self.leads_astray(origin, kind, &message);
        }
        if ours.has_state()
            && let Err(message) = self.unnamed_has_one_place(patched, running, theirs)
        {
            return self.leads_astray(origin, Kind::State, &message);
        }
        let result = match extent {
            Extent::Text => self.same_text(patched, running),
            Extent::AtMost(size) => self.same_bytes(origin, patched, running, size),
        };
        if let Err(message) = result {
            self.leads_astray(origin, Kind::Constant, &message);
        }
    }

    /// Checks that variables without names are those that the running hypervisor has, and
    /// lie together as there.
    fn unnamed_has_one_place(
        &mut self,
        patched: u64,
        running: u64,
        class: Class,
    ) -> Result<(), String> {
        let start = self.objects.unnamed(patched).unwrap_or(patched);
        let there = running.wrapping_sub(patched - start);
        let place = self.running.image.place(running);
        if class.is_payload() {
            return Err(format!("{place} is new, and not the variable that it was"));
        }
        let first = *self.unnamed.entry(start).or_insert(there);
        let owner = *self.unnamed_there.entry(there).or_insert(start);
        if first == there && owner == start {
            Ok(())
        } else {
            Err(format!(
                "{place} stands for a variable that is elsewhere, or for two"
            ))
        }
    }

    fn same_text(&self, patched: u64, running: u64) -> Result<(), String> {
        let text = |bytes: &[u8]| {
            let end = bytes.iter().position(|&byte| byte == 0);
            bytes[..end.unwrap_or(bytes.len())].to_vec()
        };
        let ours = text(self.patched.from(patched));
        let theirs = text(self.running.image.from(running));
        if ours == theirs {
            return Ok(());
        }
        let shown = |text: &[u8]| format!("{:?}", String::from_utf8_lossy(text));
        Err(format!(
            "it has {} and not {}",
            shown(&theirs),
            shown(&ours)
        ))
    }

    /// Compares at most `size` bytes, up to the end of either.
    fn same_bytes(
        &mut self,
        origin: &Origin,
        patched: u64,
        running: u64,
        size: u64,
    ) -> Result<(), String> {
        let both = size.min(self.running.room(running));
        let rest = self.patched.bytes(patched + both, size - both);
        if rest.is_some_and(|rest| rest.iter().any(|&byte| byte != 0)) {
            return Err(format!("a constant of {size} bytes has only {both}"));
        }
        self.same_contents(origin, (patched, running), both)
            .map_err(|message| format!("a constant of {size} bytes differs: {message}"))
    }
}
