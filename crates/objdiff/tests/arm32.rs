// SPDX-License-Identifier: MIT OR Apache-2.0
//! Objects for ARM32 that cannot be compared are refused, with the reason.

use std::process::Command;
use xsplice_objdiff::{Object, ReadError};

/// The object that the assembler makes of `text`.
fn assembled(text: &str) -> Result<Object, ReadError> {
    let directory = tempfile::tempdir().expect("a directory");
    let (source, output) = (directory.path().join("x.s"), directory.path().join("x.o"));
    std::fs::write(&source, text).expect("written");
    let status = Command::new("arm-linux-gnueabihf-gcc")
        .args(["-mcpu=cortex-a15", "-c", "-o"])
        .args([&output, &source])
        .status();
    let status = status.expect("these tests need gcc-arm-linux-gnueabihf");
    assert!(status.success());
    Object::read("x.o", &std::fs::read(&output).expect("made"))
}

/// What is wrong with the object.
fn refusal(text: &str) -> String {
    assembled(text).expect_err("it is refused").to_string()
}

#[test]
fn thumb_code_is_refused() {
    let function = ".type f, %function\nf: bx lr\n.size f, . - f\n";
    assert!(assembled(&format!(".arm\n{function}")).is_ok());
    assert_eq!(
        refusal(&format!(".arm\nnop\n.thumb\n.thumb_func\n{function}")),
        "x.o: .text has Thumb code at 0x4, which the hypervisor does not run: compile with `-marm`"
    );
}

/// Where the assembler puts constants decides whether they are a part of the function.
#[test]
fn constants_outside_of_their_function_are_refused() {
    let pool = |before: &str, behind: &str| {
        format!(
            ".type f, %function\nf: ldr r0, =0x12345678\nbx lr\n{before}.size f, . - f\n{behind}\
             .type g, %function\ng: bx lr\n.size g, . - g\n"
        )
    };
    assert!(assembled(&pool(".ltorg\n", "")).is_ok());
    assert_eq!(
        refusal(&pool("", ".ltorg\n")),
        "x.o: the instruction at .text+0x0 reads, or takes the address of, a place outside of its \
         function that is so near that no relocation describes it: let the function have its \
         constants within its size (`.ltorg`)"
    );
}

/// An addend in a place of an unknown form.
#[test]
fn an_addend_that_cannot_be_read_is_refused() {
    let why = refusal(".text\nnop\n.reloc 0, R_ARM_LDR_PC_G0, x\n");
    assert!(
        why.contains("the relocation at .text+0x0 is damaged"),
        "{why}"
    );
}
