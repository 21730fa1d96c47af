// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hundreds of payloads, good and mutated, on one running hypervisor with our core, and
//! fewer on one for ARM64 and on one for ARM32: it gives each the verdict that the engine
//! gives on the hypervisor's image, nothing leaks, and the hypervisor survives.
//!
//! The choice of payloads does not depend on the engine. [`mutants`] changes every
//! field of every structure that the hypervisor trusts; `XSPLICE_SEED` chooses one of
//! each kind of structure in turn, [`SAMPLE`] in total, or [`ALL`] in an exhaustive
//! run; some get two changes. All are uploaded, and accepted ones are unloaded again.
//! Before that, those that still behave like the good payload are applied and
//! reverted, see [`behaviour`]: the other accepted ones may do anything when they
//! run, like any payload.
//!
//! If the hypervisor dies, the payload is kept in `target`, and the others are tried
//! on a new host.

mod behaviour;
mod mutants;
mod target;

use anyhow::{bail, ensure};
use mutants::Mutant;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use target::{Dom0, Target, place};
use xsplice_abi::errno::Errno;
use xsplice_e2e::mutation::Random;
use xsplice_e2e::{build, c_tool_fits, example, memory, rust_base, seed, settled};
use xsplice_engine::{Action, Engine, Options, Policy, Severity};
use xsplice_host_image::{Image, Machine};
use xsplice_lab::{Error, Host};

/// The payloads to mutate: Xen's own, and our generator's. `xen_prepost_hooks` is
/// excluded: it stops the hypervisor if its hooks are not called as often as it
/// expects, and rendezvous timeouts change that.
const THEIRS: [&str; 5] = [
    "xen_hello_world",
    "xen_replace_world",
    "xen_expectations",
    "xen_action_hooks",
    "xen_action_hooks_marker",
];
const EXAMPLES: [&str; 3] = ["extra-version", "two-files", "bug-and-alternative"];
/// Number of payloads to try.
const SAMPLE: usize = 120;
const ALL: usize = 540;
/// One in this many has two changes.
const PAIRS: usize = 6;
/// Number of hypervisor crashes after which the test gives up.
const FAULTS: usize = 6;
/// The engine's message for a call through a bad pointer. Most pointers get their
/// values at boot and differ in the image.
const POINTER: &str = "the pointer that it calls through leads to no code";
/// The name of an empty file.
const EMPTY: &str = "empty";
const LARGE: &str = "large";
/// Xen's limit for the size of a payload.
const LARGEST: usize = 2 << 20;

/// A good payload.
struct Good {
    name: String,
    data: Vec<u8>,
}

/// A mutant, and the engine's verdict on the hypervisor's image.
struct Hostile {
    name: String,
    what: String,
    data: Vec<u8>,
    /// Whether to apply it if it is accepted.
    harmless: bool,
    /// The error numbers of upload, apply and revert, as far as it gets.
    codes: Vec<i32>,
    /// Why it is refused, as far as known.
    reasons: Vec<String>,
}

impl Hostile {
    fn new(image: &Image, good: &Good, what: String, data: Vec<u8>) -> Self {
        let harmless = behaviour::same(&good.data, &data);
        let mut engine = Engine::new(Machine::new(image), Policy::Engine);
        let (mut codes, mut reasons) = (vec![0], Vec::new());
        if let Err(refusal) = engine.upload("hostile", &data) {
            codes = vec![refusal.errno().0];
            let problems = refusal.problems.iter();
            let problems = problems.filter(|p| p.severity() == Severity::NotLoaded);
            reasons = problems.map(ToString::to_string).collect();
        } else if harmless {
            for action in [Action::Apply, Action::Revert] {
                if let Err(failure) = engine.act("hostile", action, Options::default()) {
                    codes.push(failure.errno().0);
                    reasons.push(failure.to_string());
                    break;
                }
                codes.push(0);
            }
        }
        Self {
            name: String::new(),
            what,
            data,
            harmless,
            codes,
            reasons,
        }
    }

    fn reason(&self) -> &str {
        self.reasons.first().map_or("", String::as_str)
    }

