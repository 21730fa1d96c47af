// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shared code of the tests on a real Xen, which are in `tests/`.
#![forbid(unsafe_code)]

pub mod claim;
pub mod corrupted;
pub mod damage;
pub mod forged;
pub mod levels;
pub mod mutation;
pub mod xapi;

pub mod directives;

use anyhow::{Context, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::{Command, Output as LocalOutput};
use std::time::Duration;
use xsplice_abi::machine::Machine;
use xsplice_lab::{DebianConfig, Host, HostConfig, Output};
pub use xsplice_testbed::base::Base;
use xsplice_testbed::dom0::Dom0;

/// The minor version of Xen 4.
///
/// # Errors
/// If the version has another form.
pub fn minor(base: &Base) -> anyhow::Result<u32> {
    let rest = base.version.strip_prefix("4.");
    let rest = rest.with_context(|| base.version.clone())?;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    let minor = &rest[..end.unwrap_or(rest.len())];
    minor.parse().with_context(|| base.version.clone())
}

/// The machine that it is for.
///
/// # Errors
/// If its symbols are not readable, or not those of a hypervisor.
pub fn machine(base: &Base) -> anyhow::Result<Machine> {
    let syms = std::fs::read(&base.xen_syms)?;
    // In ELF files of both widths.
    let number = syms.get(18..).and_then(|rest| rest.first_chunk());
    let machine = number.and_then(|number| Machine::from_elf(u16::from_le_bytes(*number)));
    machine.with_context(|| {
        format!(
            "{}: no ELF file of a known machine",
            base.xen_syms.display()
        )
    })
}

/// The example patch `name` for this version: the newest that is not for a later
/// one.
///
/// # Errors
/// If there is none.
pub fn example(base: &Base, name: &str) -> anyhow::Result<PathBuf> {
    let mut paths = (0..=minor(base)?)
        .rev()
        .map(|minor| repository().join(format!("examples/xen-4.{minor}/{name}.patch")));
    let found = paths.find(|path| path.is_file());
    found.with_context(|| format!("there is no example {name} for Xen {}", base.version))
}

/// Whether the C tool, which is Debian's, speaks the hypervisor's interface.
///
/// # Errors
/// If the version has another form.
pub fn c_tool_fits(base: &Base) -> anyhow::Result<bool> {
    Ok(!list_is_given_room(base)?)
}

/// Whether a request for the list of payloads says how much room there is for it, as from
/// interface version 0x16 on.
///
/// # Errors
/// If the version has another form.
pub fn list_is_given_room(base: &Base) -> anyhow::Result<bool> {
    Ok(minor(base)? > 20)
}

/// The base that `XSPLICE_BASE` names.
///
/// # Errors
/// If there is none: then the tests on a real Xen cannot run, and must not pass.
pub fn base() -> anyhow::Result<Base> {
    described_by("XSPLICE_BASE")
}

/// Like [`base`], but the hypervisor has our live-patch core: `XSPLICE_RUST_BASE`
/// names it.
///
/// # Errors
/// If there is none.
pub fn rust_base() -> anyhow::Result<Base> {
    described_by("XSPLICE_RUST_BASE")
}

/// Like [`rust_base`], but a debug build, which checks locks, interrupt state and
/// preconditions, and with microcode loading on the rendezvous: `XSPLICE_DEBUG_BASE`
/// names it. It has the keys of `tests/keys/trusted`,
/// and so it enforces signatures.
///
/// # Errors
/// If there is none.
pub fn debug_base() -> anyhow::Result<Base> {
    described_by("XSPLICE_DEBUG_BASE")
}

/// Like [`rust_base`], with the keys of `tests/keys/trusted`, and signatures that are
/// enforced whatever the command line says: `XSPLICE_LOCKED_BASE` names it.
///
/// # Errors
/// If there is none.
pub fn locked_base() -> anyhow::Result<Base> {
    described_by("XSPLICE_LOCKED_BASE")
}

/// Debian's Xen on ARM64, built with live patching: `XSPLICE_ARM64_BASE` names it.
///
/// # Errors
/// If there is none.
pub fn arm64_base() -> anyhow::Result<Base> {
    described_by("XSPLICE_ARM64_BASE")
}

/// As [`arm64_base`], with our core: `XSPLICE_ARM64_RUST_BASE` names it.
///
/// # Errors
/// If there is none.
pub fn arm64_rust_base() -> anyhow::Result<Base> {
    described_by("XSPLICE_ARM64_RUST_BASE")
}

/// As [`locked_base`], on ARM64: `XSPLICE_ARM64_LOCKED_BASE` names it.
///
/// # Errors
/// If there is none.
pub fn arm64_locked_base() -> anyhow::Result<Base> {
    described_by("XSPLICE_ARM64_LOCKED_BASE")
}

/// As [`arm64_base`], for ARM32: `XSPLICE_ARM32_BASE` names it.
///
/// # Errors
/// If there is none.
pub fn arm32_base() -> anyhow::Result<Base> {
    described_by("XSPLICE_ARM32_BASE")
}

/// As [`arm32_base`], with our core: `XSPLICE_ARM32_RUST_BASE` names it.
///
/// # Errors
/// If there is none.
pub fn arm32_rust_base() -> anyhow::Result<Base> {
    described_by("XSPLICE_ARM32_RUST_BASE")
}

/// As [`locked_base`], on ARM32: `XSPLICE_ARM32_LOCKED_BASE` names it.
///
/// # Errors
/// If there is none.
pub fn arm32_locked_base() -> anyhow::Result<Base> {
    described_by("XSPLICE_ARM32_LOCKED_BASE")
}

/// What the environment variable `variable` says, which `cargo xtask test` sets.
///
/// # Errors
/// If it is not set.
pub fn named_by(variable: &str) -> anyhow::Result<String> {
    std::env::var(variable).with_context(|| {
        format!("{variable} is not set: these tests need a real Xen; run `cargo xtask test`")
    })
}

fn described_by<T: DeserializeOwned>(variable: &str) -> anyhow::Result<T> {
    let path = named_by(variable)?;
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    serde_json::from_str(&text).context(path)
}

/// The static `xsplice` executable that `XSPLICE_BIN` names.
///
/// # Errors
/// If it is not set.
pub fn xsplice() -> anyhow::Result<PathBuf> {
    Ok(named_by("XSPLICE_BIN")?.into())
}

/// Whether to try everything instead of a sample: `cargo xtask test --all`.
pub fn exhaustive() -> bool {
    std::env::var_os("XSPLICE_ALL").is_some()
}

/// The seed of the samples: `cargo xtask test --seed N`.
///
/// # Errors
/// If `XSPLICE_SEED` is not a number.
pub fn seed() -> anyhow::Result<u64> {
    match std::env::var("XSPLICE_SEED") {
        Ok(seed) => seed.parse().context("XSPLICE_SEED"),
        Err(_) => Ok(1),
    }
}

/// The root of this repository.
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The result that `xsplice COMMAND --json` printed; all that it printed is as the
/// published schema says.
///
/// # Errors
/// If it is not, or the command failed before it had a result.
pub fn result(command: &str, printed: impl AsRef<[u8]>) -> anyhow::Result<serde_json::Value> {
    let mut value = told(command, printed)?;
    let result = value["result"].take();
    ensure!(!result.is_null(), "{value:#}");
    Ok(result)
}

/// What `xsplice COMMAND --json` printed, which is as the published schema says.
///
/// # Errors
/// If it is not.
pub fn told(command: &str, printed: impl AsRef<[u8]>) -> anyhow::Result<serde_json::Value> {
    let path = repository().join(format!("docs/schema/{command}.json"));
    let schema = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let printed = printed.as_ref();
    let value = serde_json::from_slice(printed);
    let value = value.with_context(|| String::from_utf8_lossy(printed).into_owned())?;
    jsonschema::validate(&serde_json::from_slice(&schema)?, &value)
        .map_err(|error| anyhow::anyhow!("{command}: {error}: {value:#}"))?;
    Ok(value)
}

/// The host to boot: Debian's hypervisor, with the C tool as `/bin/c-livepatch` and
/// Xen's test payloads in `/lab`.
///
/// # Errors
/// If the base is missing.
pub fn config(base: &Base) -> anyhow::Result<HostConfig> {
    config_with(base, xsplice()?)
}

/// As [`config`], for [`arm64_base`]; `XSPLICE_ARM64_BIN` names the `xsplice` in it.
///
/// # Errors
/// If the base is missing.
pub fn arm64_config(base: &Base) -> anyhow::Result<HostConfig> {
    config_with(base, named_by("XSPLICE_ARM64_BIN")?.into())
}

/// As [`config`], for [`arm32_base`]; `XSPLICE_ARM32_BIN` names the `xsplice` in it.
///
/// # Errors
/// If the base is missing.
pub fn arm32_config(base: &Base) -> anyhow::Result<HostConfig> {
    config_with(base, named_by("XSPLICE_ARM32_BIN")?.into())
}

fn config_with(base: &Base, xsplice: PathBuf) -> anyhow::Result<HostConfig> {
    let mut config = HostConfig::new(
        base.xen.clone(),
        base.kernel.clone(),
        Some(base.privcmd.clone()),
        xsplice,
    );
    config
        .programs
        .push(("c/xen-livepatch".to_owned(), base.c_tool.clone()));
    config.libraries.clone_from(&base.libraries);
    for path in own_payloads(base)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        config.files.push((format!("lab/{name}"), path.clone()));
    }
    Ok(config)
}

