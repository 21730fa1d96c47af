// SPDX-License-Identifier: MIT OR Apache-2.0
//! All payloads of a release, and how each is made: for every hypervisor and level, one
//! from all patches up to that level.
//!
//! What makes them, on one machine or many, in parallel, again only what is missing, is
//! left to programs for that: a [`Task`] says which files it needs and makes, and how.

use crate::manifest::{check_fixes, check_name};
use crate::{BuildId, Disk, Error, Hunks, Manifest, Paths, Result, disk};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use xsplice_review::report::unused;

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
struct Base {
    build_id: BuildId,
    /// The tree that it was built in.
    tree: String,
    xen_syms: String,
    config: Option<String>,
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
    /// What makes them, one after the other.
    pub commands: Vec<Vec<String>>,
}

/// Whether a hypervisor gets a fix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Standing {
    /// The fix.
    pub fix: String,
    /// The lowest level that has it.
    pub since: u32,
    /// Build-id of the hypervisor.
    pub base: BuildId,
    /// The level that was looked at.
    pub level: u32,
    /// What its payload has.
    pub verdict: Has,
}

/// What a payload has of a fix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Has {
    /// It is in the payload.
    In,
    /// It has no effect on this hypervisor.
    NoEffect,
    /// At least a part of it was left out on request.
    LeftOut,
    /// The payload does not say.
    NotKnown,
    /// There is no payload: it was not made, or refused.
    NotMade,
}

impl Has {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::NoEffect => "no-effect",
            Self::LeftOut => "left-out",
            Self::NotKnown => "not-known",
            Self::NotMade => "not-made",
        }
    }

    /// Whether the hypervisor has, or needs, nothing more.
    #[must_use]
    pub fn is_complete(self) -> bool {
        matches!(self, Self::In | Self::NoEffect)
    }
}

/// The name of a patch in the record of a payload.
fn file_name(patch: &str) -> &OsStr {
    Path::new(patch).file_name().unwrap_or_default()
}

/// What a payload with this manifest has of the fixes of this level.
fn verdict(level: &Level, manifest: Option<&Manifest>) -> Has {
    let Some(manifest) = manifest else {
        return Has::NotMade;
    };
    let mut sum = Hunks::default();
    for patch in &level.patches {
        let file = file_name(patch);
        if unused(&manifest.metadata).any(|name| *name == *file) {
            continue;
        }
        let mut recorded = manifest.patches.iter().flatten();
        let Some(found) = recorded.find(|other| *other.name == *file) else {
            return Has::NotKnown;
        };
        sum.in_payload = sum.in_payload.saturating_add(found.hunks.in_payload);
        sum.left_out = sum.left_out.saturating_add(found.hunks.left_out);
    }
    match sum {
        Hunks { left_out: 1.., .. } => Has::LeftOut,
        Hunks {
            in_payload: 1.., ..
        } => Has::In,
        _ => Has::NoEffect,
    }
}

impl Series {
    /// Reads `series.toml`.
    ///
    /// # Errors
    /// If it is something else, or no payload could have what it says.
    pub fn parse(text: &str) -> Result<Self> {
        let series = toml::from_str::<Self>(text);
        let series = series.map_err(|error| Error::Refused(error.to_string().trim().to_owned()))?;
        series.check().map_err(Error::Refused)?;
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
            return Err(Error::Refused(why));
        }
        let bases = self.bases.iter();
        let tasks = bases.flat_map(|base| {
            let levels = levels.iter();
            levels.map(|(number, count)| self.task(store, base, *number, *count))
        });
        Ok(tasks.collect())
    }

    /// What the payloads of a level have, or those of the highest: which fixes are in them.
    ///
    /// # Errors
    /// If there is no such level, or a manifest cannot be read, or is another payload's.
    pub fn standing(
        &self,
        disk: &impl Disk,
        store: &str,
        level: Option<u32>,
    ) -> Result<Vec<Standing>> {
        let highest = u32::try_from(self.levels.len()).unwrap_or(u32::MAX);
        let level = level.unwrap_or(highest);
        let mut all = Vec::new();
        for task in self.tasks(store, Some(level))? {
            let manifest = self.manifest(disk, &task)?;
            for (number, each) in (1..=level).zip(&self.levels) {
                all.extend(each.fixes.iter().map(|fix| Standing {
                    fix: fix.clone(),
                    since: number,
                    base: task.base.clone(),
                    level,
                    verdict: verdict(each, manifest.as_ref()),
                }));
            }
        }
        Ok(all)
    }

    /// The manifest that the task makes; `None` if it was not made.
    fn manifest(&self, disk: &impl Disk, task: &Task) -> Result<Option<Manifest>> {
        let path = PathBuf::from(task.outputs.last().map_or("", String::as_str));
        let Some(data) = disk::read(disk, &path)? else {
            return Ok(None);
        };
        let manifest = Manifest::parse(&data).map_err(|why| Error::damaged(&path, why))?;
        let is = (&*manifest.name, &manifest.base, manifest.level);
        if is != (&*self.payload(task.level), &task.base, task.level) {
            let why = "it is the manifest of another payload: remove it, and make it again";
            return Err(Error::damaged(&path, why));
        }
        Ok(Some(manifest))
    }

    /// How the payload of a level, which is that of the first `count` ones, is made.
    fn task(&self, store: &str, base: &Base, level: u32, count: usize) -> Task {
        let vendor = Paths::vendor();
        let store = store.trim_end_matches('/');
        let directory = format!("{store}{}/{}", vendor.display(), base.build_id);
        let payload = format!("{directory}/{}{}", self.payload(level), Paths::PAYLOAD);
        let manifest = format!("{payload}{}", Paths::MANIFEST);
        let signature = format!("{manifest}{}", Paths::SIGNATURE);
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
        build.extend(words(&["--output", &payload]));
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
            commands: vec![build, sign],
        }
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A makefile that makes all of it.
///
/// # Errors
/// If the name of a file cannot be written in one.
pub fn makefile(tasks: &[Task]) -> Result<String> {
    let named = |name: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,@".contains(c);
        match !name.is_empty() && name.chars().all(plain) {
            true => Ok(()),
            false => Err(Error::Refused(format!(
                "{name:?} cannot be the name of a file in a makefile: use letters, digits, and \
                 \"/._-+,@\", or another format"
            ))),
        }
    };
    let mut rules = String::new();
    let mut targets = Vec::new();
    for task in tasks {
        for file in task.inputs.iter().chain(&task.outputs) {
            named(file)?;
        }
        if let Some(word) = task.commands.iter().flatten().find(|w| w.contains('\n')) {
            let why = format!("{word:?} has a line break, which a makefile cannot have");
            return Err(Error::Refused(why));
        }
        // What is made last stands for all.
        let target = task.outputs.last().map_or("", String::as_str);
        targets.push(target);
        rules += &format!("\n{target}: {}\n", task.inputs.join(" "));
        rules += &format!("\tmkdir -p {}\n", task.directory);
        for command in &task.commands {
            let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
            rules += &format!("\t{}\n", words.join(" "));
        }
    }
    Ok(format!(
        ".DELETE_ON_ERROR:\n.PHONY: all\nall: {}\n{rules}",
        targets.join(" ")
    ))
}

