// SPDX-License-Identifier: MIT OR Apache-2.0

//! NMIs and machine checks that arrive in the window are neither handled there nor
//! lost, on Xen with our live-patch core.

use anyhow::{Context as _, ensure};
use std::path::Path;
use xsplice_e2e::{build, config, rust_base, settled};
use xsplice_lab::Host;

/// A processor that broadcasts machine checks, some of which the hypervisor can
/// recover from.
const PROCESSOR: &str = "Nehalem";

/// For CPU 0 and its bank 3: valid, uncorrected, enabled, signalled, found by memory
/// scrubbing (0xc0). MCG_STATUS: restartable.
const MACHINE_CHECK: &str = "mce -b 0 3 0xb1000000000000c0 0x5 0 0";

/// CPUs of the machine.
const CPUS: u32 = 4;

/// dom0's message for an NMI that Xen forwards.
const UNKNOWN_NMI: &str = "Uhhuh. NMI received for unknown reason";

#[test]
fn events_in_the_window_are_raised_again() -> anyhow::Result<()> {
    let base = rust_base()?;
    let directory = tempfile::tempdir()?;
    let payload = directory.path().join("slow-window.livepatch");
    let patch = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/held_events/slow-window.patch");
    build(&base, &patch, &payload)?;
    let mut config = config(&base)?;
    config.cpus = Some(CPUS);
    config.processor = Some(PROCESSOR.to_owned());
    config.xen_arguments = "mce_verbosity=verbose".to_owned();
    config.files.push(("lab/slow".to_owned(), payload));
    let mut host = Host::boot(&config)?;
    let uploaded = host.run(&["xsplice", "upload", "slow", "/lab/slow"])?;
    ensure!(uploaded.code == Some(0), "{uploaded:?}");

    let mut monitor = host.monitor()?;
    let hardware = std::thread::spawn(move || {
        monitor.wait_for("window: waiting")?;
        monitor.command("nmi")?;
        monitor.command(MACHINE_CHECK)?;
        std::io::Result::Ok(monitor)
    });
    let applied = settled(&mut host, &["xsplice", "apply", "slow"])?;
    ensure!(applied.code == Some(0), "{applied:?}");
    let monitor = hardware.join().expect("it does not panic")?;
    let reverted = settled(&mut host, &["xsplice", "revert", "slow"])?;
    ensure!(reverted.code == Some(0), "{reverted:?}\n{}", host.console());
    let listed = host.press('x', "extra_version")?;
    for line in ["build-id ", "depends on ", "patch=slow-window.patch"] {
        ensure!(listed.contains(line), "{line}: not in\n{listed}");
    }
    // The console lags behind.
    for line in ["afterwards: ", UNKNOWN_NMI] {
        monitor.wait_for(line)?;
    }
    let console = host.console();
    host.shut_down()?;
    check_order(&console)
}

/// Both events came in the window, and were handled once, after it.
fn check_order(console: &str) -> anyhow::Result<()> {
    let (_, window) = console
        .split_once("window: waiting")
        .context("the hook did not run")?;
    let (during, after) = window
        .split_once("window: 1 NMIs came, MCG_STATUS is 0x5\n")
        .with_context(|| format!("they did not come in the window:\n{window}"))?;
    // The NMI of unknown origin is reported to dom0, and each CPU has work to do
    // after a machine check.
    let mut once = vec![UNKNOWN_NMI.to_owned()];
    once.extend((0..CPUS).map(|cpu| format!("CPU{cpu} enter softirq")));
    for line in once {
        ensure!(
            after.matches(&line).count() == 1,
            "{line}: not once in\n{after}"
        );
        ensure!(!during.contains(&line), "{line}: too early");
    }
    for line in [
        "MCE: send MCE# to DOM0 through virq",
        "afterwards: 2 NMIs came, MCG_STATUS is 0\n",
        " [slow]\n",
    ] {
        ensure!(after.contains(line), "{line}: not in\n{after}");
    }
    Ok(())
}
