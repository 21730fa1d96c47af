// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is only known once everything was compared.

use super::Walk;
use crate::image::{Class, EntityId};
use crate::verdict::{Kind, Verdict};
use std::collections::HashSet;

impl Walk<'_> {
    pub(super) fn finish(mut self) -> Verdict {
        self.check_borders();
        self.check_states();
        self.check_replaced();
        self.check_arguments();
        self.check_entries();
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
        for (stage, hook) in &self.running.hooks {
            let hook = self.running.image.place(*hook);
            verdict.notes.push(format!(
                "the {stage} hook {hook} is no part of what was compared"
            ));
        }
        verdict.differences = self.differences.into_iter().collect();
        verdict
    }

    /// Where two objects meet, an address is right if it is right for both.
    fn check_borders(&mut self) {
        for border in std::mem::take(&mut self.borders) {
            let size = self.patched.entities[border.before].size;
            let stands = |id: EntityId, at: u64| {
                let mates = self.mates.get(&id).map_or(&[][..], Vec::as_slice);
                mates.contains(&at)
            };
            let end = stands(border.before, border.running.wrapping_sub(size));
            let start = stands(border.behind, border.running);
            let mates = self
                .mates
                .get(&border.before)
                .map_or(&[][..], Vec::as_slice);
            let payload = |&at: &u64| self.running.image.class(at).is_some_and(Class::is_payload);
            // The hypervisor's own code knows nothing of what a payload brings.
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

    /// A variable of the payload must not stand for one that the running
    /// hypervisor has, and one of the running hypervisor only for its namesake.
    fn check_states(&mut self) {
        let mut problems = Vec::new();
        for (&id, mates) in &self.mates {
            let entity = &self.patched.entities[id];
            let Some(&at) = mates.first().filter(|_| entity.class.is_writable()) else {
                continue;
            };
            let payload = self.running.image.class(at) == Some(Class::PayloadData);
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

    /// The running hypervisor's variables that could be this one: those of its
    /// name, in its file if there are any.
    fn namesakes(&self, id: EntityId) -> Vec<u64> {
        let entity = &self.patched.entities[id];
        let image = &self.running.image;
        let mut same_file = Vec::new();
        let mut elsewhere = Vec::new();
        for there in &image.entities {
            if !there.class.is_writable() || there.class.is_payload() {
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

    /// What replaces a function must be a function of the patched hypervisor,
    /// and the record of it must be true.
    fn check_replaced(&mut self) {
        let paired: HashSet<u64> = self.mates.values().flatten().copied().collect();
        let image = &self.running.image;
        let size = |at: u64| image.starting_at(at).map(|id| image.entities[id].size);
        for replaced in self.running.replaced.values() {
            let problem = if !paired.contains(&replaced.new) {
                "what replaces it is not in the patched hypervisor"
            } else if size(replaced.old) != Some(replaced.old_size)
                || size(replaced.new) != Some(replaced.new_size)
            {
                "its sizes are not those that the payload has for it"
            } else {
                continue;
            };
            self.differ(Kind::LeftOver, &replaced.name, problem);
        }
    }

    /// A function keeps the arguments with which those call it that hold its
    /// address from before.
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

    fn check_entries(&mut self) {
        let paired: HashSet<u64> = self.mates.values().flatten().copied().collect();
        for &(table, place, at) in &self.running.entries {
            let image = &self.running.image;
            let function = image.containing(place).map(|id| image.entities[id].address);
            // What differs in a function that was compared is said of that.
            if !self.entries.contains(&at) && !function.is_some_and(|f| paired.contains(&f)) {
                let about = image.place(place);
                self.differ(
                    Kind::LeftOver,
                    &about,
                    format!(
                        "the payload has a {} for it, but the patched hypervisor has no such code",
                        table.name()
                    ),
                );
            }
        }
    }
}
