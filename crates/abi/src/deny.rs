// SPDX-License-Identifier: MIT OR Apache-2.0
//! The deny-list: functions that a CPU may run while their bytes change, or where
//! payloads are not mapped.
//!
//! While one CPU writes, the others wait with interrupts off. Code that can still
//! run: the path of an NMI or machine check up to where it is held (with the stock
//! core, the whole machine-check handler), the code that waits, and the code that
//! writes. [`ROOTS`] names their entry points; their callees on every path follow
//! from the hypervisor's image, and are listed in `CALLED` for users without an
//! image. [`AREAS`] has the code that runs where payloads are not mapped.

use crate::machine::Machine;
use crate::symbol::RuntimeName;
use Why::{Event, Waits, Writes};

/// The hypervisors that have a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// All of them.
    Everywhere,
    /// Those with the stock live-patch core.
    OwnCore,
    /// Those of them from this minor version of Xen 4 on.
    OwnCoreSince(u32),
    /// Those with ours.
    OurCore,
    /// Those from this minor version of Xen 4 on.
    Since(u32),
    /// Only some, depending on configuration, version or compiler.
    Some,
}

/// An entry point of code that runs while code is being patched.
#[derive(Clone, Copy, Debug)]
pub struct Root {
    /// Its name, without suffixes from the compiler.
    pub name: &'static str,
    /// Why it must not be patched.
    pub why: Why,
    /// The hypervisors that have it.
    pub place: Where,
    /// Whether its callees run then too: not if all calls are before the first byte
    /// is written, or after the last.
    pub calls: bool,
}

/// Why a function must not be patched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// An NMI or machine check runs it.
    Event,
    /// CPUs wait in it.
    Waits,
    /// The CPU that writes runs it.
    Writes,
}

impl Why {
    /// The reason as text.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Event => {
                "NMIs or machine checks run it, and they reach a CPU even while its code is being \
                 patched"
            }
            Self::Waits => "the CPUs wait in it while the code is being patched",
            Self::Writes => "it runs while the code is being patched",
        }
    }
}

/// Why code that enters and leaves the hypervisor must not be patched.
pub const ENTRY: &str = "CPUs run it on their way into or out of the hypervisor, \
    where page-table isolation does not map payloads";
const COPIED: &str = "kexec copies it and runs the copy on page tables that do not map payloads";
const CORE: &str = "it is part of the live-patch core";

const fn root(name: &'static str, why: Why, place: Where) -> Root {
    let calls = true;
    Root {
        name,
        why,
        place,
        calls,
    }
}

/// A root that is active while bytes are written, but calls others only before
/// and after.
const fn alone(name: &'static str, why: Why, place: Where) -> Root {
    let calls = false;
    Root {
        name,
        why,
        place,
        calls,
    }
}

/// Entry points of code that runs while code is being patched. Some are reached by
/// indirect calls from others: `do_nmi` calls the callback that holds it,
/// `do_machine_check` a handler.
pub const ROOTS: &[Root] = &[
    root("do_nmi", Event, Where::Everywhere),
    root("entry_from_pv", Event, Where::Since(21)),
    root("entry_from_xen", Event, Where::Since(21)),
    root("mask_nmi_callback", Event, Where::OwnCore),
    root("xsplice_hold_nmi", Event, Where::OurCore),
    root("do_machine_check", Event, Where::Everywhere),
    root("xsplice_hold_machine_check", Event, Where::OurCore),
    root("unexpected_machine_check", Event, Where::Some),
    root("mcheck_cmn_handler", Event, Where::Some),
    // In loops, and if an error was found.
    root("mce_barrier_enter", Event, Where::Some),
    root("mce_barrier_exit", Event, Where::Some),
    root("mce_barrier_dec", Event, Where::Some),
    root("mce_panic_check", Event, Where::Some),
    root("mcheck_mca_clearbanks", Event, Where::Some),
    // Its calls while CPUs wait are before the first byte is written.
    alone("check_for_livepatch_work", Waits, Where::Everywhere),
    alone("do_livepatch_work", Waits, Where::OwnCoreSince(19)),
    alone("livepatch_spin", Waits, Where::Some),
    root("xsplice_relax", Waits, Where::OurCore),
    root("xsplice_mask", Waits, Where::OurCore),
    root("xsplice_synchronise", Waits, Where::OurCore),
    // They log before and after.
    alone("livepatch_do_action", Writes, Where::Some),
    alone("apply_payload", Writes, Where::OwnCore),
    alone("revert_payload", Writes, Where::OwnCore),
    root("arch_livepatch_quiesce", Writes, Where::OwnCore),
    root("arch_livepatch_apply", Writes, Where::OwnCore),
    root("arch_livepatch_revert", Writes, Where::OwnCore),
    root("arch_livepatch_revive", Writes, Where::OwnCore),
    root("arch_livepatch_post_action", Writes, Where::OwnCore),
    alone("arch_livepatch_mask", Writes, Where::OwnCore),
    alone("arch_livepatch_unmask", Writes, Where::OwnCore),
    root("xsplice_now", Writes, Where::OurCore),
    root("xsplice_window_begin", Writes, Where::OurCore),
    root("xsplice_window_end", Writes, Where::OurCore),
    root("xsplice_text_write", Writes, Where::OurCore),
    alone("xsplice_text_begin", Writes, Where::OurCore),
    root("xsplice_text_end", Writes, Where::OurCore),
    // Under a condition that holds for some of our actions.
    root("relax_virtual_region_perms", Writes, Where::Everywhere),
    root("tighten_virtual_region_perms", Writes, Where::Everywhere),
    root("flush_area_local", Writes, Where::Everywhere),
    // In loops that run at least once.
    root("modify_xen_mappings_lite", Writes, Where::Everywhere),
    // If there is anything to write.
    root("memcpy", Writes, Where::Everywhere),
];

