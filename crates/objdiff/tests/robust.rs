// SPDX-License-Identifier: MIT OR Apache-2.0
//! No input may panic: real objects cut off and changed, and bytes that are no
//! object at all, read, compared and explained.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::Cell;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use xsplice_objdiff::{Object, compare, explain};

/// Fixtures that have between them what the reader knows, and their compilers.
const SEEDS: [(&str, &str); 9] = [
    ("gcc", "alternatives.c"),
    ("gcc", "assembly_unsized.S"),
    ("gcc", "bug_frames.c"),
    ("gcc", "data.c"),
    ("gcc", "ex_table.c"),
    ("gcc", "strings.c"),
    (ARM32, "alternatives.c"),
    (ARM32, "jump_table_in_text.c"),
    (ARM32, "literals.c"),
];
const ARM32: &str = "arm-linux-gnueabihf-gcc";
const CASES: u32 = 4000;
/// How many different changes of single bytes are tried on each seed.
const FLIPS: usize = 2000;

fn seeds() -> &'static [Vec<u8>] {
    static SEEDS_READ: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SEEDS_READ.get_or_init(|| {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let directory = tempfile::tempdir().expect("a directory");
        let output = directory.path().join("seed.o");
        let build = |(compiler, name): &(&str, &str)| {
            let machine: &[&str] = match *compiler {
                ARM32 => &["-marm", "-mcpu=cortex-a15", "-msoft-float"],
                _ => &["-fpic", "-fshort-wchar", "-mno-sse"],
            };
            let status = Command::new(compiler)
                .args(["-std=gnu99", "-g", "-O2", "-fno-builtin"])
                .args(["-ffunction-sections", "-fdata-sections"])
                .args(machine)
                .args(["-c", "-o"])
                .args([&output, &fixtures.join(name)])
                .status();
            let status = status.unwrap_or_else(|e| panic!("these tests need {compiler}: {e}"));
            assert!(status.success(), "{name}");
            std::fs::read(&output).expect("an object")
        };
        SEEDS.iter().map(build).collect()
    })
}

/// Does everything there is to do with two files; tells whether both were
/// objects.
fn exercise(original: &[u8], patched: &[u8]) -> bool {
    let read = |bytes: &[u8]| Object::read("damaged.o", bytes);
    let (Ok(original), Ok(patched)) = (read(original), read(patched)) else {
        return false;
    };
    let comparison = compare(&original, &patched);
    for change in &comparison.changes {
        if let (Some(old), Some(new)) = (change.original, change.patched) {
            let _ = explain::first_change(&original, old, &patched, new);
        }
    }
    true
}

#[test]
fn objects_cut_off_anywhere_do_no_harm() {
    let (mut cut, mut read) = (0, 0);
    for seed in seeds() {
        for length in (0..seed.len()).step_by(7) {
            cut += 1;
            read += usize::from(exercise(seed, &seed[..length]));
        }
    }
    println!("{cut} objects cut off, {read} still read");
}

#[test]
fn changed_bytes_do_no_harm() {
    let (mut flipped, mut read) = (0, 0);
    for seed in seeds() {
        for at in (0..seed.len()).step_by(seed.len() / FLIPS + 1) {
            for value in [seed[at] ^ 1, seed[at] ^ 0x80, 0xff] {
                let mut changed = seed.clone();
                changed[at] = value;
                flipped += 1;
                read += usize::from(exercise(seed, &changed));
            }
        }
    }
    println!("{flipped} objects with a changed byte, {read} still read");
    assert!(
        read > 0,
        "no changed object was read: the test tests nothing"
    );
}

#[test]
fn random_changes_do_no_harm() {
    let read = Cell::new(0_u32);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40);
    // Most of what the reader relies on is in the headers at the end.
    let strategy = (0..SEEDS.len(), changes, any::<bool>());
    let mut runner = TestRunner::new(Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&strategy, |(seed, changes, at_end)| {
        let seed = &seeds()[seed];
        let mut changed = seed.clone();
        let first = if at_end { seed.len() * 3 / 4 } else { 64 };
        for (at, value) in changes {
            let at = first + at.index(seed.len() - first);
            changed[at] = value;
        }
        read.set(read.get() + u32::from(exercise(seed, &changed)));
        exercise(&changed, seed);
        Ok(())
    });
    println!(
        "{CASES} objects changed at random, {} still read",
        read.get()
    );
    result.expect("no panic");
    assert!(
        read.get() > 0,
        "no changed object was read: the test tests nothing"
    );
}

#[test]
fn bytes_that_are_no_object_are_errors() {
    let strategy = (any::<bool>(), prop::collection::vec(any::<u8>(), 0..4096));
    let mut runner = TestRunner::new(Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&strategy, |(header, mut bytes)| {
        if header && bytes.len() > 64 {
            bytes[..64].copy_from_slice(&seeds()[0][..64]);
        }
        exercise(&bytes, &bytes);
        Ok(())
    });
    println!("{CASES} files of random bytes");
    result.expect("no panic");
}
