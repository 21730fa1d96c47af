// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xl` with our patch, from the source of Debian's Xen, against Debian's libraries.

use crate::base::{self, Base};
use crate::debian::Apt;
use crate::{cache, command, packages};
use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

const PATCH: &str = include_str!("../../../packaging/xl-livepatch.patch");
const RECIPE: &str = concat!(
    include_str!("xl.rs"),
    include_str!("../../../packaging/xl-livepatch.patch")
);
/// Debian's libraries and headers besides those in the version of Xen.
const LIBRARIES: [&str; 2] = ["libyajl-dev", "libyajl2"];
/// What Xen's `configure` finds out, as it is on Debian.
const CONFIGURED: [(&str, &str); 6] = [
    ("XEN_CONFIG_DIR", "/etc/xen"),
    ("XEN_SCRIPT_DIR", "/etc/xen/scripts"),
    ("XEN_LOCK_DIR", "/var/lock"),
    ("XEN_RUN_DIR", "/run/xen"),
    ("XEN_DUMP_DIR", "/var/lib/xen/dump"),
    ("XENFIRMWAREDIR", "/usr/lib/xen/boot"),
];

/// The path of `xl`; it is built if the cache has none.
pub fn get() -> anyhow::Result<PathBuf> {
    packages::ensure(packages::XL)?;
    let base = base::get()?;
    let directory = cache::entry("xl", &base.version, RECIPE, |directory| {
        println!("building xl with our patch");
        build(&base, directory)
    })?;
    Ok(directory.join("xl"))
}

fn build(base: &Base, directory: &Path) -> anyhow::Result<()> {
    let apt = Apt::new(&cache::root()?.join(cache::APT))?;
    let release = base
        .version
        .split('.')
        .take(2)
        .collect::<Vec<_>>()
        .join(".");
    let of_xen = ["libxen-dev".to_owned(), format!("libxenmisc{release}")];
    let of_xen = of_xen.map(|package| format!("{package}={}", base.version));
    let packages = of_xen.into_iter().chain(LIBRARIES.map(str::to_owned));
    apt.unpack(directory, &packages.collect::<Vec<_>>())?;
    let source = directory.join("tools");
    std::fs::create_dir(&source)?;
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(base.tree.join("tools/xl")).arg(&source);
    command::output(&mut copy)?;
    let patch = directory.join("xl.patch");
    std::fs::write(&patch, PATCH)?;
    let mut apply = Command::new("patch");
    apply.args(["-p1", "--fuzz=0", "--input"]).arg(&patch);
    command::output(apply.current_dir(directory))?;
    compile(base, directory, &source.join("xl"))
}

fn compile(base: &Base, directory: &Path, source: &Path) -> anyhow::Result<()> {
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(source)? {
        let path = entry?.path();
        sources.extend(
            path.extension()
                .is_some_and(|end| end == "c")
                .then_some(path),
        );
    }
    let headers = directory.join("usr/include");
    let libraries = directory.join("usr/lib/x86_64-linux-gnu");
    let output = directory.join("xl");
    let mut compiler = Command::new("gcc");
    compiler
        .args(["-O1", "-w", "-D_GNU_SOURCE", "-D__XEN_TOOLS__"])
        .arg("-DHAVE_YAJL_YAJL_VERSION_H=1")
        .args(CONFIGURED.map(|(name, path)| format!("-D{name}=\"{path}\"")))
        .arg("-I")
        .arg(&headers)
        .arg("-I")
        .arg(headers.join("x86_64-linux-gnu"))
        // The headers of Xen's tools that no library has.
        .arg("-idirafter")
        .arg(base.tree.join("tools/include"))
        .args(&sources)
        .arg("-L")
        .arg(&libraries)
        // The libraries that these need are on the host.
        .arg("-Wl,--unresolved-symbols=ignore-in-shared-libs")
        .args(["-lxlutil", "-lxenlight", "-lxentoollog", "-lyajl", "-o"])
        .arg(&output);
    command::output(&mut compiler)?;
    ensure!(output.is_file(), "gcc made no {}", output.display());
    std::fs::remove_dir_all(directory.join("usr")).context("the libraries")
}
