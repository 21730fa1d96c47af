// SPDX-License-Identifier: MIT OR Apache-2.0
//! References into sections that several variables share lead to the variable
//! that the source means, or reading fails.

use std::process::Command;
use xsplice_objdiff::object::{Class, Object, ReadError, Target};
use xsplice_objdiff::shared::{needs_witness, variables};
use xsplice_objdiff::{Kind, SymbolName, compare};

const SHARED: &str = "#define SHARED __attribute__((section(\".data.read_mostly\")))\n\
    extern void use(const volatile void *);\n";

/// Assembles `text`, with the symbols `global` declared so.
fn build(text: &str, extension: &str, global: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let (source, list, output) = (at(&format!("x.{extension}")), at("list.s"), at("x.o"));
    std::fs::write(&source, text).expect("written");
    std::fs::write(&list, global).expect("written");
    let status = Command::new("gcc")
        .args(["-O2", "-pipe", "-fpic", "-fno-toplevel-reorder"])
        .args(["-ffunction-sections", "-fdata-sections", "-c", "-o"])
        .args([&output, &source])
        .arg(format!("-Wa,{},-", list.display()))
        .status();
    assert!(status.expect("this test needs gcc").success(), "{text}");
    std::fs::read(&output).expect("compiled")
}

struct Source<'a>(&'a str, &'a str);

impl Source<'_> {
    fn plain(&self) -> Object {
        Object::read("x.o", &build(self.0, self.1, "")).expect("an object")
    }

    fn witnessed(&self) -> Result<Object, ReadError> {
        let plain = self.plain();
        let names = variables(&plain).into_iter();
        let globals: String = names.map(|name| format!(".globl \"{name}\"\n")).collect();
        let witness = build(self.0, self.1, &globals);
        Object::read_with("x.o", &build(self.0, self.1, ""), &witness)
    }
}

/// What the fields of `name` lead to in data, as name and offset.
fn leads_to(object: &Object, name: &str) -> Vec<(SymbolName, i64)> {
    let symbol = object.symbols.iter().find(|s| s.name == name);
    let symbol = symbol.unwrap_or_else(|| panic!("no symbol {name}"));
    let fields = object.relocations(symbol.span());
    let mut found: Vec<(SymbolName, i64)> = fields
        .iter()
        .filter_map(|field| match field.reference.target {
            Target::Symbol(index) => {
                let target = &object.symbols[index];
                let data = object.sections[target.section].class == Class::Data;
                data.then(|| (target.name.clone(), field.reference.offset))
            }
            _ => None,
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

fn named(places: &[(&str, i64)]) -> Vec<(SymbolName, i64)> {
    places.iter().map(|&(name, at)| (name.into(), at)).collect()
}

const NEXT: &str = "static long SHARED next[8]; long *get(int i) { use(next); return &next[i]; }\n";
const ARRAY: &str = "static long SHARED array[4];\n";

fn with(array: &str, user: &str) -> String {
    format!("{SHARED}{NEXT}{array}{user}")
}

#[test]
fn a_place_at_the_edge_of_an_array_belongs_to_it() {
    let cases = [
        (
            "void f(void) { long *p = array + 4; do use(--p); while ( p > array ); }",
            vec![("array", 32)],
        ),
        (
            "void f(void) { for ( long *p = array; p < array + 4; p++ ) use(p); }",
            vec![("array", 0)],
        ),
        ("long *f(void) { return array - 1; }", vec![("array", -8)]),
        (
            "long *f(void) { return array - 97; }",
            vec![("array", -97 * 8)],
        ),
        ("long *f(void) { return array + 40; }", vec![("array", 320)]),
        ("long *const f[] = { array + 4, array, next, next + 8 };", {
            vec![("array", 0), ("array", 32), ("next", 0), ("next", 64)]
        }),
    ];
    let original = with("", "void f(void) {}");
    for (user, expected) in cases {
        let patched = with(ARRAY, user);
        let (original, patched) = (Source(&original, "c"), Source(&patched, "c"));
        let comparison = compare(&original.plain(), &patched.plain());
        assert!(needs_witness(
            &original.plain(),
            &patched.plain(),
            &comparison
        ));
        let read = patched.witnessed().expect("the witness tells");
        assert_eq!(leads_to(&read, "f"), named(&expected), "{user}");
        assert_eq!(leads_to(&read, "get"), named(&[("next", 0)]), "{user}");
    }
}

#[test]
fn where_nothing_moves_no_witness_is_needed() {
    let user = "long f(long i) { return array[i - 1]; }";
    let original = with(ARRAY, user);
    let patched = original.replace("i - 1", "i - 2");
    let objects = (
        Source(&original, "c").plain(),
        Source(&patched, "c").plain(),
    );
    let comparison = compare(&objects.0, &objects.1);
    assert_eq!(comparison.changes.len(), 1);
    assert!(!needs_witness(&objects.0, &objects.1, &comparison));
}

#[test]
fn an_order_that_changes_is_no_change_and_hides_none() {
    let (a, b) = (
        "static long SHARED a[4] = { 1 };",
        "static long SHARED b[4] = { 2 };",
    );
    let user = "long *end(void) { use(a); use(b); return a + 4; }";
    let original = format!("{SHARED}{a}{b}static long SHARED c[4] = {{ 3 }}; void *g = c; {user}");
    let reordered = format!("{SHARED}{b}{a}static long SHARED c[4] = {{ 3 }}; void *g = c; {user}");
    let changed = reordered.replace("return a + 4", "return b + 4");
    let compared = |patched: &str| {
        let (original, patched) = (Source(&original, "c"), Source(patched, "c"));
        let plain = (original.plain(), patched.plain());
        assert!(needs_witness(
            &plain.0,
            &plain.1,
            &compare(&plain.0, &plain.1)
        ));
        let read = |source: &Source| source.witnessed().expect("the witness tells");
        let comparison = compare(&read(&original), &read(&patched));
        let changes = comparison.changes.iter();
        changes
            .map(|c| (c.kind, c.name.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(compared(&reordered), []);
    assert_eq!(compared(&changed), [(Kind::Function, "end".into())]);
}

const ASSEMBLY: &str = ".section .data.read_mostly,\"aw\"\nfirst: .quad 1, 2\n.size first, . - first\n\
    .type first, @object\nEND\nsecond: .quad 3\n.size second, . - second\n.type second, @object\n\
    .text\n.globl f\n.type f, @function\nf: lea WHAT(%rip), %rax\n ret\n.size f, . - f\n";

#[test]
fn assembly_names_what_it_means_or_is_refused() {
    let text = ASSEMBLY.replace("END", "").replace("WHAT", "first + 16");
    let read = Source(&text, "S").witnessed().expect("the witness tells");
    assert_eq!(leads_to(&read, "f"), named(&[("first", 16)]));
    let text = ASSEMBLY.replace("END", ".Lend:").replace("WHAT", ".Lend");
    let error = Source(&text, "S")
        .witnessed()
        .expect_err("either could be meant");
    assert!(matches!(error, ReadError::Doubtful { .. }), "{error}");
    assert!(error.to_string().contains(".data.read_mostly"), "{error}");
}

#[test]
fn a_witness_of_another_source_tells_nothing() {
    let source = with(ARRAY, "long *f(void) { return array - 1; }");
    let other = build(
        &source.replace("array - 1", "array - 2"),
        "c",
        ".globl array\n.globl next\n",
    );
    let read = Object::read_with("x.o", &build(&source, "c", ""), &other);
    assert!(matches!(read, Err(ReadError::Doubtful { .. })));
}
