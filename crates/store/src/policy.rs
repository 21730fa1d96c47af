// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the administrator wants of this host: `/etc/xsplice/host.toml`.

use crate::{Disk, Error, Paths, Refusal, Result, disk};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The policy. Missing keys have the values of [`Policy::default`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// What is to be applied.
    pub want: Want,
    /// Change nothing for now: the host stays as it is, over boots, too.
    pub hold: bool,
    /// Whether manifests must be signed; by default they must as soon as there is a
    /// directory for keys.
    pub verify: Option<Verify>,
    /// Whether a new level is applied unattended, and not only what was reached before.
    pub auto: bool,
    /// Who applies payloads on this host.
    pub managed_by: Manager,
    /// Seconds that a host must live with a payload before it is taken as good.
    pub settle: u32,
    /// What is done if the history cannot be written.
    pub audit: Audit,
}

/// What is to be applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "String", into = "String")]
pub enum Want {
    /// The payload with the highest level.
    #[default]
    Latest,
    /// No payload.
    None,
    /// The payload with this name.
    Named(String),
}

/// What is done about manifests that are not signed by a key of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Nothing.
    Off,
    /// They are used, with a warning.
    Warn,
    /// They are not used.
    Enforce,
}

/// What is done if a change cannot be recorded before it begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Audit {
    /// It is made, with a warning: to revert a bad payload is worth more than its record.
    #[default]
    Warn,
    /// It is not made.
    Enforce,
}

/// Who applies payloads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Manager {
    /// This program.
    #[default]
    Xsplice,
    /// The toolstack of XenServer and XCP-ng: this program only looks.
    Xapi,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            want: Want::Latest,
            hold: false,
            verify: None,
            auto: false,
            managed_by: Manager::Xsplice,
            settle: 600,
            audit: Audit::Warn,
        }
    }
}

impl Want {
    /// Names that no payload can have, for they mean something else here.
    pub(crate) const WORDS: [&str; 2] = ["latest", "none"];
}

impl From<String> for Want {
    fn from(text: String) -> Self {
        match text.as_str() {
            "latest" => Self::Latest,
            "none" => Self::None,
            _ => Self::Named(text),
        }
    }
}

impl From<Want> for String {
    fn from(want: Want) -> Self {
        match want {
            Want::Latest => "latest".to_owned(),
            Want::None => "none".to_owned(),
            Want::Named(name) => name,
        }
    }
}

impl Policy {
    /// The policy of the host; the default one if it has none.
    ///
    /// # Errors
    /// If the file cannot be read, or has a key or value that is not known: a policy
    /// that is only understood in part is not followed.
    pub fn read(disk: &impl Disk) -> Result<Self> {
        let path = Paths::policy();
        let Some(data) = disk::read(disk, &path)? else {
            return Ok(Self::default());
        };
        let text = String::from_utf8_lossy(&data);
        toml::from_str(&text).map_err(|error| Error::damaged(&path, error.to_string().trim()))
    }

    /// Whether a change may be made that cannot be recorded because of `cause`. The policy is
    /// read only then: as long as changes are recorded, a policy that cannot be read does
    /// not stand in the way of who reverts a bad payload.
    ///
    /// # Errors
    /// If not, or the policy cannot be read: then it is not known.
    pub fn permit_unrecorded(disk: &impl Disk, cause: &str) -> Result<()> {
        let refused = |why: String| {
            let why = format!("nothing was changed, because it cannot be recorded: {cause}; {why}");
            Err(Error::Refused(Refusal::Unrecorded, why))
        };
        match Self::read(disk).map(|policy| policy.audit) {
            Ok(Audit::Warn) => Ok(()),
            Ok(Audit::Enforce) => {
                let path = Paths::policy();
                refused(format!(
                    "audit = \"enforce\" in {} demands it",
                    path.display()
                ))
            }
            Err(error) => refused(format!("whether it must be is not known: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_understood_as_a_whole_or_not_at_all() {
        let policy: Policy = toml::from_str(
            "want = \"fixes-3\"\nverify = \"warn\"\nmanaged-by = \"xapi\"\nhold = true",
        )
        .expect("it is good");
        assert_eq!(policy.want, Want::Named("fixes-3".to_owned()));
        assert_eq!(policy.verify, Some(Verify::Warn));
        assert_eq!(policy.managed_by, Manager::Xapi);
        assert!(policy.hold && !policy.auto);
        assert_eq!(toml::from_str::<Policy>(""), Ok(Policy::default()));
        for bad in [
            "wants = \"latest\"",
            "verify = \"no\"",
            "audit = \"off\"",
            "hold = \"yes\"",
            "want = 3",
            "[",
        ] {
            assert!(toml::from_str::<Policy>(bad).is_err(), "{bad}");
        }
    }
}
