// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stacked payloads: each level is built on those below, and the whole stack is
//! applied to the real hypervisor and reverted, or a level is refused with the right
//! message. The second opinion (`xsplice verify`) must agree with each stack: a
//! sample chosen by the seed, or all (`cargo xtask test --all`).
//!
//! Each directory of `stack/cases/` is a stack, and each patch in it whose name
//! starts with a number is a level, the lowest first. The lines at the start of a
//! patch state the expected result:
//!
//! - `# options:` further options of `xsplice build`, in which `{tree}` is the source
//!   tree; with `--verify`, the whole stack is proved;
//! - `# builds:` names of the functions that the payload replaces, all of them;
//! - `# carries:` names of what is new in the payload, all of it, or `nothing`;
//! - `# refused:` text of the refusal; every such line must match; the stack ends
//!   there;
//! - `# note:` text of a note in the report, likewise;
//! - `# hunks:` the effect of each hunk, in order;
//! - `# info:` text of `xsplice info` while this level is the topmost, and `# back:`
//!   when it is the topmost again, after the one above it was reverted;
//! - `# console:` text that the hypervisor prints when it is applied;
//! - `# differs:` the one difference that the second opinion finds in the whole stack;
//! - `# on:` and `# on-patch:` files to pass instead of those of the levels below;
//! - of the lowest level, `# arm64: yes` and `# arm32: yes` if the same holds for those.

use anyhow::{Context, ensure};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use std::path::{Path, PathBuf};
use std::process::Output;
use xsplice_e2e::directives::{directive, directives, options};
use xsplice_e2e::mutation::Random;
use xsplice_e2e::{
    Base, arm32_base, arm32_config, arm64_base, arm64_config, base, build, config, exhaustive,
    local, rust_base, seed, settled, told,
};
use xsplice_lab::{Host, HostConfig};

/// Number of stacks that are verified in a sample.
const SAMPLE: usize = 2;

/// A source patch and its payload.
#[derive(Clone)]
struct Built {
    patch: PathBuf,
    payload: PathBuf,
}

/// Builds `top` on top of `payloads`, which were built from `patches`.
fn build_on(
    base: &Base,
    top: &Built,
    payloads: &[PathBuf],
    patches: &[PathBuf],
    options: &[String],
) -> anyhow::Result<Output> {
    let text = |path: &Path| path.display().to_string();
    let mut words: Vec<String> = ["build", "--json"].map(str::to_owned).to_vec();
    let mut add = |option: &str, path: &Path| words.extend([option.to_owned(), text(path)]);
    add("-s", &base.tree);
    add("--xen-syms", &base.xen_syms);
    add("-p", &top.patch);
    add("-o", &top.payload);
    payloads.iter().for_each(|path| add("--on", path));
    patches.iter().for_each(|path| add("--on-patch", path));
    words.extend_from_slice(options);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    local(&words)
}

/// A stack of payloads.
struct Stack {
    name: String,
    directory: PathBuf,
    /// The patch of each level.
    patches: Vec<PathBuf>,
    /// The payload of each level that was built.
    built: Vec<Built>,
}

impl Stack {
    fn read(directory: PathBuf) -> anyhow::Result<Self> {
        let mut patches: Vec<PathBuf> = std::fs::read_dir(&directory)?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<_>>()?;
        let name = |path: &Path| path.file_name().unwrap_or_default().display().to_string();
        patches.retain(|path| name(path).starts_with(|c: char| c.is_ascii_digit()));
        patches.sort();
        ensure!(
            patches.len() > 1,
            "{}: one level is no stack",
            directory.display()
        );
        Ok(Self {
            name: name(&directory),
            directory,
            patches,
            built: Vec::new(),
        })
    }

    /// Whether its lowest level says that it is for the machine `key`.
    fn is_for(&self, key: Option<&str>) -> anyhow::Result<bool> {
        let text = std::fs::read_to_string(&self.patches[0])?;
        Ok(key.is_none_or(|key| directives(&text, key) == ["yes"]))
    }

