// SPDX-License-Identifier: MIT OR Apache-2.0
//! Patches of every shape against the real source: each one is built and goes through
//! its life cycle on the real hypervisor, or is refused with the right message.
//!
//! The patches are in `patches/`; the lines at the start of each state the expected
//! result:
//!
//! - `# options:` further options of `xsplice build`;
//! - `# verify:` additional options of `xsplice verify`, for changes that the build
//!   only notes;
//! - `# builds:` names of the functions that the payload replaces, all of
//!   them, or `*` if the compiler decides;
//! - `# carries:` names of what is new in the payload, all of it;
//! - `# refused:` text of the refusal; every such line must match;
//! - `# note:` text of a note in the report; every such line must match;
//! - `# warning:` text of a warning in the report, as JSON; every such line must
//!   match;
//! - `# hunks:` the effect of each hunk in order, as the report has it
//!   (`in_payload`, `left_out`, `restored`, `placement`, `unused`, `none`,
//!   `not_built`);
//! - `# info:` text of `xsplice info` while the payload is applied, and at no
//!   other time;
//! - `# console:` text that the hypervisor prints when it is applied;
//! - `# live: no` if the report shows everything that matters, so the payload need
//!   not run;
//! - `# arm64: yes` if the same holds for ARM64; `# arm64-KEY:` is the line for ARM64
//!   where it differs from `# KEY:`. `arm32` does the same for ARM32.
//!
//! Patches that x86 does not have are in `patches-arm64/`, and those that only ARM32 has in
//! `patches-arm32/`.
//!
//! The second opinion (`xsplice verify`) must agree with each payload, and with each
//! refusal that says that no code changes: a sample chosen by the seed, or all of
//! them (`cargo xtask test --all`).
//!
//! A payload is applied a second time after the revert: the hypervisor then compares
//! the first bytes of every function, the ones that patching changes, with those that
//! the payload expects.

use anyhow::ensure;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use xsplice_e2e::claim::{self, Claim};
use xsplice_e2e::directives::{directives, options};
use xsplice_e2e::{
    Base, arm32_base, arm32_config, arm64_base, arm64_config, base, config, exhaustive, local,
    seed, settled,
};
use xsplice_lab::{Host, HostConfig};

/// The generator's message if there is nothing to patch.
const UNCHANGED: &str = "it changes no code";
/// Number of builds of the patched hypervisor, each with several patches, in a
/// sample.
const SAMPLE: usize = 3;

struct Case {
    name: String,
    file: PathBuf,
    options: Vec<String>,
    verify: Vec<String>,
    builds: Option<String>,
    carries: Option<String>,
    refused: Vec<String>,
    notes: Vec<String>,
    warnings: Vec<String>,
    hunks: Option<String>,
    info: Option<String>,
    console: Option<String>,
    live: bool,
}

/// What the directives of a patch speak of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Machine {
    X86,
    Arm64,
    Arm32,
}

impl Machine {
    /// The key of the lines that say something about it, if not all of them do.
    fn key(self) -> Option<&'static str> {
        match self {
            Self::X86 => None,
            Self::Arm64 => Some("arm64"),
            Self::Arm32 => Some("arm32"),
        }
    }

    /// The values of `key`.
    fn lines(self, text: &str, key: &str) -> Vec<String> {
        let own = self.key().map(|machine| format!("{machine}-{key}"));
        let own = own.map_or(Vec::new(), |key| directives(text, &key));
        match own.is_empty() {
            true => directives(text, key),
            false => own,
        }
    }
}

