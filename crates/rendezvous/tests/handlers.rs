// SPDX-License-Identifier: MIT OR Apache-2.0

//! What `tests/loom.rs` takes for granted of Xen's handlers: they ask
//! [`hold`](xsplice_rendezvous::Rendezvous::hold) before anything else that may be
//! patched, return at once when they are told to, and a machine check says last that
//! it is handled. The patch that puts the questions there says so too.
#![cfg(not(loom))]

const PATCH: &str = include_str!("../../host-xen/patches/0003-events-wait.patch");
const SHIM: &str = include_str!("../../host-xen/shim/livepatch-rust.c");

/// The lines of a file as the patch leaves them, without indentation.
fn patched(file: &str) -> Vec<&'static str> {
    let begin = format!("+++ b/xen/arch/x86/{file}\n");
    let (_, hunks) = PATCH.split_once(&begin).expect("the file is patched");
    let hunks = hunks.split("\n--- ").next().unwrap_or_default();
    let lines = hunks.lines().filter(|line| !line.starts_with(['-', '@']));
    let lines = lines.map(|line| line.get(1..).unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).collect()
}

/// Asserts that `expected` follow each other in `lines`, with nothing between them.
#[track_caller]
fn assert_steps(lines: &[&str], expected: &[&str]) {
    let found = lines.windows(expected.len()).any(|lines| lines == expected);
    assert!(found, "{expected:#?} is not in {lines:#?}");
}

#[test]
fn nmis_are_asked_about_before_any_callback() {
    let steps = [
        "if ( xsplice_hold_nmi() )",
        "goto out;",
        "callback = ACCESS_ONCE(nmi_callback);",
    ];
    assert_steps(&patched("traps.c"), &steps);
}

#[test]
fn machine_checks_are_asked_about_first_and_say_last_that_they_are_handled() {
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

/// Whatever is decided about an event is decided here, and nowhere in C.
#[test]
fn the_shim_passes_events_on() {
    let lines: Vec<&str> = SHIM.lines().map(str::trim).collect();
    let held = "return !kexecing && xsplice_hold(smp_processor_id(), XSPLICE_NMI);";
    assert_steps(&lines, &["bool xsplice_hold_nmi(void)", "{", held, "}"]);
    let held = "if ( !xsplice_hold(smp_processor_id(), XSPLICE_MACHINE_CHECK) )";
    assert_steps(&lines, &[held, "return false;"]);
    let steps = ["{", "xsplice_handled(smp_processor_id());", "}"];
    let first = "void xsplice_machine_check_done(void)";
    assert_steps(&lines, &[&[first], steps.as_slice()].concat());
    assert!(!SHIM.contains("set_nmi_callback"));
}
