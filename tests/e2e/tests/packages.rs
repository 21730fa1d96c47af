// SPDX-License-Identifier: MIT OR Apache-2.0
//! The packages: they have what an administrator needs, say what is in them, and are the
//! same bytes wherever they are built.

use anyhow::{Context as _, ensure};
use object::{Object as _, ObjectSection as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use xsplice_e2e::{exhaustive, later, package, repository, stdout};

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

/// The Debian package, made once.
fn deb() -> anyhow::Result<PathBuf> {
    static DEB: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = DEB.get_or_init(|| package(&repository()).map_err(|error| format!("{error:#}")));
    made.clone().map_err(anyhow::Error::msg)
}

#[test]
fn the_package_says_what_is_in_it() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let deb = deb()?;
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

/// A Debian system with nothing in it, which dpkg works on from outside.
struct System(tempfile::TempDir);

impl System {
    fn new() -> anyhow::Result<Self> {
        let system = Self(tempfile::tempdir()?);
        for directory in ["info", "updates", "triggers", "alternatives"] {
            std::fs::create_dir_all(system.place("var/lib/dpkg").join(directory))?;
        }
        for directory in ["etc/alternatives", "usr/bin", "var/log"] {
            std::fs::create_dir_all(system.place(directory))?;
        }
        std::fs::write(system.place("var/lib/dpkg/status"), "")?;
        Ok(system)
    }

    fn place(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn has(&self, path: &str) -> bool {
        self.place(path).symlink_metadata().is_ok()
    }

    /// Copies programs of this machine that scripts of packages call, with their libraries.
    fn provide(&self, programs: &[&str]) -> anyhow::Result<()> {
        for program in programs {
            let libraries = stdout(Command::new("ldd").arg(program))?;
            let words = libraries.split_whitespace();
            let libraries = words.filter(|word| word.starts_with('/'));
            for file in libraries.chain([*program]) {
                let to = self.place(&file[1..]);
                std::fs::create_dir_all(to.parent().context("a directory")?)?;
                std::fs::copy(file, &to).with_context(|| file.to_owned())?;
            }
        }
        Ok(())
    }

    fn dpkg(&self, action: &str, what: &Path) -> anyhow::Result<()> {
        let root = format!("--root={}", self.0.path().display());
        let mut dpkg = Command::new("dpkg");
        dpkg.arg(root)
            .args(["--force-script-chrootless", "--force-not-root"])
            .args(["--force-depends", action])
            .arg(what);
        stdout(&mut dpkg).map(drop)
    }
}

#[test]
fn the_package_leaves_what_it_should() -> anyhow::Result<()> {
    const SYNC: &str = "etc/systemd/system/multi-user.target.wants/xsplice-sync.service";
    const SETTLE: &str = "etc/systemd/system/multi-user.target.wants/xsplice-settle.service";
    const DATA: [&str; 2] = ["etc/xsplice/host.toml", "var/lib/xsplice/history.jsonl"];
    let (system, deb, directory) = (System::new()?, deb()?, tempfile::tempdir()?);
    system.dpkg("--install", &deb)?;
    for file in [SYNC, SETTLE, "usr/bin/xsplice"] {
        ensure!(system.has(file), "{file} is missing");
    }
    let tool = std::fs::read_link(system.place("etc/alternatives/xen-livepatch"))?;
    ensure!(
        tool == Path::new("/usr/lib/xsplice/xen-livepatch"),
        "{tool:?}"
    );
    for file in DATA {
        let path = system.place(file);
        std::fs::create_dir_all(path.parent().context("a directory")?)?;
        std::fs::write(path, file)?;
    }

    // The administrator has disabled a unit.
    std::fs::remove_file(system.place(SYNC))?;
    system.dpkg("--install", &later(&deb, directory.path())?)?;
    ensure!(
        !system.has(SYNC) && system.has(SETTLE),
        "it was enabled again"
    );

    system.dpkg("--remove", Path::new("xsplice"))?;
    for file in DATA {
        ensure!(
            std::fs::read_to_string(system.place(file))? == file,
            "{file} is lost"
        );
    }
    for file in [
        "usr/bin/xsplice",
        "usr/bin/xen-livepatch",
        "etc/alternatives/xen-livepatch",
    ] {
        ensure!(!system.has(file), "{file} is still there");
    }
    system.dpkg("--purge", Path::new("xsplice"))?;
    let mut find = Command::new("find");
    let left = stdout(find.arg(system.0.path()).args(["-name", "*xsplice*"]))?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

#[test]
fn a_xen_livepatch_of_somebody_else_stays() -> anyhow::Result<()> {
    let deb = deb()?;
    for target in [None, Some("/usr/bin/true"), Some("/nowhere")] {
        let system = System::new()?;
        let path = system.place("usr/bin/xen-livepatch");
        match target {
            None => std::fs::write(&path, "Xen's own")?,
            Some(target) => std::os::unix::fs::symlink(target, &path)?,
        }
        let same = || match target {
            None => std::fs::read(&path).is_ok_and(|text| text == b"Xen's own"),
            Some(target) => std::fs::read_link(&path).is_ok_and(|to| to == Path::new(target)),
        };
        system.dpkg("--install", &deb)?;
        ensure!(same(), "{target:?} was replaced");
        system.dpkg("--purge", Path::new("xsplice"))?;
        ensure!(same(), "{target:?} was removed");
    }
    Ok(())
}

#[test]
fn the_rpm_package_leaves_what_it_should() -> anyhow::Result<()> {
    // It is made after the Debian package is made again.
    if !exhaustive() {
        println!("only with `cargo xtask test --all`");
        return Ok(());
    }
    let mut make = Command::new("cargo");
    make.args(["xtask", "package", "--rpm"]);
    let printed = stdout(make.current_dir(repository()))?;
    let rpm = printed.lines().last().context("no package")?;
    let system = System::new()?;
    system.provide(&[
        "/bin/sh",
        "/usr/bin/readlink",
        "/usr/bin/update-alternatives",
    ])?;
    let run = |arguments: &[&str]| {
        let mut command = Command::new("rpm");
        command.arg("--root").arg(system.0.path()).args(arguments);
        stdout(&mut command)
    };
    run(&["--initdb"])?;
    run(&["--install", "--nodeps", rpm])?;
    let asked = run(&["--query", "--list", "xsplice"])?;
    for file in [
        "/usr/bin/xsplice",
        "/usr/lib/xsplice/xen-livepatch",
        "/usr/lib/systemd/system/xsplice-sync.service",
        "/usr/share/man/man1/xsplice-sync.1.gz",
        "/usr/share/zsh/site-functions/_xsplice",
        "/usr/share/doc/xsplice/examples/host.toml",
    ] {
        let there = asked.lines().any(|line| line == file) && system.has(&file[1..]);
        ensure!(there, "{file} is missing");
    }
    run(&["--verify", "--nodeps", "xsplice"])?;
    // As an upgrade does, which must not take the alternative away.
    run(&["--upgrade", "--nodeps", "--force", rpm])?;
    let tool = std::fs::read_link(system.place("etc/alternatives/xen-livepatch"))?;
    ensure!(
        tool == Path::new("/usr/lib/xsplice/xen-livepatch"),
        "{tool:?}"
    );
    const DATA: &str = "var/lib/xsplice/history.jsonl";
    std::fs::create_dir_all(system.place("var/lib/xsplice"))?;
    std::fs::write(system.place(DATA), "history")?;
    run(&["--erase", "xsplice"])?;
    ensure!(system.has(DATA), "the history is lost");
    for file in [
        "usr/bin/xsplice",
        "usr/lib/xsplice",
        "usr/bin/xen-livepatch",
    ] {
        ensure!(!system.has(file), "{file} is still there");
    }
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
    let copies = ["one", "another/and longer"].map(|folder| directory.path().join(folder));
    // Both before the first is built: the repository may change meanwhile.
    for copy in &copies {
        copy_repository(copy)?;
    }
    let mut packages = Vec::new();
    for copy in &copies {
        packages.push(std::fs::read(package(copy)?)?);
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
