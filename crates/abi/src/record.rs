// SPDX-License-Identifier: MIT OR Apache-2.0
//! The build record: what the generator knows about a payload beyond its code.
//!
//! The section [`SECTION`] holds one ELF note with owner `xsplice` and type
//! [`TYPE`]. It is not loaded, so that an unmodified Xen ignores it. Its
//! description is a JSON object in UTF-8:
//!
//! | key | value |
//! |---|---|
//! | `format` | [`FORMAT`], as a number |
//! | `options` | the options of the build, see below |
//! | `hunks` | a list: `patch`, `file`, `line`, `effect`, and `names` of what it changes; `others` that could replace it |
//! | `left_out` | a list of changes that were left out: `name`, `file`, `why` |
//! | `patched_data` | a list of variables and constants that hooks change in place: `name`, `file`, `address`, `size`, bytes that are `written`, whether it is a `variable` |
//! | `per_cpu` | a list of new per-CPU variables: `name`, `file`, `address` in the first CPU's area, `size` |
//! | `renewed` | a list of message flags that start again from their initial value, although they may be in memory: `name`, `file` |
//! | `warnings` | a list of texts for those who apply or unload the payload |
//! | `notes` | a list of texts for the reader |
//!
//! | option | value |
//! |---|---|
//! | `allow` | a list of names whose refusal was overridden |
//! | `config` | the required configuration of the tree, or null |
//! | `depends`, `xen_depends` | the requested build-id, in hexadecimal, or null |
//! | `hooks` | a list of source files with hooks |
//! | `leave_out` | a list of names to leave out |
//! | `leave_out_init` | whether to leave out all changes to boot-only code |
//! | `patch_data` | a list of names of data to change in place |
//! | `prelink` | whether symbols are addresses instead of names |
//!
//! Files are `NAME sha256:HASH`, as source patches are in the metadata. All options
//! are present, even if they were not given.
//!
//! A program that only shows the record ignores unknown keys. One that builds on the
//! payload must know all options, and the format: its number changes with every new
//! option and every change of meaning. A record without a number is older than the
//! first format.

use crate::preimage::OWNER;
#[cfg(feature = "serde")]
use alloc::string::String;
#[cfg(feature = "alloc")]
use alloc::vec::Vec;
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// Name of the section.
pub const SECTION: &str = ".note.xsplice.build";
/// Type of the note.
pub const TYPE: u32 = 2;
/// The format that this describes.
pub const FORMAT: u32 = 1;

/// A variable or constant that hooks change in place.
#[cfg(feature = "serde")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PatchedData {
    /// Name in the source.
    pub name: String,
    /// Source file.
    pub file: String,
    /// Address in the hypervisor.
    pub address: u64,
    /// Size in bytes.
    pub size: u64,
    /// Number of bytes written.
    pub written: u64,
    /// Whether it is writable: then the payload applies only while it has its initial
    /// value.
    pub variable: bool,
}

/// A new per-CPU variable.
#[cfg(feature = "serde")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PerCpuVariable {
    /// Name in the source.
    pub name: String,
    /// Source file.
    pub file: String,
    /// Address in the area of the first CPU.
    pub address: u64,
    /// Size in bytes.
    pub size: u64,
}

/// A change that was left out.
#[cfg(feature = "serde")]
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LeftOut {
    /// Name of the function, variable or section.
    pub name: String,
    /// Source file.
    pub file: String,
    /// What differs.
    pub why: String,
}

/// A message flag that starts again from its initial value, although it may be one
/// that is in memory.
#[cfg(feature = "serde")]
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Renewed {
    /// Name of the variable.
    pub name: String,
    /// Source file.
    pub file: String,
}

/// The note that holds `json`.
#[cfg(feature = "alloc")]
pub fn note(json: &str) -> Vec<u8> {
    let size = u32::try_from(json.len()).unwrap_or(u32::MAX);
    let mut note = Vec::with_capacity(24 + json.len());
    for word in [8, size, TYPE] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(&OWNER);
    note.extend_from_slice(json.as_bytes());
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

/// The JSON in the section `data`; `None` if it holds another note or is damaged.
///
/// ```
/// let section = xsplice_abi::record::note(r#"{"notes":[]}"#);
/// assert_eq!(xsplice_abi::record::json(&section), Some(r#"{"notes":[]}"#));
/// ```
pub fn json(data: &[u8]) -> Option<&str> {
    let (header, rest) = data.split_first_chunk::<20>()?;
    let word = |at: usize| -> Option<u32> {
        let bytes = header.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*bytes))
    };
    if word(0)? != 8 || word(8)? != TYPE || header.get(12..)? != OWNER {
        return None;
    }
    let json = rest.get(..usize::try_from(word(4)?).ok()?)?;
    core::str::from_utf8(json).ok()
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_note_is_none() {
        let whole = note("{\"a\":1}");
        assert_eq!(json(&whole), Some("{\"a\":1}"));
        for length in 0..27 {
            assert_eq!(json(&whole[..length]), None, "{length} bytes");
        }
        for at in 0..20 {
            let mut other = whole.clone();
            other[at] ^= 0x80;
            assert_eq!(json(&other), None, "byte {at}");
        }
        let mut other = whole;
        other[20] = 0xff;
        assert_eq!(json(&other), None);
    }
}
