// SPDX-License-Identifier: MIT OR Apache-2.0
//! Downloads from Debian, without changing the system's configuration.

use crate::command;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A private apt configuration, made from the machine's own sources with
/// source packages enabled.
pub struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// Makes the configuration in `directory` and fetches the package lists.
    pub fn new(directory: &Path) -> anyhow::Result<Self> {
        Self::configured(directory, str::to_owned, &[])
    }

    /// The same for another release: `suite` takes the place of this machine's.
    pub fn of_suite(directory: &Path, suite: &str) -> anyhow::Result<Self> {
        Self::configured(directory, |text| of_suite(text, suite), &[])
    }

    /// As [`new`](Self::new), with the packages of one more architecture: `NAME:arm64`.
    pub fn with_architecture(directory: &Path, architecture: &str) -> anyhow::Result<Self> {
        // What is installed here does not matter there.
        let status = directory.join("status");
        std::fs::create_dir_all(directory)?;
        std::fs::write(&status, "")?;
        Self::configured(
            directory,
            str::to_owned,
            &[
                ("APT::Architectures::", architecture.to_owned()),
                ("Dir::State::status", status.display().to_string()),
            ],
        )
    }

    /// `change` makes another text of each file of sources.
    fn configured(
        directory: &Path,
        change: impl Fn(&str) -> String,
        more: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        for part in ["state/lists/partial", "cache/archives/partial", "sources"] {
            std::fs::create_dir_all(directory.join(part))?;
        }
        write_sources(&directory.join("sources"), change)?;
        let at = |part: &str| directory.join(part).display().to_string();
        let settings = [
            ("Dir::Etc::sourcelist", "/dev/null".to_owned()),
            ("Dir::Etc::sourceparts", at("sources")),
            ("Dir::State", at("state")),
            ("Dir::State::status", "/var/lib/dpkg/status".to_owned()),
            ("Dir::Cache", at("cache")),
            ("APT::Sandbox::User", "root".to_owned()),
        ];
        let options = settings
            .iter()
            .chain(more)
            .flat_map(|(k, v)| ["-o".to_owned(), format!("{k}={v}")])
            .collect();
        let apt = Self { options };
        // A mirror may have a damaged list among good ones; what is in none of them cannot
        // be downloaded later.
        if let Err(error) = apt.get(directory, &["update"]) {
            println!("not every list of packages was fetched: {error:#}");
        }
        Ok(apt)
    }

    fn get(&self, directory: &Path, arguments: &[&str]) -> anyhow::Result<String> {
        command::output(
            Command::new("apt-get")
                .args(&self.options)
                .args(arguments)
                .current_dir(directory),
        )
    }

    fn cache(&self, arguments: &[&str]) -> anyhow::Result<String> {
        command::output(
            Command::new("apt-cache")
                .args(&self.options)
                .args(arguments),
        )
    }

    /// The versions of the binary package `package`, newest first.
    pub fn versions(&self, package: &str) -> anyhow::Result<Vec<String>> {
        let table = self.cache(&["madison", package])?;
        let versions = table
            .lines()
            .filter(|l| l.contains("Packages"))
            .filter_map(|l| Some(l.split('|').nth(1)?.trim().to_owned()));
        Ok(versions.collect())
    }

    /// The newest package whose name starts with `prefix` and ends with
    /// `suffix`.
    pub fn newest(&self, prefix: &str, suffix: &str) -> anyhow::Result<String> {
        let names = self.cache(&["pkgnames", prefix])?;
        let mut names: Vec<&str> = names.lines().filter(|n| n.ends_with(suffix)).collect();
        names.sort_unstable();
        names
            .pop()
            .map(str::to_owned)
            .with_context(|| format!("Debian has no {prefix}*{suffix} here"))
    }

    /// The first package that `package` depends on.
    pub fn dependency(&self, package: &str) -> anyhow::Result<String> {
        let text = self.cache(&["depends", "--important", package])?;
        text.lines()
            .find_map(|l| l.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .with_context(|| format!("{package} depends on nothing"))
    }

    /// What an installation of `packages` on an empty system would install, with versions.
    pub fn simulate(&self, packages: &[&str]) -> anyhow::Result<String> {
        let empty = ["-o", "Dir::State::status=/dev/null", "--simulate"];
        let without = ["--no-install-recommends", "install"];
        let arguments = [&empty[..], &without[..], packages].concat();
        let plan = self.get(Path::new("/"), &arguments)?;
        let installed = plan.lines().filter(|line| line.starts_with("Inst "));
        let mut installed: Vec<&str> = installed.collect();
        installed.sort_unstable();
        Ok(installed.join("\n"))
    }

    /// Downloads binary packages and unpacks them into `directory`.
    pub fn unpack(&self, directory: &Path, packages: &[String]) -> anyhow::Result<()> {
        let downloads = directory.join("downloads");
        std::fs::create_dir_all(&downloads)?;
        let names: Vec<&str> = packages.iter().map(String::as_str).collect();
        self.get(&downloads, &[&["download"], &names[..]].concat())?;
        for entry in std::fs::read_dir(&downloads)? {
            let package = entry?.path();
            command::output(Command::new("dpkg").arg("-x").arg(&package).arg(directory))?;
        }
        std::fs::remove_dir_all(&downloads)?;
        Ok(())
    }

    /// Downloads the source package `package` in `version` and unpacks it,
    /// Debian's patches applied, into `directory`.
    pub fn source(&self, package: &str, version: &str, directory: &Path) -> anyhow::Result<()> {
        let downloads = directory.with_extension("downloads");
        std::fs::create_dir_all(&downloads)?;
        self.get(
            &downloads,
            &["source", "--download-only", &format!("{package}={version}")],
        )?;
        let description = std::fs::read_dir(&downloads)?
            .filter_map(|e| Some(e.ok()?.path()))
            .find(|p| p.extension().is_some_and(|e| e == "dsc"))
            .context("the source package has no .dsc file")?;
        command::output(
            Command::new("dpkg-source")
                .args(["--no-check", "-x"])
                .arg(description)
                .arg(directory),
        )?;
        std::fs::remove_dir_all(&downloads)?;
        Ok(())
    }
}

