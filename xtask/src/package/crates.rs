// SPDX-License-Identifier: MIT OR Apache-2.0
//! The crates in the executable: the list of them (CycloneDX), and their licences.

use super::Release;
use super::program::ensure_tool;
use anyhow::Context as _;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_testbed::{command, programs};

/// The name of the list, which cargo-cyclonedx writes beside every manifest of the
/// workspace.
const LIST: &str = "target-package.cdx";
/// How the name of a file begins that has a licence.
const LICENCES: [&str; 4] = ["LICENSE", "LICENCE", "COPYING", "NOTICE"];

/// What is known of the crates.
pub(super) struct Crates {
    /// The list, in CycloneDX's JSON.
    pub(super) list: String,
    /// Their licences, one after another.
    pub(super) notices: String,
}

impl Crates {
    /// Asks cargo.
    pub(super) fn read(release: &Release) -> anyhow::Result<Self> {
        ensure_tool("cyclonedx")?;
        let metadata = ["metadata", "--format-version=1", "--locked"];
        let metadata = command::output(Command::new("cargo").args(metadata))?;
        let metadata: Value = serde_json::from_str(&metadata)?;
        let list = list(release, &metadata)?;
        let notices = notices(&metadata, &serde_json::from_str(&list)?)?;
        Ok(Self {
            list: list.replace(&root(&metadata)?, programs::SOURCE),
            notices,
        })
    }
}

/// The root of the workspace as cargo names its crates: part of a URL, where a space, for
/// one, is `%20`.
fn root(metadata: &Value) -> anyhow::Result<String> {
    let members = metadata["workspace_members"].as_array();
    let mut ids = members.into_iter().flatten().filter_map(Value::as_str);
    let root = ids.find_map(|id| {
        Some(
            id.strip_prefix("path+file://")?
                .split_once("/crates/cli#")?
                .0,
        )
    });
    root.map(str::to_owned)
        .context("cargo does not name crates/cli")
}

fn list(release: &Release, metadata: &Value) -> anyhow::Result<String> {
    let what = ["--format=json", "--spec-version=1.5", "--no-build-deps"];
    let target = ["--target=x86_64-unknown-linux-gnu", "--quiet"];
    let mut command = Command::new("cargo");
    let command = command
        .args(["cyclonedx", "--manifest-path=crates/cli/Cargo.toml"])
        .args(what)
        .args(target)
        .arg(format!("--override-filename={LIST}"));
    let made = command::output(release.command(command));
    let list = std::fs::read_to_string(format!("crates/cli/{LIST}.json"));
    for member in packages(metadata).filter(|package| package["source"].is_null()) {
        // There is none where the tool failed.
        let _ = std::fs::remove_file(directory(member)?.join(format!("{LIST}.json")));
    }
    made?;
    list.context("cargo-cyclonedx wrote no list")
}

/// The licences of the crates in `list` that come from elsewhere.
fn notices(metadata: &Value, list: &Value) -> anyhow::Result<String> {
    let listed = list["components"].as_array().into_iter().flatten();
    let listed: BTreeSet<&str> = listed
        .filter_map(|crate_| crate_["bom-ref"].as_str())
        .collect();
    let mut notices = "The licences of the crates in xsplice.\n".to_owned();
    let foreign = packages(metadata).filter(|package| !package["source"].is_null());
    for package in
        foreign.filter(|package| package["id"].as_str().is_some_and(|id| listed.contains(id)))
    {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        let (name, version, licence) = (text("name"), text("version"), text("license"));
        write!(notices, "\n==== {name} {version}: {licence}\n")?;
        for path in licences(&directory(package)?)? {
            let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
            write!(notices, "\n{}\n", String::from_utf8_lossy(&text).trim_end())?;
        }
    }
    Ok(notices)
}

/// The files in `directory` that have a licence, in the order of their names.
fn licences(directory: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut paths = BTreeSet::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.to_uppercase();
        if path.is_file() && LICENCES.iter().any(|start| name.starts_with(start)) {
            paths.insert(path);
        }
    }
    Ok(paths)
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

fn directory(package: &Value) -> anyhow::Result<PathBuf> {
    let manifest = package["manifest_path"].as_str().map(Path::new);
    let directory = manifest.and_then(Path::parent);
    Ok(directory.context("cargo names no manifest")?.to_owned())
}
