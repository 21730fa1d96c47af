// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the tests compile and link programs that run as hypervisors in this process.

use std::process::Command;

/// As a hypervisor is compiled, and without what this process would have to provide.
pub(crate) const FLAGS: [&str; 8] = [
    "-ffreestanding",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-mno-sse",
];

pub(crate) const LINK: [&str; 7] = [
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,-e,hypercall,-Ttext-segment=0x100000000000,-z,separate-code",
    "-Wl,--build-id=0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    // Nothing is freed after boot.
    "-Wl,--defsym=__init_begin=0",
    "-Wl,--defsym=__init_end=0",
];

/// Runs a compiler or linker, which must succeed.
pub(crate) fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("this test needs {:?}: {error}", command.get_program()));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
}
