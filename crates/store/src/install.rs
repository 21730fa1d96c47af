// SPDX-License-Identifier: MIT OR Apache-2.0
//! Into the store, and out of it. What is applied is not changed by that.

use crate::catalogue::{Catalogue, Entry, Origin, Trust};
use crate::manifest::check_name;
use crate::policy::Verify;
use crate::{
    BuildId, Date, Disk, Error, HostRecord, Keys, Manifest, Paths, Policy, Progress, Quarantine,
    Refusal, Result, Signer, disk,
};
use std::path::PathBuf;

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

impl Incoming {
    /// The entry that it is to be, if payload and manifest belong together.
    fn entry(&self, keys: &Keys) -> std::result::Result<Entry, String> {
        let manifest = Manifest::parse(&self.manifest)?;
        let in_payload = |reason: String| format!("{}: {reason}", manifest.name);
        manifest.check_payload(&self.payload).map_err(in_payload)?;
        let file = format!("{}{}", manifest.name, Paths::PAYLOAD);
        Ok(Entry {
            signer: keys.signer(&self.manifest, &manifest.date, self.signature.as_deref()),
            origin: Origin::Installed,
            quarantined: None,
            damaged: None,
            path: Paths::store().join(&manifest.base).join(file),
            manifest,
        })
    }

    /// Whether the files of `entry` are there as a whole, and are these.
    fn is(&self, disk: &impl Disk, entry: &Entry) -> Result<bool> {
        let manifest = Paths::manifest(&entry.path);
        let signature = disk::read(disk, &Paths::signature(&manifest))?;
        Ok(
            disk::read(disk, &entry.path)?.as_ref() == Some(&self.payload)
                && disk::read(disk, &manifest)?.as_ref() == Some(&self.manifest)
                && signature == self.signature,
        )
    }

    /// Writes the files of `entry`. The payload is found by its manifest, so that comes
    /// last: a payload that is in the store is there as a whole.
    fn write(&self, disk: &impl Disk, entry: &Entry) -> Result<()> {
        let manifest = Paths::manifest(&entry.path);
        let signature = Paths::signature(&manifest);
        disk::replace(disk, &entry.path, &self.payload)?;
        match &self.signature {
            Some(bytes) => disk::replace(disk, &signature, bytes)?,
            None => drop(disk::remove(disk, &signature)?),
        }
        disk::replace(disk, &manifest, &self.manifest)
    }
}

/// A payload that may come into the store.
#[derive(Debug)]
pub struct Judged<'a> {
    incoming: &'a Incoming,
    /// What it is.
    pub entry: Entry,
    /// Whether files are to be written: it is not there, or not as a whole.
    pub is_new: bool,
}

impl Judged<'_> {
    /// Writes its files. It is not applied by that.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, disk: &impl Disk) -> Result<()> {
        match self.is_new {
            true => self.incoming.write(disk, &self.entry),
            false => Ok(()),
        }
    }
}

/// Puts a payload into the store, or repairs its files there. Returns its entry, and whether
/// a file was written.
///
/// # Errors
/// Those of [`Incoming::judge`] and [`Judged::write`].
pub fn install(
    disk: &impl Disk,
    policy: &Policy,
    incoming: &Incoming,
    now: &Date,
) -> Result<(Entry, bool)> {
    let judged = incoming.judge(disk, policy, now)?;
    judged.write(disk)?;
    Ok((judged.entry, judged.is_new))
}

impl Incoming {
    /// Finds out whether it may come into the store. Nothing is changed by that.
    ///
    /// # Errors
    /// If it is not good, not signed as the policy demands, or not new: a level and a name
    /// stand for one payload.
    pub fn judge(&self, disk: &impl Disk, policy: &Policy, now: &Date) -> Result<Judged<'_>> {
        let keys = Keys::read(disk);
        let entry = self.entry(&keys).map_err(Error::invalid)?;
        check_signer(&entry, &keys, policy, now)?;
        let trust = Trust {
            policy,
            record: &HostRecord::default(),
            date: now,
        };
        let quarantine = Quarantine::read(disk)?;
        let there = Catalogue::read(disk, &entry.manifest.base, &trust, &quarantine);
        for other in &there.entries {
            if !is_same(other, &entry)? {
                continue;
            }
            if self.is(disk, other)? {
                return Ok(Judged {
                    incoming: self,
                    entry: other.clone(),
                    is_new: false,
                });
            }
            if other.origin == Origin::Package {
                let why = format!(
                    "{}: the package's file {} or what is beside it is not as the one given here: {}",
                    entry.manifest.name,
                    other.path.display(),
                    other.origin.remedy()
                );
                return Err(Error::Refused(Refusal::Taken, why));
            }
        }
        Ok(Judged {
            incoming: self,
            entry,
            is_new: true,
        })
    }
}

