//! Debian's Xen: the shipped binaries, and the tree that they came from,
//! rebuilt.

use crate::debian::Apt;
use crate::{cache, command, packages};
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Where everything is that a lab needs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Base {
    /// Debian's version of the hypervisor.
    pub(crate) version: String,
    /// The shipped hypervisor.
    pub(crate) xen: PathBuf,
    /// Its symbols.
    pub(crate) xen_syms: PathBuf,
    /// The rebuilt source tree.
    pub(crate) tree: PathBuf,
    /// Whether the rebuilt `xen-syms` equals the shipped one.
    pub(crate) identical: bool,
    /// dom0's kernel.
    pub(crate) kernel: PathBuf,
    /// Its privcmd driver.
    pub(crate) privcmd: PathBuf,
    /// The C tool `xen-livepatch`.
    pub(crate) c_tool: PathBuf,
    /// Where its libraries are.
    pub(crate) libraries: Vec<PathBuf>,
    /// Xen's own test payloads, built from the tree.
    pub(crate) test_payloads: PathBuf,
}

impl Base {
    pub(crate) fn summary(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

/// The base, from the cache if it is there; then no network is touched.
pub(crate) fn get() -> anyhow::Result<Base> {
    packages::ensure()?;
    let directory = cache::entry("debian-xen", &[include_str!("base.rs")], make)?;
    let text = std::fs::read_to_string(directory.join("base.json"))?;
    serde_json::from_str(&text)
        .context("the cached base.json is damaged; run cargo xtask cache --clear")
}

/// Where the description of the cached base is.
pub(crate) fn description() -> anyhow::Result<PathBuf> {
    Ok(cache::entry("debian-xen", &[include_str!("base.rs")], make)?.join("base.json"))
}

fn make(directory: &Path) -> anyhow::Result<()> {
    println!("fetching Debian's package lists");
    let apt = Apt::new(&directory.join("apt"))?;
    let hypervisor = apt.newest("xen-hypervisor-4", "-amd64")?;
    let release = hypervisor
        .strip_prefix("xen-hypervisor-")
        .and_then(|n| n.strip_suffix("-amd64"))
        .context("unexpected package name")?
        .to_owned();
    let tree = directory.join("source");
    let version = download_xen(&apt, directory, &tree, &hypervisor, &release)?;
    println!("downloading dom0's kernel");
    let kernel_package = apt.dependency("linux-image-amd64")?;
    apt.unpack(directory, std::slice::from_ref(&kernel_package))?;
    let flavour = kernel_package.trim_start_matches("linux-image-");
    println!("rebuilding Xen {version}");
    let start = Instant::now();
    rebuild(&tree)?;
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
        version,
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

/// Downloads the newest version of which binaries, symbols and source are all
/// there; returns it.
fn download_xen(
    apt: &Apt,
    directory: &Path,
    tree: &Path,
    hypervisor: &str,
    release: &str,
) -> anyhow::Result<String> {
    let mut failures = Vec::new();
    for version in apt.versions(hypervisor)? {
        println!("downloading Xen {version}");
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
        match apt
            .source("xen", &version, tree)
            .and_then(|()| apt.unpack(directory, &names))
        {
            Ok(()) => return Ok(version),
            Err(error) => {
                println!(
                    "Xen {version} is not complete in Debian's archive; trying the one before"
                );
                failures.push(format!("{version}: {error:#}"));
                let _ = std::fs::remove_dir_all(tree);
            }
        }
    }
    bail!(
        "no version of Xen is complete in Debian's archive:\n{}",
        failures.join("\n")
    )
}

/// Builds the hypervisor and its test payloads as Debian's `debian/rules`
/// does, so that the result is the same.
fn rebuild(tree: &Path) -> anyhow::Result<()> {
    let changelog = |field: &str| {
        command::output(
            Command::new("dpkg-parsechangelog")
                .args(["-S", field])
                .current_dir(tree),
        )
        .map(|s| s.trim().to_owned())
    };
    let epoch = changelog("Timestamp")?;
    let date = |format: &[&str]| {
        let mut command = Command::new("date");
        command
            .env("LC_ALL", "C")
            .args(["-u", "-d", &format!("@{epoch}")])
            .args(format);
        command::output(&mut command).map(|s| s.trim().to_owned())
    };
    let control = std::fs::read_to_string(tree.join("debian/control"))?;
    let maintainer = control
        .lines()
        .find_map(|l| l.strip_prefix("Maintainer: "))
        .unwrap_or_default();
    std::fs::copy(tree.join("debian/xen-kconfig"), tree.join("xen/.config"))?;
    let (version, build_date, build_time) = (changelog("Version")?, date(&[])?, date(&["+%T"])?);
    let prefix = format!(
        "-ffile-prefix-map={0}=. -fdebug-prefix-map={0}=.",
        tree.display()
    );
    let make = |arguments: &[&str]| {
        command::output(
            Command::new("make")
                .current_dir(tree)
                .args([
                    "-C",
                    "xen",
                    "CC=x86_64-linux-gnu-gcc",
                    "LD=x86_64-linux-gnu-ld",
                ])
                .args(["XEN_COMPILE_ARCH=x86_64", "XEN_TARGET_ARCH=x86_64"])
                .args(["PYTHON=/usr/bin/python3", "V=1"])
                .arg(format!("EXTRA_CFLAGS_XEN_CORE={prefix}"))
                .args(arguments)
                .env("SOURCE_DATE_EPOCH", &epoch)
                .env("XEN_BUILD_DATE", &build_date)
                .env("XEN_BUILD_TIME", &build_time)
                .env("DEB_VERSION", &version)
                .env("DEB_MAINTAINER", maintainer)
                // The build must not reach for the network.
                .env("WGET", "/bin/false")
                .env("GIT", "/bin/false")
                .env_remove("MAKEFLAGS"),
        )
    };
    let jobs = std::thread::available_parallelism().map_or(2, |n| n.get() + 1);
    make(&["olddefconfig"])?;
    make(&[&format!("-j{jobs}"), "build"])?;
    make(&["tests"])?;
    Ok(())
}
