// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;
use crate::patch::{FilePatch, Hunk, Line};
use std::process::Command;

const EARLY: &[&str] = &["-flto", "-fno-fat-lto-objects"];

fn object(source: &str, flags: &[&str]) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a directory");
    let (c, o) = (directory.path().join("x.c"), directory.path().join("x.o"));
    std::fs::write(&c, source).expect("written");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-g", "-fdata-sections", "-c", "-o"])
        .args([&o, &c])
        .args(flags);
    let status = gcc.status().expect("these tests need gcc");
    assert!(status.success(), "{source}");
    std::fs::read(o).expect("compiled")
}

fn types(source: &str) -> Types {
    dwarf::read(&object(source, EARLY)).expect("described")
}

/// Whole files that go, and others that come.
fn edits(sources: &[(&str, &str)]) -> Edits {
    let lines = |text: &str, line: fn(String) -> Line| -> Vec<Line> {
        text.lines().map(|text| line(text.to_owned())).collect()
    };
    let file = |(old, new): &(&str, &str)| FilePatch {
        old: None,
        new: None,
        written: String::new(),
        hunks: vec![Hunk {
            old_start: 1,
            lines: [lines(old, Line::Removed), lines(new, Line::Added)].concat(),
        }],
    };
    let files: Vec<FilePatch> = sources.iter().map(file).collect();
    Edits::new(files.iter())
}

/// What is refused, and what is told, when each old source becomes the new one
/// next to it.
fn findings(sources: &[(&str, &str)], allowed: &[&str]) -> (Vec<String>, Vec<String>) {
    let objects: Vec<Object> = sources
        .iter()
        .map(|(old, _)| Object::read("x.o", &object(old, &[])).expect("an object"))
        .collect();
    let side = |(object, (old, new)): (_, &(&str, &str))| Side {
        object,
        old: types(old),
        new: types(new),
    };
    let sides: Vec<Side> = objects.iter().zip(sources).map(side).collect();
    let allowed = Choices::new(&allowed.iter().map(|name| (*name).to_owned()).collect());
    let found = compare_all(&sides, &edits(sources), &allowed);
    let first = |text: &str| text.split(": ").nth(1).unwrap_or_default().to_owned();
    let refused = found.problems.iter().map(|p| {
        let words = p.message.split(": what the running").next();
        words.unwrap_or_default().to_owned()
    });
    (
        refused.collect(),
        found.notes.iter().map(|n| first(n)).collect(),
    )
}

/// Sources that use the type `s` that `declaration` declares, and may have
/// another in memory.
fn using(declaration: &str) -> String {
    format!("{declaration}\nlong f(struct s *s) {{ return sizeof(*s) + (long)s; }}\n")
}

#[track_caller]
fn refused(old: &str, new: &str, words: &[&str]) {
    let (refused, _) = findings(&[(&using(old), &using(new))], &[]);
    assert_eq!(refused, words);
}

#[track_caller]
fn told(old: &str, new: &str, words: &[&str]) {
    let (refused, told) = findings(&[(&using(old), &using(new))], &[]);
    assert_eq!(
        (refused, told),
        (Vec::new(), words.iter().map(|w| (*w).to_owned()).collect())
    );
}

#[test]
fn moved_members_and_other_sizes_are_named() {
    refused(
        "struct s { int a; char b; long c; };",
        "struct s { int a, d; char b; long c; };",
        &[
            "struct s goes from 16 to 24 bytes, has b at byte 8 instead of 4, has c at byte 16 \
           instead of 8",
        ],
    );
    refused(
        "typedef struct { union { int x; long y; }; int z; } t; struct s { t *t; };",
        "typedef struct { union { int x; long y; char w[16]; }; int z; } t; struct s { t *t; };",
        &["t goes from 16 to 24 bytes, has z at byte 16 instead of 8"],
    );
}

