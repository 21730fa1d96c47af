// SPDX-License-Identifier: MIT OR Apache-2.0
//! The RPM package, made by `rpmbuild` from `packaging/xsplice.spec`.

use super::contents::Contents;
use super::{DIRECTORY, Release};
use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_testbed::{command, packages};

/// Makes it; returns its path.
pub(super) fn build(release: &Release, contents: &Contents) -> anyhow::Result<PathBuf> {
    packages::ensure(packages::RPM)?;
    let directory = Path::new(DIRECTORY).canonicalize()?;
    let root = contents.root.canonicalize()?;
    let definitions = [
        format!("_topdir {}", directory.join("rpm").display()),
        format!("_rpmdir {}", directory.display()),
        "_rpmfilename xsplice-%{VERSION}-%{RELEASE}.%{ARCH}.rpm".to_owned(),
        format!("xsplice_version {}", release.version),
        format!("xsplice_root {}", root.display()),
        "_buildhost localhost".to_owned(),
        "use_source_date_epoch_as_buildtime 1".to_owned(),
        "clamp_mtime_to_source_date_epoch 1".to_owned(),
        "source_date_epoch_from_changelog 0".to_owned(),
    ];
    let mut command = Command::new("rpmbuild");
    command.args(["-bb", "--quiet", "packaging/xsplice.spec"]);
    for definition in definitions {
        command.args(["--define", &definition]);
    }
    command::output(release.command(&mut command))?;
    std::fs::remove_dir_all(directory.join("rpm"))?;
    let rpm = directory.join(format!("xsplice-{}-1.x86_64.rpm", release.version));
    ensure!(rpm.is_file(), "rpmbuild made no {}", rpm.display());
    rpm.canonicalize().context("the package")
}
