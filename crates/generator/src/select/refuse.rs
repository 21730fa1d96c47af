// SPDX-License-Identifier: MIT OR Apache-2.0
//! Refuses changes that no payload can make, by name and with workarounds.

use super::{Refusal, Selector};
use crate::code::Code;
use crate::unit::UnitId;
use xsplice_abi::payload::hook;
use xsplice_abi::record::LeftOut;
use xsplice_objdiff::compare::{Change, Kind};
use xsplice_objdiff::object::{Class, Object, Section, SymbolIx};
use xsplice_objdiff::placement;

impl Selector<'_> {
    pub(super) fn refuse_unpatchable(&mut self) {
        for (unit, u) in self.units.iter_enumerated() {
            for change in &u.comparison.changes {
                self.judge(unit, unit, change);
            }
        }
    }

    /// Refuses a change from the original of the unit `origin` to the patched
    /// object of `unit` if no payload can make it, unless it is left out.
    pub(super) fn judge(&mut self, origin: UnitId, unit: UnitId, change: &Change) {
        if self.takes_in_place(origin, unit, change) {
            return;
        }
        let Some((code, message)) = self.unpatchable(origin, unit, change) else {
            return;
        };
        // A symbol that is not in memory yet has no value to lose.
        let nowhere = |index| self.homes.is_nowhere(origin, index);
        if change.original.is_some_and(nowhere) {
            return;
        }
        if self.is_in_memory(origin, unit, change) {
            self.selection.restored.insert(change.name.to_string());
            return;
        }
        let file = &self.units[unit].file.source;
        let left_out = may_leave_out(&self.units[origin].original, change)
            && (self.rules.leave_out.contains_of(file, &change.name)
                || (self.rules.leave_out_init && change.kind == Kind::Init));
        if left_out {
            self.selection.left_out.push(LeftOut {
                name: change.name.to_string(),
                file: file.clone(),
                why: change.why.clone(),
            });
        } else {
            self.refuse(code, unit, message);
        }
    }

    /// Whether `change` restores the state in memory: payloads below left out their
    /// changes to it. One with hooks may have made such a change in a hook.
    fn is_in_memory(&self, origin: UnitId, unit: UnitId, change: &Change) -> bool {
        let (Some(original), Some(patched)) = (change.original, change.patched) else {
            return false;
        };
        let u = &self.units[origin];
        let (mut build, mut index) = (u.stages.len(), original);
        while let Some(stage) = build.checked_sub(1).map(|at| &u.stages[at]) {
            let mut changes = stage.comparison.changes.iter();
            let below = changes.find(|below| below.patched == Some(index));
            let left_out = below.is_none_or(|below| may_leave_out(&stage.object, below));
            let before = stage.comparison.correlation.original(index);
            let level = &self.below.levels[stage.level];
            let (true, Some(before), false) = (left_out, before, level.has_hooks) else {
                break;
            };
            (build, index) = (build - 1, before);
        }
        if build == u.stages.len() {
            return false;
        }
        let memory = xsplice_objdiff::compare(u.build(build), &self.units[unit].patched);
        let mut changes = memory.changes.iter();
        memory.correlation.original(patched) == Some(index)
            && changes.all(|change| change.patched != Some(patched))
    }

    /// Refuses new entries in sections that the hypervisor walks at boot, such as its
    /// schedulers.
    pub(super) fn refuse_unreached_table_entries(&mut self) {
        for (unit, u) in self.units.iter_enumerated() {
            for change in u
                .comparison
                .changes
                .iter()
                .filter(|c| c.kind == Kind::Added)
            {
                let Some(symbol) = change.patched.map(|index| &u.patched.symbols[index]) else {
                    continue;
                };
                let section = &u.patched.sections[symbol.section];
                let reached = self
                    .placed
                    .contains_key(&(unit, symbol.section, symbol.offset));
                let walked = matches!(section.class, Class::Data | Class::ReadOnly)
                    && !is_usual_section(section)
                    && hook::stage(&section.name).is_none();
                let left_out = walked
                    && !reached
                    && self
                        .rules
                        .leave_out
                        .contains_of(&u.file.source, &symbol.name);
                if left_out {
                    self.selection.left_out.push(LeftOut {
                        name: symbol.name.to_string(),
                        file: u.file.source.clone(),
                        why: format!("it is a new entry of the section {}", section.name),
                    });
                } else if walked && !reached {
                    let message = format!(
                        "{} is a new entry of the section {}, which the hypervisor walked while \
                         booting: a payload cannot add to it; `--leave-out {}` builds the payload without \
                         it",
                        symbol.name, section.name, symbol.name
                    );
                    self.refuse(Code::TableEntry, unit, message);
                }
            }
        }
    }

    /// Why a change cannot be in a payload, with workarounds; `None` if it can.
    fn unpatchable(&self, origin: UnitId, unit: UnitId, change: &Change) -> Option<Refusal> {
        let (old, new) = (&self.units[origin].original, &self.units[unit].patched);
        let in_place = || self.in_place(origin, unit, change).is_ok();
        Some(match change.kind {
            Kind::Init => boot_only(change),
            Kind::Data => initial_value(change, in_place()),
            Kind::Unsized => assembly(change),
            Kind::Resized => resized(change, old, new),
            Kind::Constant if is_global(old, change) => shared_constant(change, in_place()),
            Kind::Misplaced if is_locked(old, change) => locked(change),
            Kind::Misplaced => misplaced(change),
            Kind::Alignment if self.is_aligned(origin, new, change) => return None,
            Kind::Alignment => alignment(change),
            // A private constant is carried.
            Kind::Constant
            | Kind::Function
            | Kind::Added
            | Kind::Removed
            | Kind::Elsewhere
            | Kind::Renamed => return None,
        })
    }

    /// Whether the running hypervisor's variable is sufficiently aligned for the new
    /// code.
    fn is_aligned(&self, origin: UnitId, new: &Object, change: &Change) -> bool {
        let needs = change
            .patched
            .map(|index| placement::alignment(new, index).most);
        let original = change.original.zip(needs);
        original.is_some_and(|(index, needs)| self.lies_well((origin, index), needs))
    }
}