#[test]
fn members_of_named_members_without_named_types_are_compared() {
    refused(
        "struct s { int a; union { struct { int i, next, prev; } pirq; long l; } u; };",
        "struct s { int a; union { struct { int i, prev, next; } pirq; long l; } u; };",
        &[
            "struct s has u.pirq.next at byte 16 instead of 12, has u.pirq.prev at byte 12 instead \
           of 16",
        ],
    );
    refused(
        "struct s { struct { short a, b; } list[4]; };",
        "struct s { struct { short b, a; } list[4]; };",
        &["struct s has list[].a at byte 2 instead of 0, has list[].b at byte 0 instead of 2"],
    );
    // What contains it moves as a whole.
    refused(
        "struct s { long a; struct { int x, y; } in; long b; };",
        "struct s { long a; long b; struct { int x, y; } in; };",
        &["struct s has in at byte 16 instead of 8, has b at byte 8 instead of 16"],
    );
}

#[test]
fn bit_fields_are_compared() {
    refused(
        "struct s { unsigned a:3, b:5, c:8; };",
        "struct s { unsigned b:5, a:3, c:8; };",
        &[
            "struct s has a at byte 0 bit 5 instead of byte 0, has b at byte 0 instead of byte 0 bit 3",
        ],
    );
    refused(
        "struct s { unsigned a:3, :5, c:8; };",
        "struct s { unsigned a:4, :4, c:8; };",
        &["struct s has a in 4 bits instead of 3"],
    );
    told(
        "struct s { unsigned a:3, :5, c:8; };",
        "struct s { unsigned a:3, d:5, c:8; };",
        &["struct s gets d at byte 0 bit 3"],
    );
}

#[test]
fn another_member_at_the_same_place_is_refused() {
    refused(
        "struct s { long credit; int x; };",
        "struct s { long deadline; int x; };",
        &["struct s has deadline where credit was"],
    );
    refused(
        "struct s { char pad[4]; };",
        "struct s { char flag, pad[3]; };",
        &["struct s has pad at byte 1 instead of 0, has pad as char[3] instead of char[4]"],
    );
    // What only goes harms nobody.
    told(
        "struct s { int a, b; long c; };",
        "struct s { int a; long c; };",
        &[],
    );
}

#[test]
fn members_that_become_something_else_are_refused() {
    let other = "struct a { int x; }; struct b { int y; };";
    refused(
        &format!("{other} struct s {{ struct a *p; }};"),
        &format!("{other} struct s {{ struct b *p; }};"),
        &["struct s has p as struct b * instead of struct a *"],
    );
    refused(
        "struct s { int (*call)(struct s *, int); };",
        "struct s { int (*call)(struct s *, int, int); };",
        &[
            "struct s has call as pointer to int (struct s *, int, int) instead of pointer to int \
           (struct s *, int)",
        ],
    );
    refused(
        "struct s { unsigned long x; };",
        "struct s { void *x; };",
        &["struct s has x as void * instead of long unsigned int"],
    );
    refused(
        "struct s { float x; };",
        "struct s { int x; };",
        &["struct s has x as int instead of float"],
    );
    refused(
        "typedef int number; struct s { number x, y; };",
        "typedef short number; struct s { number x; char y[6]; };",
        &[
            "struct s has y at byte 2 instead of 4, has y as char[6] instead of number",
            "number is short int instead of int",
        ],
    );
}

#[test]
fn values_that_are_read_in_another_way_are_told() {
    told(
        "struct s { int x; void *p; char c; };",
        "struct s { unsigned x; long *p; _Bool c; };",
        &[
            "struct s has x as unsigned int instead of int, has p as long int * instead of void *, \
           has c as _Bool instead of char",
        ],
    );
    told(
        "enum e { A }; enum g { B }; struct s { enum e x; };",
        "enum e { A }; enum g { B }; struct s { enum g x; };",
        &["struct s has x as enum g instead of enum e"],
    );
}

#[test]
fn the_same_in_other_words_is_the_same() {
    told(
        "typedef unsigned u32; struct old { int x; struct old *next; }; \
         struct s { unsigned a; const char *b; int (*f)(int x); struct old *o; long l; };",
        "typedef unsigned u32; struct renamed { int x; struct renamed *next; }; \
         struct s { u32 a; char *b; int (*f)(const int y); struct renamed *o; long long l; };",
        &[],
    );
    told(
        "struct s { int a, b; };",
        "struct s { struct { int a; union { int b; }; }; };",
        &[],
    );
}

