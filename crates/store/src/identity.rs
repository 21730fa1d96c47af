// SPDX-License-Identifier: MIT OR Apache-2.0
//! What identifies a hypervisor, a payload, a file and a moment.

use crate::Date;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use std::fmt;
use std::path::Path;
use std::time::Duration;
use xsplice_abi::note::hex;

/// The build-id of a hypervisor or a payload, in hexadecimal. It is safe as the name of a
/// file.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String")]
pub struct BuildId(String);

/// The SHA-256 of a file, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub struct Sha256(String);

/// A payload, as records name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Its build-id.
    pub build_id: BuildId,
    /// SHA-256 of the file.
    pub sha256: Sha256,
    /// Its level.
    pub level: u32,
}

/// When something happens. Ages are measured with the time since the boot, which,
/// unlike the date, never goes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// Identifies the boot.
    pub boot: String,
    /// Since the boot.
    pub uptime: Duration,
    /// What the clock says.
    pub date: Date,
}

fn is_hex(text: &str) -> bool {
    text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

impl BuildId {
    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for BuildId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match (2..=128).contains(&text.len()) && is_hex(&text) {
            true => Ok(Self(text)),
            false => Err(format!("{text:?} is not a build-id in hexadecimal")),
        }
    }
}

impl AsRef<Path> for BuildId {
    fn as_ref(&self) -> &Path {
        self.0.as_ref()
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Sha256 {
    /// Of `data`.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        Self(hex(&sha2::Sha256::digest(data)))
    }

    /// 64 zeros, which is the SHA-256 of nothing that is known.
    #[must_use]
    pub fn zero() -> Self {
        Self("0".repeat(64))
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Sha256 {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.len() == 64 && is_hex(&text) {
            true => Ok(Self(text)),
            false => Err(format!("{text:?} is not a SHA-256 in hexadecimal")),
        }
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hexadecimal_digits_identify_anything() {
        for bad in ["", "a", "AB", "../..", "ab ", "xy", &"a".repeat(129)] {
            assert!(BuildId::try_from(bad.to_owned()).is_err(), "{bad}");
            assert!(Sha256::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        assert!(BuildId::try_from("39a640e6".to_owned()).is_ok());
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Sha256::of(b""), Sha256(empty.to_owned()));
        assert!(Sha256::try_from(empty.to_owned()).is_ok());
    }
}
