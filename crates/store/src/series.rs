// SPDX-License-Identifier: MIT OR Apache-2.0
//! All payloads of a release, and how each is made: for every hypervisor and level, one
//! from all patches up to that level.
//!
//! What makes them, on one machine or many, in parallel, again only what is missing, is
//! left to programs for that: a [`Task`] says which files it needs and makes, and how.

mod make;
mod table;

pub use make::{makefile, ninja};
pub use table::{Has, Reason, Standing, page};

use crate::manifest::{check_fixes, check_name};
use crate::{BuildId, Error, Paths, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::Path;

/// What the name of a payload is followed by in the name of the file that says why it was not
/// made.
const REFUSAL: &str = ".refused.json";

/// A release, as `series.toml` has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Series {
    /// Payloads are called by this, `-`, and their level.
    name: String,
    /// The private key.
    key: String,
    #[serde(rename = "base")]
    bases: Vec<Base>,
    #[serde(rename = "level")]
    levels: Vec<Level>,
}

/// A hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Base {
    /// Its build-id.
    pub build_id: BuildId,
    /// The tree that it was built in.
    pub tree: String,
    /// Its symbols.
    pub xen_syms: String,
    /// Its configuration, if that is not the one of the tree.
    pub config: Option<String>,
}

impl Base {
    /// Its files, beside the tree.
    pub fn files(&self) -> impl Iterator<Item = &String> {
        [&self.xen_syms].into_iter().chain(&self.config)
    }
}

/// What a level has beyond the one before.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Level {
    patches: Vec<String>,
    #[serde(default)]
    fixes: Vec<String>,
    /// More options of `xsplice build`, such as `--leave-out`.
    #[serde(default)]
    options: Vec<String>,
}

/// How a payload is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Task {
    /// Build-id of the hypervisor.
    pub base: BuildId,
    /// The level.
    pub level: u32,
    /// The files that it is made from.
    pub inputs: Vec<String>,
    /// The directory that must be there.
    pub directory: String,
    /// The files that are made. The last one is there only if all are.
    pub outputs: Vec<String>,
    /// The file that is written instead if the payload is not made, and says why.
    pub refusal: String,
    /// What makes them, one after the other.
    pub commands: Vec<Vec<String>>,
}

/// The name of a patch in the record of a payload.
fn file_name(patch: &str) -> &OsStr {
    Path::new(patch).file_name().unwrap_or_default()
}

impl Series {
    /// Reads `series.toml`.
    ///
    /// # Errors
    /// If it is something else, or no payload could have what it says.
    pub fn parse(text: &str) -> Result<Self> {
        let series = toml::from_str::<Self>(text);
        let series = series.map_err(|error| Error::invalid(error.to_string().trim()))?;
        series.check().map_err(Error::invalid)?;
        Ok(series)
    }

    fn check(&self) -> std::result::Result<(), String> {
        check_name(&self.payload(u32::MAX))?;
        if self.bases.is_empty() || self.levels.is_empty() {
            return Err("there must be at least one [[base]] and one [[level]]".to_owned());
        }
        let mut ids = HashSet::new();
        if let Some(twice) = self.bases.iter().find(|base| !ids.insert(&base.build_id)) {
            return Err(format!("the hypervisor {} is there twice", twice.build_id));
        }
        // The record of a payload has the names of its patches without their directories.
        let mut patches = HashSet::new();
        for (number, level) in (1..).zip(&self.levels) {
            let at = |reason: String| format!("level {number}: {reason}");
            check_fixes(&level.fixes).map_err(at)?;
            if level.patches.is_empty() {
                return Err(at("it has no patches".to_owned()));
            }
            let mut names = level.patches.iter().map(|patch| file_name(patch));
            if let Some(twice) = names.find(|name| !patches.insert(*name)) {
                let twice = twice.display();
                return Err(at(format!("there is another patch called {twice}")));
            }
        }
        Ok(())
    }

    /// The hypervisor `only`, or all of them.
    ///
    /// # Errors
    /// If there is no such hypervisor.
    pub fn bases(&self, only: Option<&BuildId>) -> Result<Vec<&Base>> {
        let bases = self.bases.iter();
        let bases = bases.filter(|base| only.is_none_or(|only| base.build_id == *only));
        let bases: Vec<&Base> = bases.collect();
        match (only, bases.as_slice()) {
            (Some(only), []) => Err(Error::invalid(format!("there is no hypervisor {only}"))),
            _ => Ok(bases),
        }
    }

    fn payload(&self, level: u32) -> String {
        format!("{}-{level}", self.name)
    }

    /// How the payloads are made, in a store below `store`: of one level, or of all.
    ///
    /// # Errors
    /// If there is no such level.
    pub fn tasks(&self, store: &str, level: Option<u32>) -> Result<Vec<Task>> {
        let levels = (1..).zip(1..=self.levels.len());
        let levels: Vec<(u32, usize)> = levels
            .filter(|(number, _)| level.is_none_or(|level| level == *number))
            .collect();
        if let (Some(level), []) = (level, levels.as_slice()) {
            let highest = self.levels.len();
            let why = format!("there is no level {level}; the highest is {highest}");
            return Err(Error::invalid(why));
        }
        let bases = self.bases.iter();
        let tasks = bases.flat_map(|base| {
            let levels = levels.iter();
            levels.map(|(number, count)| self.task(store, base, *number, *count))
        });
        Ok(tasks.collect())
    }

