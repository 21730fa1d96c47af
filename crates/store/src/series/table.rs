// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which fixes are in the payloads of a release, and why others are not.

use super::{Level, Series, Task, file_name};
use crate::{BuildId, Disk, Error, Hunks, Manifest, Result, disk};
use maud::html;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use xsplice_review::report::{document, unused};

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
    /// Why there is no payload, if that is known.
    pub reason: Option<Reason>,
}

/// Why a payload was not made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Reason {
    /// The code of the refusal, if it has one.
    pub code: Option<String>,
    /// In words.
    pub message: String,
}

/// What `xsplice build --refusal` writes, as far as it matters here.
#[derive(Deserialize)]
struct Refusal {
    error: Cause,
}

#[derive(Deserialize)]
struct Cause {
    kind: String,
    code: Option<String>,
    message: String,
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
    /// There is no payload: what it was to be made of was refused.
    Refused,
    /// There is no payload: it was not made, or that failed.
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
            Self::Refused => "refused",
            Self::NotMade => "not-made",
        }
    }

    /// Whether the hypervisor has, or needs, nothing more.
    #[must_use]
    pub fn is_complete(self) -> bool {
        matches!(self, Self::In | Self::NoEffect)
    }
}

/// What a payload with this manifest has of the fixes of this level.
fn verdict(level: &Level, manifest: &Manifest) -> Has {
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

/// Why the payload of a task is not there.
fn missing(disk: &impl Disk, task: &Task) -> Result<(Has, Option<Reason>)> {
    let path = PathBuf::from(&task.refusal);
    let Some(data) = disk::read(disk, &path)? else {
        return Ok((Has::NotMade, None));
    };
    let refusal = serde_json::from_slice::<Refusal>(&data);
    let Cause {
        kind,
        code,
        message,
    } = refusal
        .map_err(|error| Error::damaged(&path, format!("it is no refusal: {error}")))?
        .error;
    let verdict = match &*kind {
        "refused" => Has::Refused,
        _ => Has::NotMade,
    };
    Ok((verdict, Some(Reason { code, message })))
}

impl Standing {
    /// The verdict in a few words, with the code of a refusal.
    #[must_use]
    pub fn words(&self) -> String {
        let word = self.verdict.word();
        match &self.reason {
            None => word.to_owned(),
            Some(Reason {
                code: Some(code), ..
            }) => format!("{word} ({code})"),
            Some(Reason { message, .. }) => {
                format!("{word}: {}", message.lines().next().unwrap_or_default())
            }
        }
    }
}

/// A page with a row for each fix and a column for each hypervisor.
#[must_use]
pub fn page(all: &[Standing]) -> String {
    let mut bases: Vec<&BuildId> = Vec::new();
    let mut fixes: Vec<&str> = Vec::new();
    for standing in all {
        if !bases.contains(&&standing.base) {
            bases.push(&standing.base);
        }
        if !fixes.contains(&&*standing.fix) {
            fixes.push(&standing.fix);
        }
    }
    let at = |fix: &str, base: &BuildId| {
        let mut all = all.iter();
        all.find(move |standing| standing.fix == fix && standing.base == *base)
    };
    let level = all.first().map_or(0, |standing| standing.level);
    let title = format!("Fixes of level {level}");
    let content = html! {
        div.wide role="region" aria-label="Fixes by hypervisor" tabindex="0" { table {
            thead { tr {
                th scope="col" { "Fix" }
                @for base in &bases { th scope="col" { code { (base) } } }
            } }
            tbody { @for fix in &fixes { tr {
                th scope="row" { (fix) }
                @for base in &bases { td { @if let Some(standing) = at(fix, base) { (cell(standing)) } } }
            } } }
        } }
    };
    document(&title, &content)
}

/// What the page says of a fix and a hypervisor.
fn cell(standing: &Standing) -> maud::Markup {
    let class = match standing.verdict.is_complete() {
        true => "good",
        false => "bad",
    };
    let reason = standing.reason.as_ref();
    html! {
        span.badge.(class) { (standing.verdict.word()) }
        @if let Some(Reason { code, message }) = reason {
            @if let Some(code) = code { " " code { (code) } }
            @for line in message.lines() { br; (line) }
        }
    }
}

impl Series {
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
            let missing = match &manifest {
                Some(_) => None,
                None => Some(missing(disk, &task)?),
            };
            for (number, each) in (1..=level).zip(&self.levels) {
                let (verdict, reason) = match (&manifest, &missing) {
                    (Some(manifest), _) => (verdict(each, manifest), None),
                    (None, Some(missing)) => missing.clone(),
                    (None, None) => (Has::NotMade, None),
                };
                all.extend(each.fixes.iter().map(|fix| Standing {
                    fix: fix.clone(),
                    since: number,
                    base: task.base.clone(),
                    level,
                    verdict,
                    reason: reason.clone(),
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
}

#[cfg(test)]
mod tests {
    use super::super::tests::series;
    use super::*;
    use crate::{Root, Sha256};

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
    fn a_payload_that_was_refused_is_named_with_the_reason() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Root::new(directory.path());
        let series = series();
        let task = &series.tasks("/out", Some(1)).expect("they are there")[0];
        let standing = |text: &str| {
            disk::replace(&root, task.refusal.as_ref(), text.as_bytes()).expect("written");
            series.standing(&root, "/out", Some(1))
        };
        let failed = |kind: &str, code: &str| {
            format!(
                "{{\"error\":{{\"kind\":\"{kind}\",\"code\":{code},\"message\":\"<b> a\\nb\"}}}}"
            )
        };
        let all = standing(&failed("refused", "\"boot-only\"")).expect("it is read");
        assert_eq!(all[0].words(), "refused (boot-only)");
        assert_eq!(all[1].words(), "not-made");
        let page = page(&all);
        for part in [
            "<th scope=\"row\">XSA-480</th>",
            "<code>ab01</code>",
            "refused",
            "boot-only",
            "&lt;b&gt; a<br>b",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        let all = standing(&failed("failed", "null")).expect("it is read");
        assert_eq!(all[0].words(), "not-made: <b> a");
        assert!(standing("{}").is_err());
    }
}
