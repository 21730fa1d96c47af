// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hypervisors of other Debian releases as they are shipped: tool, checker and lab work
//! with each of them, and with its version of the interface. There is no source tree,
//! so the payload is made by hand.

use anyhow::{Context as _, ensure};
use object::{Object as _, ObjectSymbol as _};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_e2e::{base, local, repository, result, settled, xsplice};
use xsplice_host_image::Image;
use xsplice_lab::{Host, HostConfig};

/// What `xsplice_testbed::shipped` writes.
#[derive(Deserialize)]
struct Shipped {
    xen: PathBuf,
    xen_syms: PathBuf,
}

fn shipped(variable: &str) -> anyhow::Result<Shipped> {
    let path = std::env::var(variable)
        .with_context(|| format!("{variable} is not set: run `cargo xtask test`"))?;
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    serde_json::from_str(&text).context(path)
}

/// Replaces `xen_extra_version`.
fn assemble(xen_syms: &Path, object: &Path) -> anyhow::Result<()> {
    let data = std::fs::read(xen_syms)?;
    let image = Image::parse(&data)?;
    let id: Vec<String> = image.build_id().iter().map(u8::to_string).collect();
    let file = object::File::parse(data.as_slice())?;
    let old = file.symbol_by_name("xen_extra_version");
    let old = old.context("xen_extra_version")?;
    let output = Command::new("gcc")
        .arg("-c")
        .arg(format!("-DXEN_ID={}", id.join(",")))
        .arg(format!("-DOLD_ADDR={:#x}", old.address()))
        .arg(format!("-DOLD_SIZE={}", old.size()))
        .arg("-o")
        .arg(object)
        .arg(repository().join("tests/e2e/shipped/payload.S"))
        .output()?;
    ensure!(output.status.success(), "gcc: {output:?}");
    Ok(())
}

/// The version's suffix and the interface version, as the tool has them.
fn asked(host: &mut Host) -> anyhow::Result<(String, String)> {
    let output = host.run(&["xsplice", "info", "--json"])?;
    let info = result("info", output.stdout)?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok((
        text(&info["hypervisor"]["extra"]),
        text(&info["sysctl_interface"]),
    ))
}

fn does(host: &mut Host, argv: &[&str], code: i32, words: &str) -> anyhow::Result<()> {
    let output = settled(host, argv)?;
    let said = format!("{}{}", output.stdout, output.stderr);
    ensure!(
        output.code == Some(code) && said.contains(words),
        "{argv:?}: {output:?}"
    );
    Ok(())
}

/// Loads and reverts the payload with both names of the tool; `force` says whether the
/// hypervisor knows the flag.
fn works(shipped: &Shipped, interface: &str, force: bool) -> anyhow::Result<()> {
    const FILE: &str = "/lab/fix.livepatch";
    let directory = tempfile::tempdir()?;
    let payload = directory.path().join("fix.livepatch");
    assemble(&shipped.xen_syms, &payload)?;
    let text = |path: &Path| path.display().to_string();
    let checked = ["check", "--xen-syms", &text(&shipped.xen_syms)];
    let checked = local(&[&checked[..], &[&text(&payload)]].concat())?;
    ensure!(checked.status.success(), "{checked:?}");

    let base = base()?;
    let mut config = HostConfig::new(
        shipped.xen.clone(),
        base.kernel,
        Some(base.privcmd),
        xsplice()?,
    );
    config.cpus = Some(2);
    let mut host = Host::boot(&config)?;
    host.put(FILE, &std::fs::read(&payload)?)?;
    let (original, spoken) = asked(&mut host)?;
    ensure!(spoken == interface, "it speaks {spoken}");
    let host = &mut host;
    does(host, &["xsplice", "load", FILE], 0, "applied")?;
    ensure!(asked(host)?.0 == "-by-hand", "{:?}", asked(host)?);
    does(host, &["xsplice", "list"], 0, "made=by hand")?;
    does(
        host,
        &["xen-livepatch", "list"],
        0,
        "| APPLIED    | made=by hand",
    )?;
    does(host, &["xsplice", "revert", "fix"], 0, "reverted")?;
    ensure!(asked(host)?.0 == original, "{:?}", asked(host)?);
    does(host, &["xen-livepatch", "unload", "fix"], 0, "completed")?;

    let forced = ["xsplice", "upload", "forced", FILE, "--force"];
    let listed = ["xen-livepatch", "--force", "list"];
    if force {
        does(host, &forced, 0, "uploaded")?;
        does(host, &listed, 0, "forced")?;
        does(
            host,
            &["xen-livepatch", "li"],
            1,
            "Unrecognised command 'li'",
        )?;
    } else {
        does(host, &forced, 1, "does not know the flag")?;
        does(host, &listed, 1, "Unrecognised command '--force'")?;
        does(host, &["xen-livepatch", "li"], 0, "Nothing to list")?;
    }
    Ok(())
}

#[test]
fn trixies_xen_4_20_is_patched() -> anyhow::Result<()> {
    works(&shipped("XSPLICE_TRIXIE")?, "0x15", true)
}

#[test]
fn bullseyes_xen_4_14_is_patched() -> anyhow::Result<()> {
    works(&shipped("XSPLICE_BULLSEYE")?, "0x13", false)
}
