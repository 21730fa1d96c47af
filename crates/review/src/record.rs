// SPDX-License-Identifier: MIT OR Apache-2.0
//! The build record: what the generator knows about a payload beyond its code
//! ([`xsplice_abi::record`]).

use crate::elf::Elf;
use serde::{Deserialize, Serialize};
use xsplice_abi::record::{self, LeftOut, PatchedData, PerCpuVariable, Renewed};

/// The build record. Missing keys are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct Record {
    /// Its format; `None` if it is older than the first numbered one.
    pub format: Option<u64>,
    /// The options of the build.
    pub options: Options,
    /// The effect of each hunk of the source patches.
    pub hunks: Vec<Hunk>,
    /// Changes that were left out on request.
    pub left_out: Vec<LeftOut>,
    /// Variables and constants that hooks change in place.
    pub patched_data: Vec<PatchedData>,
    /// New per-CPU variables.
    pub per_cpu: Vec<PerCpuVariable>,
    /// Message flags that start again from their initial value, although they may be
    /// in memory.
    pub renewed: Vec<Renewed>,
    /// Warnings for those who apply or unload the payload.
    pub warnings: Vec<String>,
    /// Notes for the reader.
    pub notes: Vec<String>,
}

/// Options of the build that affect the payload. Files are `NAME sha256:HASH`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct Options {
    /// Structures and functions whose refusal was overridden.
    pub allow: Vec<String>,
    /// The configuration that the tree had to be built with.
    pub config: Option<String>,
    /// The build-id that it depends on.
    pub depends: Option<String>,
    /// Sources of hooks.
    pub hooks: Vec<String>,
    /// Changes to leave out.
    pub leave_out: Vec<String>,
    /// Whether to leave out all changes to boot-only code.
    pub leave_out_init: bool,
    /// Data to change in place.
    pub patch_data: Vec<String>,
    /// Whether symbols are addresses instead of names.
    pub prelink: bool,
    /// The build-id that the hypervisor had to have.
    pub xen_depends: Option<String>,
}

/// A hunk of a source patch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct Hunk {
    /// The patch.
    pub patch: String,
    /// The file that it changes.
    pub file: String,
    /// The line where it starts in the old file.
    pub line: u64,
    /// The generator's name for its effect, such as `in_payload`.
    pub effect: String,
    /// What it changes.
    pub names: Vec<String>,
}

impl Hunk {
    /// The effect in words.
    #[must_use]
    pub fn effect_in_words(&self) -> &str {
        match self.effect.as_str() {
            "in_payload" if self.names.is_empty() => {
                "in the payload: the rest does not compile without it"
            }
            "in_payload" => "in the payload",
            "alternative" => "no effect alone, but needed if others are left out",
            "placement" => "changes only the placement of data, and the hypervisor's is as good",
            "left_out" => "left out on request",
            "restored" => "undoes a change that a payload below left out",
            "unused" => "changes only what the running hypervisor does not use",
            "none" => "no effect on code",
            "not_built" => "not compiled into this hypervisor",
            other => other,
        }
    }
}

impl Record {
    /// The record of a payload; `None` if it has none that can be read. That is not
    /// an error: payloads of other generators have none.
    pub(crate) fn read(elf: &Elf) -> Option<Self> {
        let section = elf.section(record::SECTION)?;
        serde_json::from_str(record::json(&section.data)?).ok()
    }

    /// A warning about a record from a later version, which may be only partly
    /// understood.
    #[must_use]
    pub fn reservation(&self) -> Option<String> {
        let format = self.format.filter(|&f| f > u64::from(record::FORMAT))?;
        Some(format!(
            "a later version of xsplice wrote the build record (format {format}): it may contain more \
             than is shown here"
        ))
    }

    /// The hunks that change `function`.
    pub(crate) fn hunks_of<'a>(&'a self, function: &'a str) -> impl Iterator<Item = &'a Hunk> {
        let inside = ["in_payload", "alternative"];
        let here = self.hunks.iter();
        let here = here.filter(move |hunk| inside.contains(&hunk.effect.as_str()));
        here.filter(move |hunk| hunk.names.iter().any(|name| name == function))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_of_the_record_can_be_read() {
        let text =
            r#"{"later": 1, "hunks": [{"file": "f.c", "effect": "new kind", "objects": 2}]}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!(record.reservation(), None);
        assert_eq!(record.hunks[0].file, "f.c");
        assert_eq!(record.hunks[0].effect_in_words(), "new kind");
        assert!(record.notes.is_empty());
        for (format, later) in [(record::FORMAT, false), (record::FORMAT + 1, true)] {
            let text = format!("{{\"format\": {format}}}");
            let record: Record = serde_json::from_str(&text).unwrap();
            assert_eq!(record.reservation().is_some(), later);
        }
    }
}
