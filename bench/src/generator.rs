// SPDX-License-Identifier: MIT OR Apache-2.0
//! The generator, next to the peer and to `make`.

use crate::Arch;
use crate::cost::Cost;
use crate::cpus;
use anyhow::{Context, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use xsplice_testbed::base::Base;
use xsplice_testbed::println;
use xsplice_testbed::{cache, command, debian_build, hypervisor, programs};

/// A patch that affects nearly every object and changes the code of none.
const WIDE: &str = "--- a/xen/include/xen/cpumask.h\n+++ b/xen/include/xen/cpumask.h\n\
                    @@ -1,4 +1,5 @@\n #ifndef __XEN_CPUMASK_H\n #define __XEN_CPUMASK_H\n\
                    +extern int xsplice_bench_unused;\n \n /*\n";
/// The build-id passed to the peer, which ignores it.
const DEPENDS: &str = "0000000000000000000000000000000000000000";
/// Number of the tree's largest objects to compare.
const OBJECTS: usize = 40;

/// How often each patch is built, cold and then warm.
const ROUNDS: usize = 3;

/// Measures the generator; `peer` is a built livepatch-build-tools.
pub(crate) fn run(arch: Arch, peer: Option<&Path>) -> anyhow::Result<()> {
    ensure!(
        peer.is_none() || arch == Arch::X86_64,
        "the peer makes no payloads for {}: leave out --peer",
        arch.machine()
    );
    let xsplice = programs::build_xsplice()?;
    let base = hypervisor::base(arch.machine())?;
    // On the tree's file system, for work directories, objects and payloads.
    let directory = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(cache::root()?)?;
    println!(
        "## From patch to payload for {}, {} CPUs, {}, load {}\n",
        arch.machine(),
        cpus(),
        command::output(
            Command::new("stat")
                .args(["-f", "-c", "%T"])
                .arg(directory.path())
        )?
        .trim(),
        load()?
    );
    let wide = directory.path().join("wide-header.patch");
    std::fs::write(&wide, WIDE)?;
    let mut patches: Vec<PathBuf> = ["extra-version", "two-files", "bug-and-alternative"]
        .iter()
        .map(|name| format!("examples/xen-4.17/{name}.patch").into())
        .collect();
    patches.push(wide);
    let widest = cold_and_warm(&xsplice, &base, &patches, directory.path())?;
    against_make(arch, &base, directory.path(), widest)?;
    if let Some(peer) = peer {
        flow(peer, &xsplice, &base, &patches[0])?;
    }
    compare(arch, peer, &base, directory.path())
}

/// The cost of each patch; returns that of the last one, cold.
fn cold_and_warm(
    xsplice: &Path,
    base: &Base,
    patches: &[PathBuf],
    directory: &Path,
) -> anyhow::Result<Cost> {
    println!("| patch | cold | CPU | warm | CPU | peak memory |");
    println!("|---|---:|---:|---:|---:|---:|");
    let mut last = Cost::default();
    for patch in patches {
        let (mut cold, mut warm, mut peak) = (Vec::new(), Vec::new(), 0);
        for _ in 0..ROUNDS {
            let cache = tempfile::tempdir_in(directory)?;
            for costs in [&mut cold, &mut warm] {
                let run = build(xsplice, base, patch, directory, cache.path())?;
                costs.push(run.cost);
                peak = peak.max(run.peak);
            }
        }
        last = Cost::median(&cold);
        println!(
            "| {} | {last} | {} | {} MiB |",
            patch.file_stem().unwrap_or_default().to_string_lossy(),
            Cost::median(&warm),
            peak >> 10
        );
    }
    Ok(last)
}

/// How long the comparison of objects takes.
fn compare(arch: Arch, peer: Option<&Path>, base: &Base, directory: &Path) -> anyhow::Result<()> {
    println!("\n## Comparing the {OBJECTS} largest objects of the tree, each with itself\n");
    let objects = largest_objects(arch, base)?;
    let ours = compare_ours(&objects)?;
    let total: u64 = objects.iter().map(|(_, size)| size).sum();
    println!("{} KiB of objects\n", total >> 10);
    println!("| | whole | each |");
    println!("|---|---:|---:|");
    row("xsplice", ours, objects.len());
    if let Some(peer) = peer {
        let theirs = compare_theirs(peer, base, &objects, directory)?;
        row("peer", theirs, objects.len());
        let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
        println!("| ratio | {ratio:.1} | |");
    }
    Ok(())
}

/// The time that `make` takes for the objects that the wide header affects: the build
/// after the header changed, minus a build after one source changed, which also
/// links.
fn against_make(arch: Arch, base: &Base, directory: &Path, ours: Cost) -> anyhow::Result<()> {
    let tree = directory.join("tree");
    command::run(Command::new("cp").arg("-a").args([&base.tree, &tree]))?;
    let make = || hypervisor::build(arch.machine(), &tree);
    // On x86-64, its commands contain different paths, so that all of it is compiled.
    make()?;
    let build_after = |changed: &str| -> anyhow::Result<Cost> {
        command::run(Command::new("touch").arg(tree.join("xen").join(changed)))?;
        Ok(Cost::of(make)?.1)
    };
    let (one, all) = (
        build_after("common/version.c")?,
        build_after("include/xen/cpumask.h")?,
    );
    let theirs = Cost {
        time: all.time.saturating_sub(one.time),
        cpu: all.cpu.saturating_sub(one.cpu),
    };
    println!("\n## The objects of wide-header, cold\n");
    println!("| | time | CPU |\n|---|---:|---:|");
    println!("| make | {theirs} |");
    println!("| xsplice | {ours} |");
    let ratio = |ours: Duration, theirs: Duration| ours.as_secs_f64() / theirs.as_secs_f64();
    println!(
        "| ratio | {:.2} | {:.2} |",
        ratio(ours.time, theirs.time),
        ratio(ours.cpu, theirs.cpu)
    );
    Ok(())
}

/// The load average of the last minute.
fn load() -> anyhow::Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// From a configured but unbuilt tree to the payload of the first patch.
fn flow(peer: &Path, xsplice: &Path, base: &Base, patch: &Path) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let (tree, output) = (directory.path().join("tree"), directory.path().join("out"));
    command::run(Command::new("cp").arg("-a").args([&base.tree, &tree]))?;
    let log = std::fs::File::create(directory.path().join("peer.log"))?;
    let start = Instant::now();
    let status = Command::new(peer.join("livepatch-build"))
        .arg("-s")
        .arg(&tree)
        .arg("-p")
        .arg(std::path::absolute(patch)?)
        .arg("-o")
        .arg(&output)
        .args([
            "-j",
            &cpus().to_string(),
            "--depends",
            DEPENDS,
            "--xen-syms",
        ])
        .arg(&base.xen_syms)
        .env_remove("MAKEFLAGS")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .with_context(|| peer.display().to_string())?;
    let theirs = start.elapsed().as_secs_f64();
    command::output(
        Command::new("make")
            .current_dir(tree.join("xen"))
            .arg("clean"),
    )?;
    let start = Instant::now();
    debian_build::rebuild(&tree)?;
    let rebuilt = start.elapsed().as_secs_f64();
    let cache = tempfile::tempdir()?;
    let run = || build(xsplice, base, patch, directory.path(), cache.path());
    let (cold, warm) = (
        run()?.cost.time.as_secs_f64(),
        run()?.cost.time.as_secs_f64(),
    );
    let name = patch.file_stem().unwrap_or_default().to_string_lossy();
    println!("\n## The whole way of {name}, against the peer\n");
    if !status.success() {
        let log = std::fs::read_to_string(directory.path().join("peer.log"))?;
        let last = log.lines().last().unwrap_or_default();
        println!("The peer makes no payload of it; its time is up to `{last}`\n");
    }
    println!("| | time | peer's time is |");
    println!("|---|---:|---:|");
    println!("| peer, which builds the tree three times | {theirs:.1} s | |");
    for (what, time) in [
        ("xsplice, and building the tree", rebuilt + cold),
        ("xsplice, in a built tree", cold),
        ("xsplice, once more", warm),
    ] {
        println!("| {what} | {time:.1} s | {:.1} times |", theirs / time);
    }
    Ok(())
}