#[test]
fn what_gets_into_padding_is_told() {
    told(
        "struct s { int a; char b; long c; };",
        "struct s { int a; char b, d; long c; };",
        &["struct s gets d at byte 5"],
    );
    told(
        "struct s { union { int x; } u; };",
        "struct s { union { int x; short y; } u; };",
        &["struct s gets u.y at byte 0"],
    );
}

#[test]
fn sizes_that_come_from_elsewhere_are_seen() {
    refused(
        "#define N 4\nstruct s { short a[N]; char b; };",
        "#define N 6\nstruct s { short a[N]; char b; };",
        &[
            "struct s goes from 10 to 14 bytes, has a as short int[6] instead of short int[4], has b \
           at byte 12 instead of 8",
        ],
    );
    // In a structure that only a pointer leads to.
    refused(
        "enum { N = 2 }; struct in { int a[N]; }; struct mid { struct in *in; }; \
         struct s { struct mid *mid; };",
        "enum { N = 3 }; struct in { int a[N]; }; struct mid { struct in *in; }; \
         struct s { struct mid *mid; };",
        &["struct in goes from 8 to 12 bytes, has a as int[3] instead of int[2]"],
    );
}

#[test]
fn what_nothing_uses_may_change() {
    let unused = |inner: &str| {
        using(&format!(
            "struct unused {{ {inner} }}; static inline int g(struct unused *u) \
                        {{ return u->a; }} struct s {{ int x; }};"
        ))
    };
    let (refused, told) = findings(&[(&unused("int a;"), &unused("long b; int a;"))], &[]);
    assert_eq!((refused, told), (Vec::new(), Vec::new()));
}

#[test]
fn a_type_is_found_where_its_code_moved() {
    let (old, new) = ("struct s { int a, b; };", "struct s { int b, a; };");
    let nothing = "int g(void) { return 1; }";
    let sources = [(&*using(old), nothing), (nothing, &*using(new))];
    let (refused, _) = findings(&sources, &[]);
    assert_eq!(
        refused,
        ["struct s has a at byte 4 instead of 0, has b at byte 0 instead of 4"]
    );
}

#[test]
fn changed_enumerators_are_told() {
    let source = |list: &str| {
        format!(
            "struct s {{ enum {{ {list} }} state; }};\nint f(struct s *s) {{ return s->state; }}"
        )
    };
    let (refused, told) = findings(
        &[(&source("IDLE, OUT, IN, OFF"), &source("IDLE, IN, OUT"))],
        &[],
    );
    assert_eq!(refused, Vec::<String>::new());
    assert_eq!(told, ["an enumeration"]);
    let (_, told) = findings(&[(&source("IDLE, OUT"), &source("IDLE, OUT, IN"))], &[]);
    assert_eq!(told, Vec::<String>::new());
}

