// SPDX-License-Identifier: MIT OR Apache-2.0

//! Checks what `tests/loom.rs` assumes about Xen's handlers: they call
//! [`hold`](xsplice_rendezvous::Rendezvous::hold) before any other code that may be
//! patched, return at once if it says so, and a machine check reports last that it is
//! handled. The patch that adds these calls states the same.
#![cfg(not(loom))]

const PATCH: &str = include_str!("../../host-xen/patches/0003-events-wait.patch");
const SHIM: &str = concat!(
    include_str!("../../host-xen/shim/livepatch-rust.c"),
    include_str!("../../host-xen/shim/x86_64/livepatch-arch.h"),
);
const CALLED_BY_C: &str = include_str!("../../host-xen/src/entry.rs");
const CALLS_C: &str = include_str!("../../host-xen/src/host.rs");

/// The lines of a source, without indentation.
fn lines(source: &str) -> Vec<&str> {
    source.lines().map(str::trim).collect()
}

/// The lines of a file after the patch, without indentation.
fn patched(file: &str) -> Vec<&'static str> {
    let begin = format!("+++ b/xen/arch/x86/{file}\n");
    let (_, hunks) = PATCH.split_once(&begin).expect("the file is patched");
    let hunks = hunks.split("\n--- ").next().unwrap_or_default();
    let lines = hunks.lines().filter(|line| !line.starts_with(['-', '@']));
    let lines = lines.map(|line| line.get(1..).unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).collect()
}

/// Asserts that `expected` are consecutive in `lines`.
#[track_caller]
fn assert_steps(lines: &[&str], expected: &[&str]) {
    let found = lines.windows(expected.len()).any(|lines| lines == expected);
    assert!(found, "{expected:#?} is not in {lines:#?}");
}

#[test]
fn nmis_are_intercepted_before_any_callback() {
    let steps = [
        "if ( xsplice_hold_nmi() )",
        "goto out;",
        "callback = ACCESS_ONCE(nmi_callback);",
    ];
    assert_steps(&patched("traps.c"), &steps);
}

#[test]
fn machine_checks_are_intercepted_first_and_reported_handled_last() {
    let steps = [
        "void do_machine_check(const struct cpu_user_regs *regs)",
        "{",
        "if ( xsplice_hold_machine_check() )",
        "return;",
        "mce_enter();",
        "alternative_vcall(mce_callbacks.handler, regs);",
        "mce_exit();",
        "xsplice_machine_check_done();",
        "}",
    ];
    assert_steps(&patched("cpu/mcheck/mce.c"), &steps);
}

/// All decisions about an event are made in Rust, none in C.
#[test]
fn the_shim_passes_events_on() {
    let lines = lines(SHIM);
    let held = "return !kexecing && xsplice_hold(smp_processor_id(), XSPLICE_NMI);";
    assert_steps(&lines, &["bool xsplice_hold_nmi(void)", "{", held, "}"]);
    let held = "if ( !xsplice_hold(smp_processor_id(), XSPLICE_MACHINE_CHECK) )";
    assert_steps(&lines, &[held, "return false;"]);
    let steps = ["{", "xsplice_handled(smp_processor_id());", "}"];
    let first = "void xsplice_machine_check_done(void)";
    assert_steps(&lines, &[&[first], steps.as_slice()].concat());
    assert!(!SHIM.contains("set_nmi_callback"));
}

/// The layer between C and the rendezvous makes no decisions either.
#[test]
fn entries_and_platform_only_forward() {
    let entries = lines(CALLED_BY_C);
    for steps in [
        [
            "extern \"C\" fn xsplice_hold(cpu: u32, event: Event) -> bool {",
            "let rendezvous = RENDEZVOUS.0.get();",
            "rendezvous.is_some_and(|rendezvous| rendezvous.hold(cpu, event.into(), &Cpus))",
        ],
        [
            "extern \"C\" fn xsplice_handled(cpu: u32) {",
            "if let Some(rendezvous) = RENDEZVOUS.0.get() {",
            "rendezvous.handled(cpu);",
        ],
        [
            "extern \"C\" fn xsplice_cpu_online(cpu: u32) {",
            "if let Some(rendezvous) = RENDEZVOUS.0.get() {",
            "rendezvous.online(cpu, &Cpus);",
        ],
        [
            "extern \"C\" fn xsplice_cpu_offline(cpu: u32) {",
            "if let Some(rendezvous) = RENDEZVOUS.0.get() {",
            "rendezvous.offline(cpu);",
        ],
    ] {
        assert_steps(&entries, &steps);
    }
    let platform = lines(CALLS_C);
    for steps in [
        ["fn mask(&self) {", "ffi::mask();"],
        ["fn unmask(&self) {", "ffi::unmask();"],
        ["fn synchronise(&self) {", "ffi::synchronise();"],
        ["if events.contains(event.into()) {", "ffi::replay(event);"],
    ] {
        assert_steps(&platform, &[&steps[..], &["}"]].concat());
    }
}

/// The model's assumptions about the processor: interrupts are off from `mask` to
/// `unmask`, `synchronise` is a serialising instruction, and `replay` raises the
/// event itself, or calls its handler.
#[test]
fn the_shim_takes_the_steps_of_the_model() {
    let lines = lines(SHIM);
    for steps in [
        &[
            "void xsplice_mask(void)",
            "{",
            "local_irq_save(this_cpu(irq_flags));",
            "}",
        ][..],
        &[
            "void xsplice_unmask(void)",
            "{",
            "local_irq_restore(this_cpu(irq_flags));",
            "}",
        ],
        &["void xsplice_synchronise(void)", "{", "serialise();", "}"],
        &[
            "static inline void serialise(void)",
            "{",
            "cpuid_eax(0);",
            "}",
        ],
        &["case XSPLICE_NMI:", "self_nmi();", "break;"],
        &[
            "case XSPLICE_MACHINE_CHECK:",
            "replay_machine_check();",
            "break;",
        ],
        &[
            "local_irq_save(flags);",
            "regs.rflags = flags;",
            "do_machine_check(&regs);",
            "local_irq_restore(flags);",
        ],
    ] {
        assert_steps(&lines, steps);
    }
}

/// A CPU is online before it runs code that may be patched, and offline after that;
/// neither changes during a rendezvous.
#[test]
fn the_shim_reports_when_cpus_go_online_and_offline() {
    let lines = lines(SHIM);
    for steps in [
        &[
            "case CPU_STARTING:",
            "xsplice_cpu_online(cpu);",
            "break;",
            "",
            "case CPU_DYING:",
            "xsplice_cpu_offline(cpu);",
            "break;",
        ][..],
        &[
            "bool xsplice_rendezvous_begin(void)",
            "{",
            "return get_cpu_maps();",
        ],
        &["void xsplice_rendezvous_end(void)", "{", "put_cpu_maps();"],
    ] {
        assert_steps(&lines, steps);
    }
}
