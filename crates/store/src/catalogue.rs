// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the store has for a hypervisor.

use crate::policy::Verify;
use crate::{
    BuildId, Date, Disk, Error, HostRecord, Keys, Manifest, Paths, Policy, Quarantine, Quarantined,
    Result, Signer, disk,
};
use schemars::JsonSchema;
use serde::Serialize;
use std::cmp::Reverse;
use std::path::{Path, PathBuf};

/// What the store has for a hypervisor.
#[derive(Debug)]
pub struct Catalogue {
    /// Build-id of the hypervisor.
    pub base: BuildId,
    /// Whether the store has a directory for it.
    pub known: bool,
    /// The payloads, the highest level first.
    pub entries: Vec<Entry>,
    /// Files that are not used, and reason.
    pub damaged: Vec<Damaged>,
    /// What is done about manifests that are not signed.
    pub verify: Verify,
}

/// A payload in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub manifest: Manifest,
    /// Who says so.
    pub signer: Signer,
    /// Who put it there.
    pub origin: Origin,
    /// Why it is no longer applied.
    pub quarantined: Option<Quarantined>,
    /// Why its file cannot be applied.
    pub damaged: Option<Damaged>,
    /// The file.
    pub path: PathBuf,
}

/// Who put a payload into the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A package.
    Package,
    /// `xsplice install`.
    Installed,
}

/// What decides which manifests count.
#[derive(Debug, Clone, Copy)]
pub struct Trust<'a> {
    /// The policy of the host.
    pub policy: &'a Policy,
    /// What the host has had: that stays as good as it was.
    pub record: &'a HostRecord,
    /// Today: what is new must be signed by a key that is valid.
    pub date: &'a Date,
}

/// A file or directory that is not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Damaged {
    /// Where it is.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
    /// Whether a payload that the host is to have may not be used because of it: it is one
    /// whose manifest cannot be read or understood, a directory, or a key that cannot be read.
    pub may_hide_payload: bool,
    /// The level of the payload, if its manifest can be read.
    #[serde(skip)]
    pub(crate) level: Option<u32>,
}

impl Damaged {
    /// A file that holds no payload to apply, whatever is in it.
    pub(crate) fn no_payload(path: PathBuf, reason: String) -> Self {
        Self {
            path,
            reason,
            may_hide_payload: false,
            level: None,
        }
    }

    /// Something that could not be read.
    pub(crate) fn unread(path: PathBuf, reason: impl std::fmt::Display) -> Self {
        Self {
            path,
            reason: reason.to_string(),
            may_hide_payload: true,
            level: None,
        }
    }
}

impl std::fmt::Display for Damaged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

impl Entry {
    /// Whether it may be applied, by its signature.
    #[must_use]
    pub fn is_verified(&self, verify: Verify) -> bool {
        match verify {
            Verify::Off | Verify::Warn => true,
            Verify::Enforce => matches!(self.signer, Signer::Key { .. }),
        }
    }

    /// Whether it may be applied.
    pub(crate) fn is_usable(&self, verify: Verify) -> bool {
        self.is_verified(verify) && self.quarantined.is_none() && self.damaged.is_none()
    }

    /// The payload, which is the one that the manifest is for. Read it once, and use what
    /// was read.
    ///
    /// # Errors
    /// If it cannot be read, or is another one.
    pub fn read(&self, disk: &impl Disk) -> Result<Vec<u8>> {
        let data = disk.read(&self.path).map_err(|error| Error::Disk {
            path: self.path.clone(),
            error,
        })?;
        let checked = self.manifest.check_payload(&data);
        checked
            .map_err(|reason| {
                Error::damaged(&self.path, format!("{reason}; {}", self.origin.remedy()))
            })
            .map(|()| data)
    }

    /// Nobody has looked at the clock when a package put a payload here: one that the host
    /// has not had must be signed by a key that is valid today.
    fn expire(&mut self, keys: &Keys, trust: &Trust) {
        if let Signer::Key { name } = &self.signer
            && self.origin == Origin::Package
            && !trust.record.has_had(&self.manifest.identity())
            && !keys.valid_now(name, trust.date)
        {
            self.signer = Signer::Expired { name: name.clone() };
        }
    }

    /// What to say about it if the policy lets it be applied although no key of the host
    /// has signed it.
    #[must_use]
    pub fn warning(&self, verify: Verify) -> Option<String> {
        let unsigned = verify == Verify::Warn && !matches!(self.signer, Signer::Key { .. });
        unsigned.then(|| {
            format!(
                "{}: the manifest is signed by {}; verify = \"warn\" in {} allows that",
                self.manifest.name,
                self.signer,
                Paths::policy().display()
            )
        })
    }
}

impl Origin {
    /// What to do if files of a payload are damaged.
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::Package => "reinstall the package",
            Self::Installed => "install it again",
        }
    }
}

