// SPDX-License-Identifier: MIT OR Apache-2.0

//! One object, linked like `xen-syms` and like `xen.efi`.

use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_host_image::{EfiError, Image, efi_symbols};

fn run(program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory());
    let status = command.status();
    assert!(status.is_ok_and(|s| s.success()), "{command:?}");
}

fn compile(source: &str, object: &str) {
    let options = ["-O2", "-ffreestanding", "-fno-pie", "-mcmodel=kernel", "-c"];
    let quiet = ["-fno-ident", "-fno-asynchronous-unwind-tables"];
    run(
        "gcc",
        &[&options[..], &quiet, &["-o", object, source]].concat(),
    );
}

fn directory() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("efi");
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(directory().join(name)).unwrap()
}

/// Makes `NAME.syms` and `NAME.efi` of the fixture and `more` objects.
fn link(name: &str, more: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let file = |end: &str| format!("{name}.{end}");
    let (object, syms, efi) = (file("o"), file("syms"), file("efi"));
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixture/hypervisor.c");
    compile(fixture, &object);
    let text = "-Ttext=0xffff82d040200000";
    let elf = [
        "--build-id=sha1",
        "-e",
        "target",
        text,
        "--defsym=__init_begin=0",
        "--defsym=__init_end=0",
        "-o",
        &syms,
        &object,
    ];
    run("ld", &elf);
    // The linker adds a build-id only if an object has its own format.
    std::fs::write(directory().join("empty.s"), "").unwrap();
    let (empty, theirs) = (file("empty"), file("pe"));
    run("as", &["-o", &empty, "empty.s"]);
    run("objcopy", &["-O", "pe-x86-64", &empty, &theirs]);
    let place = [
        "--image-base=0xffff82d040000000",
        "--section-alignment=0x200000",
    ];
    let pe = [
        "-m",
        "i386pep",
        "--build-id",
        "--subsystem=10",
        "-e",
        "target",
    ];
    let (input, last) = (["-o", &efi, &object], ["-b", "pe-x86-64", &theirs]);
    run("ld", &[&pe[..], &place, &input, more, &last].concat());
    (read(&syms), read(&efi))
}

#[test]
fn symbols_have_the_addresses_of_one_file_and_the_sizes_of_the_other() {
    let (syms, efi) = link("same", &[]);
    let plain = Image::parse(&syms).unwrap();
    let moved = Image::parse(&efi_symbols(&syms, &efi).unwrap()).unwrap();
    assert_eq!((plain.build_id().len(), moved.build_id().len()), (20, 16));
    for name in [b"target".as_slice(), b"hypervisor.c#local"] {
        let (before, after) = (plain.lookup_symbol(name), moved.lookup_symbol(name));
        assert_eq!(before, after);
        let inside = after.unwrap() + 1;
        assert_eq!(moved.function_at(inside), after, "it has its size");
    }
    // Zeroed data has sections with a different alignment there.
    let [before, after] = [&plain, &moved].map(|i| i.lookup_symbol(b"hypervisor.c#value"));
    assert!(before.is_some() && after.is_some() && before != after);
    // The contents there are as in memory: a pointer to `target`.
    let mut pointer = [0; 8];
    assert!(moved.read(moved.lookup_symbol(b"calls").unwrap() + 8, &mut pointer));
    let target = moved.lookup_symbol(b"target").unwrap();
    assert_eq!(u64::from_le_bytes(pointer), target);
}

#[test]
fn files_of_two_builds_or_without_symbols_are_refused() {
    let (syms, efi) = link("first", &[]);
    // Another file with the same name has a `value` too.
    let twin = directory().join("hypervisor.c");
    std::fs::write(
        &twin,
        "static int value; int more(void) { return value++; }",
    )
    .unwrap();
    compile("hypervisor.c", "more.o");
    let (_, other) = link("second", &["more.o"]);
    for (syms, efi, expected) in [
        (&syms, &syms, "not a usable xen.efi"),
        (&efi, &efi, "not a usable xen-syms"),
        (&syms, &other, "files of one build"),
    ] {
        let error = efi_symbols(syms, efi).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    run("strip", &["-o", "stripped.efi", "first.efi"]);
    let error = efi_symbols(&syms, &read("stripped.efi"));
    assert!(matches!(error, Err(EfiError::NoSymbols)), "{error:?}");
    let mut damaged = efi.clone();
    for at in (0..1024).chain(efi.len().saturating_sub(1024)..efi.len()) {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            damaged[at] = value;
            let _ = efi_symbols(&syms, &damaged);
        }
        damaged[at] = efi[at];
        let _ = efi_symbols(&syms, &efi[..at]);
    }
}
