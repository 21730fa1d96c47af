// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Debian package, made by Debian's own tools from `packaging/debian`.

use super::Release;
use super::contents::Contents;
use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_testbed::command;

/// Makes it in `directory`; returns its path.
pub(super) fn build(
    release: &Release,
    directory: &Path,
    contents: &Contents,
) -> anyhow::Result<PathBuf> {
    let source = directory.join("debian-source");
    std::fs::create_dir_all(&source)?;
    // Without their times: Debian's tools replace only those later than the release.
    let copy = |from: &Path, to: &str| {
        let to = source.join(to);
        command::output(Command::new("cp").arg("-r").arg(from).arg(to))
    };
    copy(Path::new("packaging/debian"), "debian")?;
    copy(&contents.root, "root")?;
    std::fs::write(source.join("debian/changelog"), changelog(release)?)?;
    let mut command = Command::new("dpkg-buildpackage");
    let options = ["--build=binary", "--no-sign", "--no-check-builddeps"];
    command.args(options).current_dir(&source);
    command::output(release.command(&mut command).env("LC_ALL", "C"))?;
    std::fs::remove_dir_all(&source)?;
    let deb = directory.join(format!("xsplice_{}_amd64.deb", release.version));
    ensure!(deb.is_file(), "dpkg-buildpackage made no {}", deb.display());
    check(&deb)?;
    deb.canonicalize().context("the package")
}

fn changelog(release: &Release) -> anyhow::Result<String> {
    let Release { version, .. } = release;
    let date = release.date("--rfc-email")?;
    let control = std::fs::read_to_string("packaging/debian/control")?;
    let maintainer = control.lines().find_map(|l| l.strip_prefix("Maintainer: "));
    let maintainer = maintainer.context("packaging/debian/control names no maintainer")?;
    Ok(format!(
        "xsplice ({version}) unstable; urgency=medium\n\n  * CHANGELOG.md of the source has \
         what is new in {version}.\n\n -- {maintainer}  {date}\n"
    ))
}

/// Debian's checker, which must have nothing to say.
fn check(deb: &Path) -> anyhow::Result<()> {
    let options = ["--allow-root", "--tag-display-limit=0"];
    let said = command::output(Command::new("lintian").args(options).arg(deb))?;
    ensure!(said.trim().is_empty(), "lintian:\n{said}");
    Ok(())
}