/// A word, as the shell in a makefile reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,@=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''").replace('$', "$$"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Root, Sha256};

    const SERIES: &str = r#"
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

    fn series() -> Series {
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
                 xsa481-1.patch --patch xsa481-2.patch --leave-out it's $new --output {payload}"
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

    #[test]
    fn what_a_payload_has_is_what_its_manifest_says() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Root::new(directory.path());
        let series = series();
        let verdicts = || -> Vec<Has> {
            let standing = series.standing(&root, "/out", Some(2)).expect("it is read");
            standing.iter().map(|standing| standing.verdict).collect()
        };
        assert_eq!(verdicts(), [Has::NotMade; 6]);
        let tasks = series.tasks("/out", Some(2)).expect("they are there");
        let hunks = |in_payload, without_effect, left_out| Hunks {
            in_payload,
            without_effect,
            left_out,
        };
        let sha256 = Sha256::zero();
        let mut manifest = Manifest {
            schema: crate::SCHEMA,
            name: "fixes-2".to_owned(),
            base: tasks[0].base.clone(),
            build_id: tasks[0].base.clone(),
            sha256: sha256.clone(),
            level: 2,
            fixes: Vec::new(),
            patches: None,
            hooks: Vec::new(),
            replaceable: true,
            metadata: Vec::new(),
            compiler: None,
            generator: None,
            date: crate::Date::new(std::time::SystemTime::UNIX_EPOCH),
        };
        let path = PathBuf::from(tasks[0].outputs.last().expect("there is one"));
        let write = |manifest: &Manifest| {
            let json = manifest.to_json().expect("JSON");
            disk::replace(&root, &path, json.as_bytes()).expect("written");
        };
        write(&manifest);
        assert_eq!(verdicts()[..3], [Has::NotKnown; 3]);
        for (second, expected) in [
            (hunks(1, 0, 0), Has::In),
            (hunks(0, 2, 0), Has::NoEffect),
            (hunks(2, 0, 1), Has::LeftOut),
        ] {
            let all = [
                ("xsa480.patch", hunks(1, 0, 0)),
                ("xsa481-1.patch", hunks(0, 1, 0)),
                ("xsa481-2.patch", second),
            ];
            let patches = all.map(|(name, hunks)| crate::Patch {
                name: name.to_owned(),
                sha256: sha256.clone(),
                hunks,
            });
            manifest.patches = Some(patches.to_vec());
            write(&manifest);
            assert_eq!(verdicts()[..3], [Has::In, expected, expected]);
        }
        let entry = |name| format!("unused-patch={name} sha256:{sha256}");
        manifest.patches = Some(Vec::new());
        manifest.metadata = vec![entry("xsa480.patch"), entry("xsa481-1.patch")];
        write(&manifest);
        assert_eq!(verdicts()[..2], [Has::NoEffect, Has::NotKnown]);
        assert_eq!(verdicts()[3..], [Has::NotMade; 3]);
        manifest.level = 3;
        write(&manifest);
        assert!(series.standing(&root, "/out", Some(2)).is_err());
    }

    #[test]
    fn a_makefile_has_what_make_and_the_shell_can_read() {
        let tasks = series().tasks("out", Some(2)).expect("they are there");
        let text = makefile(&tasks).expect("it can be written");
        let target = "out/usr/lib/xen-livepatch/ab01/fixes-2.livepatch.json";
        assert!(
            text.contains(&format!("\n{target}: trees/ab/xen-syms vendor.key ")),
            "{text}"
        );
        assert!(
            text.contains(r"--leave-out 'it'\''s $$new' --output"),
            "{text}"
        );
        for (from, to) in [
            ("trees/ab/xen-syms", "trees ab"),
            ("vendor.key", "a:b"),
            ("$new", "\\n"),
        ] {
            let series = Series::parse(&SERIES.replace(from, to)).expect("it is good");
            let tasks = series.tasks("out", None).expect("they are there");
            assert!(makefile(&tasks).is_err(), "{to}");
        }
    }
}
