// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compares what is found by address rather than by reference: symbols without a
//! size, arrays assembled by the linker, lists of hooks.

use super::{Origin, Pair, Place, Walk};
use crate::class::Class;
use crate::generated;
use crate::image::{EntityId, Image, Name, addresses};
use crate::verdict::Kind;
use std::collections::BTreeSet;
use std::ops::Range;
use xsplice_abi::payload::hook;

impl Walk<'_> {
    /// Compares symbols without a size with their namesakes, byte by byte.
    pub(super) fn compare_stretches(&mut self) {
        let objects = self.objects;
        for (&start, &size) in &objects.stretches {
            let (Some(class), Some(names)) =
                (self.patched.class(start), self.patched.at.get(&start))
            else {
                continue;
            };
            let name = names.first().map_or_else(String::new, ToString::to_string);
            let size = self.without_fixups(start, size);
            let kind = match class {
                class if class.is_init() => Kind::BootOnly,
                Class::ReadOnly => Kind::Constant,
                class if class.is_code() => Kind::NotReplaced,
                _ => Kind::InitialValue,
            };
            let Some(at) = self.name_there(start) else {
                // New code was compared where it is used.
                if !class.is_code() || class.is_init() {
                    self.differ(kind, &name, "it is not in the running hypervisor");
                }
                continue;
            };
            let origin = self.nameless(&name, class);
            let result = match self.decodes(class) {
                true => self.same_code(&origin, (start, self.running.live(at)), size),
                false => self.same_contents(&origin, (start, at), size),
            };
            let result = result.and_then(|()| self.same_entries(&origin, start..start + size, at));
            if let Err(message) = result {
                self.differ(
                    kind,
                    &name,
                    format!("it has no size, and differs: {message}"),
                );
            }
        }
    }

    /// Whether the code at `patched` belongs to a symbol without a size that is compared
    /// as a whole with what contains `running`.
    pub(super) fn is_in_stretch(&self, patched: u64, running: u64) -> bool {
        let before = self.objects.stretches.range(..=patched).next_back();
        let Some((&start, &size)) = before.filter(|(start, size)| patched - *start < **size) else {
            return false;
        };
        let offset = patched - start;
        let there = self.name_there(start).map(|at| self.running.live(at));
        let class = self.patched.class(start);
        class.is_some_and(|class| self.decodes(class))
            && there.is_some_and(|there| there.wrapping_add(offset) == running)
            && offset < self.without_fixups(start, size)
    }

    fn decodes(&self, class: Class) -> bool {
        class.is_code() && (!class.is_init() || self.patched.arch.decodes_boot_code())
    }

    /// Where the running hypervisor itself has a symbol that is at `address`.
    fn name_there(&self, address: u64) -> Option<u64> {
        let names = self.patched.at.get(&address)?;
        let running = &self.running.image.names;
        names.iter().find_map(|name| running.get(name)).copied()
    }

    /// The size of a symbol without the fixups of other functions, which may follow: they
    /// are compared where an exception table entry leads to them, and those of replaced
    /// functions are elsewhere.
    fn without_fixups(&self, start: u64, size: u64) -> u64 {
        let code = self.patched.class(start).is_some_and(Class::is_code);
        let inside = start + 1..start + size;
        let fixups = self
            .tables
            .fixups()
            .filter(|at| code && inside.contains(at));
        fixups.min().map_or(size, |fixup| fixup - start)
    }

    fn same_code(&mut self, origin: &Origin, from: (u64, u64), size: u64) -> Result<(), String> {
        self.with_halves(|walk| {
            let mut offset = 0;
            while offset < size {
                let (patched, running) = (from.0 + offset, from.1 + offset);
                let origin = origin.at(Place::Instruction(patched, offset));
                let own = (from.0..from.0 + size, from.1);
                let passed = walk.instruction(&origin, (patched, running), Some(own))?;
                offset += passed.length;
            }
            Ok(())
        })
    }

    fn nameless(&self, name: &str, class: Class) -> Origin {
        Origin {
            name: name.into(),
            place: Place::Offset(0),
            init: class.is_init(),
            payload: false,
        }
    }

    /// Compares arrays assembled by the linker: schedulers, runtime parameters,
    /// initcalls. No payload changes them.
    pub(super) fn compare_arrays(&mut self) {
        for range in self.objects.arrays() {
            let Some(class) = self.patched.class(range.start).filter(|&class| {
                let ordered = [
                    Class::ReadOnly,
                    Class::Data,
                    Class::ReadMostly,
                    Class::InitData,
                ];
                ordered.contains(&class)
            }) else {
                continue;
            };
            let there = [range.start, range.end].map(|at| {
                let names = self.objects.markers.get(&at)?.iter();
                names
                    .filter_map(|name| self.running.image.names.get(name))
                    .next()
                    .copied()
            });
            let name = self.patched.place(range.start);
            let name = match self.objects.markers.get(&range.start) {
                Some(names) => names.first().map_or(name, ToString::to_string),
                None => name,
            };
            let kind = match class.is_init() {
                true => Kind::BootOnly,
                false => Kind::Table,
            };
            let [Some(start), Some(end)] = there else {
                self.differ(kind, &name, "the running hypervisor has no such array");
                continue;
            };
            if self.same_members(kind, range.clone(), start..end) {
                let origin = self.nameless(&name, class);
                if let Err(message) = self.same_array(&origin, range, start) {
                    self.differ(kind, &name, format!("the array differs: {message}"));
                }
            }
        }
    }

    /// Compares arrays of the same members, which lie equally far from the start of each.
    /// Among code the linker fills what is between them with instructions, and else with
    /// zeros.
    fn same_array(&mut self, origin: &Origin, range: Range<u64>, at: u64) -> Result<(), String> {
        let mut from = range.start;
        while from < range.end {
            let there = at + (from - range.start);
            let inside = self.patched.containing(from);
            let next = match inside {
                Some(id) => self.patched.entities[id].end(),
                None => {
                    let next = self.patched.entities.partition_point(|e| e.address < from);
                    let next = self.patched.entities.get(next);
                    next.map_or(range.end, |next| next.address)
                }
            };
            let size = next.min(range.end) - from;
            let padding = |image: &Image, at: u64| image.is_padding(at..at + size);
            if inside.is_some()
                || !padding(self.patched, from)
                || !padding(&self.running.image, there)
            {
                self.same_contents(origin, (from, there), size)?;
            }
            from += size;
        }
        Ok(())
    }

    /// Whether two arrays have the same members; reports those that only one has. The
    /// compiler renumbers static variables in every build.
    fn same_members(&mut self, kind: Kind, patched: Range<u64>, running: Range<u64>) -> bool {
        let ours = members(self.patched, &patched);
        let theirs = members(&self.running.image, &running);
        let is_in = |member: &Name, others: &[Name]| others.iter().any(|o| o.is_like(member));
        let mut same = patched.end - patched.start == running.end.wrapping_sub(running.start);
        for member in ours.iter().filter(|member| !is_in(member, &theirs)) {
            same = false;
            let message = "it is new in an array that no payload can extend";
            self.differ(kind, &member.to_string(), message);
        }
        for member in theirs.iter().filter(|member| !is_in(member, &ours)) {
            same = false;
            let message =
                "it is in an array of the running hypervisor and not in the patched one's";
            self.differ(kind, &member.to_string(), message);
        }
        let mut pairs = ours.iter().zip(&theirs);
        if let Some((ours, theirs)) = pairs.find(|(ours, theirs)| same && !ours.is_like(theirs)) {
            same = false;
            let message = format!(
                "it is where {theirs} is in an array of the running hypervisor, whose order counts"
            );
            self.differ(kind, &ours.to_string(), message);
        }
        same
    }

    /// Finds out where the hooks that the generator makes have their tables.
    pub(super) fn follow_generated(&mut self) {
        self.compare_hooks();
        while let Some(pair) = self.queue.pop_front() {
            if let Pair::Function(id, at) = pair
                && generated::owner(&self.patched.entities[id]).is_some()
            {
                self.function(id, at);
            }
        }
    }

    /// Checks that the hooks of the payloads are those of the patched source.
    pub(super) fn compare_hooks(&mut self) {
        let wanted = self.wanted_hooks();
        let symbol = |place: &str| generated::base(place).to_owned();
        let mut brought: Vec<(String, String, u64)> = Vec::new();
        for (stage, at) in &self.running.hooks {
            let name = symbol(&self.running.image.place(*at));
            brought.push((stage.clone(), name, *at));
        }
        let made = brought.iter().filter(|hook| generated::is_made(&hook.1));
        let made: BTreeSet<usize> = made.map(|hook| self.running.payload(hook.2)).collect();
        let made: Vec<usize> = made.into_iter().collect();
        for (stage, target) in wanted {
            let name = symbol(&self.patched.place(target));
            let id = self.patched.starting_at(target);
            let owner = id.and_then(|id| generated::owner(&self.patched.entities[id]));
            let found = brought.iter().position(|(other, hook, at)| {
                let theirs =
                    owner.is_none_or(|owner| made.get(owner) == Some(&self.running.payload(*at)));
                *other == stage && *hook == name && theirs
            });
            match (found, id) {
                (Some(found), Some(id)) => {
                    let (_, _, at) = brought.remove(found);
                    self.hook(id, at, &stage);
                }
                _ => self.differ(
                    Kind::Hook,
                    &name,
                    format!("the patched source has it as {stage} hook, the payload has not"),
                ),
            }
        }
        for (stage, name, at) in brought {
            if self.lower_hooks && self.running.is_in_lower_payload(at) {
                self.notes.insert(format!(
                    "{name} is a {stage} hook of a payload below, given beside its patch \
                     (--hooks): it was not compared"
                ));
                continue;
            }
            let generated = made.contains(&self.running.payload(at)) && generated::has(&name);
            let message = match generated && !self.declared.is_there() {
                true => "the generator made this hook: it is proved where the patched hypervisor \
                         is built with it, from the source and the patches"
                    .to_owned(),
                false => {
                    format!("the payload has it as {stage} hook, and the patched source has not")
                }
            };
            self.differ(Kind::Hook, &name, message);
        }
    }

    /// The hooks of the patched hypervisor: stage and function.
    fn wanted_hooks(&self) -> Vec<(String, u64)> {
        let mut wanted = Vec::new();
        for (stage, range) in self.patched.hooks() {
            let data = self.patched.bytes(range.start, range.end - range.start);
            let data = data.unwrap_or_default();
            let functions = addresses(&data, self.patched.width());
            wanted.extend(functions.map(|function| (stage.clone(), function)));
        }
        wanted
    }

    fn hook(&mut self, id: EntityId, at: u64, stage: &str) {
        let entity = &self.patched.entities[id];
        if generated::owner(entity).is_none() {
            let name = entity.name();
            self.notes.insert(format!(
                "{name} is a {stage} hook: what it does while it runs is not judged"
            ));
        }
        self.pair(id, at);
    }
}

/// The first name of each member of an array.
fn members(image: &Image, array: &Range<u64>) -> Vec<Name> {
    let first = image.entities.partition_point(|e| e.address < array.start);
    let inside = image.entities[first..].iter();
    let inside = inside.take_while(|e| e.address < array.end);
    inside.filter_map(|e| e.names.first().cloned()).collect()
}

impl Image {
    /// The lists of hooks: the stage, and the range of each.
    fn hooks(&self) -> Vec<(String, Range<u64>)> {
        let lists = self.hook_lists.iter();
        let stage = |name: &str| hook::stage(name).unwrap_or(name).to_owned();
        lists
            .map(|(name, range)| (stage(name), range.clone()))
            .collect()
    }
}