/// The callees of the roots on every path.
const CALLED: &[(Why, &str)] = &[
    (Event, "__bitmap_weight"),
    (Event, "_spin_trylock"),
    (Event, "_spin_unlock"),
    (Event, "mcheck_mca_logout"),
    (Event, "raise_softirq"),
    (Writes, "get_s_time"),
    (Writes, "get_s_time_fixed"),
    // With Xen's own checks.
    (Event, "check_lock"),
    (Event, "intpose_lookup"),
    (Writes, "spin_debug_enable"),
    (Writes, "spin_debug_disable"),
    (Writes, "scale_delta"),
];

/// Why code that handles `SErrors` must not be patched.
const ERROR: &str = "SErrors run it, and they reach a CPU even while its code is being patched";

/// What runs on ARM, with the reason.
const ARM: [(&str, &str); 6] = [
    ("do_trap_hyp_serror", ERROR),
    ("__do_trap_serror", ERROR),
    ("aarch64_insn_gen_branch_imm", Why::Writes.text()),
    ("aarch64_insn_gen_nop", Why::Writes.text()),
    // Of `get_s_time`.
    ("muldiv64", Why::Writes.text()),
    ("ticks_to_ns", Why::Writes.text()),
];

/// The zero-terminated names with this reason, and their total length. In a
/// hypervisor, a list of strings would take several times as much space.
const fn names<const N: usize>(why: Why) -> ([u8; N], usize) {
    let mut all = [0; N];
    let mut end = 0;
    let mut index = 0;
    while index < ROOTS.len() + CALLED.len() {
        let (of, name) = match index.checked_sub(ROOTS.len()) {
            None => (ROOTS[index].why, ROOTS[index].name.as_bytes()),
            Some(called) => (CALLED[called].0, CALLED[called].1.as_bytes()),
        };
        index += 1;
        if of as u8 != why as u8 {
            continue;
        }
        let mut at = 0;
        while at < name.len() {
            if end < N {
                all[end] = name[at];
            }
            end += 1;
            at += 1;
        }
        end += 1;
    }
    (all, end)
}

const EVENTS: [u8; names::<0>(Event).1] = names(Event).0;
const WAITERS: [u8; names::<0>(Waits).1] = names(Waits).0;
const WRITERS: [u8; names::<0>(Writes).1] = names(Writes).0;

/// The prefix of the thunks for indirect calls.
const THUNK: &str = "__x86_indirect_thunk_";

/// The name without what a compiler appended, and without the file name that Xen's symbol
/// table prepends. Names in C have no dot: everything after one is cut off, not only the
/// suffixes that [`suffix`](crate::suffix) knows, so that no clone escapes.
fn plain(name: &str) -> &str {
    let name = RuntimeName::parse(name).name;
    name.split_once('.').map_or(name, |(name, _)| name)
}

impl Root {
    /// Whether the hypervisor's function `name` is this one.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        plain(name) == self.name
    }
}

