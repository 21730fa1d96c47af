// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds each file of `fixtures/` twice, the second time with `-DPATCHED`,
//! and audits the comparison for exactly the differences that the file expects.
//!
//! Every file is built with gcc and with clang, for x86-64, ARM64 and ARM32, at `-O1`, `-O2`
//! and `-O3`, with the flags by which Xen's own build compiles code. Comments in it say:
//!
//! ```text
//! // EXPECT changed: f, g       functions that differ
//! // EXPECT new: h              symbols that only the patched build has
//! // EXPECT same: k, count*2    symbols that are matched and equal
//! // EXPECT matched: k by use   how a symbol is matched
//! // FLAGS: -fjump-tables       flags on top of Xen's
//! // ONLY: gcc -O2              builds other than these say nothing
//! // NOT: arm64                 nor do these
//! // PRESENT: f.cold            symbols without which the fixture is pointless
//! ```
//!
//! The other kinds of change are `removed`, `data`, `constant`, `resized`,
//! `init`, `unsized`, `misplaced`, `alignment`, `elsewhere` and `renamed`; what is expected under
//! none of them must not differ.
//! Names are those of the source: `f.isra.0` is `f`, and `f.part.1.cold` is
//! `f.part.cold`. `name*2` stands for two symbols of that name. `EXPECT(gcc)`,
//! `EXPECT(clang -O1)` and so on hold for those builds only; `gcc` and `clang` are those
//! for x86-64, `arm64` and `clang-arm64` those for ARM64, and `arm32` and `clang-arm32` those
//! for ARM32.

use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_objdiff::{Comparison, Kind, Object, SymbolName, compare};

const COMPILERS: [&str; 6] = ["gcc", "clang", ARM64, CLANG_ARM64, ARM32, CLANG_ARM32];
const ARM64: &str = "arm64";
const CLANG_ARM64: &str = "clang-arm64";
const ARM32: &str = "arm32";
const CLANG_ARM32: &str = "clang-arm32";
const LEVELS: [&str; 3] = ["-O1", "-O2", "-O3"];

/// What Xen's build gives to every compiler.
const FLAGS: [&str; 9] = [
    "-std=gnu99",
    "-nostdinc",
    "-fno-builtin",
    "-fno-common",
    "-fno-strict-aliasing",
    "-fomit-frame-pointer",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-stack-protector",
];

/// What Xen's build gives to compilers for ARM64.
const ARM64_FLAGS: [&str; 5] = [
    "-mcpu=generic",
    "-mgeneral-regs-only",
    "-mno-outline-atomics",
    "-fno-pie",
    "-fno-asynchronous-unwind-tables",
];

/// What Xen's build gives to compilers for ARM32.
const ARM32_FLAGS: [&str; 6] = [
    "-marm",
    "-msoft-float",
    "-mcpu=cortex-a15",
    "-fno-pie",
    "-fno-exceptions",
    "-fno-asynchronous-unwind-tables",
];

/// What Xen's build gives to compilers for x86-64.
const X86_FLAGS: [&str; 8] = [
    "-fno-jump-tables",
    "-fno-asynchronous-unwind-tables",
    "-fpic",
    "-fshort-wchar",
    "-mno-red-zone",
    "-mno-sse",
    "-msoft-float",
    "-fcf-protection=branch",
];

/// What Xen's build gives to gcc only: thunks for indirect branches.
const GCC_FLAGS: [&str; 6] = [
    "-mindirect-branch=thunk-extern",
    "-mindirect-branch-register",
    "-mfunction-return=thunk-extern",
    "-mmanual-endbr",
    "-mskip-rax-setup",
    "-mpreferred-stack-boundary=3",
];

/// What Xen's build gives to clang only.
const CLANG_FLAGS: [&str; 3] = [
    "-mretpoline-external-thunk",
    "-mstack-alignment=8",
    "-Wno-unused-command-line-argument",
];

/// What clang for ARM64 is given.
const CLANG_ARM64_FLAGS: [&str; 1] = ["--target=aarch64-linux-gnu"];

/// What clang for ARM32 is given, so that it does as gcc: no unwind tables for C, and at
/// `-O3`, which Xen's build does not use, each variable in a section of its own.
const CLANG_ARM32_FLAGS: [&str; 3] = [
    "--target=arm-linux-gnueabihf",
    "-fno-unwind-tables",
    "-mno-global-merge",
];

/// A way to build a fixture.
#[derive(Clone, Copy)]
struct Build {
    compiler: &'static str,
    level: &'static str,
}

