// SPDX-License-Identifier: MIT OR Apache-2.0

//! Hypervisors in C link the static library and load, apply, revert and unload a
//! payload; their code is real, and is called: `examples/host.c`, and `contract.c` with
//! every function of the table.

use object::SectionKind;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use xsplice_test_host::Payload;

/// mov $2, %eax; ret.
const CODE: [u8; 16] = [
    0xb8, 2, 0, 0, 0, 0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc,
];

/// A payload with an entry of `.ex_table`.
fn with_table() -> Payload {
    let mut payload = Payload::with_code(&CODE);
    let table = payload.section(".ex_table", SectionKind::ReadOnlyData, &[0; 8], 4);
    let code = payload.new_code;
    const R_PC32: u32 = 2;
    for field in [0, 4] {
        payload.relocation(table, field, R_PC32, code, 0);
    }
    payload
}

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
fn hypervisors_in_c_load_apply_revert_and_unload_a_payload() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let payload = dir.path().join("payload");
    std::fs::write(&payload, Payload::with_code(&CODE).bytes()).unwrap();
    let tables = dir.path().join("tables");
    std::fs::write(&tables, with_table().bytes()).unwrap();
    let library = library();
    for source in ["examples/host.c", "tests/contract.c"] {
        let program = dir.path().join("program");
        let mut compile = Command::new("gcc");
        compile.args(["-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter"]);
        compile
            .args(["-Werror", "-I"])
            .arg(crate_dir.join("include"));
        compile.arg(crate_dir.join(source)).arg("-o").arg(&program);
        run(compile.arg(&library));
        let mut program = Command::new(&program);
        program.stdin(File::open(&payload).unwrap());
        run(program.args([&tables, &payload]));
    }
}