/// A host with the hypervisor of `base`, and the Debian system that `XSPLICE_DOM0` names as
/// dom0.
///
/// # Errors
/// If there is none.
pub fn debian_config(base: &Base) -> anyhow::Result<DebianConfig> {
    let dom0: Dom0 = described_by("XSPLICE_DOM0")?;
    Ok(DebianConfig::new(
        base.xen.clone(),
        dom0.kernel,
        dom0.initramfs,
        dom0.disk,
        dom0.key,
    ))
}

/// As [`config`], for payloads without signatures on [`debug_base`].
///
/// # Errors
/// If the base is not there.
pub fn unsigned_config(base: &Base) -> anyhow::Result<HostConfig> {
    config(base).map(without_signatures)
}

/// The host to boot, whose command line says not to check signatures.
pub fn without_signatures(config: HostConfig) -> HostConfig {
    let xen_arguments = "livepatch-signatures=off".to_owned();
    HostConfig {
        xen_arguments,
        ..config
    }
}

/// Xen's own test payloads.
///
/// # Errors
/// If one is missing.
pub fn own_payloads(base: &Base) -> anyhow::Result<Vec<PathBuf>> {
    const PAYLOADS: usize = 14;
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&base.test_payloads)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "livepatch") {
            paths.push(path);
        }
    }
    paths.sort();
    ensure!(
        paths.len() >= PAYLOADS,
        "test payloads are missing: {paths:?}"
    );
    Ok(paths)
}