    /// Builds all levels, up to one that is refused.
    fn build(&mut self, base: &Base, output: &Path) -> anyhow::Result<()> {
        for patch in self.patches.clone() {
            let level = patch.file_stem().unwrap_or_default().display();
            let payload = output.join(format!("{}-{level}.livepatch", self.name));
            if !self.build_level(base, Built { patch, payload })? {
                break;
            }
        }
        Ok(())
    }

    /// The files that a level names instead of those of the levels below.
    fn named(&self, text: &str, key: &str) -> Option<Vec<PathBuf>> {
        let names = directive(text, key)?;
        let files = names.split_whitespace().map(|name| {
            let level = self.built.iter().find(|built| {
                built.patch.file_stem() == Path::new(name).file_stem() && key == "on"
            });
            level.map_or(self.directory.join(name), |built| built.payload.clone())
        });
        Some(files.collect())
    }

    /// Builds one level; returns whether there is a payload.
    fn build_level(&mut self, base: &Base, top: Built) -> anyhow::Result<bool> {
        let text = std::fs::read_to_string(&top.patch)?;
        let name = top.patch.display();
        let payloads = self.named(&text, "on");
        let below = self.built.iter();
        let payloads = payloads.unwrap_or(below.clone().map(|b| b.payload.clone()).collect());
        let patches = self.named(&text, "on-patch");
        let patches = patches.unwrap_or(below.map(|b| b.patch.clone()).collect());
        let tree = base.tree.display().to_string();
        let options = options(&text).into_iter();
        let options: Vec<String> = options.map(|o| o.replace("{tree}", &tree)).collect();
        let result = build_on(base, &top, &payloads, &patches, &options)?;
        let stderr = String::from_utf8_lossy(&result.stderr);
        let refused = directives(&text, "refused");
        if !refused.is_empty() {
            ensure!(
                result.status.code() == Some(1) && refused.iter().all(|w| stderr.contains(w)),
                "{name}: expected to be refused with {refused:?}: {stderr}"
            );
            ensure!(!top.payload.exists(), "{name}: something was written");
            return Ok(false);
        }
        ensure!(result.status.success(), "{name}: {stderr}");
        expect_report(&text, &xsplice_e2e::result("build", &result.stdout)?)
            .with_context(|| name.to_string())?;
        self.built.push(top);
        Ok(true)
    }

    /// Gets the second opinion on the levels that were built, with the options that
    /// their builds recorded; returns why it is not proved.
    fn not_proved(&self, base: &Base) -> anyhow::Result<Option<String>> {
        let text = |path: &Path| path.display().to_string();
        let (top, below) = self.built.split_last().context("nothing was built")?;
        let mut words = vec!["report".to_owned(), "--json".to_owned(), text(&top.payload)];
        let mut add = |option: &str, path: &Path| words.extend([option.to_owned(), text(path)]);
        add("-s", &base.tree);
        add("--xen-syms", &base.xen_syms);
        add("-p", &top.patch);
        add("-o", &top.payload.with_extension("html"));
        below.iter().for_each(|level| add("--on", &level.payload));
        below
            .iter()
            .for_each(|level| add("--on-patch", &level.patch));
        for level in &self.built {
            let options = options(&std::fs::read_to_string(&level.patch)?);
            let hooks = options.windows(2).filter(|pair| pair[0] == "--hooks");
            hooks.for_each(|pair| words.extend_from_slice(pair));
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = local(&words)?;
        let said = told("report", &output.stdout)?;
        let expected = directive(&std::fs::read_to_string(&top.patch)?, "differs");
        let differences = said["result"]["verify"]["differences"].as_array();
        let differences = differences.into_iter().flatten();
        let differences: Vec<&str> = differences.filter_map(|d| d["message"].as_str()).collect();
        let proved = output.status.success() && expected.is_none();
        let as_expected = proved || differences == Vec::from_iter(expected.as_deref());
        Ok((!as_expected).then(|| format!("{}: not proved: {said:#}", self.name)))
    }

    /// Path of a level's payload in dom0.
    fn place(&self, level: usize) -> String {
        format!("lab/{}-{level}.livepatch", self.name)
    }

    /// Removes what a failure left applied, so that the next stack finds a clean
    /// host.
    fn clear(&self, host: &mut Host) -> anyhow::Result<()> {
        for level in (0..self.built.len()).rev() {
            for command in ["revert", "unload"] {
                let payload = format!("{}-{level}", self.name);
                settled(host, &["xsplice", command, &payload])?;
            }
        }
        Ok(())
    }

    /// Applies and reverts the stack.
    fn live(&self, host: &mut Host) -> anyhow::Result<()> {
        let before = tool(host, &["info"])?;
        let alone = settled(host, &["xsplice", "load", &format!("/{}", self.place(1))])?;
        ensure!(
            alone.code == Some(1),
            "{} without what is below: {alone:?}",
            self.name
        );
        let names: Vec<String> = (0..self.built.len())
            .map(|level| format!("{}-{level}", self.name))
            .collect();
        for (level, built) in self.built.iter().enumerate() {
            let text = std::fs::read_to_string(&built.patch)?;
            let printed = host.console().len();
            tool(host, &["load", &format!("/{}", self.place(level))])?;
            self.expect_info(host, level, "info")?;
            if let Some(words) = directive(&text, "console") {
                let console = host.console();
                let new = &console[printed.min(console.len())..];
                ensure!(
                    new.contains(&words),
                    "{}: no `{words}`: {new}",
                    names[level]
                );
            }
        }
        for level in (0..names.len()).rev() {
            tool(host, &["revert", &names[level]])?;
            tool(host, &["unload", &names[level]])?;
            if let Some(below) = level.checked_sub(1) {
                self.expect_info(host, below, "back")?;
            }
        }
        let after = tool(host, &["info"])?;
        ensure!(after == before, "{}: {before}\n{after}", self.name);
        Ok(())
    }

    fn expect_info(&self, host: &mut Host, level: usize, key: &str) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(&self.built[level].patch)?;
        if let Some(words) = directive(&text, key) {
            let info = tool(host, &["info"])?;
            ensure!(
                info.contains(&words),
                "{}-{level}: no `{words}`: {info}",
                self.name
            );
        }
        Ok(())
    }
}

