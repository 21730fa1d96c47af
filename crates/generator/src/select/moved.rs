// SPDX-License-Identifier: MIT OR Apache-2.0
//! Symbols that the patch moves: to another object, or to an incompatible place.

use super::{At, Origin, Selector};
use crate::code::Code;
use crate::unit::Units;
use crate::uses::{Use, uses};
use std::collections::HashMap;
use std::ops::Range;
use xsplice_objdiff::object::{Class, Object, SectionIx, Symbol, SymbolIx};
use xsplice_objdiff::placement::{Fate, describe, fate};

/// The old places of moved symbols.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Symbols that one object loses and another gains, and that are the same: of the
    /// patched object, and of the original.
    pub(super) moved: HashMap<At, At>,
    /// Symbols that are new although the hypervisor has one of that name: of the
    /// patched object, and of the original.
    pub(super) renewed: HashMap<At, At>,
}

impl Moves {
    pub(super) fn new(units: &Units) -> Self {
        let mut moves = Self::default();
        let mut lost: HashMap<&str, At> = HashMap::new();
        for (unit, u) in units.iter_enumerated() {
            for index in u.patched.symbols.indices() {
                if let Some(original) = u.comparison.correlation.renewed(index) {
                    moves.renewed.insert((unit, index), (unit, original));
                }
            }
            for change in u.comparison.changes.iter().filter(|c| c.patched.is_none()) {
                if let Some(index) = change.original.filter(|&i| u.original.symbols[i].global) {
                    lost.insert(&change.name, (unit, index));
                }
            }
        }
        for (unit, u) in units.iter_enumerated() {
            for change in u.comparison.changes.iter().filter(|c| c.original.is_none()) {
                let Some(index) = change.patched.filter(|&i| u.patched.symbols[i].global) else {
                    continue;
                };
                let new = (unit, index);
                if let Some(&old) = lost.get(change.name.as_str())
                    && !moves.renewed.contains_key(&new)
                {
                    let same = fate_of(units, old, new) != Fate::New;
                    let which = if same {
                        &mut moves.moved
                    } else {
                        &mut moves.renewed
                    };
                    which.insert(new, old);
                }
            }
        }
        moves
    }
}

fn fate_of(units: &Units, (origin, original): At, (unit, index): At) -> Fate {
    let section = |object: &Object, index: SymbolIx| -> SectionIx { object.symbols[index].section };
    let (from, to) = (&units[origin].original, &units[unit].patched);
    if from.symbols[original].function != to.symbols[index].function {
        return Fate::New;
    }
    fate(
        &from.sections[section(from, original)],
        &to.sections[section(to, index)],
    )
}

impl Selector<'_> {
    /// A variable or constant that another object now defines stays in place if
    /// unchanged; otherwise the rules for changed ones apply.
    pub(super) fn compare_moved_data(&mut self) {
        let units = self.units;
        let moved = self.moves.moved.iter().chain(&self.privates.same);
        let mut moved: Vec<(At, At)> = moved.map(|(&new, &old)| (new, old)).collect();
        moved.sort_unstable();
        for ((unit, index), (origin, _)) in moved {
            if units[unit].patched.symbols[index].function {
                continue;
            }
            // Both objects share this one symbol.
            let comparison =
                xsplice_objdiff::compare(&units[origin].original, &units[unit].patched);
            let change = comparison
                .changes
                .into_iter()
                .find(|c| c.patched == Some(index));
            if let Some(change) = change {
                self.judge(origin, unit, &change);
            }
        }
    }

    /// Refuses symbols that the payload would carry for only some of their users.
    pub(super) fn refuse_divided(&mut self) {
        let mut renewed: Vec<(At, At)> = self.moves.renewed.iter().map(|(&n, &o)| (n, o)).collect();
        renewed.sort_unstable();
        for ((unit, index), (origin, original)) in renewed {
            let old = &self.units[origin].original.symbols[original];
            if !old.global {
                continue;
            }
            let Some(address) = self.image.address_of(&old.name) else {
                continue;
            };
            let range = address..address + old.size.max(1);
            let users = self.users_left(&range);
            if users.is_empty() {
                continue;
            }
            let why = self.where_it_was((unit, index), (origin, original));
            let message = format!(
                "{} {why}: it is new, but {} in the hypervisor, which the patch does not change, {} \
                 the old one; give the new one a name of its own",
                old.name,
                users.join(", "),
                if users.len() == 1 { "uses" } else { "use" }
            );
            self.refuse(Code::NameTaken, unit, message);
        }
    }

    /// The users of a place in the hypervisor after boot that are not replaced.
    fn users_left(&self, range: &Range<u64>) -> Vec<String> {
        let replaced = |place: u64| {
            let mut funcs = self.selection.draft.funcs.iter();
            funcs.any(|func| (func.old_address..func.old_address + func.old_size).contains(&place))
        };
        let left = uses(self.arch, self.image, range)
            .into_iter()
            .filter(|user| {
                let own = range.contains(&user.place);
                !own && !self.image.is_init(user.place) && !replaced(user.place)
            });
        let mut names: Vec<String> = left.map(|user| user.user).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Why a new symbol cannot start from the patched source's value: the old one of
    /// that name may have a different value by now.
    pub(super) fn lost_value(&self, new: At) -> Option<String> {
        let &(origin, original) = self.moves.renewed.get(&new)?;
        let writable = |symbol: &Symbol, object: &Object| {
            let class = object.sections[symbol.section].class;
            matches!(class, Class::Data | Class::Bss | Class::PerCpu)
        };
        let (before, after) = (&self.units[origin].original, &self.units[new.0].patched);
        let (old, symbol) = (&before.symbols[original], &after.symbols[new.1]);
        let why = self.where_it_was(new, (origin, original));
        let name = &symbol.name;
        let file = &self.units[new.0].file.source;
        if !writable(symbol, after) || self.rules.allow.contains_of(file, name) {
            return None;
        }
        if writable(old, before) {
            return Some(format!(
                "{name} {why}: its value in the running hypervisor would be lost; give the new one \
                 its own name and copy the value in a hook, or use `--allow {name}` if it may \
                 start from its initial value"
            ));
        }
        if before.sections[old.section].class != Class::Init {
            return None;
        }
        let set = match self.origin(origin, original) {
            Ok(Origin::Hypervisor(address)) => {
                let range = address..address + old.size.max(1);
                let all = uses(self.arch, self.image, &range);
                all.into_iter().find(|user: &Use| !user.only_reads)
            }
            _ => None,
        }?;
        Some(format!(
            "{name} {why}: {} may have set it while booting, and what it was is freed; set it in a \
             hook and use `--allow {name}`, or use only that if it may start from its initial value",
            set.user
        ))
    }

    fn where_it_was(&self, (unit, index): At, (origin, original): At) -> String {
        let section = |object: &Object, index: SymbolIx| object.symbols[index].section;
        let (from, to) = (&self.units[origin].original, &self.units[unit].patched);
        format!(
            "was in {} and is in {} now",
            describe(&from.sections[section(from, original)]),
            describe(&to.sections[section(to, index)])
        )
    }

    /// Whether the original's address in the hypervisor is sufficiently aligned for
    /// the patched source.
    pub(super) fn lies_well(&self, (origin, original): At, needs: u64) -> bool {
        match self.origin(origin, original) {
            Ok(Origin::Hypervisor(address)) => address.is_multiple_of(needs.max(1)),
            _ => false,
        }
    }
}
