// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which hosts of a fleet a store has a payload for. This needs no hypervisor.

use crate::{
    BuildId, Catalogue, Damaged, Date, Disk, Error, HostRecord, Policy, Quarantine, Result, Trust,
};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};

/// The hosts of a fleet, each with the build-id of its hypervisor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fleet(Vec<(String, BuildId)>);

/// Which of them are covered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Coverage {
    /// All hypervisors of the fleet, by build-id.
    pub hypervisors: BTreeMap<BuildId, Covered>,
    /// What could not be read of the store: a hypervisor may be covered by it.
    pub damaged: Vec<Damaged>,
}

/// One hypervisor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Covered {
    /// The hosts that run it.
    pub hosts: Vec<String>,
    /// The highest level that the store has for it; 0 if it has none.
    pub level: u32,
    /// Whether that is what was asked for.
    pub covered: bool,
}

impl Fleet {
    /// Reads lines of a name and a build-id; empty lines and those that begin with `#` are
    /// left out.
    ///
    /// # Errors
    /// If a line is something else, or a host is there twice.
    pub fn parse(text: &str) -> Result<Self> {
        let mut fleet = Self::default();
        let mut names = HashSet::new();
        for (index, line) in text.lines().enumerate() {
            let refused = |reason: String| Error::invalid(format!("line {}: {reason}", index + 1));
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                [first, ..] if first.starts_with('#') => {}
                [host, id] => {
                    if !names.insert(*host) {
                        return Err(refused(format!("{host} is there twice")));
                    }
                    let id = BuildId::try_from((*id).to_owned()).map_err(refused)?;
                    fleet.0.push(((*host).to_owned(), id));
                }
                _ => {
                    return Err(refused(
                        "not a host and a build-id in hexadecimal, as `xsplice info` prints it"
                            .to_owned(),
                    ));
                }
            }
        }
        Ok(fleet)
    }
}

impl Coverage {
    /// Finds out what the store has for each hypervisor of the fleet: a payload of this
    /// level, or any, if no level is given, that a host would apply on this `date`.
    #[must_use]
    pub fn new(
        disk: &impl Disk,
        policy: &Policy,
        fleet: &Fleet,
        level: Option<u32>,
        date: &Date,
    ) -> Self {
        let mut coverage = Self::default();
        for (host, base) in &fleet.0 {
            let covered = coverage.hypervisors.entry(base.clone()).or_default();
            covered.hosts.push(host.clone());
        }
        for (base, covered) in &mut coverage.hypervisors {
            let trust = Trust {
                policy,
                record: &HostRecord::default(),
                date,
            };
            let catalogue = Catalogue::read(disk, base, &trust, &Quarantine::default());
            let unread = catalogue.unread().cloned();
            let new = unread.filter(|unread| !coverage.damaged.contains(unread));
            let new: Vec<Damaged> = new.collect();
            coverage.damaged.extend(new);
            let entries = catalogue.entries.iter();
            let verified = entries.filter(|entry| entry.is_usable(catalogue.verify));
            covered.level = verified
                .map(|entry| entry.manifest.level)
                .max()
                .unwrap_or(0);
            covered.covered = covered.level >= level.unwrap_or(1);
        }
        coverage
    }

    /// Whether every host is covered.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.hypervisors.values().all(|covered| covered.covered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_is_read_as_a_whole_or_not_at_all() {
        let fleet = Fleet::parse("# hosts\n\none ab01\n two\tab01 \n").expect("it is good");
        assert_eq!(fleet.0.len(), 2);
        for bad in [
            "one",
            "one xy",
            "one ../",
            "one ab01 3",
            "one ab01\none ab02",
        ] {
            assert!(Fleet::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_host_that_is_there_twice_is_named_wherever_it_is() {
        let lines = (0..1000).map(|number| format!("host-{number} ab01\n"));
        let lines: Vec<String> = lines.collect();
        let fleet = Fleet::parse(&lines.concat()).expect("it is good");
        assert_eq!(fleet.0.len(), lines.len());
        for (first, second) in [(0, 1), (0, 999), (500, 600), (998, 999)] {
            let mut twice = lines.clone();
            twice[second] = format!("host-{first} cd02\n");
            let error = Fleet::parse(&twice.concat()).expect_err("it is there twice");
            let expected = format!("line {}: host-{first} is there twice", second + 1);
            assert_eq!(error.to_string(), expected);
        }
    }
}
