// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small programs in `programs/`, each built twice, the second time with
//! `-DPATCHED`: the payload makes the running program return what the patched
//! one would, or is refused in the right words.
//!
//! A program is one file or, where a line `// FILE: name` begins another,
//! several. One of them defines `long call(void)`. The other comments:
//!
//! ```text
//! // BEFORE: 1 2        what successive calls return before the payload is applied
//! // AFTER: 3 4         while it is applied
//! // BACK: 3            when it is reverted
//! // REFUSED: words     of the refusal, in place of AFTER and BACK
//! // WARNING: words     of a warning
//! // FLAGS: -O3         flags on top of the usual ones
//! ```

mod common;

use common::{FLAGS, LINK, run};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use xsplice_engine::{Action, Engine, Options, Policy};
use xsplice_generator::below::Below;
use xsplice_generator::choice::Choices;
use xsplice_generator::patch::Edits;
use xsplice_generator::payload::Identity;
use xsplice_generator::select::{Homes, Rules, Selection, select};
use xsplice_generator::tree::ObjectFile;
use xsplice_generator::unit::{Unit, Units};
use xsplice_host_process::Machine;
use xsplice_objdiff::{Object, compare};
use xsplice_xen_image::Image;

const DRIVER: &str = "long call(void);\n\
    unsigned long hypercall(unsigned long n, unsigned long a, unsigned long b)\n\
    { return call() + n + a + b; }\n";

struct Program {
    files: Vec<(String, String)>,
    text: String,
}

impl Program {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("a program");
        let mut files = vec![("main.c".to_owned(), String::new())];
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("// FILE: ") {
                files.push((name.to_owned(), String::new()));
            }
            if let Some((_, file)) = files.last_mut() {
                file.push_str(line);
                file.push('\n');
            }
        }
        Self { files, text }
    }

    fn values(&self, key: &str) -> Vec<i64> {
        let found = self.lines(key).flat_map(str::split_whitespace);
        found.map(|word| word.parse().expect("a number")).collect()
    }

    fn lines<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        let start = format!("// {key}: ");
        self.text
            .lines()
            .filter_map(move |line| line.strip_prefix(&start))
    }

    /// Both versions of every file, and the original linked.
    fn build(&self, directory: &Path) -> (Vec<Unit>, Vec<u8>) {
        let at = |name: &str| directory.join(name);
        std::fs::write(at("driver.c"), DRIVER).expect("written");
        self.compile(&at("driver.c"), &at("driver.o"), &[]);
        let mut link = Command::new("gcc");
        link.args(LINK)
            .arg("-o")
            .args([at("image"), at("driver.o")]);
        let mut units = Vec::new();
        for (name, text) in &self.files {
            std::fs::write(at(name), text).expect("written");
            let [original, patched] = [&[][..], &["-DPATCHED"]].map(|defines| {
                let output = at(&format!("{name}{}.o", defines.concat()));
                self.compile(&at(name), &output, defines);
                Object::read(name, &std::fs::read(output).expect("made")).expect("an object")
            });
            link.arg(at(&format!("{name}.o")));
            units.push(Unit {
                file: ObjectFile {
                    path: name.replace(".c", ".o"),
                    command: String::new(),
                    output: String::new(),
                    source: name.clone(),
                    dependencies: BTreeSet::new(),
                },
                comparison: compare(&original, &patched),
                original,
                patched,
                stages: Vec::new(),
            });
        }
        run(&mut link);
        units.retain(|unit| !unit.comparison.is_empty());
        (units, std::fs::read(at("image")).expect("made"))
    }

    fn compile(&self, source: &Path, output: &Path, defines: &[&str]) {
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-w"]).args(FLAGS).args(defines);
        gcc.args(self.lines("FLAGS").flat_map(str::split_whitespace));
        run(gcc.args(["-c", "-o"]).args([output, source]));
    }
}

fn selection(units: &[Unit], image: &Image) -> Result<Selection, String> {
    let none = Choices::default();
    let rules = Rules {
        prelink: false,
        leave_out: &none,
        leave_out_init: false,
        patch_data: &none,
        allow: &none,
        edits: &Edits::default(),
    };
    let below = Below::read(&[]).expect("nothing");
    let homes = Homes::new(Units::new(units), &below.levels, image);
    let selection = homes.and_then(|homes| select(homes, &below, &rules));
    selection.map_err(|problems| {
        let words = problems.iter().map(ToString::to_string);
        words.collect::<Vec<_>>().join("\n")
    })
}

/// Successive results of the running program.
fn expect(engine: &Engine<Machine>, expected: &[i64], when: &str) {
    let host = engine.host();
    let found: Vec<i64> = expected.iter().map(|_| host.hypercall(0, 0, 0)).collect();
    assert_eq!(found, expected, "{when}");
}

fn check(path: &Path) {
    let program = Program::read(path);
    let directory = tempfile::tempdir().expect("a directory");
    let (units, image) = program.build(directory.path());
    let hypervisor = Image::parse(&image).expect("an image");
    let refused: Vec<&str> = program.lines("REFUSED").collect();
    let machine = Machine::new(&image, 1).unwrap_or_else(|error| panic!("{error}"));
    let mut engine = Engine::new(machine, Policy::Stock);
    expect(&engine, &program.values("BEFORE"), "before");
    let selected = selection(&units, &hypervisor);
    if !refused.is_empty() {
        let Err(words) = selected else {
            panic!("it is to be refused");
        };
        for expected in refused {
            assert!(words.contains(expected), "{words}");
        }
        return;
    }
    let selected = selected.unwrap_or_else(|words| panic!("{words}"));
    for words in program.lines("WARNING") {
        let mut warnings = selected.warnings.iter().map(ToString::to_string);
        assert!(
            warnings.any(|w| w.contains(words)),
            "{:?}",
            selected.warnings
        );
    }
    assert_eq!(
        program.lines("WARNING").count(),
        selected.warnings.len(),
        "{:?}",
        selected.warnings
    );
    let identity = Identity {
        hypervisor: hypervisor.build_id(),
        depends: hypervisor.build_id(),
        metadata: &[],
        record: &serde_json::Value::Null,
    };
    let payload = selected.draft.write(&identity).expect("a payload");
    if let Err(refusal) = engine.upload("test", &payload) {
        panic!("{refusal}");
    }
    let patient = || Options {
        timeout: 4_000_000_000,
        ..Options::default()
    };
    engine
        .act("test", Action::Apply, patient())
        .expect("applied");
    let after = program.values("AFTER");
    assert!(
        !after.is_empty(),
        "it says nothing of what the payload does"
    );
    expect(&engine, &after, "while it is applied");
    engine
        .act("test", Action::Revert, patient())
        .expect("reverted");
    expect(&engine, &program.values("BACK"), "when it is reverted");
}

#[test]
fn every_program_does_what_it_says() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    let only = std::env::var("XSPLICE_PROGRAM").unwrap_or_default();
    let mut paths: Vec<_> = std::fs::read_dir(directory)
        .expect("programs")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.display().to_string().contains(&only))
        .collect();
    paths.sort();
    let failed: Vec<_> = paths
        .iter()
        .filter(|path| {
            println!("{}", path.display());
            std::panic::catch_unwind(|| check(path)).is_err()
        })
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
}
