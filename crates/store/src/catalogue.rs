// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the store has for a hypervisor.

use crate::manifest::{check_name, is_build_id};
use crate::policy::Verify;
use crate::{
    Date, Disk, Error, Keys, Manifest, Places, Policy, Progress, Quarantine, Quarantined, Result,
    Signer, disk,
};
use schemars::JsonSchema;
use serde::Serialize;
use std::cmp::Reverse;
use std::path::{Path, PathBuf};

/// What the store has for a hypervisor.
#[derive(Debug)]
pub struct Catalogue {
    /// Build-id of the hypervisor.
    pub base: String,
    /// Whether the store has a directory for it.
    pub known: bool,
    /// The payloads, the highest level first.
    pub entries: Vec<Entry>,
    /// Files that are not used, and why.
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
    /// Why it is not applied any more.
    pub quarantined: Option<Quarantined>,
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

/// A file that is not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Damaged {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub why: String,
}

/// A payload that comes into the store.
#[derive(Debug)]
pub struct Incoming {
    /// The payload.
    pub payload: Vec<u8>,
    /// Its manifest, the bytes that are signed.
    pub manifest: Vec<u8>,
    /// The manifest's signature.
    pub signature: Option<Vec<u8>>,
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
            .map_err(|why| Error::damaged(&self.path, format!("{why}; {}", self.remedy())))
            .map(|()| data)
    }

    /// What to do if its files are damaged.
    fn remedy(&self) -> &'static str {
        match self.origin {
            Origin::Package => "reinstall the package",
            Origin::Installed => "install it again",
        }
    }

    /// Whether its files are there as a whole, and are the `incoming` ones.
    fn is_same(&self, disk: &impl Disk, incoming: &Incoming) -> Result<bool> {
        let place = Places::manifest(&self.path);
        let manifest = disk::read(disk, &place)?;
        let signature = disk::read(disk, &Places::signature(&place))?;
        Ok(
            disk::read(disk, &self.path)?.as_ref() == Some(&incoming.payload)
                && manifest.as_ref() == Some(&incoming.manifest)
                && signature == incoming.signature,
        )
    }
}

impl Catalogue {
    /// Reads what there is for the hypervisor `base`. A file that is no good is left out,
    /// and said.
    ///
    /// # Errors
    /// If a directory or the keys cannot be read.
    pub fn read(
        disk: &impl Disk,
        base: &str,
        policy: &Policy,
        quarantine: &Quarantine,
    ) -> Result<Self> {
        let keys = Keys::read(disk)?;
        let bad = keys.bad().iter().map(|(file, why)| Damaged {
            path: Places::keys().join(file),
            why: why.clone(),
        });
        let mut catalogue = Self {
            base: base.to_owned(),
            known: false,
            entries: Vec::new(),
            damaged: bad.collect(),
            verify: keys.verify(policy),
        };
        for (origin, top) in [
            (Origin::Package, Places::vendor()),
            (Origin::Installed, Places::store()),
        ] {
            let directory = top.join(base);
            let Some(names) = disk::names(disk, &directory)? else {
                continue;
            };
            catalogue.known = true;
            for file in names.iter().filter(|name| name.ends_with(Places::PAYLOAD)) {
                let path = directory.join(file);
                match entry(disk, &keys, base, &path, origin) {
                    Ok(mut entry) => {
                        entry.quarantined = quarantine.of(&entry.manifest.identity()).cloned();
                        catalogue.take(entry);
                    }
                    // XenServer's name for the one to apply; it is a link to it.
                    Err(_) if file == LINK => {}
                    Err(why) => catalogue.damaged.push(Damaged { path, why }),
                }
            }
        }
        let entries = &mut catalogue.entries;
        entries.sort_by_key(|entry| Reverse(entry.manifest.level));
        Ok(catalogue)
    }

    /// The payload that is called `name`.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|entry| entry.manifest.name == name)
    }

    /// Adds a payload, if there is none of its name.
    fn take(&mut self, entry: Entry) {
        let Some(other) = self.named(&entry.manifest.name) else {
            self.entries.push(entry);
            return;
        };
        if other.manifest.sha256 != entry.manifest.sha256 {
            let why = format!("{} has the same name, and is used", other.path.display());
            self.damaged.push(Damaged {
                path: entry.path,
                why,
            });
        }
    }
}

/// In XenServer's directories, a link to the payload to apply.
const LINK: &str = "livepatch.livepatch";

fn entry(
    disk: &impl Disk,
    keys: &Keys,
    base: &str,
    path: &Path,
    origin: Origin,
) -> std::result::Result<Entry, String> {
    let read = |path: &Path| disk::read(disk, path).map_err(|error| error.to_string());
    let place = Places::manifest(path);
    let data = read(&place)?.ok_or_else(|| {
        format!(
            "it has no manifest ({}): install it with a level",
            place.display()
        )
    })?;
    let signature = read(&Places::signature(&place))?;
    let manifest = Manifest::parse(&data)?;
    let file = format!("{}{}", manifest.name, Places::PAYLOAD);
    if path.file_name() != Some(file.as_ref()) {
        return Err(format!("its manifest is for {file}"));
    }
    if manifest.base != base {
        return Err(format!(
            "its manifest is for the hypervisor {}",
            manifest.base
        ));
    }
    Ok(Entry {
        signer: keys.signer(&data, &manifest.date, signature.as_deref()),
        manifest,
        origin,
        quarantined: None,
        path: path.to_owned(),
    })
}