#[test]
fn variables_are_compared_if_they_are_in_memory() {
    let source = |kind: &str, automatic: &str| {
        format!(
            "struct a {{ int x; }}; struct b {{ int y; }};
             struct {kind} *top; static struct {kind} *const fixed = 0;
             int f(int n) {{ static struct {kind} *last; struct {automatic} here = {{ n }};
                struct {kind} *p = last; last = (void *)&here; top = (void *)f;
                asm volatile(\"\" :: \"r\"(&here), \"r\"(&last));
                return p && !fixed; }}"
        )
    };
    let (refused, _) = findings(&[(&source("a", "a"), &source("b", "b"))], &[]);
    assert_eq!(
        refused,
        [
            "the variable top is struct b * instead of struct a *",
            "the variable last of f is struct b * instead of struct a *"
        ]
    );
}

#[test]
fn what_is_allowed_is_told() {
    let sources = [(
        &*using("struct s { int a; };"),
        &*using("struct s { long a; };"),
    )];
    let (refused, told) = findings(&sources, &["s"]);
    assert_eq!(refused, Vec::<String>::new());
    assert_eq!(
        told,
        ["struct s goes from 4 to 8 bytes, has a as long int instead of int"]
    );
}

#[test]
fn types_are_told_where_they_are_defined() {
    let source = |inner: &str| {
        format!(
            "int before;\n# 1 \"./include/xen/s.h\"\n\nstruct s {{ {inner} }};\n# 2 \"x.c\"\n\
             long f(struct s *s) {{ return s->a; }}\n"
        )
    };
    let object = Object::empty(&xsplice_objdiff::arch::X86_64);
    let side = Side {
        object: &object,
        old: types(&source("int a;")),
        new: types(&source("long a;")),
    };
    let found = compare_all(&[side], &Edits::default(), &Choices::default());
    assert_eq!(found.problems[0].place, "include/xen/s.h:2");
}

#[test]
fn early_and_full_information_say_the_same() {
    let source = using(
        "enum e { A, B = -1 }; struct in { struct in *next; }; struct s { int a[2][3]; struct in in; \
         unsigned f:3; enum e e; union { struct { char c; } d; }; int (*g)(const char *, ...); };",
    );
    let source = format!("# 1 \"s.c\"\n{source}");
    let full = dwarf::read(&object(&source, &[])).expect("described");
    let early = types(&source);
    assert_eq!(early, full);
    assert_eq!(early.enumerators["B"].value, -1);
    let text = serde_json::to_string(&early).expect("written");
    assert_eq!(serde_json::from_str::<Types>(&text).expect("read"), early);
}

#[test]
fn damaged_information_is_an_error() {
    let whole = object(&using("struct s { int a; };"), EARLY);
    assert!(dwarf::read(&object("int x;", &["-g0"])).is_err());
    for length in (0..whole.len()).step_by(7) {
        let _ = dwarf::read(&whole[..length]);
        let mut bytes = whole.clone();
        bytes[length] ^= 0x55;
        let _ = dwarf::read(&bytes);
    }
}

#[test]
fn a_type_that_has_another_name_is_what_there_was() {
    // Nothing names the type of what is in memory.
    let using = |declaration: &str, name: &str| {
        format!("{declaration}\nlong f(void *p) {{ return ((struct {name} *)p)->b; }}\n")
    };
    let old = using("struct old {\n int a; int b; long c; };", "old");
    let swapped = using("struct new {\n int b; int a; long c; };", "new");
    let (refused, _) = findings(&[(&old, &swapped)], &[]);
    let moved = "has a at byte 4 instead of 0, has b at byte 0 instead of 4";
    assert_eq!(
        refused,
        [format!("struct old, which is struct new now, {moved}")]
    );
    let (refused, _) = findings(&[(&old, &swapped)], &["old"]);
    assert!(refused.is_empty());
    let same = using("struct new {\n int a; int b; long c; };", "new");
    assert_eq!(findings(&[(&old, &same)], &[]), (Vec::new(), Vec::new()));
    // Both are there.
    let both = using(
        "struct old {\n int a; int b; long c; };\nstruct new {\n int b; };",
        "new",
    );
    assert_eq!(findings(&[(&old, &both)], &[]), (Vec::new(), Vec::new()));
    // It has little in common with the old one.
    let other = using("struct new {\n long x, y, z, b; };", "new");
    assert_eq!(findings(&[(&old, &other)], &[]), (Vec::new(), Vec::new()));
}

#[test]
fn a_member_that_only_has_another_name_is_the_same() {
    let using = |members: &str, user: &str| {
        format!("struct s {{\n{members}\n}};\nlong f(struct s *s)\n{{\n{user}\n}}\n")
    };
    let old = using("int a;\nlong c;", "return s->a;");
    let renamed = using("int b;\nlong c;", "return s->b;");
    assert_eq!(findings(&[(&old, &renamed)], &[]), (Vec::new(), Vec::new()));
    for (members, user) in [
        ("unsigned int b;\nlong c;", "return s->b;"),
        ("int b;\nlong c;", "return -s->b;"),
    ] {
        let (refused, _) = findings(&[(&old, &using(members, user))], &[]);
        assert_eq!(refused, ["struct s has b where a was"]);
    }
    let moved = using("long c;\nint b;", "return s->b;");
    let (refused, _) = findings(&[(&old, &moved)], &[]);
    let words = "struct s has c at byte 0 instead of 8, has b at byte 8 instead of 0";
    assert_eq!(refused, [words]);
}
