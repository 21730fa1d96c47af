// SPDX-License-Identifier: MIT OR Apache-2.0

//! Loading microcode: Debian's Xen, and the one with our rendezvous in place of its state
//! machine. Both print a line before they stop the CPUs, and one for each core when it has
//! loaded the microcode; Xen puts the time of its clock before each line.

use anyhow::{Context as _, ensure};
use xsplice_lab::{Host, HostConfig, microcode};
use xsplice_testbed::base::{self, Base};
use xsplice_testbed::{Machine, cache, println, programs, xen};

/// Number of loads.
const LOADS: usize = 30;
/// CPUs of the hosts, and threads of a core. Emulated CPUs share those of the machine: if
/// there are more, each step of a rendezvous waits until the last one has had its turn.
const HOSTS: [(u32, u32); 2] = [(2, 1), (4, 2)];
/// Attempts at a load: CPUs may not arrive in time.
const TRIES: usize = 10;

/// What is printed before the CPUs are stopped, and for each core.
const BEGIN: &str = "cores are to update their microcode";
const UPDATED: &str = "updated from revision";
/// What our core prints about the window, in nanoseconds.
const WINDOW: &str = "stopped for ";

/// Measures both.
pub(crate) fn run() -> anyhow::Result<()> {
    let xsplice = programs::build_xsplice()?;
    let _hypervisors = cache::hold_hypervisors()?;
    let ours = xen::Build {
        microcode: true,
        ..xen::Build::new(xen::Engine::Rust)
    };
    let ours: Base = serde_json::from_str(&std::fs::read_to_string(xen::build(
        Machine::X86_64,
        &ours,
    )?)?)?;
    println!("{LOADS} loads each, in microseconds");
    println!("| CPUs, threads of a core | | least | median | most |\n|---|---|---:|---:|---:|");
    let cores = [("C", base::get()?), ("Rust", ours)];
    for host in HOSTS {
        for (name, base) in &cores {
            let console = loads(base, host, xsplice.clone())?;
            let announced = format!("{name}: from the announcement to the last core");
            row(host, &announced, &mut times(&console)?);
            let mut windows = windows(&console);
            if !windows.is_empty() {
                row(host, &format!("{name}: window"), &mut windows);
            }
        }
    }
    Ok(())
}

/// Loads microcode again and again; returns what the console said meanwhile.
fn loads(
    base: &Base,
    (cpus, threads): (u32, u32),
    xsplice: std::path::PathBuf,
) -> anyhow::Result<String> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("microcode");
    std::fs::write(
        &file,
        microcode::intel(microcode::SIGNATURE, microcode::REVISION),
    )?;
    let tool = base.c_tool.with_file_name("xen-ucode");
    let (kernel, privcmd) = (base.kernel.clone(), Some(base.privcmd.clone()));
    let config = HostConfig {
        cpus: Some(cpus),
        threads,
        processor: Some(microcode::PROCESSOR.to_owned()),
        xen_arguments: "ucode=allow-same console_timestamps=boot".to_owned(),
        programs: vec![("bin/xen-ucode".to_owned(), tool)],
        libraries: base.libraries.clone(),
        files: vec![("lab/microcode".to_owned(), file)],
        ..HostConfig::new(base.xen.clone(), kernel, privcmd, xsplice)
    };
    let mut host = Host::boot(&config)?;
    let booted = host.console().len();
    for _ in 0..LOADS {
        let mut loads = (0..TRIES).map(|_| host.run(&["xen-ucode", "/lab/microcode"]));
        let loaded = loads.find(|load| !matches!(load, Ok(output) if output.code != Some(0)));
        loaded.context("microcode is not loaded")??;
    }
    let console = host.console().split_off(booted);
    host.shut_down()?;
    Ok(console)
}

/// For each load that succeeded, the time from its announcement to the line of its last
/// core, in microseconds.
fn times(console: &str) -> anyhow::Result<Vec<u64>> {
    let (mut times, mut begin, mut last) = (Vec::new(), None, None);
    for line in console.lines() {
        if line.contains(BEGIN) {
            times.extend(last.take());
            begin = time(line);
        } else if line.contains(UPDATED) {
            let both = time(line).zip(begin);
            let (end, begin) = both.with_context(|| format!("no time in {line:?}"))?;
            last = Some(end.saturating_sub(begin));
        }
    }
    times.extend(last);
    ensure!(
        times.len() == LOADS,
        "{} of {LOADS} loads were seen",
        times.len()
    );
    Ok(times)
}

/// The time of a line in microseconds: `(XEN) [   12.345678] …`.
fn time(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once('[')?;
    let (time, _) = rest.split_once(']')?;
    let (seconds, micros) = time.trim().split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?)
}

/// The windows that our core has measured, in microseconds.
fn windows(console: &str) -> Vec<u64> {
    let numbers = console.split(WINDOW).skip(1).filter_map(|rest| {
        let (nanoseconds, _) = rest.split_once(" ns")?;
        nanoseconds.parse::<u64>().ok()
    });
    numbers.map(|nanoseconds| nanoseconds / 1000).collect()
}

fn row((cpus, threads): (u32, u32), name: &str, times: &mut [u64]) {
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    if let [least, .., most] = times {
        println!("| {cpus}, {threads} | {name} | {least} | {median} | {most} |");
    }
}