fn row(who: &str, time: Duration, count: usize) {
    let milliseconds = time.as_secs_f64() * 1e3;
    let each = milliseconds / f64::from(u32::try_from(count).unwrap_or(1));
    println!("| {who} | {milliseconds:.1} ms | {each:.2} ms |");
}

struct Run {
    cost: Cost,
    /// Peak resident memory of `xsplice` itself in KiB.
    peak: u64,
}

fn build(
    xsplice: &Path,
    base: &Base,
    patch: &Path,
    directory: &Path,
    cache: &Path,
) -> anyhow::Result<Run> {
    let mut command = Command::new(xsplice);
    command
        .args(["build", "-s"])
        .arg(&base.tree)
        .arg("-p")
        .arg(patch)
        .arg("--xen-syms")
        .arg(&base.xen_syms)
        .arg("-o")
        .arg(directory)
        .env("XDG_CACHE_HOME", cache)
        .env("TMPDIR", directory)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let ((output, peak), cost) = Cost::of(|| {
        let mut child = command.spawn().context("cannot run xsplice")?;
        let status = format!("/proc/{}/status", child.id());
        let mut peak = 0;
        while child.try_wait()?.is_none() {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
            let kibibytes = line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok());
            peak = peak.max(kibibytes.unwrap_or(0));
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok((child.wait_with_output()?, peak))
    })?;
    let words = String::from_utf8_lossy(&output.stderr);
    // The wide patch is refused because it changes nothing, after all the work is
    // done.
    if !output.status.success() && !words.contains("it changes no code") {
        bail!("{}: {words}", patch.display());
    }
    Ok(Run { cost, peak })
}

