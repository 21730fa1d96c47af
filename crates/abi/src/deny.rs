// SPDX-License-Identifier: MIT OR Apache-2.0
//! Functions that must not be patched: a CPU may run them while the bytes change,
//! or where a payload is not mapped.
//!
//! While one CPU writes, the others wait with interrupts off. What can run
//! nevertheless: the path of an NMI or machine check up to where it is held (for
//! machine checks under Xen's own core: the whole handler), the code that waits,
//! and the code that writes. [`ROOTS`] names where these begin; what they call on
//! every path follows from the hypervisor's image, and [`CALLED`] has it for who
//! has no image to walk. [`AREAS`] has the code that runs where payloads are not
//! mapped.

use crate::symbol::RuntimeName;
use Why::{Event, Waits, Writes};

/// Which hypervisors have a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// All of them.
    Everywhere,
    /// Those with Xen's own live-patch core.
    OwnCore,
    /// Those of them from this minor version of Xen 4 on.
    OwnCoreSince(u32),
    /// Those with ours.
    OurCore,
    /// Those from this minor version of Xen 4 on.
    Since(u32),
    /// Only some: it depends on the configuration, the version, or on what the
    /// compiler made of it.
    Some,
}

/// A function from which the hypervisor runs while code is being patched.
#[derive(Clone, Copy, Debug)]
pub struct Root {
    /// Its name, without what the compiler adds.
    pub name: &'static str,
    /// Why it must not be patched.
    pub why: Why,
    /// Where it is.
    pub place: Where,
    /// Whether what it calls runs then as well. Not so where the calls come before
    /// the first byte is written, or after the last.
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
    /// In words.
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

/// Why what enters and leaves the hypervisor must not be patched.
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

/// Where the hypervisor runs while code is being patched. Calls through pointers
/// lead from one of them to the next: `do_nmi` to the callback that holds it,
/// `do_machine_check` to a handler.
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
    // In loops, and where something was found.
    root("mce_barrier_enter", Event, Where::Some),
    root("mce_barrier_exit", Event, Where::Some),
    root("mce_barrier_dec", Event, Where::Some),
    root("mce_panic_check", Event, Where::Some),
    root("mcheck_mca_clearbanks", Event, Where::Some),
    // What it calls while CPUs wait is done before the first byte is written.
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
    // Under a condition that holds for some actions of ours.
    root("relax_virtual_region_perms", Writes, Where::Everywhere),
    root("tighten_virtual_region_perms", Writes, Where::Everywhere),
    root("flush_area_local", Writes, Where::Everywhere),
    // In loops that run at least once.
    root("modify_xen_mappings_lite", Writes, Where::Everywhere),
    // Where there is anything to write.
    root("memcpy", Writes, Where::Everywhere),
];

/// What the roots call on every path.
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

/// The names that have this reason, each with a zero behind it, as far as there is
/// room for them, and how long they are. In a hypervisor, a list of texts would
/// take several times as much.
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

/// What calls through pointers go through.
const THUNK: &str = "__x86_indirect_thunk_";

/// The name without what the compiler adds (`.constprop.0` and the like), and
/// without the file that Xen's symbol table puts in front.
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

/// Why the hypervisor's function `name` must not be patched, if so. `name` may
/// have its file in front, as Xen's symbol table writes it.
///
/// ```
/// use xsplice_abi::deny;
///
/// assert!(deny::reason("do_nmi").is_some());
/// assert!(deny::reason("xen_version").is_none());
/// ```
#[must_use]
pub fn reason(name: &str) -> Option<&'static str> {
    // Our own core does the same by other names.
    // Searching for a text takes more code than all the rest of this.
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

/// Names that [`reason`] knows of and that have no root of their own.
pub fn called() -> impl Iterator<Item = &'static str> {
    CALLED.iter().map(|(_, name)| *name)
}

/// Code of which nothing must be patched.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// Its section in objects.
    section: &'static str,
    /// The symbols at its edges in a hypervisor.
    pub edges: [&'static str; 2],
    /// Why it must not be patched.
    pub why: &'static str,
}

/// The code that CPUs run where payloads are not mapped.
///
/// With page-table isolation, a CPU enters on page tables that map stacks,
/// descriptor tables and the first of these areas only, and leaves on them. The
/// area is all that can run there, and some code that runs after the switch.
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

/// Why code of this section of an object must not be patched, if so.
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
