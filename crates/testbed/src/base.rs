// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian's Xen: the shipped binaries, and the tree that they came from,
//! rebuilt.

use crate::debian::Apt;
use crate::{cache, debian_build, packages};
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where everything is that a lab needs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Base {
    /// Debian's version of the hypervisor.
    pub version: String,
    /// The shipped hypervisor.
    pub xen: PathBuf,
    /// Its symbols.
    pub xen_syms: PathBuf,
    /// The rebuilt source tree.
    pub tree: PathBuf,
    /// Whether the rebuilt `xen-syms` equals the shipped one.
    pub identical: bool,
    /// dom0's kernel.
    pub kernel: PathBuf,
    /// Its privcmd driver.
    pub privcmd: PathBuf,
    /// The C tool `xen-livepatch`.
    pub c_tool: PathBuf,
    /// Where its libraries are.
    pub libraries: Vec<PathBuf>,
    /// Xen's own test payloads, built from the tree.
    pub test_payloads: PathBuf,
}

impl Base {
    /// The same as JSON.
    pub fn summary(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

/// How the base is made: this file, and how Debian builds.
const RECIPE: &str = concat!(include_str!("base.rs"), include_str!("debian_build.rs"));
const KIND: &str = "debian-xen";

/// The base, from the cache if one is there; then no network is touched.
pub fn get() -> anyhow::Result<Base> {
    let text = std::fs::read_to_string(description()?)?;
    serde_json::from_str(&text)
        .context("the cached base.json is damaged; run cargo xtask cache --clear")
}

/// Where the description of the base is.
pub fn description() -> anyhow::Result<PathBuf> {
    packages::ensure(packages::XEN)?;
    let directory = match cache::newest(KIND, RECIPE)? {
        Some(directory) => directory,
        None => newest()?,
    };
    Ok(directory.join("base.json"))
}

/// Makes the base of the newest Xen that Debian has, if it is not there yet.
pub fn update() -> anyhow::Result<Base> {
    packages::ensure(packages::XEN)?;
    newest()?;
    get()
}

fn newest() -> anyhow::Result<PathBuf> {
    println!("fetching Debian's package lists");
    let lists = cache::root()?.join(cache::APT);
    let apt = Apt::new(&lists)?;
    let hypervisor = apt.newest("xen-hypervisor-4", "-amd64")?;
    let mut failures = Vec::new();
    for version in apt.versions(&hypervisor)? {
        let name = version.replace(['/', ':'], "_");
        let made = cache::entry(KIND, &name, RECIPE, |directory| {
            make(&apt, directory, &hypervisor, &version)
        });
        match made {
            Ok(directory) => return Ok(directory),
            Err(error) if error.is::<Incomplete>() => {
                println!(
                    "Xen {version} is not complete in Debian's archive; trying the one before"
                );
                failures.push(format!("{version}: {error:#}"));
            }
            Err(error) => return Err(error),
        }
    }
    bail!(
        "no version of Xen is complete in Debian's archive:\n{}",
        failures.join("\n")
    )
}

/// Debian does not have binaries, symbols and source of one version.
#[derive(Debug)]
struct Incomplete;

impl std::fmt::Display for Incomplete {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("binaries, symbols or source are missing")
    }
}

fn make(apt: &Apt, directory: &Path, hypervisor: &str, version: &str) -> anyhow::Result<()> {
    let release = hypervisor
        .strip_prefix("xen-hypervisor-")
        .and_then(|n| n.strip_suffix("-amd64"))
        .context("unexpected package name")?
        .to_owned();
    let tree = directory.join("source");
    println!("downloading Xen {version}");
    download_xen(apt, directory, &tree, hypervisor, &release, version).context(Incomplete)?;
    println!("downloading dom0's kernel");
    let kernel_package = apt.dependency("linux-image-amd64")?;
    apt.unpack(directory, std::slice::from_ref(&kernel_package))?;
    let flavour = kernel_package.trim_start_matches("linux-image-");
    println!("rebuilding Xen {version}");
    let start = Instant::now();
    debian_build::rebuild(&tree)?;
    println!("rebuilt in {} s", start.elapsed().as_secs());
    let xen_syms = directory.join(format!("usr/lib/debug/boot/xen-syms-{release}-amd64"));
    let identical = std::fs::read(&xen_syms)? == std::fs::read(tree.join("xen/xen-syms"))?;
    println!(
        "the rebuilt hypervisor {} the shipped one",
        if identical {
            "is bit for bit"
        } else {
            "differs from"
        }
    );
    let base = Base {
        version: version.to_owned(),
        xen: directory.join(format!("boot/xen-{release}-amd64.gz")),
        xen_syms,
        identical,
        kernel: directory.join(format!("boot/vmlinuz-{flavour}")),
        privcmd: directory.join(format!(
            "lib/modules/{flavour}/kernel/drivers/xen/xen-privcmd.ko"
        )),
        c_tool: directory.join(format!("usr/lib/xen-{release}/bin/xen-livepatch")),
        libraries: vec![
            directory.join("usr/lib/x86_64-linux-gnu"),
            "/lib/x86_64-linux-gnu".into(),
            "/usr/lib/x86_64-linux-gnu".into(),
        ],
        test_payloads: tree.join("xen/test/livepatch"),
        tree,
    };
    for path in [
        &base.xen,
        &base.xen_syms,
        &base.kernel,
        &base.privcmd,
        &base.c_tool,
    ] {
        if !path.is_file() {
            bail!("{} is not in Debian's packages", path.display());
        }
    }
    std::fs::write(directory.join("base.json"), base.summary())?;
    Ok(())
}

/// Downloads binaries, symbols and source of `version`.
fn download_xen(
    apt: &Apt,
    directory: &Path,
    tree: &Path,
    hypervisor: &str,
    release: &str,
    version: &str,
) -> anyhow::Result<()> {
    let pinned = [
        hypervisor.to_owned(),
        format!("{hypervisor}-dbg"),
        format!("xen-utils-{release}"),
        format!("libxenmisc{release}"),
    ];
    let mut names: Vec<String> = pinned.iter().map(|n| format!("{n}={version}")).collect();
    let libraries = [
        "call1",
        "devicemodel1",
        "evtchn1",
        "foreignmemory1",
        "gnttab1",
        "hypfs1",
        "toolcore1",
        "toollog1",
    ];
    names.extend(libraries.iter().map(|l| format!("libxen{l}")));
    names.extend(["libxenstore4".to_owned()]);
    apt.source("xen", version, tree)?;
    apt.unpack(directory, &names)
}
