// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of crates in `ARCHITECTURE.md`, compared with their manifests.

use anyhow::Context as _;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_testbed::command;

const PAGE: &str = "ARCHITECTURE.md";
/// The directory of the crates.
const DIRECTORY: &str = "crates";
/// How the head of the table begins.
const HEAD: &str = "| crate ";

/// The crates that each crate depends on, by the names of their directories.
type Crates = BTreeMap<String, BTreeSet<String>>;

/// What `cargo metadata` prints.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    /// Null for what is not only for tests or for the build.
    kind: Option<String>,
    /// Null for what is not in this repository.
    path: Option<PathBuf>,
}

/// Where the table differs from the manifests.
pub(super) fn faults() -> anyhow::Result<Vec<String>> {
    let metadata = ["metadata", "--no-deps", "--offline", "--format-version=1"];
    let metadata = command::output(Command::new("cargo").args(metadata))?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata")?;
    let table = table(&std::fs::read_to_string(PAGE).context(PAGE)?);
    Ok(differences(&table, &declared(&metadata)))
}

fn declared(metadata: &Metadata) -> Crates {
    let crates = metadata.packages.iter().filter_map(|package| {
        let name = directory_name(package.manifest_path.parent()?)?;
        let needed = package.dependencies.iter().filter(|d| d.kind.is_none());
        let needed = needed.filter_map(|d| directory_name(d.path.as_ref()?));
        Some((name, needed.collect()))
    });
    crates.collect()
}

/// The name of a crate's directory; `None` for those elsewhere, as `xtask`.
fn directory_name(directory: &Path) -> Option<String> {
    let place = directory.parent()?.file_name()?;
    let name = directory.file_name()?.to_str()?;
    (place == DIRECTORY).then(|| name.to_owned())
}

/// The rows of the table, whose first cells begin with names in backticks.
fn table(page: &str) -> Crates {
    let table = page.lines().skip_while(|line| !line.starts_with(HEAD));
    let rows = table.take_while(|line| line.starts_with('|'));
    let rows = rows.filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.strip_suffix('|')?.split(" | ");
        let (name, _) = cells.next()?.split_once('`')?;
        let needed = cells.nth(1)?.split(',').map(str::trim);
        let needed = needed.filter(|name| !name.is_empty());
        Some((name.to_owned(), needed.map(str::to_owned).collect()))
    });
    rows.collect()
}

fn differences(table: &Crates, declared: &Crates) -> Vec<String> {
    let names: BTreeSet<&String> = table.keys().chain(declared.keys()).collect();
    let faults = names.into_iter().filter_map(|name| {
        let what = match (table.get(name), declared.get(name)) {
            (Some(said), Some(needed)) if said == needed => return None,
            (Some(_), Some(needed)) => {
                let needed: Vec<&str> = needed.iter().map(String::as_str).collect();
                format!("the crate {name} depends on: {}", needed.join(", "))
            }
            (Some(_), None) => format!("there is no crate {name}"),
            (None, _) => format!("the crate {name} is not in the table"),
        };
        Some(format!("{PAGE}: {what}"))
    });
    faults.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_difference_is_found() -> anyhow::Result<()> {
        let page = "| `other` | a table before | x |\n\n\
                    | crate (`crates/…`) | what it is | depends on |\n\
                    | --- | --- | --- |\n\
                    | `abi` (no_std) | types | |\n\
                    | `engine` | it loads | fallible, abi |\n\
                    | `lab` | a host | abi |\n\
                    | `gone` | nothing | abi |\n\n\
                    | `later` | a table behind | x |\n";
        let package = |name: &str, dependencies: &str| {
            format!(
                r#"{{"manifest_path": "/x/crates/{name}/Cargo.toml", "dependencies": [{dependencies}]}}"#
            )
        };
        let on = |name: &str| format!(r#"{{"kind": null, "path": "/x/crates/{name}"}}"#);
        let for_tests = r#"{"kind": "dev", "path": "/x/crates/lab"}"#;
        let foreign = r#"{"kind": null}"#;
        let packages = [
            package("abi", &format!("{foreign}, {for_tests}")),
            package("engine", &[on("abi"), on("fallible")].join(", ")),
            package("lab", &[on("abi"), on("system")].join(", ")),
            package("system", ""),
            r#"{"manifest_path": "/x/xtask/Cargo.toml", "dependencies": []}"#.to_owned(),
        ];
        let metadata = format!(r#"{{"packages": [{}]}}"#, packages.join(", "));
        let declared = declared(&serde_json::from_str(&metadata)?);
        let expected = [
            "ARCHITECTURE.md: there is no crate gone",
            "ARCHITECTURE.md: the crate lab depends on: abi, system",
            "ARCHITECTURE.md: the crate system is not in the table",
        ];
        assert_eq!(differences(&table(page), &declared), expected);
        Ok(())
    }
}