/// Checks the report of a build against the directives in the patch `text`.
fn expect_report(text: &str, report: &serde_json::Value) -> anyhow::Result<()> {
    let list = |of: &str, key: &str| {
        let all = report[of].as_array().into_iter().flatten();
        let words = all.filter_map(|one| Some(one[key].as_str()?.to_owned()));
        words.collect::<Vec<String>>()
    };
    let sorted = |mut names: Vec<String>| {
        names.sort_unstable();
        match names.is_empty() {
            true => "nothing".to_owned(),
            false => names.join(" "),
        }
    };
    let builds = directive(text, "builds").context("`# builds:` or `# refused:` is missing")?;
    let replaced = sorted(list("functions", "name"));
    ensure!(
        replaced == builds,
        "expected {builds}, it replaces {replaced}"
    );
    if let Some(expected) = directive(text, "carries") {
        let carried = sorted(list("carried", "name"));
        ensure!(
            carried == expected,
            "expected {expected}, it carries {carried}"
        );
    }
    if let Some(expected) = directive(text, "hunks") {
        let hunks = list("hunks", "effect").join(" ");
        ensure!(
            hunks == expected,
            "expected {expected}, the hunks are {hunks}"
        );
    }
    for words in directives(text, "note") {
        let notes = report["notes"].to_string();
        ensure!(notes.contains(&words), "no note says `{words}`: {notes}");
    }
    Ok(())
}

fn tool(host: &mut Host, arguments: &[&str]) -> anyhow::Result<String> {
    let output = settled(host, &[&["xsplice"], arguments].concat())?;
    ensure!(output.code == Some(0), "xsplice {arguments:?}: {output:?}");
    Ok(output.stdout)
}

/// The stacks that are for the machine `key`, all without one, with their levels built, and
/// what went wrong.
fn built_stacks(
    base: &Base,
    key: Option<&str>,
    output: &Path,
) -> anyhow::Result<(Vec<Stack>, Vec<String>)> {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("stack/cases");
    let mut directories: Vec<PathBuf> = std::fs::read_dir(cases)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    directories.sort();
    let (mut stacks, mut failures) = (Vec::new(), Vec::new());
    for directory in directories {
        let mut stack = Stack::read(directory)?;
        if !stack.is_for(key)? {
            continue;
        }
        if let Err(error) = stack.build(base, output) {
            failures.push(format!("{error:#}"));
        } else {
            stacks.push(stack);
        }
    }
    Ok((stacks, failures))
}

