// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random changes of random programs: the payload makes the running program
//! behave as the changed one, with what it remembers, and when it is taken out
//! as the original. So do a second payload on top of the first, and a third.
//!
//! A program is C and an interpreter of the same (`program.rs`); `edit.rs`
//! changes it as patches do. All versions are compiled, by gcc or clang with
//! random optimisation. The original is linked and runs in this process
//! (`xsplice-host-process`); the objects are compared, and payloads are selected,
//! written and applied while it runs. What the calls return is
//! compared with the interpreter before, while and after the payload is applied.
//!
//! If nothing differs in the objects, both versions must behave the same.
//! Refusals are counted: there may be few. So are patches after which nothing
//! writes a variable: the compiler then takes its initial value for it, which
//! the running program may have changed. The other way round, an original that
//! takes the initial value for a variable does so again after the payload is
//! reverted, whatever the payload made of it.
//!
//! The cases are the same in every run. `XSPLICE_CASES=1000` takes as many
//! others, other ones in every run.

mod choices;
#[path = "../common/mod.rs"]
mod common;
mod edit;
mod program;

use choices::Choices;
use common::{FLAGS, LINK, run};
use program::{ENTRIES, Memory, Program};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_engine::{Action, Engine, Options, Policy};
use xsplice_generator::below::Below;
use xsplice_generator::patch::Edits;
use xsplice_generator::payload::Identity;
use xsplice_generator::select::{Homes, Rules, select};
use xsplice_generator::tree::ObjectFile;
use xsplice_generator::unit::{Stage, Unit, Units};
use xsplice_host_process::Machine;
use xsplice_objdiff::object::{Class, SymbolIx};
use xsplice_objdiff::{Kind, Object, compare};
use xsplice_xen_image::Image;

const CASES: u32 = 80;

/// How often each entry is called between two actions.
const CALLS: u64 = 8;

/// A program, the same after one patch, two and three, and how all are compiled.
struct Case {
    versions: [Program; 4],
    compiler: &'static str,
    flags: [&'static str; 2],
}

/// What a failure is reported with.
impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} {:?}", self.compiler, self.flags)?;
        let mut versions = self.versions.iter().enumerate();
        versions
            .try_for_each(|(patches, version)| write!(f, "\n/* {patches} patches */\n{version}"))
    }
}

impl Case {
    fn random(numbers: Vec<u32>) -> Self {
        let mut choices = Choices::new(numbers);
        let compiler = ["gcc", "clang"][choices.index(2)];
        let level = ["-O2", "-O1", "-O3", "-Os"][choices.index(4)];
        let tables = ["-fno-jump-tables", "-fjump-tables"][choices.index(2)];
        // Drawn first, so that every case has some.
        let [first, second, third] = [(); 3].map(|()| -> Vec<Vec<u32>> {
            let edits = choices.between(1, 4);
            let numbers = |_| (0..16).map(|_| choices.below(u32::MAX)).collect();
            (0..edits).map(numbers).collect()
        });
        let original = Program::random(&mut choices);
        let patch = |program: &Program, edits: Vec<Vec<u32>>| {
            let mut patched = program.clone();
            for numbers in edits {
                edit::edit(&mut Choices::new(numbers), &mut patched);
            }
            patched
        };
        let patched = patch(&original, first);
        let again = patch(&patched, second);
        let at_last = patch(&again, third);
        Self {
            versions: [original, patched, again, at_last],
            compiler,
            flags: [level, tables],
        }
    }

    fn compile(&self, source: &Path, output: &Path) {
        let mut compiler = Command::new(self.compiler);
        compiler
            .args(FLAGS)
            .args(self.flags)
            .args(["-w", "-c", "-o"]);
        run(compiler.args([output, source]));
    }

