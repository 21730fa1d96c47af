// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether a function can take the place of another.

use super::{Counterparts, Refusal, clone, label};
use crate::code::Code;
use crate::unit::{Unit, Units};
use xsplice_abi::deny;
use xsplice_abi::payload::hook;
use xsplice_objdiff::object::{Object, Relocation, SectionIx, Symbol, SymbolIx};

/// Why the new function of `pair` cannot take the place of the old one, if so.
pub(super) fn refusal(units: &Units, pair: Counterparts) -> Option<Refusal> {
    let (before, after) = (&units[pair.old.0], &units[pair.new.0]);
    let replacement = Replacement {
        before,
        old: &before.original.symbols[pair.old.1],
        after,
        new: &after.patched.symbols[pair.new.1],
        pair,
    };
    let checks = [
        Replacement::is_denied,
        Replacement::is_hook_below,
        Replacement::leaves_itself,
        Replacement::shares_code,
        Replacement::takes_own_labels,
        Replacement::takes_other_arguments,
    ];
    checks.into_iter().find_map(|check| check(&replacement))
}

/// A function of the original, and the one that the patch makes of it.
struct Replacement<'a> {
    before: &'a Unit,
    old: &'a Symbol,
    after: &'a Unit,
    new: &'a Symbol,
    pair: Counterparts,
}

impl Replacement<'_> {
    fn is_denied(&self) -> Option<Refusal> {
        let old = self.old;
        let section = &self.before.original.sections[old.section];
        let machine = self.before.original.machine();
        let why =
            deny::section_reason(&section.name).or_else(|| deny::reason(machine, &old.name))?;
        let message = format!(
            "{} must not be patched: {why}; a fix there needs a reboot",
            old.name
        );
        Some((Code::DenyList, message))
    }

    /// Whether only hooks of payloads below refer to it.
    fn is_hook_below(&self) -> Option<Refusal> {
        let original = &self.before.original;
        let mut users = original.uses(self.pair.old.1).peekable();
        let is_hook = |section: SectionIx| hook::stage(&original.sections[section].name).is_some();
        let only_hooks = users.peek().is_some() && users.all(|(section, _)| is_hook(section));
        (!self.pair.moves() && only_hooks).then(|| {
            let message = format!(
                "{} is a hook of a payload below, which is called only while this payload is not \
                 applied: its change would have no effect; leave it as it is, and give this payload \
                 a hook of another name",
                self.old.name
            );
            (Code::Hooks, message)
        })
    }

    fn leaves_itself(&self) -> Option<Refusal> {
        let place = leaves_without_relocation(&self.after.patched, self.new)?;
        let message = format!(
            "{} jumps out of itself at +{place:#x} to other code of its section, which the \
             compiler or assembler assumed to stay where it is; it is unclear how much of it \
             belongs to the function",
            self.new.name
        );
        Some((Code::SharedCode, message))
    }

    /// Whether another function has the same code in the hypervisor, but not after the
    /// patch.
    fn shares_code(&self) -> Option<Refusal> {
        let old = self.old;
        let (before, after) = (&self.before.original.symbols, &self.before.patched.symbols);
        let differs = |other: SymbolIx| self.pair.moves() || !after[other].is_at(self.new);
        let matched = self.before.comparison.correlation.iter();
        let others = matched.filter(|&(other, pair)| {
            let same_code = before[pair.original].is_at(old) && old.size > 0;
            pair.original != self.pair.old.1 && same_code && differs(other)
        });
        let other = others.map(|(_, pair)| &before[pair.original].name).min()?;
        let message = format!(
            "{} and {other} share one piece of code in the hypervisor (identical code folding), \
             and the patch makes them differ: a trampoline there can lead to only one of \
             them; patch the functions that call {}",
            old.name, old.name
        );
        Some((Code::SharedCode, message))
    }

    fn takes_own_labels(&self) -> Option<Refusal> {
        label::takes_own_labels(&self.before.original, self.pair.old.1).then(|| {
            let message = format!(
                "{} takes the addresses of its own labels, and may have stored them: they lead \
                 into the old code; put them into a constant table",
                self.old.name
            );
            (Code::LabelAddress, message)
        })
    }

    fn takes_other_arguments(&self) -> Option<Refusal> {
        // A moved function is global, and has the arguments in the source.
        if self.pair.moves() {
            return None;
        }
        let why = clone::wrong_caller(self.after, self.pair.old.1, self.pair.new.1)?;
        let message = format!(
            "the compiler gives {} other arguments than {}, and {why}; declare it `__used`, so \
             that the compiler keeps one with the arguments that the source says",
            self.new.name, self.old.name
        );
        Some((Code::OtherArguments, message))
    }
}

/// Where the function jumps out of itself without a relocation.
fn leaves_without_relocation(object: &Object, function: &Symbol) -> Option<u64> {
    let code = object.bytes(function.span());
    let fields = object.relocations(function.span());
    let mut instructions = object.arch.decode(code, 0);
    let leaves = instructions.find(|instruction| {
        let place = |field: &Relocation| field.offset.wrapping_sub(function.offset);
        let relocated = fields.iter().any(|f| instruction.contains(place(f)));
        let target = instruction.branch_target().filter(|_| !relocated);
        target.is_some_and(|target| target >= function.extent())
    });
    leaves.map(|instruction| instruction.start)
}