    /// How the hypervisor's behaviour or messages differ from what is expected.
    fn wrong(&self, codes: &[i32], console: &str) -> Option<String> {
        let said = said(console, &self.name);
        let reason = without_numbers(self.reason());
        let given = || {
            said.iter()
                .any(|line| without_numbers(line).contains(&reason))
        };
        // The image does not show that.
        let by_data = |text: &str| text.contains(POINTER);
        let unknown =
            self.reasons.iter().any(|text| by_data(text)) || said.iter().any(|line| by_data(line));
        let right = codes == self.codes && (self.codes[0] == 0 || given());
        (!right && !unknown).then(|| {
            let (name, what, expected) = (&self.name, &self.what, &self.codes);
            let reason = self.reason();
            format!("{name} ({what}): {codes:?} {said:?}; not {expected:?} {reason}")
        })
    }
}

/// The good payloads for the hypervisor.
fn payloads(target: &Target) -> anyhow::Result<Vec<Good>> {
    let base = &target.base;
    let directory = tempfile::tempdir()?;
    let mut payloads = Vec::new();
    for name in THEIRS {
        let path = base.test_payloads.join(format!("{name}.livepatch"));
        payloads.push((name, std::fs::read(path)?));
    }
    let examples = EXAMPLES.map(|name| example(base, name).map(|patch| (name, patch)));
    for patch in examples.into_iter().chain(target.patches().map(Ok)) {
        let (name, patch) = patch?;
        let output = directory.path().join(name);
        build(base, &patch, &output)?;
        payloads.push((name, std::fs::read(output)?));
    }
    let good = payloads.into_iter().map(|(name, data)| {
        Ok(Good {
            name: name.to_owned(),
            data: mutants::with_names(&data)?,
        })
    });
    good.collect()
}

/// A text without its address-dependent parts.
fn without_numbers(text: &str) -> String {
    let mut words = text.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
    words.by_ref().fold(String::new(), |mut text, word| {
        let number = word.starts_with(|c: char| c.is_ascii_digit());
        text.push_str(if number { "#" } else { word });
        text
    })
}

/// `count` mutants, each with the index of its good payload: one of each kind of
/// structure in turn, from any stratum.
fn choose(
    goods: &[Good],
    count: usize,
    random: &mut Random,
) -> anyhow::Result<Vec<(usize, Mutant)>> {
    let mut kinds: BTreeMap<_, BTreeMap<_, Vec<_>>> = BTreeMap::new();
    for (index, good) in goods.iter().enumerate() {
        for mutant in mutants::of(&good.name, &good.data)? {
            let (kind, structure, field) = mutant.stratum.clone();
            let strata = kinds.entry(kind).or_default();
            let stratum = strata.entry((structure, field)).or_default();
            stratum.push((index, mutant));
        }
    }
    let kinds = kinds.into_values().map(|kind| kind.into_values().collect());
    let mut kinds: Vec<Vec<Vec<_>>> = kinds.collect();
    let mut chosen = Vec::new();
    while chosen.len() < count {
        let before = chosen.len();
        for kind in &mut kinds {
            if !kind.is_empty() {
                let index = random.below(kind.len());
                let stratum = &mut kind[index];
                chosen.push(stratum.swap_remove(random.below(stratum.len())));
                kind.retain(|stratum| !stratum.is_empty());
            }
        }
        ensure!(chosen.len() > before, "there are only {before} mutants");
    }
    chosen.truncate(count);
    Ok(chosen)
}

/// Everything to try: the good payloads, and mutants.
fn hostile(target: &Target) -> anyhow::Result<Vec<Hostile>> {
    let image = Image::parse(&std::fs::read(&target.base.xen_syms)?)?;
    let goods = payloads(target)?;
    let mut random = Random::new(seed()?);
    let chosen = choose(&goods, target.count, &mut random)?;
    let mut all = Vec::new();
    for good in &goods {
        let what = format!("{}: as it is", good.name);
        let hostile = Hostile::new(&image, good, what, good.data.clone());
        ensure!(hostile.codes == [0, 0, 0], "{}", hostile.reason());
        all.push(hostile);
    }
    for (number, (index, mutant)) in chosen.iter().enumerate() {
        let others = chosen.iter().filter(|(other, _)| other == index);
        let others: Vec<_> = others.filter(|(_, o)| o.what != mutant.what).collect();
        let mutant = match others.get(random.below(others.len())) {
            Some((_, other)) if number % PAIRS == 0 => mutant.and(other),
            _ => mutant.clone(),
        };
        let good = &goods[*index];
        let data = mutant.apply(&good.data);
        all.push(Hostile::new(&image, good, mutant.what, data));
    }
    for (number, hostile) in all.iter_mut().enumerate() {
        hostile.name = format!("hostile-{number}");
    }
    Ok(all)
}