impl Case {
    fn read(file: PathBuf, machine: Machine) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(&file)?;
        let lines = |key| machine.lines(&text, key);
        let line = |key| lines(key).into_iter().next();
        let case = Self {
            name: file
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            options: options(&text),
            verify: lines("verify")
                .iter()
                .flat_map(|line| words(line))
                .collect(),
            builds: line("builds"),
            carries: line("carries"),
            refused: lines("refused"),
            notes: lines("note"),
            warnings: lines("warning"),
            hunks: line("hunks"),
            info: line("info"),
            console: line("console"),
            live: line("live").is_none_or(|value| value != "no"),
            file,
        };
        ensure!(
            case.builds.is_some() == case.refused.is_empty(),
            "{}: say what is expected, `# builds:` or `# refused:`",
            case.name
        );
        Ok(case)
    }

    /// Builds the payload; `None` if it is refused as expected.
    fn build(&self, base: &Base, directory: &Path) -> anyhow::Result<Option<PathBuf>> {
        let output = directory.join(format!("{}.livepatch", self.name));
        let text = |path: &Path| path.display().to_string();
        let (tree, patch) = (text(&base.tree), text(&self.file));
        let (xen_syms, to) = (text(&base.xen_syms), text(&output));
        let mut arguments = vec!["build", "--json", "-s", &tree, "-p", &patch];
        arguments.extend(["--xen-syms", &xen_syms, "-o", &to]);
        arguments.extend(self.options.iter().map(String::as_str));
        let result = local(&arguments)?;
        let stderr = String::from_utf8_lossy(&result.stderr).into_owned();
        for words in &self.refused {
            ensure!(
                result.status.code() == Some(1) && stderr.contains(words),
                "{}: expected to be refused with `{words}`: {stderr}",
                self.name
            );
        }
        if !self.refused.is_empty() {
            ensure!(!output.exists(), "{}: something was written", self.name);
            return Ok(None);
        }
        ensure!(result.status.success(), "{}: {stderr}", self.name);
        let report = xsplice_e2e::result("build", &result.stdout)?;
        let names = names(&report["functions"]);
        let expected = self.builds.as_deref().unwrap_or_default();
        ensure!(
            !names.is_empty() && (expected == "*" || names.join(" ") == expected),
            "{}: expected {expected}, the payload replaces {names:?}",
            self.name
        );
        if let Some(expected) = &self.carries {
            let names = self::names(&report["carried"]);
            ensure!(
                names.join(" ") == *expected,
                "{}: expected {expected}, the payload carries {names:?}",
                self.name
            );
        }
        let notes = report["notes"].to_string();
        for words in &self.notes {
            ensure!(notes.contains(words), "{}: {notes}", self.name);
        }
        let warnings = report["warnings"].to_string();
        for words in &self.warnings {
            ensure!(warnings.contains(words), "{}: {warnings}", self.name);
        }
        if let Some(expected) = &self.hunks {
            let hunks = report["hunks"].as_array().into_iter().flatten();
            let effects: Vec<&str> = hunks.filter_map(|h| h["effect"].as_str()).collect();
            ensure!(
                effects.join(" ") == *expected,
                "{}: expected the effects {expected}, the report has {effects:?}",
                self.name
            );
        }
        Ok(Some(output))
    }

    /// The claim behind the payload, or behind a refusal for changing nothing: that
    /// the hypervisor is then the patched one.
    fn claim(&self, payload: Option<&Path>) -> anyhow::Result<Option<Claim>> {
        let unchanged = |words: &String| words.contains(UNCHANGED);
        if payload.is_none() && !self.refused.iter().any(unchanged) {
            return Ok(None);
        }
        let payload = payload.map(std::fs::read).transpose()?;
        Ok(Some(Claim {
            name: self.name.clone(),
            levels: vec![(self.file.clone(), payload)],
            options: [&*self.options, &self.verify].concat(),
        }))
    }

    /// Path of the payload in dom0.
    fn place(&self) -> String {
        format!("lab/{}.livepatch", self.name)
    }

    /// Takes the payload through its life cycle, twice.
    fn live(&self, host: &mut Host) -> anyhow::Result<()> {
        let place = format!("/{}", self.place());
        for _ in 0..2 {
            self.expect_info(host, false)?;
            let printed = host.console().len();
            tool(host, &["load", &place])?;
            self.expect_info(host, true)?;
            if let Some(words) = &self.console {
                let console = host.console();
                ensure!(
                    console[printed.min(console.len())..].contains(words),
                    "{}: the hypervisor did not print `{words}`",
                    self.name
                );
            }
            tool(host, &["revert", &self.name])?;
            tool(host, &["unload", &self.name])?;
        }
        self.expect_info(host, false)
    }

    fn expect_info(&self, host: &mut Host, there: bool) -> anyhow::Result<()> {
        if let Some(words) = &self.info {
            let text = tool(host, &["info"])?;
            ensure!(text.contains(words) == there, "{}: {text}", self.name);
        }
        Ok(())
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// The names in a list of the report, sorted.
fn names(list: &serde_json::Value) -> Vec<&str> {
    let list = list.as_array().into_iter().flatten();
    let mut names: Vec<&str> = list.filter_map(|item| item["name"].as_str()).collect();
    names.sort_unstable();
    names
}

fn tool(host: &mut Host, arguments: &[&str]) -> anyhow::Result<String> {
    let output = settled(host, &[&["xsplice"], arguments].concat())?;
    ensure!(output.code == Some(0), "xsplice {arguments:?}: {output:?}");
    Ok(output.stdout)
}

/// Builds all `cases`, one per CPU at a time: most of a small build is sequential.
fn build_all(
    base: &Base,
    cases: &[Case],
    directory: &Path,
) -> Vec<anyhow::Result<Option<PathBuf>>> {
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicUsize::new(0);
    let work = || {
        let indices = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        let mine = indices.map_while(|index| Some((index, cases.get(index)?)));
        mine.map(|(index, case)| (index, case.build(base, directory)))
            .collect::<Vec<_>>()
    };
    let mut built = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let done = workers.into_iter().flat_map(|worker| worker.join());
        done.flatten().collect::<Vec<_>>()
    });
    assert_eq!(built.len(), cases.len(), "a worker panicked");
    built.sort_by_key(|(index, _)| *index);
    built.into_iter().map(|(_, result)| result).collect()
}

