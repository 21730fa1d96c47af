// SPDX-License-Identifier: MIT OR Apache-2.0

//! A hypervisor in C, `tests/host.c`, links the static library and lives through a
//! payload's whole life; its code is real, and is called.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use xsplice_test_host::Payload;

/// mov $2, %eax; ret.
const CODE: [u8; 16] = [
    0xb8, 2, 0, 0, 0, 0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc,
];

fn run(command: &mut Command) -> Output {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output
}

/// The static library, with what it has to be linked with.
fn library() -> PathBuf {
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--quiet", "--package", "xsplice-engine-c"]);
    let built = run(command.args(["--message-format", "json"]));
    let built = String::from_utf8(built.stdout).expect("cargo writes texts");
    let messages = built.lines().map(serde_json::from_str);
    let messages: Result<Vec<serde_json::Value>, _> = messages.collect();
    let found = messages
        .expect("cargo writes JSON")
        .into_iter()
        .find_map(|message| {
            let files = message["filenames"].as_array()?.clone();
            let library = |file: &&serde_json::Value| {
                let name = file.as_str().unwrap_or_default();
                name.ends_with("libxsplice_engine_c.a")
            };
            Some(PathBuf::from(files.iter().find(library)?.as_str()?))
        });
    found.expect("cargo says where the library is")
}

#[test]
fn a_hypervisor_in_c_lives_through_the_life_of_a_payload() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let (program, payload) = (dir.path().join("host"), dir.path().join("payload"));
    let mut compile = Command::new("gcc");
    compile.args([
        "-std=c11",
        "-D_DEFAULT_SOURCE",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-I",
    ]);
    compile.arg(crate_dir.join("include"));
    compile.arg(crate_dir.join("tests/host.c")).arg("-o");
    run(compile.arg(&program).arg(library()));
    std::fs::write(&payload, Payload::with_code(&CODE).bytes()).unwrap();
    run(Command::new(&program).arg(&payload));
}