impl Build {
    /// Whether `qualifier`, such as `gcc -O2`, speaks of this build.
    fn is(self, qualifier: &str) -> bool {
        let words: Vec<&str> = qualifier.split_whitespace().collect();
        let fits =
            |all: &[&str], own| !words.iter().any(|w| all.contains(w)) || words.contains(&own);
        fits(&COMPILERS, self.compiler) && fits(&LEVELS, self.level)
    }

    fn object(self, fixture: &Fixture, patched: bool) -> Result<Object, String> {
        let directory = tempfile::tempdir().expect("a directory");
        let output = directory.path().join("fixture.o");
        let (program, machine, own) = match self.compiler {
            "gcc" => ("gcc", &X86_FLAGS[..], &GCC_FLAGS[..]),
            "clang" => ("clang", &X86_FLAGS[..], &CLANG_FLAGS[..]),
            ARM64 => ("aarch64-linux-gnu-gcc", &ARM64_FLAGS[..], &[][..]),
            CLANG_ARM64 => ("clang", &ARM64_FLAGS[..], &CLANG_ARM64_FLAGS[..]),
            ARM32 => ("arm-linux-gnueabihf-gcc", &ARM32_FLAGS[..], &[][..]),
            _ => ("clang", &ARM32_FLAGS[..], &CLANG_ARM32_FLAGS[..]),
        };
        let mut compiler = Command::new(program);
        compiler.args(FLAGS).arg(self.level);
        compiler.args(machine).args(own);
        compiler
            .args(&fixture.flags)
            .args(patched.then_some("-DPATCHED"));
        let ran = compiler
            .args(["-Wall", "-Werror", "-c", "-o"])
            .args([&output, &fixture.path])
            .output()
            .unwrap_or_else(|e| panic!("these tests need {program}: {e}"));
        if !ran.status.success() {
            let why = String::from_utf8_lossy(&ran.stderr).into_owned();
            return Err(format!("it does not compile: {why}"));
        }
        let path = fixture.path.display().to_string();
        let bytes = std::fs::read(&output).map_err(|e| e.to_string())?;
        Object::read(&path, &bytes).map_err(|e| e.to_string())
    }
}

/// A source file with what it says about itself.
struct Fixture {
    path: PathBuf,
    flags: Vec<String>,
    /// Qualifier, kind of expectation, names.
    expectations: Vec<(String, String, String)>,
    only: String,
    not: Option<String>,
    present: Vec<String>,
}

impl Fixture {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("a fixture");
        let mut fixture = Self {
            path: path.to_owned(),
            flags: Vec::new(),
            expectations: Vec::new(),
            only: String::new(),
            not: None,
            present: Vec::new(),
        };
        for line in text.lines().filter_map(|l| l.strip_prefix("// ")) {
            let Some((word, rest)) = line.split_once(':') else {
                continue;
            };
            let rest = rest.trim().to_owned();
            match word {
                "FLAGS" => fixture
                    .flags
                    .extend(rest.split_whitespace().map(str::to_owned)),
                "ONLY" => fixture.only = rest,
                "NOT" => fixture.not = Some(rest),
                "PRESENT" => fixture.present.extend(list(&rest).map(str::to_owned)),
                _ => {
                    let Some(kind) = word.strip_prefix("EXPECT") else {
                        continue;
                    };
                    let (qualifier, kind) = kind.rsplit_once(' ').expect("EXPECT and a kind");
                    assert!(KINDS.contains(&kind), "no kind of change: {kind}");
                    let qualifier = qualifier.trim_matches(['(', ')']).to_owned();
                    fixture
                        .expectations
                        .push((qualifier, kind.to_owned(), rest));
                }
            }
        }
        assert!(
            !fixture.expectations.is_empty(),
            "{} expects nothing",
            path.display()
        );
        fixture
    }

    fn expected<'a>(&'a self, build: Build, kind: &'a str) -> impl Iterator<Item = &'a str> {
        self.expectations
            .iter()
            .filter(move |(qualifier, k, _)| k == kind && build.is(qualifier))
            .flat_map(|(_, _, names)| list(names))
    }

    /// What is wrong with the comparison of the two builds.
    fn audit(&self, build: Build) -> Result<Vec<String>, String> {
        let (original, patched) = (build.object(self, false)?, build.object(self, true)?);
        let mut wrong = Vec::new();
        for object in [&original, &patched] {
            let own = compare(object, object).changes;
            wrong.extend(own.iter().map(|c| format!("differs from itself: {c:?}")));
        }
        for name in &self.present {
            let has = |o: &Object| o.symbols.iter().any(|s| s.name.starts_with(name.as_str()));
            if !has(&original) && !has(&patched) {
                wrong.push(format!("no build has {name}"));
            }
        }
        let comparison = compare(&original, &patched);
        let mut found = Found::new(&comparison, &patched);
        for kind in KINDS {
            let found = found.0.remove(kind).unwrap_or_default();
            wrong.extend(self.differences(build, kind, &found, &comparison));
        }
        Ok(wrong)
    }

    /// Where what was found of one kind is not what is expected.
    fn differences(
        &self,
        build: Build,
        kind: &str,
        found: &BTreeMap<String, usize>,
        comparison: &Comparison,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        let expected: BTreeMap<String, usize> = self
            .expected(build, kind)
            .map(|name| match name.split_once('*') {
                Some((name, count)) => (name.to_owned(), count.parse().expect("a number")),
                None => (name.to_owned(), 1),
            })
            .collect();
        for (name, count) in &expected {
            if found.get(name).is_none_or(|found| found != count) {
                wrong.push(format!("{kind}: {name}*{count} expected, found {found:?}"));
            }
        }
        // A fixture need not list everything that is the same.
        let complete = !["same", "matched"].contains(&kind);
        let found = found.keys().filter(|_| complete);
        for name in found.filter(|name| !expected.contains_key(*name)) {
            let changes = comparison.changes.iter();
            let all = changes.filter(|c| in_source(&c.name) == *name);
            let why: Vec<String> = all.map(|c| format!("{}: {}", c.name, c.why)).collect();
            wrong.push(format!("{kind}: {name} not expected ({})", why.join("; ")));
        }
        wrong
    }
}