/// The patches in `directory`, as far as they say something about `machine`.
fn cases(directory: &str, machine: Machine) -> anyhow::Result<Vec<Case>> {
    let patches = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut files: Vec<PathBuf> = std::fs::read_dir(patches)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file)?;
        let mut of_machine = machine.key().into_iter();
        if of_machine.all(|key| directives(&text, key) == ["yes"]) {
            cases.push(Case::read(file, machine)?);
        }
    }
    Ok(cases)
}

/// How many claims get the second opinion, and the seed that chooses them; all without.
fn sample() -> anyhow::Result<Option<(usize, u64)>> {
    if exhaustive() {
        return Ok(None);
    }
    Ok(Some((SAMPLE, seed()?)))
}

#[test]
fn every_patch_has_the_expected_result() -> anyhow::Result<()> {
    let base = base()?;
    let cases = cases("patches", Machine::X86)?;
    let directory = tempfile::tempdir()?;
    let built = Built::all(&base, &cases, directory.path())?;
    let mut failures = built.failures;
    failures.extend(claim::not_proved(&base, &built.claims, sample()?)?);
    live(config(&base)?, &built.payloads, failures)
}

#[test]
fn every_patch_has_the_expected_result_on_arm64() -> anyhow::Result<()> {
    let base = arm64_base()?;
    let directories = ["patches", "patches-arm64"];
    on_arm(
        &base,
        arm64_config(&base)?,
        Machine::Arm64,
        &directories,
        15,
    )
}

#[test]
fn every_patch_has_the_expected_result_on_arm32() -> anyhow::Result<()> {
    let base = arm32_base()?;
    let directories = ["patches", "patches-arm64", "patches-arm32"];
    on_arm(&base, arm32_config(&base)?, Machine::Arm32, &directories, 8)
}

/// The patches of `directories`, of which at least `least` are built and run.
fn on_arm(
    base: &Base,
    config: HostConfig,
    machine: Machine,
    directories: &[&str],
    least: usize,
) -> anyhow::Result<()> {
    let mut cases = Vec::new();
    for directory in directories {
        cases.extend(self::cases(directory, machine)?);
    }
    let directory = tempfile::tempdir()?;
    let built = Built::all(base, &cases, directory.path())?;
    ensure!(
        built.payloads.len() + built.failures.len() >= least,
        "only {} patches run",
        built.payloads.len()
    );
    let mut failures = built.failures;
    failures.extend(claim::not_proved(base, &built.claims, sample()?)?);
    live(config, &built.payloads, failures)
}

/// The result of building every patch.
struct Built<'a> {
    /// Those to run.
    payloads: Vec<(&'a Case, PathBuf)>,
    claims: Vec<Claim>,
    failures: Vec<String>,
}

impl<'a> Built<'a> {
    fn all(base: &Base, cases: &'a [Case], directory: &Path) -> anyhow::Result<Self> {
        let mut all = Self {
            payloads: Vec::new(),
            claims: Vec::new(),
            failures: Vec::new(),
        };
        let built = build_all(base, cases, directory);
        for (case, built) in cases.iter().zip(built) {
            match built {
                Ok(payload) => {
                    all.claims.extend(case.claim(payload.as_deref())?);
                    let payload = payload.filter(|_| case.live);
                    all.payloads.extend(payload.map(|made| (case, made)));
                }
                Err(error) => all.failures.push(format!("{error:#}")),
            }
        }
        Ok(all)
    }
}

/// Takes all `payloads` through their life cycles on one host.
fn live(
    mut config: HostConfig,
    payloads: &[(&Case, PathBuf)],
    mut failures: Vec<String>,
) -> anyhow::Result<()> {
    for (case, payload) in payloads {
        config.files.push((case.place(), payload.clone()));
    }
    let mut host = Host::boot(&config)?;
    for (case, _) in payloads {
        let result = case.live(&mut host);
        // Leftovers of one must not fail the others.
        let _ = tool(&mut host, &["revert", &case.name]);
        let _ = tool(&mut host, &["unload", &case.name]);
        failures.extend(result.err().map(|error| format!("{error:#}")));
    }
    let ended = host.shut_down();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(ended?)
}
