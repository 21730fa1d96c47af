// SPDX-License-Identifier: MIT OR Apache-2.0
//! The meaning of operands and pointers, and whether two agree.

use super::{Border, Origin, Pair, Walk};
use crate::class::Class;
use crate::image::EntityId;
use crate::objects::{Extent, Field, Meant};
use crate::verdict::Kind;

/// The meaning of an address in the patched hypervisor.
enum Meaning {
    /// An offset from the start of a function or object.
    Entity(EntityId, u64),
    /// An offset from a symbol without a size.
    Name(u64, u64),
    Code,
    Constant(Extent),
    /// Unnamed contents at an offset from the start of an object in the same section.
    Behind(EntityId, u64),
    /// Data with unknown bounds.
    Unknown,
    /// The end of the first object or the start of the second.
    Border(EntityId, EntityId),
}

impl Walk<'_> {
    fn meaning(&self, field: Option<&Field>, target: u64) -> Meaning {
        let entity = |id: EntityId| {
            let start = self.patched.entities[id].address;
            Meaning::Entity(id, target.wrapping_sub(start))
        };
        match field.map(|field| &field.meant) {
            Some(&Meant::Symbol(address)) => match self.patched.containing(address) {
                Some(id) => entity(id),
                None if self.is_code(address) => Meaning::Code,
                None => Meaning::Name(address, target.wrapping_sub(address)),
            },
            Some(&Meant::Marker(address)) => Meaning::Name(address, target.wrapping_sub(address)),
            Some(&Meant::Section { start, size }) => {
                let first = self.patched.entities.partition_point(|e| e.address < start);
                let inside = self.patched.entities[first..].iter();
                let count = inside.take_while(|e| e.address < start + size).count();
                match count {
                    1 => entity(first),
                    _ if field.is_some_and(|field| field.accessed) => {
                        self.in_section(target, start)
                    }
                    _ => self
                        .border(target)
                        .unwrap_or_else(|| self.in_section(target, start)),
                }
            }
            Some(Meant::Constant(_)) if self.is_code(target) => Meaning::Code,
            Some(&Meant::Constant(extent)) => Meaning::Constant(extent),
            None => self.by_address(target),
        }
    }

    /// Objects that share a section are distinguished only by address.
    fn border(&self, target: u64) -> Option<Meaning> {
        // Code does not use the end of a number or pointer, or of a function name
        // made by the compiler.
        const NUMBER: u64 = 8;
        const NAMES: [&str; 3] = ["__func__", "__FUNCTION__", "__PRETTY_FUNCTION__"];
        let behind = self.patched.starting_at(target)?;
        let before = behind.checked_sub(1)?;
        let entity = &self.patched.entities[before];
        let mut names = entity.names.iter();
        let asked_for = entity.size > NUMBER && !names.all(|name| NAMES.contains(&name.base()));
        let meet = entity.end() == target && asked_for && !entity.runs;
        meet.then_some(Meaning::Border(before, behind))
    }

    fn by_address(&self, target: u64) -> Meaning {
        if let Some(id) = self.patched.containing(target) {
            return Meaning::Entity(id, target - self.patched.entities[id].address);
        }
        if self.is_code(target) {
            return Meaning::Code;
        }
        match self.patched.at.range(..=target).next_back() {
            Some((&at, _)) if at == target => Meaning::Name(at, 0),
            _ => Meaning::Unknown,
        }
    }

    /// The meaning of `target` in a section that starts at `start`.
    fn in_section(&self, target: u64, start: u64) -> Meaning {
        let before = self.patched.at.range(start..=target).next_back();
        match (self.by_address(target), before) {
            (Meaning::Unknown, Some((&at, _))) => match self.patched.starting_at(at) {
                Some(id) => Meaning::Behind(id, target - at),
                None => Meaning::Name(at, target - at),
            },
            (meaning, _) => meaning,
        }
    }

    fn is_code(&self, address: u64) -> bool {
        self.patched.class(address).is_some_and(Class::is_code)
    }

    /// Handles a `field` that leads to `patched` in the patched hypervisor, and to
    /// `running` in the running one.
    pub(super) fn lead(
        &mut self,
        origin: &Origin,
        field: Option<&Field>,
        (patched, running): (u64, u64),
    ) {
        match self.meaning(field, patched) {
            Meaning::Entity(id, offset) => {
                self.lead_to_entity(origin, (id, offset), running.wrapping_sub(offset));
            }
            Meaning::Code => self.lead_to_code(origin, patched, running),
            Meaning::Name(address, offset) => {
                let names = self.patched.at.get(&address).into_iter().flatten();
                let there = running.wrapping_sub(offset);
                let mut places = names
                    .filter_map(|name| self.running.image.names.get(name))
                    .peekable();
                // `xen.efi` has no symbol for where its image begins, which is no memory.
                let number = places.peek().is_none()
                    && self.patched.class(address).is_none()
                    && patched == running;
                if !number && !places.any(|&place| place == there) {
                    self.leads_elsewhere(origin, patched, running);
                }
            }
            Meaning::Border(before, behind) => self.borders.push(Border {
                origin: origin.clone(),
                before,
                behind,
                running,
            }),
            Meaning::Behind(id, offset) => self.lead_behind(origin, (id, offset), running),
            Meaning::Unknown => {
                let message = format!(
                    "it leads to {}: what is there has no name and cannot be compared",
                    self.patched.place(patched)
                );
                self.leads_astray(origin, Kind::Reference, &message);
            }
            Meaning::Constant(extent) => self.constant(origin, (patched, running), extent),
        }
    }

    /// Everything between an object and the next name is compared.
    fn lead_behind(&mut self, origin: &Origin, (id, offset): (EntityId, u64), running: u64) {
        let entity = &self.patched.entities[id];
        let start = running.wrapping_sub(offset);
        self.lead_to_entity(origin, (id, 0), start);
        let (patched, running) = (entity.end(), start.wrapping_add(entity.size));
        if !self.compared.insert((patched, running)) {
            return;
        }
        let next = self.patched.at.range(patched + 1..).next();
        let size = next.map_or(1, |(&next, _)| next - patched);
        if let Err(message) = self.same_contents(origin, (patched, running), size) {
            let message = format!("what lies behind {} differs: {message}", entity.name());
            self.leads_astray(origin, Kind::Constant, &message);
        }
    }

    fn leads_elsewhere(&mut self, origin: &Origin, patched: u64, running: u64) {
        let message = format!(
            "it leads to {} and not to {}",
            self.running.image.place(running),
            self.patched.place(patched)
        );
        self.leads_astray(origin, Kind::Reference, &message);
    }

    fn lead_to_entity(&mut self, origin: &Origin, (id, offset): (EntityId, u64), start: u64) {
        let entity = &self.patched.entities[id];
        let running = start.wrapping_add(offset);
        if self.declared.contains(id) {
            let &mut known = self.found.entry(id).or_insert(start);
            if known != start {
                self.leads_elsewhere(origin, entity.address.wrapping_add(offset), running);
            }
            return;
        }
        let class = self.running.image.class(start);
        let freed = class.is_some_and(Class::is_init) || self.running.is_trap(running);
        if entity.class.is_init() && !origin.init && freed {
            // Freed memory in both.
            return;
        }
        let booted = origin.init && class.is_some_and(Class::is_init);
        if booted && !entity.class.is_init() {
            return self.lead_to_booted(origin, id, (start, offset));
        }
        if freed && !entity.class.is_init() {
            let message = format!(
                "it leads to {}, which {}, and not to {}",
                self.running.image.place(running),
                if self.running.is_trap(running) {
                    "is a trap"
                } else {
                    "is freed after boot"
                },
                entity.name()
            );
            return self.leads_astray(origin, Kind::Freed, &message);
        }
        let start = if entity.runs && offset == 0 {
            self.running.live(start)
        } else {
            start
        };
        match class {
            Some(class) if class.is_code() == entity.class.is_code() => self.pair(id, start),
            _ => self.leads_elsewhere(origin, entity.address.wrapping_add(offset), running),
        }
    }

    /// Boot-only code of the running hypervisor used boot-only code or data, which
    /// the patched one keeps. That code has run, with no lasting effect if the target
    /// has no state: it must have been the same, or have had the same name.
    fn lead_to_booted(&mut self, origin: &Origin, id: EntityId, (start, offset): (u64, u64)) {
        let entity = &self.patched.entities[id];
        if entity.class.has_state() {
            let message = format!(
                "it was boot-only data, and {} used it ({}): what it was set to is lost",
                origin.name,
                self.place(origin.place)
            );
            return self.differ(Kind::State, &entity.name(), message);
        }
        if !self.compared.insert((entity.address, start)) {
            return;
        }
        let past = Origin {
            init: true,
            ..self.origin(id, start)
        };
        let same = match entity.runs {
            true => self.same_function(id, start),
            false => self.same_contents(&past, (entity.address, start), entity.size),
        };
        if same.is_ok() {
            return;
        }
        let running = &self.running.image;
        if running.starting_at(start).is_some() && self.with_its_name(id, true) == Some(start) {
            // The new one is used from now on; the old one is gone.
            self.notes.insert(format!(
                "{} was used only while booting, as it was before the patch",
                entity.name()
            ));
            return;
        }
        let running = start.wrapping_add(offset);
        self.leads_elsewhere(origin, entity.address.wrapping_add(offset), running);
    }

    fn lead_to_code(&mut self, origin: &Origin, patched: u64, running: u64) {
        let running = self.running.live(running);
        let gone = |class: Option<Class>| class.is_some_and(Class::is_init);
        let there = self.running.image.class(running);
        if gone(there) {
            // Unnamed boot code is not always 64-bit code, and cannot be followed.
            if !gone(self.patched.class(patched)) {
                let message = format!(
                    "it leads to {}, which is freed after boot",
                    self.running.image.place(running)
                );
                self.leads_astray(origin, Kind::Freed, &message);
            }
            return;
        }
        match there {
            Some(class) if class.is_code() => {
                self.queue
                    .push_back(Pair::Code(patched, running, origin.clone()));
            }
            _ => self.leads_elsewhere(origin, patched, running),
        }
    }
}