/// Runs the `xsplice` executable on this machine.
///
/// # Errors
/// If it cannot be started.
pub fn local(arguments: &[&str]) -> anyhow::Result<LocalOutput> {
    Ok(Command::new(xsplice()?).args(arguments).output()?)
}

/// What a program of this machine prints.
///
/// # Errors
/// If it fails, with what it says.
pub fn stdout(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output();
    let output = output.with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Makes the Debian package of the repository at `source`, which Debian's checker has
/// nothing to say about; returns its path.
///
/// # Errors
/// If it cannot be made.
pub fn package(source: &Path) -> anyhow::Result<PathBuf> {
    let mut command = Command::new("cargo");
    command.args(["xtask", "package"]).current_dir(source);
    let printed = stdout(&mut command)?;
    let path = printed.lines().next_back().context("no path")?;
    Ok(path.into())
}

/// Makes the Ansible collection, and installs it below `directory`.
///
/// # Errors
/// If it cannot be made.
pub fn collection(directory: &Path) -> anyhow::Result<()> {
    let (made, source) = (tempfile::tempdir()?, repository().join("packaging/ansible"));
    let galaxy = |words: &[&str]| {
        let mut command = Command::new("ansible-galaxy");
        command
            .arg("collection")
            .args(words)
            .env("HOME", made.path());
        command
    };
    let mut build = galaxy(&["build", "--output-path"]);
    stdout(build.arg(made.path()).arg(source))?;
    let archives = std::fs::read_dir(made.path())?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut archives = archives.filter(|path| path.extension().is_some_and(|e| e == "gz"));
    let archive = archives.next().context("no archive was made")?;
    let mut install = galaxy(&["install", "--offline", "--collections-path"]);
    stdout(install.arg(directory).arg(archive))?;
    Ok(())
}

/// Makes of the Debian package `deb` one with a later version, in `directory`; returns its
/// path.
///
/// # Errors
/// If it cannot be made.
pub fn later(deb: &Path, directory: &Path) -> anyhow::Result<PathBuf> {
    let (root, later) = (directory.join("root"), directory.join("later.deb"));
    stdout(
        Command::new("dpkg-deb")
            .arg("--raw-extract")
            .arg(deb)
            .arg(&root),
    )?;
    let control = root.join("DEBIAN/control");
    let text = std::fs::read_to_string(&control)?;
    std::fs::write(&control, text.replacen("\nVersion: ", "\nVersion: 1:", 1))?;
    let options = ["--root-owner-group", "-Zgzip", "--build"];
    stdout(
        Command::new("dpkg-deb")
            .args(options)
            .arg(&root)
            .arg(&later),
    )?;
    Ok(later)
}

/// Builds the hypervisor of the tree with `patches`, so many for each of `levels`, and
/// with the generated hooks of `payloads`.
///
/// # Errors
/// If it does not build.
pub fn patched(
    base: &Base,
    patches: &[PathBuf],
    levels: &[usize],
    payloads: &[Vec<u8>],
) -> anyhow::Result<xsplice_verify::Patched> {
    let payloads = payloads.iter().map(|data| xsplice_verify::Input {
        name: "payload",
        data,
    });
    let generated = payloads.filter_map(|payload| xsplice_verify::generated_hooks(&payload));
    let generated: Vec<String> = generated.collect();
    let levels = levels.iter().map(|&patches| xsplice_verify::Level {
        patches: Some(patches),
        ..Default::default()
    });
    let plan = xsplice_verify::Plan {
        tree: &base.tree,
        patches,
        levels: &levels.collect::<Vec<_>>(),
        recorded: &[],
        hooks: &[],
        generated: &generated,
        cache: None,
    };
    Ok(xsplice_verify::build(&plan, &xsplice_verify::Silent)?)
}

/// Builds a payload from the source patch at `patch`, with the options that it names.
///
/// # Errors
/// If `xsplice build` refuses, with its message.
pub fn build(base: &Base, patch: &Path, output: &Path) -> anyhow::Result<String> {
    build_with(base, patch, output, &[])
}

/// As [`build`], with `more` options.
///
/// # Errors
/// If `xsplice build` refuses, with its message.
pub fn build_with(
    base: &Base,
    patch: &Path,
    output: &Path,
    more: &[String],
) -> anyhow::Result<String> {
    let text = |path: &std::path::Path| path.display().to_string();
    let options = directives::options(&std::fs::read_to_string(patch)?);
    let arguments = [
        "build",
        "-s",
        &text(&base.tree),
        "-p",
        &text(patch),
        "--xen-syms",
        &text(&base.xen_syms),
        "-o",
        &text(output),
    ];
    let options: Vec<&str> = options.iter().chain(more).map(String::as_str).collect();
    let result = local(&[&arguments[..], &options].concat())?;
    if !result.status.success() {
        bail!("{}", String::from_utf8_lossy(&result.stderr));
    }
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

/// Runs a command in dom0, and retries while it says "try again" (exit code 2): on an
/// emulated machine, the rendezvous can time out.
///
/// # Errors
/// If the host is lost.
pub fn settled(host: &mut Host, argv: &[&str]) -> anyhow::Result<Output> {
    const TRIES: usize = 10;
    let mut output = host.run(argv)?;
    for _ in 1..TRIES {
        if output.code != Some(2) {
            break;
        }
        output = host.run(argv)?;
    }
    Ok(output)
}

/// The result of `in-dom0 cycles`, which applies and reverts payloads under load.
#[derive(Debug, Serialize, Deserialize)]
pub struct Cycles {
    /// Number of cycles.
    pub cycles: u64,
    /// Number of actions retried after a timeout.
    pub late: u64,
    /// Duration.
    pub seconds: f64,
    /// Number of hypercalls of each of the other threads.
    pub calls: Vec<u64>,
    /// The longest time that one of these waited for its answers, in seconds.
    pub longest_call: f64,
}

/// The result of `in-dom0 microcode-cycles`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Loads {
    /// Number of times that microcode was loaded.
    pub loads: u64,
    /// How often that was retried, because the hypervisor was busy.
    pub busy: u64,
    /// Number of cycles of payloads meanwhile.
    pub cycles: u64,
    /// Number of their actions that were retried.
    pub late: u64,
}

/// The hypervisor's memory according to its debug keys: free memory, and the memory
/// of our core.
#[derive(Debug, PartialEq, Eq)]
pub struct Memory {
    /// In KiB.
    pub free: u64,
    /// The core's line; `None` with the stock core, which prints none.
    pub core: Option<String>,
}

/// Reads it. The memory of a payload is free soon after it is unloaded: when no CPU can be
/// reading it.
///
/// # Errors
/// If the host is lost, prints something else, or its memory changes all the time.
pub fn memory(host: &mut Host) -> anyhow::Result<Memory> {
    let mut before = memory_now(host)?;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(100));
        let now = memory_now(host)?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
    bail!("its memory changes all the time: {before:?}")
}

fn memory_now(host: &mut Host) -> anyhow::Result<Memory> {
    let heap = host.press('m', "Dom heap: ")?;
    let free = heap
        .split_once("Dom heap: ")
        .and_then(|(_, rest)| rest.split_once("kB"));
    let (free, _) = free.with_context(|| heap.clone())?;
    let payloads = host.press('x', "livepatch")?;
    let core = payloads.lines().find(|line| line.contains("bytes of heap"));
    Ok(Memory {
        free: free.parse()?,
        core: core.map(str::to_owned),
    })
}
