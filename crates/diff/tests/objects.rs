//! Small C files, built twice, the second time with `-DPATCHED`: exactly the
//! expected differences are found.

use std::process::Command;
use xsplice_diff::{Comparison, Kind, Object, compare};

fn object(name: &str, source: &str, patched: bool, optimise: &str) -> Object {
    let directory = tempfile::tempdir().expect("a directory");
    let (input, output) = (directory.path().join("t.c"), directory.path().join("t.o"));
    std::fs::write(&input, source).expect("written");
    let mut gcc = Command::new("gcc");
    gcc.args([
        "-c",
        optimise,
        "-ffunction-sections",
        "-fdata-sections",
        "-fno-pie",
        "-mcmodel=small",
    ])
    .args(["-fno-asynchronous-unwind-tables", "-o"])
    .args([&output, &input]);
    if patched {
        gcc.arg("-DPATCHED");
    }
    assert!(
        gcc.status().expect("the test needs gcc").success(),
        "{name} does not compile"
    );
    Object::read(name, &std::fs::read(&output).expect("an object")).expect("a readable object")
}

fn differences(name: &str, source: &str, optimise: &str) -> Comparison {
    let original = object(name, source, false, optimise);
    assert!(
        compare(&original, &original).is_empty(),
        "{name}: not equal to itself"
    );
    compare(&original, &object(name, source, true, optimise))
}

fn changed(comparison: &Comparison) -> Vec<(Kind, &str)> {
    let mut all: Vec<_> = comparison
        .changes
        .iter()
        .map(|c| (c.kind, c.name.as_str()))
        .collect();
    all.sort_unstable();
    all
}

#[test]
fn only_what_changed_is_changed() {
    const SOURCE: &str = r#"
        int other(const char *); int state;
        int same(int x) { return other("same text") + x; }
        #ifdef PATCHED
        int text(void) { return other("new"); }
        int code(int x) { return x * 3; }
        #else
        int text(void) { return other("old"); }
        int code(int x) { return x * 5; }
        #endif
        int after(void) { return other("same text") + state; }
    "#;
    for optimise in ["-O1", "-O2", "-O3"] {
        let comparison = differences("plain", SOURCE, optimise);
        assert_eq!(
            changed(&comparison),
            [(Kind::Function, "code"), (Kind::Function, "text")]
        );
    }
}

#[test]
fn new_statics_and_functions_are_added() {
    const SOURCE: &str = r#"
        int other(int *);
        #ifdef PATCHED
        static __attribute__((noinline)) int helper(int x) { static int count; return other(&count) + x; }
        int user(int x) { return helper(x); }
        #else
        int user(int x) { return x; }
        #endif
    "#;
    let comparison = differences("added", SOURCE, "-O2");
    let found = changed(&comparison);
    assert!(found.contains(&(Kind::Function, "user")), "{found:?}");
    assert!(
        found
            .iter()
            .any(|(k, n)| *k == Kind::Added && n.starts_with("helper")),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .any(|(k, n)| *k == Kind::Added && n.starts_with("count")),
        "{found:?}"
    );
}

#[test]
fn a_static_local_keeps_its_identity_when_its_number_changes() {
    const SOURCE: &str = r#"
        int other(int *);
        #ifdef PATCHED
        int first(void) { static int fresh = 1; return other(&fresh); }
        #else
        int first(void) { return 0; }
        #endif
        int second(void) { static int count = 2; return other(&count); }
    "#;
    let comparison = differences("statics", SOURCE, "-O2");
    let found = changed(&comparison);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0], (Kind::Function, "first"));
    assert!(
        found[1].0 == Kind::Added && found[1].1.starts_with("fresh"),
        "{found:?}"
    );
}

#[test]
fn changed_data_is_told_from_changed_constants() {
    const SOURCE: &str = r#"
        #ifdef PATCHED
        # define N 2
        int grows[3];
        #else
        # define N 1
        int grows[2];
        #endif
        int value = N;
        static const int table[4] = { 1, 2, 3, N };
        int look(int i) { return table[i & 3]; }
    "#;
    let comparison = differences("data", SOURCE, "-O2");
    let found = changed(&comparison);
    assert!(found.contains(&(Kind::Data, "value")), "{found:?}");
    assert!(found.contains(&(Kind::Resized, "grows")), "{found:?}");
    assert!(found.contains(&(Kind::Constant, "table")), "{found:?}");
    // Whoever reads a private constant that changed must read the new one.
    assert!(found.contains(&(Kind::Function, "look")), "{found:?}");
}

#[test]
fn a_cold_part_goes_with_its_function() {
    const SOURCE: &str = r#"
        __attribute__((cold)) void bad(int); int work(int);
        int f(int x) {
            if (__builtin_expect(x == 7, 0)) {
        #ifdef PATCHED
                bad(x + 1);
        #else
                bad(x);
        #endif
            }
            return work(x);
        }
    "#;
    let original = object("cold", SOURCE, false, "-O2");
    assert!(
        original.symbols.iter().any(|s| s.name == "f.cold"),
        "the compiler made no cold part"
    );
    let comparison = differences("cold", SOURCE, "-O2");
    assert_eq!(
        changed(&comparison),
        [(Kind::Function, "f"), (Kind::Function, "f.cold")]
    );
}

#[test]
fn assembly_without_sizes_is_compared_as_a_whole() {
    const SOURCE: &str = r#"
        asm(".section .text.entry, \"ax\"\nentry:\n nop\n"
        #ifdef PATCHED
            " nop\n"
        #endif
            " ret\n.previous\n");
    "#;
    let comparison = differences("asm", SOURCE, "-O2");
    assert_eq!(comparison.changes.len(), 1);
    assert_eq!(comparison.changes[0].kind, Kind::Unsized);
}

#[test]
fn damaged_objects_are_errors() {
    let directory = tempfile::tempdir().expect("a directory");
    let (input, output) = (directory.path().join("t.c"), directory.path().join("t.o"));
    std::fs::write(
        &input,
        "int g(const char *); int f(void) { return g(\"x\"); }",
    )
    .expect("written");
    let gcc = Command::new("gcc")
        .args(["-c", "-O2", "-o"])
        .args([&output, &input])
        .status();
    assert!(gcc.expect("the test needs gcc").success());
    let data = std::fs::read(&output).expect("an object");
    for length in 0..data.len() {
        let _ = Object::read("cut", &data[..length]);
    }
    for at in 0..data.len() {
        for bit in 0..8 {
            let mut flipped = data.clone();
            flipped[at] ^= 1 << bit;
            // Never a panic, whatever comes out.
            if let Ok(object) = Object::read("flipped", &flipped) {
                let _ = compare(&object, &object);
            }
        }
    }
}

#[test]
fn code_that_inline_assembly_moves_away_belongs_to_its_function() {
    const SOURCE: &str = r#"
        #ifdef PATCHED
        #define VALUE "2"
        #else
        #define VALUE "1"
        #endif
        int other(int);
        int function(int x) {
            asm volatile ( "test %0, %0; jnz 1f; 2:\n"
                           ".subsection 1; out_of_the_way: 1: mov $" VALUE ", %0; jmp 2b\n"
                           ".subsection 0" : "+r" (x) );
            return other(x);
        }
        int same(int x) { return other(x + 1); }
    "#;
    for optimise in ["-O1", "-O2", "-O3"] {
        let comparison = differences("subsection", SOURCE, optimise);
        assert_eq!(changed(&comparison), [(Kind::Function, "function")]);
    }
}
