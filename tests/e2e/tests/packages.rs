// SPDX-License-Identifier: MIT OR Apache-2.0
//! The packages: they have what an administrator needs, say what is in them, and are the
//! same bytes wherever they are built.

use anyhow::{Context as _, ensure};
use object::{Object as _, ObjectSection as _};
use std::path::Path;
use std::process::Command;
use xsplice_e2e::{exhaustive, package, repository, stdout};

/// What is in the Debian package, among others.
const FILES: [&str; 16] = [
    "lib/systemd/system/xsplice-dom0.service",
    "lib/systemd/system/xsplice-keep.service",
    "lib/systemd/system/xsplice-keep.timer",
    "lib/systemd/system/xsplice-metrics.timer",
    "lib/systemd/system/xsplice-settle.service",
    "lib/systemd/system/xsplice-sync.service",
    "usr/bin/xsplice",
    "usr/lib/xsplice/xen-livepatch",
    "usr/share/bash-completion/completions/xsplice",
    "usr/share/doc/xsplice/NOTICES.gz",
    "usr/share/doc/xsplice/copyright",
    "usr/share/doc/xsplice/examples/host.toml",
    "usr/share/doc/xsplice/examples/xsplice.dashboard.json",
    "usr/share/fish/vendor_completions.d/xsplice.fish",
    "usr/share/man/man1/xsplice-sync.1.gz",
    "usr/share/zsh/vendor-completions/_xsplice",
];

#[test]
fn the_package_says_what_is_in_it() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let deb = package(&repository())?;
    let root = directory.path();
    stdout(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(&deb)
            .arg(root),
    )?;
    for file in FILES {
        ensure!(
            root.join(file).symlink_metadata().is_ok(),
            "{file} is missing"
        );
    }
    let program = std::fs::read(root.join("usr/bin/xsplice"))?;
    let file = object::File::parse(&*program)?;
    ensure!(file.symbols().next().is_none(), "it has symbols");
    ensure!(
        file.section_by_name(".interp").is_none(),
        "it needs an interpreter"
    );
    let crates = file
        .section_by_name(".dep-v0")
        .context("no list of crates")?;
    ensure!(!crates.data()?.is_empty(), "an empty list of crates");
    let home = std::env::var("HOME").context("HOME")?;
    for path in [repository().canonicalize()?.display().to_string(), home] {
        let found = memchr::memmem::find(&program, path.as_bytes());
        ensure!(found.is_none(), "it names {path}");
    }
    bill(&root.join("usr/share/doc/xsplice/xsplice.cdx.json.gz"))
}

/// The list of crates beside it names what the program is made of, and no directory.
fn bill(path: &Path) -> anyhow::Result<()> {
    let text = stdout(Command::new("zcat").arg(path))?;
    let list: serde_json::Value = serde_json::from_str(&text)?;
    ensure!(list["bomFormat"] == "CycloneDX", "{text}");
    let components = list["components"].as_array().context("no components")?;
    for name in ["rsa", "xsplice-engine", "xsplice-store"] {
        let found = components
            .iter()
            .find(|component| component["name"] == name);
        let found = found.with_context(|| format!("{name} is not listed"))?;
        ensure!(found["licenses"][0].is_object(), "{found:#}");
    }
    let here = repository().canonicalize()?;
    ensure!(
        !text.contains(&here.display().to_string()),
        "it names {}",
        here.display()
    );
    Ok(())
}

#[test]
fn two_builds_in_two_folders_are_the_same_bytes() -> anyhow::Result<()> {
    // Each compiles everything.
    if !exhaustive() {
        println!("only with `cargo xtask test --all`");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let mut packages = Vec::new();
    for folder in ["one", "another/and longer"] {
        let copy = directory.path().join(folder);
        copy_repository(&copy)?;
        packages.push(std::fs::read(package(&copy)?)?);
        std::fs::remove_dir_all(&copy)?;
    }
    ensure!(packages[0] == packages[1], "the packages differ");
    Ok(())
}

/// Copies what git has, and would have, with its history.
fn copy_repository(to: &Path) -> anyhow::Result<()> {
    let from = repository();
    std::fs::create_dir_all(to)?;
    stdout(
        Command::new("git")
            .args(["clone", "--quiet"])
            .arg(&from)
            .arg(to),
    )?;
    let list = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let list = stdout(Command::new("git").args(list).current_dir(&from))?;
    for file in list.lines() {
        let (here, there) = (from.join(file), to.join(file));
        if !here.exists() {
            std::fs::remove_file(&there).context(file.to_owned())?;
            continue;
        }
        std::fs::create_dir_all(there.parent().unwrap_or(to))?;
        std::fs::copy(&here, &there).context(file.to_owned())?;
    }
    Ok(())
}