#[test]
fn every_stack_has_the_expected_result() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let (stacks, failures) = built_stacks(&base, None, directory.path())?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    told_early(&base, &stacks)?;
    judge_and_run(&base, config(&base)?, stacks)
}

#[test]
fn stacks_have_the_expected_result_on_arm64() -> anyhow::Result<()> {
    let base = arm64_base()?;
    on_arm(&base, arm64_config(&base)?, "arm64")
}

#[test]
fn stacks_have_the_expected_result_on_arm32() -> anyhow::Result<()> {
    let base = arm32_base()?;
    on_arm(&base, arm32_config(&base)?, "arm32")
}

/// The stacks that are for the machine `key`.
fn on_arm(base: &Base, config: HostConfig, key: &str) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let (stacks, failures) = built_stacks(base, Some(key), directory.path())?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    judge_and_run(base, config, stacks)
}

/// Gets the second opinion on a sample of the stacks, or on all, and runs those that do not
/// end in a refusal.
fn judge_and_run(
    base: &Base,
    mut config: HostConfig,
    mut stacks: Vec<Stack>,
) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    let mut judged: Vec<&Stack> = stacks.iter().filter(|s| !s.built.is_empty()).collect();
    ensure!(judged.len() > SAMPLE, "there are only {}", judged.len());
    let mut random = Random::new(seed()?);
    while !exhaustive() && judged.len() > SAMPLE {
        judged.swap_remove(random.below(judged.len()));
    }
    for stack in judged {
        failures.extend(stack.not_proved(base)?);
    }
    stacks.retain(|stack| stack.built.len() == stack.patches.len());
    for stack in &stacks {
        for (level, built) in stack.built.iter().enumerate() {
            config
                .files
                .push((stack.place(level), built.payload.clone()));
        }
    }
    let mut host = Host::boot(&config)?;
    for stack in &stacks {
        if let Err(error) = stack.live(&mut host) {
            failures.push(format!("{error:#}"));
            stack.clear(&mut host)?;
        }
    }
    let ended = host.shut_down();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(ended?)
}

/// Its core writes to the hypervisor's text only.
#[test]
fn a_function_of_a_payload_is_not_patched_by_xen_on_arm64() -> anyhow::Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("stack/arm64/payload-function");
    let output = tempfile::tempdir()?;
    let mut stack = Stack::read(directory)?;
    stack.build(&arm64_base()?, output.path())?;
    ensure!(stack.built.len() == 1, "{} levels", stack.built.len());
    Ok(())
}

/// The effective source of a payload depends on its build options, which only its
/// record has.
#[test]
fn a_payload_without_a_usable_build_record_is_not_built_upon() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("stack/cases/used-again");
    let built = |level: &str| Built {
        patch: case.join(format!("{level}.patch")),
        payload: directory.path().join(level),
    };
    let (below, top) = (built("1"), built("2"));
    build(&base, &below.patch, &below.payload)?;
    let whole = std::fs::read(&below.payload)?;
    let attempt = |payload: &[u8]| {
        std::fs::write(&below.payload, payload)?;
        let (payloads, patches) = ([below.payload.clone()], [below.patch.clone()]);
        build_on(&base, &top, &payloads, &patches, &[])
    };
    for (from, to, words) in [
        (
            &b".note.xsplice.build"[..],
            &b".note.xsplice.other"[..],
            "it has no build record",
        ),
        (
            b"\"format\":1",
            b"\"format\":9",
            "its build record has the format 9",
        ),
        (
            b"\"format\":1",
            b"\"former\":1",
            "its build record has no format number",
        ),
        (
            b"\"prelink\":",
            b"\"prelunk\":",
            "its build record is damaged",
        ),
    ] {
        let mut payload = whole.clone();
        let at = whole.windows(from.len()).position(|bytes| bytes == from);
        let at = at.with_context(|| format!("the payload has no {}", from.escape_ascii()))?;
        payload[at..at + to.len()].copy_from_slice(to);
        let done = attempt(&payload)?;
        let stderr = String::from_utf8_lossy(&done.stderr);
        ensure!(
            done.status.code() == Some(1) && stderr.contains(words) && !top.payload.exists(),
            "{words}: {done:?}"
        );
        ensure!(
            stderr.contains("build it again") && stderr.contains("[wrong-stack]"),
            "{stderr}"
        );
    }
    let done = attempt(&whole)?;
    ensure!(done.status.success(), "{done:?}");
    Ok(())
}