fn largest_objects(arch: Arch, base: &Base) -> anyhow::Result<Vec<(PathBuf, u64)>> {
    let mut all = Vec::new();
    let architecture = match arch {
        Arch::X86_64 => "arch/x86",
        Arch::Arm64 => "arch/arm",
    };
    for part in [architecture, "common", "drivers", "xsm"] {
        collect(&base.tree.join("xen").join(part), &mut all)?;
    }
    all.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    all.truncate(OBJECTS);
    ensure!(all.len() == OBJECTS, "the tree has too few objects");
    Ok(all)
}

fn collect(directory: &Path, all: &mut Vec<(PathBuf, u64)>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            collect(&path, all)?;
        } else if name.ends_with(".o") && !name.starts_with("built_in") {
            all.push((path, entry.metadata()?.len()));
        }
    }
    Ok(())
}

/// A single process compares them in sequence, as the generator does on each CPU.
fn compare_ours(objects: &[(PathBuf, u64)]) -> anyhow::Result<Duration> {
    let program = programs::build_example("xsplice-objdiff", "compare")?;
    let mut compare = Command::new(&program);
    for (path, _) in objects {
        compare.args([path, path]);
    }
    let start = Instant::now();
    let differences = command::output(&mut compare)?;
    let time = start.elapsed();
    ensure!(
        differences.is_empty(),
        "objects differ from themselves: {differences}"
    );
    Ok(time)
}

fn compare_theirs(
    peer: &Path,
    base: &Base,
    objects: &[(PathBuf, u64)],
    directory: &Path,
) -> anyhow::Result<Duration> {
    /// The peer's exit code if nothing differs.
    const NO_CHANGE: i32 = 3;
    let program = peer.join("create-diff-object");
    let start = Instant::now();
    let mut failed = 0;
    for (path, _) in objects {
        let output = Command::new(&program)
            .args([path, path, &base.xen_syms, &directory.join("peer.o")])
            .output()
            .with_context(|| program.display().to_string())?;
        failed += usize::from(output.status.code() != Some(NO_CHANGE));
    }
    if failed > 0 {
        println!("the peer fails on {failed} of these objects, which makes it look faster\n");
    }
    Ok(start.elapsed())
}
