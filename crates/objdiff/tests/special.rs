// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables about code whose entries nobody knows how to read.

use std::process::Command;
use xsplice_objdiff::{Object, ReadError};

fn assemble(section: &str) -> Result<Object, ReadError> {
    let directory = tempfile::tempdir().expect("a directory");
    let (source, output) = (directory.path().join("x.S"), directory.path().join("x.o"));
    let text = format!(".text\n1: nop\n.section {section}\n.long 1b - .\n");
    std::fs::write(&source, text).expect("written");
    let gcc = Command::new("gcc")
        .arg("-c")
        .arg(&source)
        .arg("-o")
        .arg(&output)
        .status();
    assert!(gcc.expect("this test needs gcc").success());
    Object::read("x.o", &std::fs::read(output).expect("assembled"))
}

#[test]
fn an_object_with_an_unknown_table_is_refused_by_its_name() {
    for name in [".bug_frames.4", ".alt_other", ".ex_table.f"] {
        let section = |error| match error {
            ReadError::UnknownTable { section, .. } => section,
            other => panic!("another reason: {other}"),
        };
        let read = assemble(&format!("{name},\"a\""));
        assert_eq!(read.map_err(section).err().as_deref(), Some(name));
        // Nothing that is not loaded reaches the hypervisor.
        assemble(&format!("{name},\"\"")).expect("it is not part of the hypervisor");
    }
    assemble(".alt_call_sites,\"a\"").expect("it is known");
}
