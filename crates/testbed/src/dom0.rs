// SPDX-License-Identifier: MIT OR Apache-2.0
//! A Debian system as dom0, on the image of a disk: systemd, SSH, Python, and Debian's own
//! tools for Xen.

use crate::base::{self, Base};
use crate::debian::Apt;
use crate::{cache, command, packages};
use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a host with it boots, besides a hypervisor.
#[derive(Debug, Serialize, Deserialize)]
pub struct Dom0 {
    /// Its kernel.
    pub kernel: PathBuf,
    /// Mounts the disk and starts the system.
    pub initramfs: PathBuf,
    /// The disk.
    pub disk: PathBuf,
    /// The key of who may log in as root.
    pub key: PathBuf,
}

/// What is installed, with all that it depends on, besides Xen's tools.
const PACKAGES: [&str; 8] = [
    "busybox-static",
    "dbus",
    "iproute2",
    "kmod",
    "openssh-server",
    "python3",
    "systemd-sysv",
    "udev",
];
/// What is left out of them.
const LEFT_OUT: [&str; 4] = ["doc", "info", "locale", "man"];
/// Makes the disk.
const SCRIPT: &str = include_str!("dom0.sh");
/// How it is made.
const RECIPE: &str = concat!(include_str!("dom0.rs"), include_str!("dom0.sh"));
const KIND: &str = "debian-dom0";

/// Where the description of the newest one in the cache is; it is made if there is none.
pub fn description() -> anyhow::Result<PathBuf> {
    packages::ensure(packages::DOM0)?;
    let base = base::get()?;
    // The image has the modules of this kernel.
    let recipe = format!("{RECIPE}{}", base.kernel.display());
    let directory = match cache::newest(KIND, &recipe)? {
        Some(directory) => directory,
        None => newest(&base, &recipe)?,
    };
    Ok(directory.join("dom0.json"))
}

/// Makes one of the newest packages that Debian has.
fn newest(base: &Base, recipe: &str) -> anyhow::Result<PathBuf> {
    println!("fetching Debian's package lists");
    let lists = cache::root()?.join(cache::APT);
    let apt = Apt::new(&lists)?;
    let release = base.version.split('.').take(2).collect::<Vec<_>>();
    let tools = format!("xen-utils-{}", release.join("."));
    let names = [&PACKAGES[..], &[&*tools]].concat();
    let versions = apt.simulate(&names)?;
    let key: String = Sha256::digest(versions.as_bytes())[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    cache::entry(KIND, &key, recipe, |directory| {
        make(base, &lists.join("sources"), &names, directory)
    })
}

fn make(base: &Base, sources: &Path, names: &[&str], directory: &Path) -> anyhow::Result<()> {
    println!("making a dom0 of Debian's packages");
    let flavour = base.kernel.file_name().unwrap_or_default();
    let flavour = flavour.to_string_lossy().replace("vmlinuz-", "");
    let modules = base.kernel.with_file_name("../lib/modules").join(flavour);
    let script = directory.join("make-disk");
    std::fs::write(&script, SCRIPT)?;
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--variant=minbase", "--format=null"])
        .arg(format!("--include={}", names.join(",")))
        .args(LEFT_OUT.map(|what| format!("--dpkgopt=path-exclude=/usr/share/{what}/*")))
        .arg(format!("--customize-hook=sh {} \"$1\"", script.display()))
        .args(["bookworm", "/dev/null"])
        .args(files(sources)?)
        .env("MODULES", modules.canonicalize()?)
        .env("OUTPUT", directory);
    command::output(&mut command)?;
    let dom0 = Dom0 {
        kernel: base.kernel.clone(),
        initramfs: directory.join("initrd"),
        disk: directory.join("disk"),
        key: directory.join("key"),
    };
    for path in [&dom0.initramfs, &dom0.disk, &dom0.key] {
        ensure!(path.is_file(), "mmdebstrap made no {}", path.display());
    }
    let text = serde_json::to_string_pretty(&dom0)?;
    std::fs::write(directory.join("dom0.json"), text).context("dom0.json")
}

/// The files of apt's sources that are Debian's.
fn files(sources: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(sources)? {
        let path = entry?.path();
        if std::fs::read_to_string(&path)?.contains("/debian") {
            files.push(path);
        }
    }
    ensure!(
        !files.is_empty(),
        "there are no sources of Debian's packages"
    );
    Ok(files)
}