/// Why the function `name` of a hypervisor for `machine` must not be patched, if so.
/// `name` may have a file name in front, as in Xen's symbol table.
///
/// ```
/// use xsplice_abi::{deny, machine::Machine};
///
/// assert!(deny::reason(Machine::X86_64, "do_nmi").is_some());
/// assert!(deny::reason(Machine::X86_64, "xen_version").is_none());
/// assert!(deny::reason(Machine::X86_64, "do_trap_hyp_serror").is_none());
/// assert!(deny::reason(Machine::Arm64, "do_trap_hyp_serror").is_some());
/// assert!(deny::reason(Machine::Arm64, "arch_livepatch_apply").is_some());
/// ```
#[must_use]
#[inline]
pub fn reason(machine: Machine, name: &str) -> Option<&'static str> {
    let own = || {
        let mut own = of_machine(machine).iter();
        own.find(|(known, _)| *known == plain(name))
    };
    reason_anywhere(name).or_else(|| own().map(|(_, why)| *why))
}

/// The functions that only hypervisors for `machine` have, with the reason.
#[must_use]
#[inline]
pub const fn of_machine(machine: Machine) -> &'static [(&'static str, &'static str)] {
    match machine {
        Machine::X86_64 => &[],
        Machine::Arm64 | Machine::Arm32 => &ARM,
    }
}

fn reason_anywhere(name: &str) -> Option<&'static str> {
    // Our own core does the same under other names. A general substring search would
    // be more code than the rest of this function.
    if name.as_bytes().windows(7).any(|part| part == b"xsplice") {
        return Some(CORE);
    }
    let name = plain(name);
    if name.starts_with(THUNK) {
        return Some(Event.text());
    }
    let lists: [(Why, &[u8]); 3] = [(Event, &EVENTS), (Waits, &WAITERS), (Writes, &WRITERS)];
    let why = lists.into_iter().find_map(|(why, list)| {
        let mut known = list.split(|byte| *byte == 0);
        known.any(|known| known == name.as_bytes()).then_some(why)
    });
    why.filter(|_| !name.is_empty()).map(Why::text)
}

/// Names known to [`reason`] on every machine that are not roots.
pub fn called() -> impl Iterator<Item = &'static str> {
    CALLED.iter().map(|(_, name)| *name)
}

/// An area of code that must not be patched.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// Its section in objects.
    section: &'static str,
    /// Its boundary symbols in a hypervisor.
    pub edges: [&'static str; 2],
    /// Why it must not be patched.
    pub why: &'static str,
}

/// The code that CPUs run where payloads are not mapped.
///
/// With page-table isolation, a CPU enters and leaves the hypervisor on page tables
/// that only map stacks, descriptor tables and the first of these areas. The area has
/// all code that can run there, and some that runs after the switch.
pub const AREAS: [Area; 2] = [
    Area {
        section: ".text.entry",
        edges: ["_stextentry", "_etextentry"],
        why: ENTRY,
    },
    Area {
        section: ".text.kexec",
        edges: ["kexec_reloc", "kexec_reloc_end"],
        why: COPIED,
    },
];

/// Why code in this section of an object must not be patched, if so.
#[must_use]
pub fn section_reason(name: &str) -> Option<&'static str> {
    let is_in = |area: &&Area| {
        let rest = name.strip_prefix(area.section);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    AREAS.iter().find(is_in).map(|area| area.why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_while_code_is_patched_is_denied_by_any_name_of_the_compiler() {
        let reason = |name| reason(Machine::X86_64, name);
        assert!(reason("do_nmi").is_some_and(|why| why.contains("NMI")));
        assert!(reason("livepatch_spin.constprop.0").is_some());
        assert!(reason("livepatch.c#livepatch_spin").is_some());
        assert!(reason("livepatch-rust.c#xsplice_text_write").is_some());
        assert!(reason("__x86_indirect_thunk_rax").is_some());
        assert!(reason("do_nmi_op").is_none());
    }

    #[test]
    fn entry_code_is_known_by_its_section() {
        let thunk = ".text.entry.__x86_return_thunk";
        assert_eq!(section_reason(".text.entry"), Some(ENTRY));
        assert_eq!(section_reason(thunk), Some(ENTRY));
        assert_eq!(section_reason(".text.kexec"), Some(COPIED));
        assert!(section_reason(".text.entry_from_pv").is_none());
        assert!(section_reason(".text").is_none());
    }
}