impl Catalogue {
    /// Reads what there is for the hypervisor `base`. What cannot be read, or is no good, is
    /// left out and reported, so that one bad package does not take away the others.
    #[must_use]
    pub fn read(disk: &impl Disk, base: &BuildId, trust: &Trust, quarantine: &Quarantine) -> Self {
        let keys = Keys::read(disk);
        let bad = keys.bad().iter().cloned();
        let mut catalogue = Self {
            base: base.clone(),
            known: false,
            entries: Vec::new(),
            damaged: bad.collect(),
            verify: keys.verify(trust.policy),
        };
        for (origin, top) in [
            (Origin::Installed, Paths::store()),
            (Origin::Package, Paths::vendor()),
        ] {
            let directory = top.join(base);
            let names = match disk::names(disk, &directory) {
                Ok(None) => continue,
                Ok(Some(names)) => names,
                Err(error) => {
                    let unread = Damaged::unread(directory, error.cause());
                    catalogue.damaged.push(unread);
                    continue;
                }
            };
            catalogue.known = true;
            for file in names.iter().filter(|name| name.ends_with(Paths::PAYLOAD)) {
                match entry(disk, &keys, base, &directory.join(file), origin) {
                    Ok(mut entry) => {
                        entry.quarantined = quarantine.of(&entry.manifest.identity()).cloned();
                        entry.expire(&keys, trust);
                        entry.damaged = entry.read(disk).err().map(|error| Damaged {
                            level: Some(entry.manifest.level),
                            ..Damaged::unread(entry.path.clone(), error.cause())
                        });
                        catalogue.damaged.extend(entry.damaged.clone());
                        catalogue.take(entry);
                    }
                    // XenServer's name for the one to apply; it is a link to it.
                    Err(damaged) if file == LINK && !damaged.may_hide_payload => {}
                    Err(damaged) => catalogue.damaged.push(damaged),
                }
            }
        }
        let entries = &mut catalogue.entries;
        entries.sort_by_key(|entry| Reverse(entry.manifest.level));
        catalogue
    }

    /// What may hold a payload above a level.
    pub(crate) fn unread_above(&self, level: u32) -> impl Iterator<Item = &Damaged> {
        let is_above = move |damaged: &&Damaged| damaged.level.is_none_or(|its| its > level);
        self.unread().filter(is_above)
    }

    /// What may hold a payload, and cannot be read.
    pub fn unread(&self) -> impl Iterator<Item = &Damaged> {
        self.damaged
            .iter()
            .filter(|damaged| damaged.may_hide_payload)
    }

    /// Why the payload that is called `name` is none of the entries, if that may be because
    /// it, or the directory that it is in, cannot be read.
    pub(crate) fn unread_named(&self, name: &str) -> Option<&Damaged> {
        let file = format!("{name}{}", Paths::PAYLOAD);
        let places = [file.as_ref(), self.base.as_ref() as &Path];
        let mut unread = self.unread();
        unread.find(|damaged| places.iter().any(|place| damaged.path.ends_with(place)))
    }

    /// The payload that is called `name`.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|entry| entry.manifest.name == name)
    }

    /// What the policy allows, and somebody should know.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let entries = self.entries.iter();
        let warnings = entries.filter_map(|entry| entry.warning(self.verify));
        warnings.collect()
    }

    /// Adds a payload. Of two with one name, one that may be applied is used; if both may,
    /// the one that was there first, so that a package does not take away what somebody
    /// has installed.
    fn take(&mut self, entry: Entry) {
        let same = |other: &&mut Entry| other.manifest.name == entry.manifest.name;
        let Some(other) = self.entries.iter_mut().find(same) else {
            self.entries.push(entry);
            return;
        };
        let better = !other.is_usable(self.verify) && entry.is_usable(self.verify);
        let unused = match better {
            true => std::mem::replace(other, entry),
            false => entry,
        };
        if other.manifest.sha256 != unused.manifest.sha256 {
            let reason = format!("{} has the same name, and is used", other.path.display());
            self.damaged.push(Damaged::no_payload(unused.path, reason));
        }
    }
}

/// In XenServer's directories, a link to the payload to apply.
const LINK: &str = "livepatch.livepatch";

/// The payload at `path`.
///
/// # Errors
/// If it is not used, with the reason.
fn entry(
    disk: &impl Disk,
    keys: &Keys,
    base: &BuildId,
    path: &Path,
    origin: Origin,
) -> std::result::Result<Entry, Damaged> {
    let unread = |reason: String| Damaged::unread(path.to_owned(), reason);
    let no_payload = |reason: String| Err(Damaged::no_payload(path.to_owned(), reason));
    let read = |file: &Path| {
        let read = disk::read(disk, file);
        read.map_err(|error| unread(format!("{error}; {}", origin.remedy())))
    };
    let place = Paths::manifest(path);
    let Some(data) = read(&place)? else {
        return no_payload(format!(
            "it has no manifest ({}): install it with a level",
            place.display()
        ));
    };
    let signature = read(&Paths::signature(&place))?;
    let manifest = Manifest::parse(&data).map_err(|reason| {
        let remedy = origin.remedy();
        unread(format!("{}: {reason}; {remedy}", place.display()))
    })?;
    let file = format!("{}{}", manifest.name, Paths::PAYLOAD);
    if path.file_name() != Some(file.as_ref()) {
        return no_payload(format!("its manifest is for {file}"));
    }
    if manifest.base != *base {
        return no_payload(format!(
            "its manifest is for the hypervisor {}",
            manifest.base
        ));
    }
    Ok(Entry {
        signer: keys.signer(&data, &manifest.date, signature.as_deref()),
        manifest,
        origin,
        quarantined: None,
        damaged: None,
        path: path.to_owned(),
    })
}