fn boot_only(change: &Change) -> Refusal {
    let (name, why) = (&change.name, &change.why);
    let message = format!(
        "{name} is only used while booting and freed afterwards, and it changed ({why}): \
         live patching cannot re-run boot code; `--leave-out {name}` builds the payload \
         without this part if the running hypervisor does not need it, or a hook can do its \
         work"
    );
    (Code::BootOnly, message)
}

/// A hook can write new contents `in_place`, or not.
fn initial_value(change: &Change, in_place: bool) -> Refusal {
    let (name, why) = (&change.name, &change.why);
    let way = match in_place {
        true => format!("{} while it has the old one, or ", written_by_hook(change)),
        false => String::new(),
    };
    let message = format!(
        "the initial value of the variable {name} changed ({why}): the running hypervisor \
         already uses the old one; {way}change it in a hook (--hooks) and use \
         `--leave-out {name}`"
    );
    (Code::InitialValue, message)
}

fn assembly(change: &Change) -> Refusal {
    let (name, why) = (&change.name, &change.why);
    let message = match (change.original, change.patched) {
        (None, None) => format!(
            "{name} changed ({why}): it is unclear what uses it, so it cannot be patched; \
             `--leave-out {name}` builds the payload without this part if the running hypervisor \
             does not need it"
        ),
        _ => format!(
            "hand-written assembly at {name} changed ({why}): it is unclear where its \
             functions end, so it cannot be patched; `--leave-out {name}` builds the payload \
             without this part if the running hypervisor does not need it"
        ),
    };
    (Code::Assembly, message)
}

fn resized(change: &Change, old: &Object, new: &Object) -> Refusal {
    let size =
        |object: &Object, index: Option<SymbolIx>| index.map_or(0, |i| object.symbols[i].size);
    let message = format!(
        "the variable {} goes from {} to {} bytes: other code uses the old layout; \
         keep the layout and put what is new into a new variable",
        change.name,
        size(old, change.original),
        size(new, change.patched)
    );
    (Code::Layout, message)
}

/// A hook can write new contents `in_place`, or not.
fn shared_constant(change: &Change, in_place: bool) -> Refusal {
    let (name, why) = (&change.name, &change.why);
    let way = match in_place {
        true => written_by_hook(change),
        false => "give the new one a name of its own".to_owned(),
    };
    let message = format!(
        "the constant {name} changed ({why}), and code in other files uses it: a copy for the \
         functions that change is not enough; {way}"
    );
    (Code::SharedConstant, message)
}

fn written_by_hook(change: &Change) -> String {
    let name = &change.name;
    format!("`--patch-data {name}` has a hook write the new contents there")
}

fn locked(change: &Change) -> Refusal {
    let (name, why) = (&change.name, &change.why);
    let message = format!(
        "{name}: {why}: the hypervisor made it read-only after boot, and a payload cannot \
         write to it; put what must be written into a variable of its own"
    );
    (Code::Placement, message)
}

fn misplaced(change: &Change) -> Refusal {
    let (name, why) = (&change.name, &change.why);
    let message = format!(
        "{name}: {why}: the running hypervisor has it where it was, and a payload cannot move \
         it; `--leave-out {name}` builds the payload without this part if it may stay there"
    );
    (Code::Placement, message)
}

fn alignment(change: &Change) -> Refusal {
    let (name, why) = (&change.name, &change.why);
    let message = format!(
        "{name}: {why}, and its place in the running hypervisor is not a multiple of \
         that: it cannot be moved; `--leave-out {name}` builds the payload without \
         this part if it may stay there"
    );
    (Code::Placement, message)
}

/// Whether the caller may leave out a change that cannot be made.
fn may_leave_out(old: &Object, change: &Change) -> bool {
    match change.kind {
        Kind::Init | Kind::Data | Kind::Unsized | Kind::Alignment => true,
        Kind::Misplaced => !is_locked(old, change),
        // A payload carries these, or cannot do without.
        Kind::Function
        | Kind::Added
        | Kind::Removed
        | Kind::Constant
        | Kind::Resized
        | Kind::Elsewhere
        | Kind::Renamed => false,
    }
}

fn is_global(old: &Object, change: &Change) -> bool {
    change.original.is_some_and(|i| old.symbols[i].global)
}

/// Whether the changed symbol is write-protected in the running hypervisor.
fn is_locked(old: &Object, change: &Change) -> bool {
    change.original.is_some_and(|index| {
        let section = old.symbols[index].section;
        old.sections[section].home == placement::LOCKED
    })
}

/// Whether `section` holds ordinary variables, rather than entries to be found there.
fn is_usual_section(section: &Section) -> bool {
    const USUAL: [&str; 5] = [
        ".data",
        ".rodata",
        ".data.read_mostly",
        ".data.page_aligned",
        placement::LOCKED,
    ];
    USUAL.contains(&&*section.home)
}
