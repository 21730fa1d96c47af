// SPDX-License-Identifier: MIT OR Apache-2.0
//! Functions that must not be patched, because a CPU may run them while the
//! bytes change.
//!
//! All other CPUs wait with interrupts off while one writes. What can run
//! nevertheless: the handlers of NMIs and machine checks, the code that waits,
//! and the code that writes.

/// Why functions of a group must not be patched.
const GROUPS: [(&str, &[&str]); 3] = [
    (
        "it handles NMIs or machine checks, which reach a CPU even while its code is being patched",
        &[
            "do_nmi",
            "do_nmi_crash",
            "nmi_callback",
            "nmi_watchdog_tick",
            "microcode_nmi_callback",
            "do_machine_check",
            "unexpected_machine_check",
            "mcheck_cmn_handler",
            "mcheck_mca_logout",
            "mcheck_mca_clearbanks",
            "mce_barrier_enter",
            "mce_barrier_exit",
            "mce_barrier_dec",
            "mce_panic_check",
        ],
    ),
    (
        "the CPUs wait in it while the code is being patched",
        &["check_for_livepatch_work", "livepatch_spin"],
    ),
    (
        "it writes the patched code",
        &[
            "livepatch_do_action",
            "apply_payload",
            "revert_payload",
            "arch_livepatch_apply",
            "arch_livepatch_revert",
            "arch_livepatch_quiesce",
            "arch_livepatch_revive",
            "arch_livepatch_post_action",
            "arch_livepatch_mask",
            "arch_livepatch_unmask",
            "arch_livepatch_init",
            "text_poke",
            "memcpy",
        ],
    ),
];

/// Why the hypervisor's function `name` must not be patched, if so. `name` may
/// have its file in front, as Xen's symbol table writes it.
pub fn reason(name: &str) -> Option<&'static str> {
    // Our own core does the same by other names.
    // Searching for a text takes more code than all the rest of this.
    if name.as_bytes().windows(7).any(|part| part == b"xsplice") {
        return Some("it is part of the live-patch core");
    }
    let name = name.rsplit_once('#').map_or(name, |(_, name)| name);
    // The compiler adds `.constprop.0` and the like.
    let name = name.split_once('.').map_or(name, |(name, _)| name);
    GROUPS
        .iter()
        .find_map(|(why, names)| names.contains(&name).then_some(*why))
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
        assert!(reason("do_nmi_op").is_none());
    }
}