    /// The objects of all versions, and the hypervisor that has the first.
    fn build(&self, directory: &Path) -> (Vec<Object>, Vec<u8>) {
        let at = |name: &str| directory.join(name);
        let read = |name: &str| std::fs::read(at(name)).expect("made");
        std::fs::write(at("driver.c"), include_str!("hypervisor.c")).expect("written");
        self.compile(&at("driver.c"), &at("driver.o"));
        let mut objects = Vec::new();
        for version in &self.versions {
            // The same names for all: they are in the symbol table.
            std::fs::write(at("program.c"), version.to_string()).expect("written");
            self.compile(&at("program.c"), &at("program.o"));
            if objects.is_empty() {
                let mut link = Command::new("gcc");
                link.args(LINK).arg("-o");
                run(link.args([at("image"), at("driver.o"), at("program.o")]));
            }
            objects.push(Object::read("program.o", &read("program.o")).expect("an object"));
        }
        (objects, read("image"))
    }
}

/// What came of a patch.
enum Outcome {
    /// A payload, and whether it brings variables.
    Payload(Vec<u8>, bool),
    Nothing,
    Refused(String),
    /// The patched object lacks a variable of the original.
    Forgets,
}

/// The step from the last but one of `objects` to the last, above `levels` others.
fn unit(objects: &[Object], levels: usize) -> Unit {
    let [.., original, patched] = objects else {
        panic!("a step has two ends")
    };
    let stages = (0..levels).map(|level| Stage {
        level,
        comparison: compare(&objects[level], &objects[level + 1]),
        object: objects[level].clone(),
    });
    Unit {
        file: ObjectFile {
            path: "program.o".to_owned(),
            command: String::new(),
            output: "program.o".to_owned(),
            source: "program.c".to_owned(),
            dependencies: BTreeSet::new(),
        },
        comparison: compare(original, patched),
        stages: stages.collect(),
        original: original.clone(),
        patched: patched.clone(),
    }
}

/// Makes a payload of the step from the last but one of `objects` to the last,
/// on top of the payloads `below`.
fn generate(objects: &[Object], image: &[u8], below: &[PathBuf]) -> Outcome {
    let unit = unit(objects, below.len());
    if unit.comparison.is_empty() {
        return Outcome::Nothing;
    }
    let changes = || unit.comparison.changes.iter();
    let is_variable = |object: &Object, index: Option<SymbolIx>| {
        let section = index.map(|index| object.symbols[index].section);
        section.is_some_and(|at| matches!(object.sections[at].class, Class::Data | Class::Bss))
    };
    if changes().any(|c| c.kind == Kind::Removed && is_variable(&unit.original, c.original)) {
        return Outcome::Forgets;
    }
    let brings_variables =
        changes().any(|c| c.kind == Kind::Added && is_variable(&unit.patched, c.patched));
    let image = Image::parse(image).expect("an image");
    let none = xsplice_generator::choice::Choices::default();
    let rules = Rules {
        prelink: false,
        leave_out: &none,
        leave_out_init: false,
        patch_data: &none,
        allow: &none,
        edits: &Edits::default(),
    };
    let below = Below::read(below).expect("payloads");
    let units = [unit];
    let homes = Homes::new(Units::new(&units), &below.levels, &image);
    let selection = match homes.and_then(|homes| select(homes, &below, &rules)) {
        Ok(selection) if selection.replaced.is_empty() => return Outcome::Nothing,
        Ok(selection) => selection,
        Err(problems) => return Outcome::Refused(format!("{problems:?}")),
    };
    let identity = Identity {
        hypervisor: image.build_id(),
        depends: below.build_id().unwrap_or(image.build_id()),
        metadata: &[],
        record: &serde_json::Value::Null,
    };
    let payload = selection.draft.write(&identity).expect("a payload");
    Outcome::Payload(payload, brings_variables)
}

/// A hypervisor and what it is to do.
struct Run {
    engine: Engine<Machine>,
    memory: Memory,
    calls: u64,
}

