// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cycles of our generator's payloads on a hypervisor with our core, with all CPUs
//! busy and constant hypercalls: 100 cycles, or 500 in an exhaustive run; a few on a
//! debug build, where a failed assertion stops the host.

use anyhow::{Context as _, ensure};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use xsplice_e2e::{
    Base, Cycles, build, config, debug_base, exhaustive, memory, repository, rust_base,
    unsigned_config,
};
use xsplice_lab::{Host, HostConfig};

/// Number of cycles per process; none leaves anything behind.
const AT_A_TIME: u64 = 50;

#[test]
fn apply_revert_cycles_under_load() -> anyhow::Result<()> {
    let base = rust_base()?;
    come_and_go(config(&base)?, &base, if exhaustive() { 500 } else { 100 })
}

#[test]
fn apply_revert_cycles_under_load_on_debug_xen() -> anyhow::Result<()> {
    let base = debug_base()?;
    come_and_go(unsigned_config(&base)?, &base, 4)
}

fn come_and_go(mut config: HostConfig, base: &Base, wanted: u64) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    config.timeout = Duration::from_secs(600);
    let driver = PathBuf::from(env!("CARGO_BIN_EXE_in-dom0"));
    config.programs.push(("bin/in-dom0".to_owned(), driver));
    for name in ["extra-version", "two-files"] {
        let patch = repository().join(format!("examples/xen-4.17/{name}.patch"));
        let payload = directory.path().join(name);
        build(base, &patch, &payload)?;
        config.files.push((format!("lab/{name}"), payload));
    }
    let mut host = Host::boot(&config)?;
    // Warm up: the first cycles make allocations that are kept.
    cycles(&mut host, 4)?;
    let before = memory(&mut host)?;
    let (mut done, mut late, mut seconds, mut longest) = (0, 0, 0.0, 0.0_f64);
    while done < wanted {
        let part = cycles(&mut host, AT_A_TIME.min(wanted - done))?;
        ensure!(
            part.calls.iter().all(|calls| *calls > part.cycles),
            "a thread stood still: {part:?}"
        );
        done += part.cycles;
        late += part.late;
        seconds += part.seconds;
        longest = longest.max(part.longest_call);
    }
    let after = memory(&mut host)?;
    ensure!(after == before, "{after:?}, before {before:?}");
    host.shut_down()?;
    let line = format!(
        "{done} cycles in {seconds:.0} s, {late} actions tried again, no call longer than \
         {longest:.2} s; {after:?}\n"
    );
    std::io::stderr().write_all(line.as_bytes())?;
    Ok(())
}

fn cycles(host: &mut Host, number: u64) -> anyhow::Result<Cycles> {
    let number = number.to_string();
    let argv = [
        "in-dom0",
        "cycles",
        &number,
        "/lab/extra-version",
        "/lab/two-files",
    ];
    let output = host.run(&argv)?;
    ensure!(
        output.code == Some(0),
        "{}\n{}",
        output.stderr,
        host.console()
    );
    serde_json::from_str(&output.stdout).context(output.stdout)
}
