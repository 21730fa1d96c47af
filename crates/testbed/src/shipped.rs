// SPDX-License-Identifier: MIT OR Apache-2.0

//! Hypervisors of other Debian releases: binary and symbols, as they are shipped.

use crate::debian::Apt;
use crate::{cache, command, packages};
use anyhow::Context as _;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A Debian release with another Xen than the base's.
#[derive(Clone, Copy, Debug)]
pub enum Release {
    /// Debian 13, with Xen 4.20.
    Trixie,
    /// Debian 11, with Xen 4.14.
    Bullseye,
}

impl Release {
    const fn suite(self) -> &'static str {
        match self {
            Self::Trixie => "trixie",
            Self::Bullseye => "bullseye",
        }
    }

    /// The hypervisor, and its symbols where they are a package of their own.
    const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Trixie => &["xen-hypervisor-4.20-amd64", "xen-hypervisor-4.20-amd64-dbg"],
            Self::Bullseye => &["xen-hypervisor-4.14-amd64"],
        }
    }
}

#[derive(Serialize)]
struct Shipped {
    xen: PathBuf,
    xen_syms: PathBuf,
}

/// How an entry is made.
const RECIPE: &str = include_str!("shipped.rs");
const DESCRIPTION: &str = "shipped.json";

/// The file that says where the hypervisor of `release` is; it is downloaded once.
///
/// # Errors
/// If it cannot be had.
pub fn description(release: Release) -> anyhow::Result<PathBuf> {
    packages::ensure(packages::XEN)?;
    let suite = release.suite();
    let directory = cache::entry("shipped", suite, RECIPE, |directory| {
        println!("downloading the Xen of Debian {suite}");
        download(release, directory)
            .with_context(|| format!("the Xen of Debian {suite} cannot be had"))
    })?;
    Ok(directory.join(DESCRIPTION))
}

fn download(release: Release, directory: &Path) -> anyhow::Result<()> {
    let lists = directory.join(cache::APT);
    let apt = Apt::of_suite(&lists, release.suite())?;
    let packages: Vec<String> = release.packages().iter().map(|&name| name.into()).collect();
    apt.unpack(directory, &packages)?;
    std::fs::remove_dir_all(lists)?;
    let mut xen_syms = find(
        &[
            directory.join("usr/lib/debug/boot"),
            directory.join("usr/lib/debug"),
        ],
        "xen-syms-",
        &[".map", ".map.gz"],
    )?;
    if xen_syms
        .extension()
        .is_some_and(|extension| extension == "gz")
    {
        command::run(Command::new("gunzip").arg(&xen_syms))?;
        xen_syms.set_extension("");
    }
    let shipped = Shipped {
        xen: find(&[directory.join("boot")], "xen-", &[".config", ".efi"])?,
        xen_syms,
    };
    let text = serde_json::to_string_pretty(&shipped)?;
    std::fs::write(directory.join(DESCRIPTION), text)?;
    Ok(())
}

/// The first file of these directories whose name begins with `start` and has none of
/// `ends`.
fn find(directories: &[PathBuf], start: &str, ends: &[&str]) -> anyhow::Result<PathBuf> {
    let entries = directories.iter().filter_map(|d| std::fs::read_dir(d).ok());
    let mut paths = entries
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()));
    let found = paths.find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.is_file() && name.starts_with(start) && !ends.iter().any(|end| name.ends_with(end))
    });
    found.with_context(|| format!("the package has no {start}*"))
}