/// Whether the policy accepts who has signed it, today.
fn check_signer(entry: &Entry, keys: &Keys, policy: &Policy, now: &Date) -> Result<()> {
    let verify = keys.verify(policy);
    let refused = |reason: String| {
        let why = format!("{}: {reason}", entry.manifest.name);
        Err(Error::Refused(Refusal::Unverified, why))
    };
    if !entry.is_verified(verify) {
        return refused(format!(
            "the manifest is signed by {}; the policy of this host takes only what a key in \
             {} has signed",
            entry.signer,
            Paths::keys().display()
        ));
    }
    if let (Verify::Enforce, Signer::Key { name: key }) = (verify, &entry.signer)
        && !keys.valid_now(key, now)
    {
        return refused(format!(
            "the certificate {key} is not valid today, which is {now} by the clock of this host"
        ));
    }
    Ok(())
}

/// Whether `other`, which the store has, is the payload of `entry`.
///
/// # Errors
/// If it is another one, and has a name, level or build-id that stands for one payload.
fn is_same(other: &Entry, entry: &Entry) -> Result<bool> {
    let (theirs, ours) = (&other.manifest, &entry.manifest);
    let what = match () {
        () if theirs.identity() == ours.identity() => return Ok(true),
        () if theirs.name == ours.name => "this name",
        () if theirs.level == ours.level => "this level",
        () if theirs.build_id == ours.build_id => "this build-id",
        () => return Ok(false),
    };
    let why = format!(
        "{}: the store has another payload with {what}: {}, level {}",
        ours.name, theirs.name, theirs.level
    );
    Err(Error::Refused(Refusal::Taken, why))
}

/// Takes the payloads called `name` out of the store. Returns which.
///
/// # Errors
/// Those of [`Removal::of`] and [`Removal::carry_out`].
pub fn remove(disk: &impl Disk, progress: &Progress, name: &str) -> Result<Vec<PathBuf>> {
    let removal = Removal::of(disk, progress, name)?;
    removal.carry_out(disk)?;
    Ok(removal.0)
}

/// Payloads that may be removed from the store, one for each hypervisor. What is applied
/// stays applied.
#[derive(Debug)]
pub struct Removal(Vec<PathBuf>);

impl Removal {
    /// Finds the payloads called `name`. Nothing is changed by that.
    ///
    /// # Errors
    /// If there is none, it comes from a package, or is what the host gets after its next
    /// boot.
    pub fn of(disk: &impl Disk, progress: &Progress, name: &str) -> Result<Self> {
        check_name(name).map_err(Error::invalid)?;
        let found = installed(disk, progress, name)?;
        if found.is_empty() {
            let why = format!(
                "no payload called {name} was installed; those in {} belong to packages",
                Paths::vendor().display()
            );
            return Err(Error::Refused(Refusal::Missing, why));
        }
        Ok(Self(found))
    }

    /// The files of the payloads.
    #[must_use]
    pub fn payloads(&self) -> &[PathBuf] {
        &self.0
    }

    /// Removes them.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub fn carry_out(&self, disk: &impl Disk) -> Result<()> {
        for path in &self.0 {
            // In the reverse order of an installation.
            let manifest = Paths::manifest(path);
            disk::remove(disk, &manifest)?;
            disk::remove(disk, &Paths::signature(&manifest))?;
            disk::remove(disk, path)?;
        }
        Ok(())
    }
}

/// Where a payload called `name` is installed.
fn installed(disk: &impl Disk, progress: &Progress, name: &str) -> Result<Vec<PathBuf>> {
    let file = format!("{name}{}", Paths::PAYLOAD);
    let mut found = Vec::new();
    for base in disk::names(disk, &Paths::store())?.unwrap_or_default() {
        let path = Paths::store().join(&base).join(&file);
        if BuildId::try_from(base).is_err() || disk::read(disk, &path)?.is_none() {
            continue;
        }
        let manifest = disk::read(disk, &Paths::manifest(&path))?;
        let manifest = manifest.and_then(|data| Manifest::parse(&data).ok());
        if manifest.is_some_and(|manifest| progress.needs(&manifest.identity())) {
            let why = format!(
                "{name} is what this host has: without it, it would have less after a boot; \
                 bring it to another payload first"
            );
            return Err(Error::Refused(Refusal::Needed, why));
        }
        found.push(path);
    }
    Ok(found)
}
