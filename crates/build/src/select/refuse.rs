// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changes that no payload can make, refused by name with the ways out.

use super::piece::HOOKS;
use super::{LeftOut, Selector};
use crate::unit::Unit;
use xsplice_diff::compare::{Change, Kind};
use xsplice_diff::object::{Class, Object};

impl Selector<'_> {
    pub(super) fn refuse_unpatchable(&mut self) {
        for (unit, u) in self.units.iter().enumerate() {
            for change in &u.comparison.changes {
                let Some(message) = unpatchable(u, change) else {
                    continue;
                };
                // What is nowhere in memory yet has no value to be lost.
                if change
                    .original
                    .is_some_and(|index| self.homes.is_nowhere(unit, index))
                {
                    continue;
                }
                let may_leave_out = matches!(change.kind, Kind::Init | Kind::Data | Kind::Unsized);
                let left_out = self.rules.leave_out.contains(&change.name)
                    || (self.rules.leave_out_init && change.kind == Kind::Init);
                if may_leave_out && left_out {
                    self.selection.left_out.push(LeftOut {
                        name: change.name.clone(),
                        file: u.file.source.clone(),
                        why: change.why.clone(),
                    });
                } else {
                    self.refuse(unit, message);
                }
            }
        }
    }

    /// What the hypervisor finds by walking a section, such as its schedulers,
    /// cannot be added to.
    pub(super) fn refuse_unreached_table_entries(&mut self) {
        for (unit, u) in self.units.iter().enumerate() {
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
                    && !is_usual_section(&section.name, &symbol.name)
                    && !section.name.starts_with(HOOKS);
                if walked && !reached {
                    let message = format!(
                        "{} is a new entry of the section {}, which the hypervisor walked while \
                         booting: a payload cannot add to it",
                        symbol.name, section.name
                    );
                    self.refuse(unit, message);
                }
            }
        }
    }
}

/// Why a change cannot be in a payload, and the ways out; `None` if it can.
fn unpatchable(u: &Unit, change: &Change) -> Option<String> {
    let name = &change.name;
    let size = |object: &Object, index: Option<usize>| index.map_or(0, |i| object.symbols[i].size);
    Some(match change.kind {
        Kind::Init => format!(
            "{name} is only used while booting and freed afterwards, and it changed ({}): a \
             payload comes too late for it; `--leave-out {name}` builds the payload without \
             this part if the running hypervisor does not need it, a hook can do what it does",
            change.why
        ),
        Kind::Data => format!(
            "the initial value of the variable {name} changed ({}): the running hypervisor \
             already uses the old one; change it in a hook (--hooks) and say `--leave-out {name}`",
            change.why
        ),
        Kind::Unsized => format!(
            "hand-written assembly at {name} changed ({}): nothing tells where its \
             functions end, so it cannot be patched; leave this part out of the patch if the \
             running hypervisor does not need it",
            change.why
        ),
        Kind::Resized => format!(
            "the variable {name} goes from {} to {} bytes: other code uses the old layout; keep \
             the layout and put what is new into a new variable",
            size(&u.original, change.original),
            size(&u.patched, change.patched)
        ),
        Kind::Constant if is_global(u, change) => format!(
            "the constant {name} changed ({}), and code in other files uses it: it cannot be \
             replaced in place",
            change.why
        ),
        _ => return None,
    })
}

fn is_global(unit: &Unit, change: &Change) -> bool {
    change
        .original
        .is_some_and(|i| unit.original.symbols[i].global)
}

/// Whether variables are in `section` because of what they are, not in order
/// to be found there: the compiler's sections, and Xen's for variables that
/// are rarely or never written after boot.
fn is_usual_section(section: &str, symbol: &str) -> bool {
    const USUAL: [&str; 8] = [
        ".data",
        ".rodata",
        ".data.rel.ro",
        ".data.rel.ro.local",
        ".data.rel",
        ".data.rel.local",
        ".data.read_mostly",
        ".data.ro_after_init",
    ];
    USUAL.contains(&section)
        || section.starts_with(".rodata.")
        || section.ends_with(&format!(".{symbol}"))
}
