// SPDX-License-Identifier: MIT OR Apache-2.0
//! Output that cannot be written.

use std::fs::File;
use std::process::{Command, Output, Stdio};

fn cache(output: impl Into<Stdio>) -> Output {
    let directory = tempfile::tempdir().expect("a directory");
    let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
    xtask.arg("cache").env("XDG_CACHE_HOME", directory.path());
    xtask.stdout(output).output().expect("it runs")
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = cache(writer);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_full_disk_is_an_error() {
    let full = File::options().write(true).open("/dev/full");
    let output = cache(full.expect("it is there"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("cannot write to standard output"), "{words}");
}
