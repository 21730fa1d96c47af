// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whose manifests count on this host.
//!
//! A manifest's signature is RSA with SHA-256 (PKCS #1 version 1.5) over the file, as a
//! payload's own signature is: `openssl dgst -sha256 -verify KEY -signature FILE.sig FILE`
//! verifies it.
//!
//! A certificate limits when its key may sign: the manifest's date must be within its
//! validity. For what the host has, its clock has no part in this, so that a host with a
//! wrong clock, or years later, has after a boot what it had before. Only what is new, by
//! `xsplice install` or in a package, must be from a key that is valid at that moment. To
//! revoke a key, remove its file: without any file, nobody's manifests count, as long as
//! the directory is there.

use crate::policy::Verify;
use crate::{Damaged, Date, Disk, Paths, Policy, disk};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::SystemTime;
use xsplice_signing::{KeyError, PublicKey};

/// The keys of the host.
#[derive(Debug, Default)]
pub struct Keys {
    keys: Vec<Key>,
    /// Files that hold no key, or could not be read, and reason.
    bad: Vec<Damaged>,
    /// Whether the directory is there, even if it is empty: the host is one that verifies.
    installed: bool,
}

#[derive(Debug)]
struct Key {
    public: PublicKey,
    valid: Option<RangeInclusive<SystemTime>>,
}

/// Who has signed a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Signer {
    /// Nobody.
    Nobody,
    /// A key of the host.
    Key {
        /// Its name: that of the file, without `.pem`.
        name: String,
    },
    /// A key of the host whose certificate was not valid at the manifest's date.
    NotValid {
        /// Its name.
        name: String,
    },
    /// A key of the host whose certificate is not valid today, for a payload of a package
    /// that the host has not had yet.
    Expired {
        /// Its name.
        name: String,
    },
    /// None of the host's keys, or the manifest was changed after it was signed.
    Unknown,
}

impl Keys {
    /// The keys in `/etc/xsplice/keys.d`. A file that holds no key, or cannot be read,
    /// verifies nothing; a directory that cannot be read is one without keys.
    #[must_use]
    pub fn read(disk: &impl Disk) -> Self {
        let directory = Paths::keys();
        let mut keys = Self::default();
        let files = match disk::names(disk, &directory) {
            Ok(None) => return keys,
            Ok(Some(files)) => files,
            Err(error) => {
                keys.bad
                    .push(Damaged::unread(directory.clone(), error.cause()));
                Vec::new()
            }
        };
        keys.installed = true;
        for file in files {
            let path = directory.join(&file);
            match key(disk, &file, &path) {
                Ok(key) => keys.keys.push(key),
                Err(damaged) => keys.bad.push(damaged),
            }
        }
        keys
    }

    /// Files that hold no key, or could not be read, and reason.
    #[must_use]
    pub fn bad(&self) -> &[Damaged] {
        &self.bad
    }

    /// What is to be done about manifests that no key has signed.
    #[must_use]
    pub fn verify(&self, policy: &Policy) -> Verify {
        let usual = if self.installed {
            Verify::Enforce
        } else {
            Verify::Off
        };
        policy.verify.unwrap_or(usual)
    }

    /// Who has signed the manifest `data`, which says that it is of this `date`.
    #[must_use]
    pub fn signer(&self, data: &[u8], date: &Date, signature: Option<&[u8]>) -> Signer {
        let Some(signature) = signature else {
            return Signer::Nobody;
        };
        let digest = Sha256::digest(data).into();
        let keys = self.keys.iter();
        let signers = keys.filter(|key| key.public.has_signed(&digest, signature));
        // A key may have several certificates, of which one that is valid is enough.
        let signer = signers.max_by_key(|key| key.valid_at(date));
        match signer {
            None => Signer::Unknown,
            Some(key) => {
                let name = key.public.name().to_owned();
                match key.valid_at(date) {
                    true => Signer::Key { name },
                    false => Signer::NotValid { name },
                }
            }
        }
    }

    /// Whether the key with this name is valid at this moment, by any of its certificates.
    #[must_use]
    pub fn valid_now(&self, name: &str, now: &Date) -> bool {
        let named = self.keys.iter().find(|key| key.public.name() == name);
        named.is_some_and(|named| {
            let same = |key: &&Key| key.public.modulus() == named.public.modulus();
            let mut keys = self.keys.iter().filter(same);
            keys.any(|key| key.valid_at(now))
        })
    }
}

/// The key in the file at `path`, which is called `file`.
///
/// # Errors
/// If there is none, with the reason.
fn key(disk: &impl Disk, file: &str, path: &Path) -> std::result::Result<Key, Damaged> {
    let no_key = |reason: String| Damaged::no_payload(path.to_owned(), reason);
    let name = file.strip_suffix(".pem");
    let name = name
        .ok_or_else(|| no_key("it is not used: the file of a key is called NAME.pem".to_owned()))?;
    let data = disk::read(disk, path);
    let data = data.map_err(|error| Damaged::unread(path.to_owned(), error.cause()))?;
    Key::read(name, &data.unwrap_or_default()).map_err(|error| no_key(error.to_string()))
}

impl Key {
    fn read(name: &str, data: &[u8]) -> std::result::Result<Self, KeyError> {
        Ok(Self {
            public: PublicKey::read(name, data)?,
            valid: xsplice_signing::validity(data)?,
        })
    }

    fn valid_at(&self, date: &Date) -> bool {
        let moment = SystemTime::UNIX_EPOCH + date.since_epoch();
        self.valid
            .as_ref()
            .is_none_or(|valid| valid.contains(&moment))
    }
}

impl std::fmt::Display for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nobody => f.write_str("nobody"),
            Self::Key { name } => f.write_str(name),
            Self::NotValid { name } => {
                write!(
                    f,
                    "{name}, whose certificate was not valid at the manifest's date"
                )
            }
            Self::Expired { name } => write!(
                f,
                "{name}, whose certificate is not valid today by the clock of this host, and the \
                 host has not had this payload yet"
            ),
            Self::Unknown => f.write_str(
                "an unknown key: none of those in /etc/xsplice/keys.d fits, or the manifest was changed \
                 after it was signed",
            ),
        }
    }
}
