// SPDX-License-Identifier: MIT OR Apache-2.0

//! Building a Xen tree as Debian's `debian/rules` does, so that the result is
//! the same.

use crate::command;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A tree with what `debian/rules` passes to its build.
pub struct DebianBuild {
    tree: PathBuf,
    /// In seconds, as SOURCE_DATE_EPOCH.
    epoch: String,
    version: String,
    maintainer: String,
    date: String,
    time: String,
}

/// Builds the hypervisor as it is shipped, and its test payloads.
pub fn rebuild(tree: &Path) -> anyhow::Result<()> {
    std::fs::copy(tree.join("debian/xen-kconfig"), tree.join("xen/.config"))?;
    DebianBuild::new(tree)?.build()
}

impl DebianBuild {
    /// Reads `debian/` of the tree.
    pub fn new(tree: &Path) -> anyhow::Result<Self> {
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
            .unwrap_or_default()
            .to_owned();
        Ok(Self {
            tree: tree.to_owned(),
            version: changelog("Version")?,
            date: date(&[])?,
            time: date(&["+%T"])?,
            maintainer,
            epoch,
        })
    }

    /// Builds the hypervisor that `.config` describes, and its test payloads.
    pub fn build(&self) -> anyhow::Result<()> {
        let jobs = std::thread::available_parallelism().map_or(2, |n| n.get() + 1);
        self.make(&["olddefconfig"])?;
        self.make(&[&format!("-j{jobs}"), "build"])?;
        self.make(&["tests"])
    }

    fn make(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let prefix = format!(
            "-ffile-prefix-map={0}=. -fdebug-prefix-map={0}=.",
            self.tree.display()
        );
        let mut make = Command::new("make");
        make.current_dir(&self.tree)
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
            .env("SOURCE_DATE_EPOCH", &self.epoch)
            .env("XEN_BUILD_DATE", &self.date)
            .env("XEN_BUILD_TIME", &self.time)
            .env("DEB_VERSION", &self.version)
            .env("DEB_MAINTAINER", &self.maintainer)
            // The build must not reach for the network.
            .env("WGET", "/bin/false")
            .env("GIT", "/bin/false")
            .env_remove("MAKEFLAGS");
        command::output(&mut make).map(drop)
    }
}