/// Changes of a payload: in which symbol, of what, the new value, and what is said.
type Changes<'a> = &'a [(&'a str, Part, u8, &'a str)];

/// Each change of one place in the file of a payload is noticed by what is built on top.
#[test]
fn a_changed_payload_is_not_built_upon_on_arm32() -> anyhow::Result<()> {
    let base = arm32_base()?;
    let (astray, unknown) = ("lead elsewhere", "veneer#snprintf.4: the payload");
    let of_code: Changes<'_> = &[
        ("veneer#length@", Part::Contents(0), 0x05, astray),
        ("veneer#length@", Part::Contents(4), 0x05, astray),
        ("veneer#snprintf.4@", Part::Contents(0), 0x05, unknown),
        ("veneer#snprintf.4@", Part::Size, 12, unknown),
        ("common/version.c#text.0@", Part::Value, 4, astray),
        ("common/version.c#text.0@", Part::Section, 0xee, astray),
        ("xen_changeset", Part::Size, 0, "code without a name"),
    ];
    let lock = "common/tasklet.c#tasklet_lock";
    let of_data: Changes<'_> = &[(lock, Part::Value, 0xa0, "of tasklet_lock: it has it at")];
    none_is_built_upon(&base, "patches-arm32/veneers.patch", of_code)?;
    none_is_built_upon(&base, "patches/percpu-new.patch", of_data)
}

/// The payload of `patch` is built upon, and is not with any of `changes`.
fn none_is_built_upon(base: &Base, patch: &str, changes: Changes<'_>) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = |patch: &str, name: &str| Built {
        patch: fixtures.join(patch),
        payload: directory.path().join(name),
    };
    let (below, top) = (
        built(patch, "below"),
        built("stack/cases/in-place/2.patch", "top"),
    );
    build(base, &below.patch, &below.payload)?;
    let whole = std::fs::read(&below.payload)?;
    let attempt = |payload: &[u8]| {
        std::fs::write(&below.payload, payload)?;
        let (payloads, patches) = ([below.payload.clone()], [below.patch.clone()]);
        build_on(base, &top, &payloads, &patches, &[])
    };
    let done = attempt(&whole)?;
    ensure!(done.status.success(), "{done:?}");
    std::fs::remove_file(&top.payload)?;
    for (name, part, value, words) in changes {
        let mut changed = whole.clone();
        changed[part.of(&whole, name)?] = *value;
        let done = attempt(&changed)?;
        let stderr = String::from_utf8_lossy(&done.stderr);
        ensure!(
            done.status.code() == Some(1) && stderr.contains(words) && !top.payload.exists(),
            "{words}: {done:?}"
        );
        ensure!(stderr.contains("[wrong-stack]"), "{stderr}");
    }
    Ok(())
}

/// A part of what a payload for ARM32 has of a symbol.
#[derive(Clone, Copy)]
enum Part {
    /// The byte at this offset of its contents.
    Contents(u64),
    Value,
    Size,
    Section,
}

impl Part {
    /// Its offset in the file.
    fn of(self, payload: &[u8], name: &str) -> anyhow::Result<usize> {
        const ENTRY: u64 = 16;
        let file = object::read::elf::ElfFile32::<object::Endianness>::parse(payload)?;
        let mut symbols = file.symbols();
        let symbol = symbols.find(|s| s.name().is_ok_and(|full| full.starts_with(name)));
        let symbol = symbol.with_context(|| format!("there is no {name}"))?;
        let start = |section: object::SectionIndex| {
            let range = file.section_by_index(section)?.file_range();
            anyhow::Ok(range.context("it is not in the file")?.0)
        };
        let table = file.elf_symbol_table().section();
        let entry = start(table)? + ENTRY * symbol.index().0 as u64;
        let at = match self {
            Self::Contents(at) => {
                let section = symbol.section_index().context("it has no section")?;
                start(section)? + symbol.address() + at
            }
            Self::Value => entry + 4,
            Self::Size => entry + 8,
            Self::Section => entry + 14,
        };
        Ok(usize::try_from(at)?)
    }
}

