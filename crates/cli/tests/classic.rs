// SPDX-License-Identifier: MIT OR Apache-2.0
//! The executable under the name `xen-livepatch`, as far as no hypervisor is needed:
//! whose command lines and texts it has.

use std::os::unix::fs::symlink;
use std::process::{Command, Output};

const FAILED: Option<i32> = Some(1);

/// Runs `xen-livepatch` with what `XEN_LIVEPATCH_COMPAT` says.
fn run(compat: Option<&str>, arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().expect("a directory");
    let tool = directory.path().join("xen-livepatch");
    symlink(env!("CARGO_BIN_EXE_xsplice"), &tool).expect("linked");
    let mut command = Command::new(&tool);
    command.args(arguments).env_remove("XEN_LIVEPATCH_COMPAT");
    command.envs(compat.map(|compat| ("XEN_LIVEPATCH_COMPAT", compat)));
    command.output().expect("it runs")
}

/// What it says; this host is no Xen, so nothing is done.
#[track_caller]
fn said(compat: Option<&str>, arguments: &[&str], code: Option<i32>) -> String {
    let output = run(compat, arguments);
    assert_eq!(output.status.code(), code, "{arguments:?}: {output:?}");
    assert_eq!(output.stdout, b"", "{arguments:?}");
    String::from_utf8(output.stderr).expect("UTF-8")
}

const NO_HYPERVISOR: &str = "failed to get the handler\n";

fn unrecognised(word: &str) -> String {
    format!("Unrecognised command '{word}' -- try 'xen-livepatch help'\n")
}

#[test]
fn up_to_4_18_commands_are_abbreviated_and_nothing_is_forced() {
    let compat = Some("4.17");
    let help = said(compat, &[], Some(0));
    let start = "xen-livepatch: live patching tool\n\
                 Usage: xen-livepatch <command> [args] [command-flags]\n \
                 <name> An unique name of payload. Up to 128 characters.\n\
                 Commands:\n  help ";
    assert!(help.starts_with(start), "{help}");
    assert_eq!(said(compat, &["li"], FAILED), NO_HYPERVISOR);
    for line in [&["--force"][..], &["--force", "list"]] {
        assert_eq!(said(compat, line, FAILED), unrecognised("--force"));
    }
}

#[test]
fn from_4_19_on_commands_are_whole_and_may_be_forced() {
    // Without a hypervisor to ask, it is the newest.
    for compat in [Some("4.19"), None] {
        let help = said(compat, &[], Some(0));
        let start = "xen-livepatch: live patching tool\n\
                     Usage: xen-livepatch [--force] <command> [args] [command-flags]\n \
                     Use --force option to bypass some checks.\n \
                     <name> An unique name of payload. Up to 128 characters.\n\
                     Commands:\n  help ";
        assert!(help.starts_with(start), "{help}");
        assert_eq!(said(compat, &["--force"], FAILED), help);
        for line in [&["list"][..], &["--force", "list"]] {
            assert_eq!(said(compat, line, FAILED), NO_HYPERVISOR);
        }
        assert_eq!(said(compat, &["--force", "li"], FAILED), unrecognised("li"));
        let twice = ["--force", "--force", "list"];
        assert_eq!(said(compat, &twice, FAILED), unrecognised("--force"));
    }
}

#[test]
fn another_version_is_refused() {
    for compat in ["", "4.18", "4.20", "4.19\n"] {
        let said = said(Some(compat), &["list"], FAILED);
        assert!(said.starts_with("XEN_LIVEPATCH_COMPAT is '"), "{said}");
        assert!(said.ends_with("': use 4.17 or 4.19\n"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
