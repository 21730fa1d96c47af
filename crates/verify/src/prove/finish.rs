// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks that need all comparisons to be done.

use super::{Origin, Walk};
use crate::class::Class;
use crate::image::{EntityId, Image};
use crate::payload::Replaced;
use crate::tables;
use crate::verdict::{Kind, Verdict};
use std::collections::HashSet;
use xsplice_abi::symbol::RuntimeName;

/// Whether the function at `at` has `size` bytes, or, if it is too short for a jump, with
/// the padding after it.
fn is_size(image: &Image, at: u64, size: u64) -> bool {
    let entity = image.starting_at(at).map(|id| &image.entities[id]);
    entity.is_some_and(|e| {
        let padded = e.size < size
            && size <= image.arch.longest_jump()
            && image.is_padding(e.end()..at + size);
        e.size == size || padded
    })
}

impl Walk<'_> {
    pub(super) fn finish(mut self) -> Verdict {
        self.check_borders();
        self.check_states();
        self.check_replaced();
        self.check_arguments();
        self.check_entries();
        self.check_reached();
        self.check_kept_addresses();
        self.check_new_per_cpu();
        let mut verdict = Verdict::default();
        for (&id, mates) in &self.mates {
            if !self.patched.entities[id].runs {
                verdict.objects += 1;
                continue;
            }
            verdict.functions += 1;
            let payload = |&at: &u64| self.running.image.class(at) == Some(Class::PayloadText);
            verdict.from_payload += usize::from(mates.iter().any(payload));
        }
        verdict.notes = self.notes.into_iter().collect();
        verdict.differences = self.differences.into_iter().collect();
        verdict
    }

    /// At the border of two objects, an address is right if it is right for both.
    fn check_borders(&mut self) {
        for border in std::mem::take(&mut self.borders) {
            let size = self.patched.entities[border.before].size;
            let stands = |id: EntityId, at: u64| {
                let mates = self.mates.get(&id).map_or(&[][..], Vec::as_slice);
                mates.contains(&at)
            };
            let end = stands(border.before, border.running.wrapping_sub(size));
            let start = stands(border.behind, border.running);
            // A local symbol of another file cannot be meant.
            if start && self.is_foreign(border.before, &border.origin)
                || end && self.is_foreign(border.behind, &border.origin)
            {
                continue;
            }
            let mates = self
                .mates
                .get(&border.before)
                .map_or(&[][..], Vec::as_slice);
            let payload = |&at: &u64| self.running.image.class(at).is_some_and(Class::is_payload);
            // The hypervisor's own code cannot refer to a payload.
            let unknown = !border.origin.payload && mates.iter().all(payload);
            if start && (end || unknown) {
                continue;
            }
            let name = |id: EntityId| self.patched.entities[id].name();
            let (before, behind) = (name(border.before), name(border.behind));
            let place = self.running.image.place(border.running);
            let message = match (end, start) {
                (false, false) => {
                    format!("it leads to {place}, neither to the end of {before} nor to {behind}")
                }
                _ => format!(
                    "it leads to {place}; whether the end of {before} or {behind} is meant cannot \
                     be told, and these lie elsewhere"
                ),
            };
            self.leads_astray(&border.origin, Kind::Reference, &message);
        }
    }

    /// Whether the entity is local to a source file other than the one of `origin`.
    fn is_foreign(&self, id: EntityId, origin: &Origin) -> bool {
        let file = match RuntimeName::parse(&origin.name).file {
            Some(file) => Some(file),
            None => self.files.get(&*origin.name).map(String::as_str),
        };
        let Some(file) = file else { return false };
        let names = self.patched.entities[id].names.iter();
        let mut files = names.map(|name| name.file.as_deref());
        files.all(|known| known.is_some_and(|known| known != file))
    }

    /// A variable of the payload must not be the counterpart of one that the running
    /// hypervisor has, and one of the running hypervisor only of its namesake.
    fn check_states(&mut self) {
        let mut problems = Vec::new();
        for (&id, mates) in &self.mates {
            let entity = &self.patched.entities[id];
            let Some(&at) = mates.first().filter(|_| entity.class.has_state()) else {
                continue;
            };
            let payload = self.running.is_new_variable(at);
            let namesakes = self.namesakes(id);
            let problem = if payload {
                let idle = namesakes
                    .iter()
                    .find(|there| !self.taken.contains_key(there));
                idle.map(|&idle| {
                    format!(
                        "it starts from its initial value although {} has a state",
                        self.running.image.place(idle)
                    )
                })
            } else if !namesakes.contains(&at) {
                let there = self.running.image.place(at);
                Some(format!("{there} stands for it"))
            } else {
                None
            };
            problems.extend(problem.map(|problem| (entity.name(), problem)));
        }
        for (name, problem) in problems {
            self.differ(Kind::State, &name, problem);
        }
    }

    /// The running hypervisor's variables that could be this one: those with its
    /// name, preferably in its file.
    fn namesakes(&self, id: EntityId) -> Vec<u64> {
        let entity = &self.patched.entities[id];
        let image = &self.running.image;
        let mut same_file = Vec::new();
        let mut elsewhere = Vec::new();
        for there in &image.entities {
            if !there.class.has_state() || there.class.is_payload() {
                continue;
            }
            for ours in &entity.names {
                for theirs in there
                    .names
                    .iter()
                    .filter(|theirs| theirs.base() == ours.base())
                {
                    if theirs.file == ours.file {
                        same_file.push(there.address);
                    } else if !self.taken.contains_key(&there.address)
                        || self.taken.get(&there.address) == Some(&id)
                    {
                        elsewhere.push(there.address);
                    }
                }
            }
        }
        if same_file.is_empty() {
            elsewhere
        } else {
            same_file
        }
    }

    /// Checks that each replacement is a function of the patched hypervisor, and that
    /// its record is correct.
    fn check_replaced(&mut self) {
        let paired: HashSet<u64> = self.mates.values().flatten().copied().collect();
        let running = self.running;
        let sized = |replaced: &Replaced| {
            let (old, new) = (replaced.old, replaced.new);
            is_size(&running.image, old, replaced.old_size)
                && is_size(&running.image, new, replaced.new_size)
        };
        for replaced in running.replaced.values() {
            if !paired.contains(&replaced.new) {
                let problem = "what replaces it is not in the patched hypervisor";
                self.differ(Kind::LeftOver, &replaced.name, problem);
            }
        }
        for replaced in running.replaced.values().chain(&running.overridden) {
            if !sized(replaced) {
                let problem = "its sizes are not those that the payload has for it";
                self.differ(Kind::LeftOver, &replaced.name, problem);
            }
        }
    }

    /// Checks that a function keeps its arguments if stored addresses of it exist.
    fn check_arguments(&mut self) {
        let mut problems = Vec::new();
        for (&id, mates) in &self.mates {
            for replaced in self.running.replaced.values() {
                let ours = &self.patched.entities[id].names;
                let theirs = self.running.image.at.get(&replaced.old);
                let theirs = theirs.map_or(&[][..], Vec::as_slice);
                let same = theirs.iter().any(|name| ours.contains(name));
                let clone = ours.iter().all(|name| name.symbol.contains('.'));
                if mates.contains(&replaced.new)
                    && !same
                    && clone
                    && self.running.takes_address(replaced.old)
                {
                    problems.push((
                        replaced.name.clone(),
                        format!(
                            "{}, which can have other arguments, replaces it, but its address \
                             is kept in memory",
                            self.patched.entities[id].name()
                        ),
                    ));
                }
            }
        }
        for (name, problem) in problems {
            self.differ(Kind::Code, &name, problem);
        }
    }

    /// Checks that everything new in the patched hypervisor was compared.
    fn check_reached(&mut self) {
        let mut unreached = Vec::new();
        for (id, entity) in self.patched.entities.iter().enumerate() {
            let list = entity.class == Class::Hooks || self.declared.contains(id);
            if !entity.class.is_init() && !list && !self.mates.contains_key(&id) {
                let stateless = entity.runs || entity.class == Class::ReadOnly;
                let range = entity.address..entity.end();
                if stateless && !self.objects.is_used(self.patched, &range) {
                    let note = format!("{} is new, and nothing uses it after boot", entity.name());
                    self.notes.insert(note);
                    continue;
                }
                unreached.push(entity.name());
            }
        }
        // Do not report the same name twice.
        unreached.retain(|name| !self.differences.iter().any(|d| d.name == *name));
        for name in unreached {
            self.differ(
                Kind::Unreached,
                &name,
                "it is not in the running hypervisor, and nothing that was compared leads to it",
            );
        }
    }

    /// Checks that no function that the patched hypervisor lacks stays in use through
    /// a stored address.
    fn check_kept_addresses(&mut self) {
        let paired: HashSet<u64> = self.mates.values().flatten().copied().collect();
        let image = &self.running.image;
        let own = image
            .entities
            .iter()
            .filter(|e| e.runs && !e.class.is_payload());
        let gone = own.filter(|e| {
            !e.class.is_init()
                && !paired.contains(&e.address)
                && !self.running.replaced.contains_key(&e.address)
        });
        let kept: Vec<String> = gone
            .filter(|e| self.running.takes_address(e.address))
            .map(|e| e.name())
            .collect();
        for name in kept {
            self.differ(
                Kind::State,
                &name,
                "the patched hypervisor has it no longer, but its address can be kept in memory",
            );
        }
    }

    /// A new per-CPU variable that the topmost payload brings is one of the patched
    /// hypervisor.
    fn check_new_per_cpu(&mut self) {
        let unused: Vec<u64> = self
            .running
            .new_per_cpu
            .iter()
            .filter(|new| !new.lower)
            .map(|new| new.place.start)
            .filter(|at| !self.taken.contains_key(at))
            .collect();
        for at in unused {
            let name = self.running.image.place(at);
            let message = "the payload has a new per-CPU variable there, and the patched \
                           hypervisor has none";
            self.differ(Kind::LeftOver, &name, message);
        }
    }

    fn check_entries(&mut self) {
        let paired: HashSet<u64> = self.mates.values().flatten().copied().collect();
        for &(table, place, at) in &self.running.entries {
            let image = &self.running.image;
            let function = image.containing(place).map(|id| image.entities[id].address);
            // Differences in a compared function are reported there.
            let compared = function.is_some_and(|f| paired.contains(&f));
            // Code that a later payload replaced or no longer needs is in memory but
            // unused.
            let superseded = self.running.is_about_lower_payload(at, place);
            if !self.entries.contains(&at) && !compared && !superseded {
                let about = image.place(place);
                self.differ(
                    Kind::LeftOver,
                    &about,
                    format!(
                        "the payload has {} for it, but the patched hypervisor has no such code",
                        tables::one(table)
                    ),
                );
            }
        }
    }
}
