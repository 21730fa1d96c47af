// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen on ARM64: Debian's source, built with live patching, which Debian's own build
//! for ARM does not have; and `xsplice` for its dom0.

use crate::base::{self, Base};
use crate::debian::Apt;
use crate::programs::{self, Foreign};
use crate::{cache, command, packages};
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's name of the architecture.
const ARCHITECTURE: &str = "arm64";
/// The GNU name of the architecture.
const TRIPLE: &str = "aarch64-linux-gnu";
/// The target of programs for dom0.
const TARGET: &str = "aarch64-unknown-linux-gnu";
/// What Xen's default configuration gets.
const CONFIGURATION: &str = "CONFIG_DEBUG=n\nCONFIG_LIVEPATCH=y\n";
/// The C tool, and what it needs.
const TOOL: [&str; 12] = [
    "xen-utils-4.17",
    "libxenmisc4.17",
    "libxencall1",
    "libxendevicemodel1",
    "libxenevtchn1",
    "libxenforeignmemory1",
    "libxengnttab1",
    "libxenhypfs1",
    "libxentoolcore1",
    "libxentoollog1",
    "libxenstore4",
    "libc6",
];

const RECIPE: &str = include_str!("arm64.rs");

/// Where the description of the base is; it is made if it is not in the cache.
pub fn description() -> anyhow::Result<PathBuf> {
    packages::ensure(packages::ARM64)?;
    let version = base::get()?.version;
    let name = version.replace(['/', ':'], "_");
    let directory = cache::entry("debian-xen-arm64", &name, RECIPE, |directory| {
        make(directory, &version)
    })?;
    Ok(directory.join("base.json"))
}

/// The base; it is made if it is not in the cache.
pub fn base() -> anyhow::Result<Base> {
    let text = std::fs::read_to_string(description()?)?;
    serde_json::from_str(&text)
        .context("the cached base.json is damaged; run cargo xtask cache --clear")
}

/// Builds `xsplice` for dom0; returns its path. Debian has a standard library for each
/// of its architectures, which fits its own compiler.
pub fn build_xsplice() -> anyhow::Result<PathBuf> {
    packages::ensure(packages::ARM64)?;
    packages::ensure(packages::RUST)?;
    let version = command::output(Command::new("/usr/bin/rustc").arg("--version"))?;
    let version = version.split_whitespace().nth(1).unwrap_or("unknown");
    let library = cache::entry("rust-std-arm64", version, RECIPE, |directory| {
        apt()?.unpack(directory, &[foreign("libstd-rust-web-dev")])
    })?;
    programs::build_foreign(&Foreign {
        target: TARGET,
        linker: &format!("{TRIPLE}-gcc"),
        library: &library.join("usr/lib/rustlib").join(TARGET),
    })
}

fn apt() -> anyhow::Result<Apt> {
    println!("fetching Debian's package lists for {ARCHITECTURE}");
    Apt::with_architecture(
        &cache::root()?.join(cache::APT).join(ARCHITECTURE),
        ARCHITECTURE,
    )
}

fn foreign(package: &str) -> String {
    format!("{package}:{ARCHITECTURE}")
}

fn make(directory: &Path, version: &str) -> anyhow::Result<()> {
    let apt = apt()?;
    let tree = directory.join("source");
    println!("downloading Xen {version} and dom0 for {ARCHITECTURE}");
    apt.source("xen", version, &tree)?;
    let kernel = apt.dependency(&foreign("linux-image-arm64"))?;
    let mut names: Vec<String> = TOOL.iter().copied().map(foreign).collect();
    names.push(kernel.clone());
    apt.unpack(directory, &names)?;
    let release = kernel
        .trim_start_matches("linux-image-")
        .trim_end_matches(":arm64")
        .to_owned();

    println!("building Xen {version} for {ARCHITECTURE}");
    build(&tree)?;
    let first = std::fs::read(tree.join("xen/xen-syms"))?;
    make_xen(&tree, &["clean"])?;
    build(&tree)?;
    let identical = std::fs::read(tree.join("xen/xen-syms"))? == first;
    println!(
        "two builds are {}",
        if identical { "equal" } else { "not equal" }
    );
    let base = Base {
        version: version.to_owned(),
        xen: tree.join("xen/xen"),
        xen_syms: tree.join("xen/xen-syms"),
        identical,
        kernel: directory.join(format!("boot/vmlinuz-{release}")),
        privcmd: directory.join(format!(
            "lib/modules/{release}/kernel/drivers/xen/xen-privcmd.ko"
        )),
        c_tool: directory.join("usr/lib/xen-4.17/bin/xen-livepatch"),
        libraries: [
            "lib",
            "usr/lib",
            "lib/aarch64-linux-gnu",
            "usr/lib/aarch64-linux-gnu",
        ]
        .map(|place| directory.join(place))
        .into(),
        test_payloads: tree.join("xen/test/livepatch"),
        tree,
    };
    std::fs::write(directory.join("base.json"), base.summary())?;
    Ok(())
}

fn build(tree: &Path) -> anyhow::Result<()> {
    std::fs::write(tree.join("xen/.config"), CONFIGURATION).context("xen/.config")?;
    build_configured(tree)
}

/// Builds the hypervisor that `.config` describes, and its test payloads.
pub(crate) fn build_configured(tree: &Path) -> anyhow::Result<()> {
    let jobs = std::thread::available_parallelism().map_or(2, |n| n.get() + 1);
    make_xen(tree, &["olddefconfig"])?;
    make_xen(tree, &[&format!("-j{jobs}"), "build"])?;
    make_xen(tree, &["tests"])
}

fn make_xen(tree: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let mut make = Command::new("make");
    make.args(["-C", "xen", "PYTHON=/usr/bin/python3"])
        .args(["XEN_TARGET_ARCH=arm64", "XEN_COMPILE_ARCH=x86_64"])
        .arg(format!("CROSS_COMPILE={TRIPLE}-"))
        .args(arguments)
        .current_dir(tree)
        // The hypervisor has the time and the builder's name in it.
        .envs([
            ("SOURCE_DATE_EPOCH", "0"),
            ("XEN_BUILD_DATE", "Thu Jan 1 00:00:00 UTC 1970"),
            ("XEN_BUILD_TIME", "00:00:00"),
            ("XEN_WHOAMI", "xsplice"),
            ("XEN_DOMAIN", "localhost"),
            ("XEN_BUILD_HOST", "localhost"),
        ])
        // The build must not reach for the network.
        .envs([("WGET", "/bin/false"), ("GIT", "/bin/false")])
        .env_remove("MAKEFLAGS");
    command::output(&mut make).map(drop)
}