/// Copies the machine's Debian sources, adding `deb-src` to each `deb`.
fn write_sources(directory: &Path, change: impl Fn(&str) -> String) -> anyhow::Result<()> {
    let mut found = false;
    let mut files: Vec<PathBuf> = std::fs::read_dir("/etc/apt/sources.list.d")
        .map(|d| d.filter_map(|e| Some(e.ok()?.path())).collect())
        .unwrap_or_default();
    files.push("/etc/apt/sources.list".into());
    for path in files {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        let text = change(&text);
        let with_source = if name.ends_with(".sources") {
            text.lines()
                .map(|l| format!("{}\n", deb822_line(l)))
                .collect()
        } else if name.ends_with(".list") {
            text.lines()
                .filter(|l| l.starts_with("deb "))
                .fold(String::new(), |all, l| {
                    format!("{all}{l}\n{}\n", l.replacen("deb ", "deb-src ", 1))
                })
        } else {
            continue;
        };
        found |= !with_source.is_empty();
        std::fs::write(directory.join(name), with_source)?;
    }
    if !found {
        bail!("there are no apt sources in /etc/apt: is this a Debian system?");
    }
    Ok(())
}

/// The sources of `text` for another release. A source of updates only, such as
/// `bookworm-security`, is left out: other releases name theirs in other ways.
fn of_suite(text: &str, suite: &str) -> String {
    let main = |word: &&str| !word.contains('-') && !word.contains('/');
    let one_line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let at = words.iter().position(|word| word.contains("://"))? + 1;
        main(words.get(at)?).then(|| {
            [&words[..at], &[suite], &words[at + 1..]]
                .concat()
                .join(" ")
        })
    };
    let field = |stanza: &str| {
        let suites = |line: &&str| line.starts_with("Suites:");
        let line = stanza.lines().find(suites)?;
        let mut words = line.split_whitespace().skip(1);
        words.find(main)?;
        Some(stanza.replace(line, &format!("Suites: {suite}")))
    };
    let mut all = String::new();
    for stanza in text.split("\n\n") {
        if let Some(stanza) = field(stanza) {
            all.push_str(stanza.trim_end());
            all.push_str("\n\n");
            continue;
        }
        let lines = stanza.lines().filter(|line| line.starts_with("deb "));
        for line in lines.filter_map(one_line) {
            all.push_str(&line);
            all.push('\n');
        }
    }
    all
}

fn deb822_line(line: &str) -> &str {
    if line.trim() == "Types: deb" {
        "Types: deb deb-src"
    } else {
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_suite_takes_the_place_of_the_main_one() {
        let stanzas = "Types: deb\nURIs: http://a/debian\nSuites: bookworm bookworm-updates\n\
                       Components: main\n\nTypes: deb\nURIs: http://a/debian-security\n\
                       Suites: bookworm-security\nComponents: main\n";
        let expected = "Types: deb\nURIs: http://a/debian\nSuites: trixie\nComponents: main\n\n";
        assert_eq!(of_suite(stanzas, "trixie"), expected);
        let lines = "# a comment\ndeb [arch=amd64] http://a/debian bookworm main contrib\n\
                     deb http://a/debian bookworm-updates main\n";
        let expected = "deb [arch=amd64] http://a/debian trixie main contrib\n";
        assert_eq!(of_suite(lines, "trixie"), expected);
        assert_eq!(of_suite("", "trixie"), "");
    }
}