/// Errors in the stack as a whole are reported before anything is built.
fn told_early(base: &Base, stacks: &[Stack]) -> anyhow::Result<()> {
    let mut whole = stacks.iter().filter(|s| s.built.len() == s.patches.len());
    let stack = whole.next().context("no stack was built")?;
    let text = |path: &Path| path.display().to_string();
    let payloads: Vec<String> = stack.built.iter().map(|b| text(&b.payload)).collect();
    let patches: Vec<String> = stack.built.iter().map(|b| text(&b.patch)).collect();
    let swapped = |of: &[String]| vec![of[1].clone(), of[0].clone()];
    let cases = [
        (swapped(&payloads), patches.clone(), "is given after it"),
        (
            payloads[1..].to_vec(),
            patches.clone(),
            "is not given: give all payloads",
        ),
        (payloads[..1].to_vec(), patches.clone(), "was built from it"),
        (
            payloads[..2].to_vec(),
            swapped(&patches),
            "in the order of the payloads",
        ),
        (
            payloads[..2].to_vec(),
            patches[1..].to_vec(),
            "which is not given with -p",
        ),
        (vec![payloads[0].clone(); 2], patches, "the same payload as"),
    ];
    for (payloads, patches, words) in cases {
        let tree = text(&base.tree);
        let syms = text(&base.xen_syms);
        let mut argv = vec!["verify", "-s", &tree, "--xen-syms", &syms];
        argv.extend(payloads.iter().map(String::as_str));
        patches.iter().for_each(|patch| argv.extend(["-p", patch]));
        let output = local(&argv)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(1) && said.lines().count() == 1 && said.contains(words),
            "expected `{words}`: {said}"
        );
    }
    Ok(())
}

/// The function is in a payload's memory, which our core writes differently than the
/// hypervisor's text.
#[test]
fn a_payload_patches_a_function_that_the_one_below_added() -> anyhow::Result<()> {
    let base = rust_base()?;
    let directory = tempfile::tempdir()?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("stack");
    let built = |patch: &str, payload: &str| Built {
        patch: here.join(patch),
        payload: directory.path().join(payload),
    };
    let below = built("adds-function.patch", "below.livepatch");
    let top = built("on-added.patch", "top.livepatch");
    build(&base, &below.patch, &below.payload)?;
    let (payloads, patches) = ([below.payload], [below.patch]);
    let done = build_on(&base, &top, &payloads, &patches, &[])?;
    ensure!(done.status.success(), "{done:?}");

    let mut host = Host::boot(&config(&base)?)?;
    host.put("/lab/below.livepatch", &std::fs::read(&payloads[0])?)?;
    host.put("/lab/top.livepatch", &std::fs::read(&top.payload)?)?;
    let mut tool = |arguments: &[&str]| {
        let done = settled(&mut host, &[&["xsplice"], arguments].concat())?;
        ensure!(done.code == Some(0), "{arguments:?}: {done:?}");
        Ok(done.stdout)
    };
    let before = tool(&["info"])?;
    for (arguments, extra) in [
        (&["load", "/lab/below.livepatch"][..], "-greeting"),
        (&["load", "/lab/top.livepatch"], "-changed"),
        (&["revert", "top"], "-greeting"),
        (&["apply", "top"], "-changed"),
        (&["revert", "top"], "-greeting"),
    ] {
        tool(arguments)?;
        let info = tool(&["info"])?;
        ensure!(info.contains(extra), "{arguments:?}: {info}");
    }
    for arguments in [["unload", "top"], ["revert", "below"], ["unload", "below"]] {
        tool(&arguments)?;
    }
    let after = tool(&["info"])?;
    ensure!(after == before, "{before}\n{after}");
    host.shut_down()?;
    Ok(())
}
