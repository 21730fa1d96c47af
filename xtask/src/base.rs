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

/// How the base is made: this file.
const RECIPE: &str = include_str!("base.rs");
const KIND: &str = "debian-xen";

/// The base, from the cache if one is there; then no network is touched.
pub(crate) fn get() -> anyhow::Result<Base> {
    let text = std::fs::read_to_string(description()?)?;
    serde_json::from_str(&text)
        .context("the cached base.json is damaged; run cargo xtask cache --clear")
}

/// Where the description of the base is.
pub(crate) fn description() -> anyhow::Result<PathBuf> {
    packages::ensure(packages::XEN)?;
    let directory = match cache::newest(KIND, RECIPE)? {
        Some(directory) => directory,
        None => newest()?,
    };
    Ok(directory.join("base.json"))
}

/// Makes the base of the newest Xen that Debian has, if it is not there yet.
pub(crate) fn update() -> anyhow::Result<Base> {
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

/// Builds the hypervisor and its test payloads as Debian's `debian/rules`
/// does, so that the result is the same.
pub(crate) fn rebuild(tree: &Path) -> anyhow::Result<()> {
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