/// The error numbers in what was printed in dom0, by name.
fn codes(text: &str) -> impl Iterator<Item = (String, Vec<i32>)> {
    text.lines().filter_map(|line| {
        let (name, codes) = line.trim().split_once(' ')?;
        let codes: Result<_, _> = codes.split(' ').map(str::parse).collect();
        Some((name.to_owned(), codes.ok()?))
    })
}

/// The lines with which a hypervisor refused to load `name`.
fn said<'c>(console: &'c str, name: &str) -> Vec<&'c str> {
    let title = format!("livepatch: {name} was not loaded (");
    let mut lines = console.lines().skip_while(|line| !line.contains(&title));
    let title = lines.next();
    let reasons = lines.take_while(|line| line.contains("livepatch:   "));
    title.into_iter().chain(reasons).collect()
}

/// Requests that never reach the engine also get a reason, and the stock core's error
/// number.
fn unreadable_requests_are_refused_too(host: &mut Host, any: &str) -> anyhow::Result<()> {
    let mut printed = String::new();
    Dom0::Driver.run(host, &[place(EMPTY), place(LARGE)], &mut printed)?;
    for name in [EMPTY, LARGE] {
        let line = format!("{name} {}", Errno::EINVAL.0);
        ensure!(printed.lines().any(|printed| printed == line), "{printed}");
        ends_with(host, name, "its size is 0 or more than 2 MiB")?;
    }
    match c_tool_fits(&rust_base()?)? {
        true => nameless_ones_too(host, any),
        false => Ok(()),
    }
}

/// The stock core accepts names that are not UTF-8; ours does not. Only the C tool has such
/// names.
fn nameless_ones_too(host: &mut Host, any: &str) -> anyhow::Result<()> {
    let output = host.run(&["in-dom0", "nameless", &place(any)])?;
    let lines: Vec<&str> = output.stdout.lines().collect();
    let expected = [
        "upload Error 22: Invalid argument",
        "revert Error 2: No such file or directory",
    ];
    ensure!(lines == expected, "{output:?}");
    ends_with(host, "a payload", "its name is not UTF-8")?;
    // A name is no line of the hypervisor's.
    let upload = [
        "/c/xen-livepatch",
        "upload",
        "odd\n(XEN) line",
        &place(LARGE),
    ];
    host.run(&upload)?;
    ends_with(host, "odd?(XEN) line", "its size is 0 or more than 2 MiB")
}

/// The first reason that the console has for `name` ends with `reason`.
fn ends_with(host: &Host, name: &str, reason: &str) -> anyhow::Result<()> {
    let console = host.console();
    let said = said(&console, name);
    let right = said.get(1).is_some_and(|line| line.ends_with(reason));
    ensure!(right, "{name}: {said:?} without {reason:?}");
    Ok(())
}

/// The outcome of all of them.
#[derive(Default)]
struct Outcome {
    codes: HashMap<String, Vec<i32>>,
    console: String,
    /// Payloads that crashed the hypervisor, and leaks.
    faults: Vec<String>,
}

/// Tries all; after a crash, continues with the next one on a new host.
fn outcome(target: &Target, all: &[Hostile]) -> anyhow::Result<Outcome> {
    let directory = tempfile::tempdir()?;
    for hostile in all {
        std::fs::write(directory.path().join(&hostile.name), &hostile.data)?;
    }
    std::fs::write(directory.path().join(EMPTY), "")?;
    std::fs::write(directory.path().join(LARGE), vec![0; LARGEST + 1])?;
    let files = all.iter().map(|hostile| {
        let apply = if hostile.harmless { "+" } else { "" };
        apply.to_owned() + &place(&hostile.name)
    });
    let files: Vec<String> = files.collect();
    let goods = THEIRS.len() + EXAMPLES.len() + target.patches().count();
    let mut outcome = Outcome::default();
    let mut next = 0;
    while next < all.len() {
        let mut host = target.boot(directory.path())?;
        let (good, left) = (&files[..goods], &files[next..]);
        let lived = one_host(target.dom0, &mut host, good, left, &mut outcome)?;
        if let Err(error) = lived {
            let left = |hostile: &Hostile| !outcome.codes.contains_key(&hostile.name);
            let Some(ended) = all[next..].iter().position(left) else {
                bail!("the host was lost over nothing: {error}");
            };
            let Hostile {
                name, what, data, ..
            } = &all[next + ended];
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
            std::fs::write(&path, data)?;
            let fault = format!("{what} ({}): {error}", path.display());
            outcome.faults.push(fault);
            ensure!(
                outcome.faults.len() < FAULTS,
                "{}",
                outcome.faults.join("\n")
            );
            next += ended + 1;
        } else {
            host.shut_down()?;
            break;
        }
    }
    Ok(outcome)
}

