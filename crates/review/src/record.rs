// SPDX-License-Identifier: MIT OR Apache-2.0
//! The build record: what the generator knows about a payload that the payload's
//! code does not show ([`xsplice_abi::record`]).

use crate::elf::Elf;
use serde::{Deserialize, Serialize};
use xsplice_abi::record::{self, LeftOut, PatchedData, PerCpuVariable, Renewed};

/// What the generator recorded. Keys that are missing are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Its format; none if it is older than the first that has a number.
    pub format: Option<u64>,
    /// What the build was told.
    pub options: Options,
    /// What became of each hunk of the source patches.
    pub hunks: Vec<Hunk>,
    /// Changes that the payload does without, as the build was told.
    pub left_out: Vec<LeftOut>,
    /// Variables and constants that hooks change in place.
    pub patched_data: Vec<PatchedData>,
    /// New per-CPU variables.
    pub per_cpu: Vec<PerCpuVariable>,
    /// Flags that say whether a message was printed, and begin anew although they may
    /// be in memory.
    pub renewed: Vec<Renewed>,
    /// What whoever applies or unloads the payload has to see to.
    pub warnings: Vec<String>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// Options of the build that say what the payload is. Files are
/// `NAME sha256:HASH`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Structures and functions whose refusal was overridden.
    pub allow: Vec<String>,
    /// The configuration that the tree had to be built with.
    pub config: Option<String>,
    /// The build-id of what it is applied on top of.
    pub depends: Option<String>,
    /// Sources of hooks.
    pub hooks: Vec<String>,
    /// Changes that were to be left out.
    pub leave_out: Vec<String>,
    /// Whether all changes of boot-only code were to be left out.
    pub leave_out_init: bool,
    /// Data to be changed in place.
    pub patch_data: Vec<String>,
    /// Whether symbols are addresses instead of names.
    pub prelink: bool,
    /// The build-id that the hypervisor had to have.
    pub xen_depends: Option<String>,
}

/// A hunk of a source patch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hunk {
    /// The patch.
    pub patch: String,
    /// The file that it changes.
    pub file: String,
    /// The line where it starts in the old file.
    pub line: u64,
    /// Its effect, as the generator names it, such as `in_payload`.
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
            "alternative" => "no effect alone, but needed where others are left out",
            "placement" => "changes only the placement of data, and the hypervisor's is as good",
            "left_out" => "left out, as the build was told",
            "restored" => "undoes a change that a payload below left out",
            "unused" => "changes only what the running hypervisor does not use",
            "none" => "no effect on code",
            "not_built" => "not compiled into this hypervisor",
            other => other,
        }
    }
}

impl Record {
    /// The record of a payload; `None` if it has none that can be read. Another
    /// generator's payload has none, and is no worse for it.
    pub(crate) fn read(elf: &Elf) -> Option<Self> {
        let section = elf.section(record::SECTION)?;
        serde_json::from_str(record::json(&section.data)?).ok()
    }

    /// What to say of a record that a later version wrote, of which only a part may
    /// be known.
    #[must_use]
    pub fn reservation(&self) -> Option<String> {
        let format = self.format.filter(|&f| f > u64::from(record::FORMAT))?;
        Some(format!(
            "a later version of xsplice wrote the record of the build (format {format}): it may \
             say more than is shown here"
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