    /// How the payload of a level, which is that of the first `count` ones, is made.
    fn task(&self, store: &str, base: &Base, level: u32, count: usize) -> Task {
        let vendor = Paths::vendor();
        let store = store.trim_end_matches('/');
        let directory = format!("{store}{}/{}", vendor.display(), base.build_id);
        let payload = format!("{directory}/{}{}", self.payload(level), Paths::PAYLOAD);
        let manifest = format!("{payload}{}", Paths::MANIFEST);
        let signature = format!("{manifest}{}", Paths::SIGNATURE);
        let refusal = format!("{payload}{REFUSAL}");
        let levels = &self.levels[..count];
        let patches = || levels.iter().flat_map(|level| &level.patches);
        let mut build = words(&["xsplice", "build", "--verify", "--srcdir", &base.tree]);
        build.extend(words(&["--xen-syms", &base.xen_syms]));
        build.extend(words(&["--xen-depends", base.build_id.as_str()]));
        let config = base.config.iter();
        build.extend(
            config
                .clone()
                .flat_map(|config| words(&["--config", config])),
        );
        build.extend(patches().flat_map(|patch| words(&["--patch", patch])));
        build.extend(levels.iter().flat_map(|level| level.options.clone()));
        build.extend(words(&["--refusal", &refusal, "--output", &payload]));
        let mut sign = words(&["xsplice", "sign", "--key", &self.key, &payload]);
        sign.extend(words(&["--level", &level.to_string()]));
        let fixes = levels.iter().flat_map(|level| &level.fixes);
        sign.extend(fixes.flat_map(|fix| words(&["--fix", fix])));
        let inputs = [&base.xen_syms, &self.key].into_iter();
        Task {
            base: base.build_id.clone(),
            level,
            inputs: inputs.chain(config).chain(patches()).cloned().collect(),
            directory,
            // In the order in which `xsplice sign` writes them.
            outputs: vec![payload, signature, manifest],
            refusal,
            commands: vec![build, sign],
        }
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const SERIES: &str = r#"
name = "fixes"
key = "vendor.key"
[[base]]
build-id = "ab01"
tree = "trees/ab"
xen-syms = "trees/ab/xen-syms"
config = "trees/ab/config"
[[base]]
build-id = "cd02"
tree = "trees/cd"
xen-syms = "trees/cd/xen-syms"
[[level]]
patches = ["xsa480.patch"]
fixes = ["XSA-480"]
[[level]]
patches = ["xsa481-1.patch", "xsa481-2.patch"]
fixes = ["XSA-481", "CVE-2026-1"]
options = ["--leave-out", "it's $new"]
"#;

    pub(super) fn series() -> Series {
        Series::parse(SERIES).expect("it is good")
    }

    #[test]
    fn each_level_has_all_patches_up_to_it() {
        let tasks = series().tasks("out/", None).expect("they are there");
        let made: Vec<(&str, u32)> = tasks.iter().map(|t| (t.base.as_str(), t.level)).collect();
        assert_eq!(made, [("ab01", 1), ("ab01", 2), ("cd02", 1), ("cd02", 2)]);
        let second = &tasks[1];
        let payload = "out/usr/lib/xen-livepatch/ab01/fixes-2.livepatch";
        let build = second.commands[0].join(" ");
        assert_eq!(
            build,
            format!(
                "xsplice build --verify --srcdir trees/ab --xen-syms trees/ab/xen-syms \
                 --xen-depends ab01 --config trees/ab/config --patch xsa480.patch --patch \
                 xsa481-1.patch --patch xsa481-2.patch --leave-out it's $new --refusal {payload}.refused.json --output \
                 {payload}"
            )
        );
        let sign = second.commands[1].join(" ");
        let fixes = "--fix XSA-480 --fix XSA-481 --fix CVE-2026-1";
        let expected = format!("xsplice sign --key vendor.key {payload} --level 2 {fixes}");
        assert_eq!(sign, expected);
        assert_eq!(second.inputs.len(), 6);
        assert_eq!(second.outputs.last(), Some(&format!("{payload}.json")));
        assert!(!tasks[2].commands[0].contains(&"--config".to_owned()));
        let one = series().tasks("out", Some(2)).expect("it is there");
        assert_eq!(one, [tasks[1].clone(), tasks[3].clone()]);
        assert!(series().tasks("out", Some(3)).is_err());
        assert!(series().tasks("out", Some(0)).is_err());
    }

    #[test]
    fn a_series_is_understood_as_a_whole_or_not_at_all() {
        for (from, to) in [
            ("name = \"fixes\"", "name = \"../fixes\""),
            ("name = \"fixes\"", "name = \"fixes\"\nnames = 1"),
            ("\"cd02\"", "\"ab01\""),
            ("\"cd02\"", "\"../..\""),
            ("[\"XSA-480\"]", "[\"XSA 480\"]"),
            ("[\"xsa480.patch\"]", "[]"),
            ("[\"xsa480.patch\"]", "[\"xsa481-1.patch\"]"),
            ("[\"xsa480.patch\"]", "[\"other/xsa481-1.patch\"]"),
            ("config =", "configuration ="),
        ] {
            assert!(SERIES.contains(from), "{from}");
            assert!(Series::parse(&SERIES.replace(from, to)).is_err(), "{to}");
        }
        let no_level = SERIES.split("[[level]]").next().expect("there is one");
        assert!(Series::parse(no_level).is_err());
    }
}