/// Every kind that a fixture can expect.
const KINDS: [&str; 14] = [
    "changed",
    "new",
    "removed",
    "data",
    "constant",
    "resized",
    "init",
    "unsized",
    "misplaced",
    "alignment",
    "elsewhere",
    "renamed",
    "same",
    "matched",
];

/// What a comparison found: by kind, how often each name.
struct Found(BTreeMap<&'static str, BTreeMap<String, usize>>);

impl Found {
    fn new(comparison: &Comparison, patched: &Object) -> Self {
        let mut found = Self(BTreeMap::new());
        for change in &comparison.changes {
            found.add(word(change.kind), in_source(&change.name));
        }
        for (index, symbol) in patched.symbols.iter_enumerated() {
            // What has another name is what it was.
            let mut changes = comparison.changes.iter();
            let changed = changes.any(|c| c.patched == Some(index) && c.kind != Kind::Renamed);
            if let Some(pair) = comparison.correlation.get(index)
                && !changed
            {
                let name = in_source(&symbol.name);
                found.add("matched", format!("{name} by {}", pair.by));
                found.add("same", name);
            }
        }
        found
    }

    fn add(&mut self, kind: &'static str, what: String) {
        *self.0.entry(kind).or_default().entry(what).or_default() += 1;
    }
}

fn list(names: &str) -> impl Iterator<Item = &str> {
    names.split(',').map(str::trim).filter(|n| !n.is_empty())
}

/// The name that the source has, and the part of it: clang puts the function's
/// name before that of a static local variable.
fn in_source(name: &SymbolName) -> String {
    let role = name.role();
    let whole = name.in_source();
    if role != whole || name.starts_with('.') {
        return role;
    }
    whole.rsplit('.').next().unwrap_or(whole).to_owned()
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Function => "changed",
        Kind::Added => "new",
        Kind::Removed => "removed",
        Kind::Data => "data",
        Kind::Constant => "constant",
        Kind::Resized => "resized",
        Kind::Init => "init",
        Kind::Unsized => "unsized",
        Kind::Misplaced => "misplaced",
        Kind::Alignment => "alignment",
        Kind::Elsewhere => "elsewhere",
        Kind::Renamed => "renamed",
    }
}

#[test]
fn every_fixture_differs_exactly_as_it_says() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)
        .expect("the fixtures")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "c" || e == "S"))
        .collect();
    paths.sort();
    let fixtures: Vec<Fixture> = paths.iter().map(|path| Fixture::read(path)).collect();
    let mut pairs = Vec::new();
    for fixture in &fixtures {
        for compiler in COMPILERS {
            let builds = LEVELS.map(|level| Build { compiler, level });
            let wanted = builds.into_iter().filter(|b| {
                let not = fixture.not.as_ref();
                b.is(&fixture.only) && not.is_none_or(|not| !b.is(not))
            });
            pairs.extend(wanted.map(|build| (fixture, build)));
        }
    }
    let wrong: Vec<String> = pairs
        .par_iter()
        .flat_map(|(fixture, build)| {
            let file = fixture.path.file_name().unwrap_or_default().display();
            let found = fixture.audit(*build).unwrap_or_else(|why| vec![why]);
            let told = |w| format!("{file} {} {}: {w}", build.compiler, build.level);
            found.into_iter().map(told).collect::<Vec<_>>()
        })
        .collect();
    println!(
        "{} fixtures, {} pairs of builds audited",
        paths.len(),
        pairs.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