impl Run {
    /// Calls every entry, and expects of each what `program` says.
    fn expect(&mut self, program: &Program, when: &str) {
        self.memory.load(program);
        for _ in 0..CALLS {
            self.calls += 1;
            let x = self.calls.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (self.calls % 61);
            for entry in 0..ENTRIES {
                let expected = self.memory.enter(program, entry, x);
                let found = self.engine.host().hypercall(entry.into(), x, 0);
                assert_eq!(
                    found.cast_unsigned(),
                    expected,
                    "entry{entry}({x}) {when}, call {}",
                    self.calls
                );
            }
        }
    }

    fn act(&mut self, name: &str, action: Action) {
        let patient = Options {
            timeout: 4_000_000_000,
            ..Options::default()
        };
        if let Err(failure) = self.engine.act(name, action, patient) {
            panic!("{action} {name}: {failure}");
        }
    }
}

fn check(case: &Case, counted: &RefCell<BTreeMap<String, u32>>) {
    let directory = tempfile::tempdir().expect("a directory");
    let (objects, image) = case.build(directory.path());
    let machine = Machine::new(&image, 1).unwrap_or_else(|error| panic!("{error}"));
    let text = machine.text();
    let mut run = Run {
        engine: Engine::new(machine, Policy::Stock),
        memory: Memory::default(),
        calls: 0,
    };
    let count = |what: &str| *counted.borrow_mut().entry(what.to_owned()).or_default() += 1;
    let [original, ..] = &case.versions;
    run.expect(original, "before");
    let mut applied = Vec::new();
    let mut files = Vec::new();
    for (step, name) in ["first", "second", "third"].into_iter().enumerate() {
        let (old, new) = (&case.versions[step], &case.versions[step + 1]);
        match generate(&objects[..step + 2], &image, &files) {
            Outcome::Refused(why) => count(&why),
            Outcome::Forgets => count("a variable is gone"),
            Outcome::Nothing => {
                run.expect(new, "with nothing to patch");
                count("nothing to patch");
            }
            Outcome::Payload(payload, brings_variables) => {
                if let Err(refusal) = run.engine.upload(name, &payload) {
                    panic!("{refusal}");
                }
                run.expect(old, "with a payload loaded");
                run.act(name, Action::Apply);
                run.expect(new, "with a payload applied");
                count(name);
                let file = directory.path().join(format!("{name}.livepatch"));
                std::fs::write(&file, &payload).expect("written");
                files.push(file);
                applied.push((name, old, brings_variables));
                continue;
            }
        }
        break;
    }
    let mut brought_variables = false;
    for (name, old, brings_variables) in applied.iter().rev() {
        run.act(name, Action::Revert);
        brought_variables |= brings_variables;
        if !brought_variables {
            run.expect(old, "with a payload reverted");
        }
    }
    assert_eq!(run.engine.host().text(), text, "bit for bit");
    for (name, ..) in applied.iter().rev() {
        run.act(name, Action::Unload);
    }
    assert!(run.engine.host().is_free_of_payloads());
}

#[test]
fn a_payload_makes_the_old_program_behave_as_the_new_one() {
    let counted = RefCell::default();
    let numbers = prop::collection::vec(any::<u32>(), 150..500);
    let more = std::env::var("XSPLICE_CASES").ok();
    let more = more.and_then(|cases| cases.parse().ok());
    let cases = more.unwrap_or(CASES);
    let config = Config {
        cases,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = match more {
        Some(_) => TestRunner::new(config),
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    let result = runner.run(&numbers.prop_map(Case::random), |case| {
        check(&case, &counted);
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
    let counted = counted.into_inner();
    println!("{counted:#?}");
    let applied = |name: &str| counted.get(name).copied().unwrap_or_default();
    for (name, least) in [
        ("first", cases / 2),
        ("second", cases / 4),
        ("third", cases / 8),
    ] {
        assert!(applied(name) >= least, "few payloads are the {name}");
    }
}