/// The results of `files` on one host, and why the host was lost.
fn one_host(
    dom0: Dom0,
    host: &mut Host,
    warm_up: &[String],
    files: &[String],
    outcome: &mut Outcome,
) -> anyhow::Result<Result<(), Error>> {
    // Warm up: the first ones make allocations that are kept.
    dom0.run(host, warm_up, &mut String::new())?;
    let mut before = memory(host)?;
    let mut printed = String::new();
    let done = dom0.run(host, files, &mut printed);
    outcome.codes.extend(codes(&host.console()));
    outcome.codes.extend(codes(&printed));
    if let Err(error) = done {
        outcome.console.push_str(&host.console());
        return Ok(Err(error));
    }
    // The tool makes no such requests.
    if dom0 == Dom0::Driver {
        unreadable_requests_are_refused_too(host, "xen_hello_world.livepatch")?;
    }
    let mut after = memory(host)?;
    if after != before {
        // The core keeps the capacity of its lists, which must not grow again.
        let grown = after;
        dom0.run(host, files, &mut String::new())?;
        after = memory(host)?;
        before = grown;
    }
    outcome.console.push_str(&host.console());
    // The hypervisor still works.
    let good = ["xsplice", "load", "/lab/xen_hello_world.livepatch"];
    let good = settled(host, &good)?;
    ensure!(good.code == Some(0), "{good:?}");
    if after != before {
        let leak = format!("{after:?}, before {before:?}");
        outcome.faults.push(leak);
    }
    Ok(Ok(()))
}

#[test]
fn mutants_do_no_harm_and_get_the_verdict_of_the_image() -> anyhow::Result<()> {
    all_are_treated_as_expected(&Target::x86_64()?, "hostile-payloads.tsv")
}

#[test]
fn so_do_those_on_arm64() -> anyhow::Result<()> {
    all_are_treated_as_expected(&Target::arm64()?, "hostile-payloads-arm64.tsv")
}

#[test]
fn so_do_those_on_arm32() -> anyhow::Result<()> {
    all_are_treated_as_expected(&Target::arm32()?, "hostile-payloads-arm32.tsv")
}

/// Tries all, and writes what became of each to the table `name` in `target`.
fn all_are_treated_as_expected(target: &Target, name: &str) -> anyhow::Result<()> {
    let all = hostile(target)?;
    let Outcome {
        codes,
        console,
        faults,
    } = outcome(target, &all)?;

    let mut table = "what\tupload, apply, revert\tfirst reason\n".to_owned();
    let mut wrong = faults;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for hostile in &all {
        let done = codes.get(&hostile.name).map_or(&[][..], Vec::as_slice);
        wrong.extend(hostile.wrong(done, &console));
        let kind = match done {
            [] => "lost",
            [0] => "accepted",
            [0, 0, 0] => "accepted, applied and reverted",
            [0, ..] => "accepted and not applied",
            _ => "refused",
        };
        *counts.entry(kind).or_default() += 1;
        let steps: Vec<_> = done.iter().map(|code| Errno(*code).name()).collect();
        let steps: Vec<_> = steps.into_iter().map(|name| name.unwrap_or("0")).collect();
        let (what, reason) = (&hostile.what, hostile.reason());
        writeln!(table, "{what}\t{}\t{reason}", steps.join(" "))?;
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, table)?;
    let line = format!(
        "{} payloads, {} not treated as expected: {counts:?}; {}\n",
        all.len(),
        wrong.len(),
        path.display()
    );
    std::io::stderr().write_all(line.as_bytes())?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    for kind in ["refused", "accepted", "accepted, applied and reverted"] {
        ensure!(counts.contains_key(kind), "none was {kind}");
    }
    Ok(())
}
