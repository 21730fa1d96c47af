// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask demo`: applies a source patch to a running hypervisor and reverts it.

use crate::Architecture;
use anyhow::{Context, bail};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;
use xsplice_lab::{Host, HostConfig, Output};
use xsplice_testbed::arm::Arm;
use xsplice_testbed::arm32::ARM32;
use xsplice_testbed::arm64::ARM64;
use xsplice_testbed::base::{self, Base};
use xsplice_testbed::{println, programs};

const PATCH: &str = "examples/xen-4.17/extra-version.patch";
const WATCHED: &str = "/sys/hypervisor/version/extra";

pub(crate) fn run(arch: Architecture) -> anyhow::Result<()> {
    let start = Instant::now();
    let say = |text: &str| println!("[{:>4} s] {text}", start.elapsed().as_secs());
    say("getting Debian's Xen");
    let (base, for_arm, kind) = match arch {
        Architecture::X86_64 => (base::get()?, None, "as Debian ships it, with 4 CPUs"),
        Architecture::Arm64 => emulated(&ARM64)?,
        Architecture::Arm32 => emulated(&ARM32)?,
    };
    say("building xsplice");
    let xsplice = programs::build_xsplice()?;
    let in_dom0 = for_arm.unwrap_or_else(|| xsplice.clone());
    say(&format!(
        "building a live patch for Xen {} from {PATCH}",
        base.version
    ));
    let directory = tempfile::tempdir()?;
    let payload = directory.path().join("extra-version.livepatch");
    xsplice_testbed::command::run(
        Command::new(&xsplice)
            .arg("build")
            .arg("-s")
            .arg(&base.tree)
            .args(["-p", PATCH, "--xen-syms"])
            .arg(&base.xen_syms)
            .arg("-o")
            .arg(&payload),
    )?;
    say(&format!("booting the hypervisor {kind}"));
    let config = HostConfig::new(base.xen, base.kernel, Some(base.privcmd), in_dom0);
    let mut host = Host::boot(&config)?;
    host.put("/lab/extra-version.livepatch", &std::fs::read(&payload)?)?;
    let original = look(&mut host)?;
    say(&format!("{WATCHED} says {original:?}"));
    for command in [
        &["upload", "extra-version", "/lab/extra-version.livepatch"][..],
        &["apply", "extra-version"],
    ] {
        say(&admin(&mut host, command)?);
    }
    let patched = look(&mut host)?;
    say(&format!("{WATCHED} says {patched:?}"));
    say(&admin(&mut host, &["revert", "extra-version"])?);
    let reverted = look(&mut host)?;
    say(&format!("{WATCHED} says {reverted:?}"));
    say(&admin(&mut host, &["unload", "extra-version"])?);
    host.shut_down()?;
    if patched != "-live-patched" || original == patched || reverted != original {
        bail!("the hypervisor's behaviour did not change and change back");
    }
    say("the running hypervisor changed its behaviour, and changed it back");
    Ok(())
}

/// An emulated host: the hypervisor, the `xsplice` for its dom0, and what is special.
fn emulated(machine: &Arm) -> anyhow::Result<(Base, Option<PathBuf>, &'static str)> {
    let kind = "with Xen's own live patching and 2 CPUs";
    Ok((machine.base()?, Some(machine.build_xsplice()?), kind))
}

fn admin(host: &mut Host, arguments: &[&str]) -> anyhow::Result<String> {
    let argv: Vec<&str> = ["xsplice"].iter().chain(arguments).copied().collect();
    let Output {
        stdout,
        stderr,
        code,
    } = host.run(&argv)?;
    if code != Some(0) {
        bail!("xsplice {}: {stderr}", arguments.join(" "));
    }
    Ok(format!(
        "xsplice {}: {}",
        arguments.join(" "),
        stdout.trim()
    ))
}

/// The hypervisor's extra version.
fn look(host: &mut Host) -> anyhow::Result<String> {
    let info = host.run(&["xsplice", "info", "--json"])?;
    let info: serde_json::Value =
        serde_json::from_str(&info.stdout).context("xsplice info gave no JSON")?;
    Ok(info["result"]["hypervisor"]["extra"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}