/// Puts a payload into the store, or repairs its files there. It is not applied by that.
/// Says whether a file was written.
///
/// # Errors
/// If it is not good, not signed as the policy demands, or not new: a level and a name
/// stand for one payload. Then nothing has changed.
pub fn install(
    disk: &impl Disk,
    policy: &Policy,
    incoming: &Incoming,
    now: &Date,
) -> Result<(Entry, bool)> {
    let manifest = Manifest::parse(&incoming.manifest).map_err(Error::Refused)?;
    let name = &manifest.name;
    let refused = |why: String| Error::Refused(format!("{name}: {why}"));
    manifest.check_payload(&incoming.payload).map_err(refused)?;
    let path = Places::store()
        .join(&manifest.base)
        .join(format!("{name}{}", Places::PAYLOAD));
    let keys = Keys::read(disk)?;
    let signature = incoming.signature.as_deref();
    let signer = keys.signer(&incoming.manifest, &manifest.date, signature);
    let entry = Entry {
        manifest: manifest.clone(),
        signer,
        origin: Origin::Installed,
        quarantined: None,
        path,
    };
    let verify = keys.verify(policy);
    if !entry.is_verified(verify) {
        return Err(refused(format!(
            "the manifest is signed by {}; the policy of this host takes only what a key in \
             {} has signed",
            entry.signer,
            Places::keys().display()
        )));
    }
    if let (Verify::Enforce, Signer::Key { name: key }) = (verify, &entry.signer)
        && !keys.valid_now(key, now)
    {
        return Err(refused(format!(
            "the certificate {key} is not valid today, which is {now} by the clock of this host"
        )));
    }
    let there = Catalogue::read(disk, &manifest.base, policy, &Quarantine::read(disk)?)?;
    for other in &there.entries {
        let (theirs, ours) = (&other.manifest, &manifest);
        if theirs.sha256 == ours.sha256 && theirs.level == ours.level && theirs.name == ours.name {
            if other.is_same(disk, incoming)? {
                return Ok((other.clone(), false));
            }
            if other.origin == Origin::Package {
                return Err(refused(format!(
                    "the package's file {} or what is beside it is not as the one given here: {}",
                    other.path.display(),
                    other.remedy()
                )));
            }
            continue;
        }
        let what = match () {
            () if theirs.name == ours.name => "this name",
            () if theirs.level == ours.level => "this level",
            () if theirs.build_id == ours.build_id => "this build-id",
            () => continue,
        };
        return Err(refused(format!(
            "the store has another payload with {what}: {}, level {}",
            theirs.name, theirs.level
        )));
    }
    // The payload is found by its manifest, so that comes last: a payload that is in the
    // store is there as a whole.
    let place = Places::manifest(&entry.path);
    let sign = Places::signature(&place);
    disk::replace(disk, &entry.path, &incoming.payload)?;
    match signature {
        Some(signature) => disk::replace(disk, &sign, signature)?,
        None => drop(disk::remove(disk, &sign)?),
    }
    disk::replace(disk, &place, &incoming.manifest)?;
    Ok((entry, true))
}

/// Takes the payload `name` out of the store, for all hypervisors it is there for. What
/// is applied stays applied. Says which files were removed.
///
/// # Errors
/// If it is not there, comes from a package, or is what the host gets after its next
/// boot.
pub fn remove(disk: &impl Disk, progress: &Progress, name: &str) -> Result<Vec<PathBuf>> {
    check_name(name).map_err(Error::Refused)?;
    let file = format!("{name}{}", Places::PAYLOAD);
    let mut found = Vec::new();
    for base in disk::names(disk, &Places::store())?.unwrap_or_default() {
        let path = Places::store().join(&base).join(&file);
        if !is_build_id(&base) || disk::read(disk, &path)?.is_none() {
            continue;
        }
        let manifest = disk::read(disk, &Places::manifest(&path))?;
        let manifest = manifest.and_then(|data| Manifest::parse(&data).ok());
        if manifest.is_some_and(|manifest| progress.needs(&manifest.identity())) {
            return Err(Error::Refused(format!(
                "{name} is what this host has: without it, it would have less after a boot; \
                 bring it to another payload first"
            )));
        }
        found.push(path);
    }
    if found.is_empty() {
        return Err(Error::Refused(format!(
            "no payload called {name} was installed; those in {} belong to packages",
            Places::vendor().display()
        )));
    }
    for path in &found {
        // In the reverse order of an installation.
        let manifest = Places::manifest(path);
        disk::remove(disk, &manifest)?;
        disk::remove(disk, &Places::signature(&manifest))?;
        disk::remove(disk, path)?;
    }
    Ok(found)
}
