// SPDX-License-Identifier: MIT OR Apache-2.0
//! What there is to do: from what the hypervisor has, what the store has, and what the
//! administrator wants, to the steps. It only looks.

use crate::catalogue::{Catalogue, Entry};
use crate::host::{Loaded, State};
use crate::policy::{Manager, Want};
use crate::{Damaged, HostRecord, Identity, Policy};
use schemars::JsonSchema;
use serde::Serialize;

/// What the hypervisor has, and what the store knows about it.
#[derive(Debug, Clone)]
pub struct Observed<'a> {
    /// In the order of upload.
    pub payloads: Vec<(Loaded, Option<&'a Entry>)>,
}

impl<'a> Observed<'a> {
    /// Finds what was loaded in the store: what has the name and the metadata of a
    /// payload there. The hypervisor lists neither a hash nor a build-id.
    #[must_use]
    pub fn new(loaded: Vec<Loaded>, catalogue: &'a Catalogue) -> Self {
        let payloads = loaded.into_iter().map(|loaded| {
            let entry = catalogue.named(&loaded.name);
            let entry = entry.filter(|entry| {
                let listed = loaded.metadata.as_ref();
                listed.is_none_or(|listed| *listed == entry.manifest.metadata)
            });
            (loaded, entry)
        });
        Self {
            payloads: payloads.collect(),
        }
    }

    /// What is applied.
    pub fn applied(&self) -> impl DoubleEndedIterator<Item = (&Loaded, Option<&'a Entry>)> {
        let all = self.payloads.iter();
        let applied = all.filter(|(loaded, _)| loaded.state == State::Applied);
        applied.map(|(loaded, entry)| (loaded, *entry))
    }

    /// The level of what is applied; 0 if that is nothing, or not from the store.
    #[must_use]
    pub fn level(&self) -> u32 {
        let levels = self
            .applied()
            .filter_map(|(_, entry)| Some(entry?.manifest.level));
        levels.max().unwrap_or(0)
    }

    /// The level of what is applied; `None` if that is something that cannot be read in the
    /// store.
    pub(crate) fn known_level(&self, catalogue: &Catalogue) -> Option<u32> {
        let mut unknown = self.applied().filter(|(_, entry)| entry.is_none());
        let unread = unknown.any(|(loaded, _)| catalogue.unread_named(&loaded.name).is_some());
        (!unread).then(|| self.level())
    }
}

/// What is asked for, beyond the policy.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// This level, and not what the policy wants. Somebody decides that: it has no effect
    /// if it is [`unattended`](Self::unattended).
    pub level: Option<u32>,
    /// The level may fall.
    pub allow_downgrade: bool,
    /// The host may be without any payload for a moment.
    pub allow_gap: bool,
    /// Nobody decides now: only what was decided before is done, unless the policy says
    /// `auto`.
    pub unattended: bool,
}

/// What the host should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal<'a> {
    /// No payload.
    Nothing,
    /// This one.
    Payload(&'a Entry),
    /// What it has, since nobody decided.
    AsItIs,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Upload a payload.
    Upload {
        /// Which.
        payload: Identity,
    },
    /// Apply a payload that was uploaded.
    Apply {
        /// Which.
        name: String,
    },
    /// Apply a payload that was uploaded, in place of all others.
    Replace {
        /// Which.
        name: String,
    },
    /// Revert a payload.
    Revert {
        /// Which.
        name: String,
    },
    /// Unload a payload.
    Unload {
        /// Which.
        name: String,
    },
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Upload { payload } => {
                write!(f, "upload {}, level {}", payload.name, payload.level)
            }
            Self::Apply { name } => write!(f, "apply {name}"),
            Self::Replace { name } => write!(f, "apply {name} in place of what is applied"),
            Self::Revert { name } => write!(f, "revert {name}"),
            Self::Unload { name } => write!(f, "unload {name}"),
        }
    }
}

/// What there is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<'a> {
    /// What the host should have.
    pub goal: Goal<'a>,
    /// What it has, and gets back if a step fails.
    pub former: Option<&'a Entry>,
    /// The steps; none if it is as it should be.
    pub steps: Vec<Step>,
    /// What cannot be read of the store, if the goal is the highest level that can.
    pub unread: Vec<&'a Damaged>,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// The administrator has stopped all changes.
    #[error("/etc/xsplice/host.toml says hold: nothing is changed")]
    Held,
    /// Another program does this.
    #[error("/etc/xsplice/host.toml says that xapi manages this host: xsplice only looks")]
    Managed,
    /// Something else is going on.
    #[error("the hypervisor is at work on {name}; try again")]
    Busy {
        /// On which payload.
        name: String,
    },
    /// Somebody else has applied something.
    #[error(
        "applied, but not from the store: {}; install it with a level, or revert it, with \
         `xsplice revert`",
        names.join(", ")
    )]
    Diverged {
        /// What.
        names: Vec<String>,
    },
    /// Somebody else has uploaded something.
    #[error("{name} is uploaded, and is not the payload of this name in the store: unload it")]
    NameTaken {
        /// What.
        name: String,
    },
    /// What is wanted is not there.
    #[error("{what} is wanted, and the store does not have it for this hypervisor")]
    Missing {
        /// What.
        what: String,
    },
    /// What is applied or wanted is in the store, and cannot be read there.
    #[error("what the store has of {name} cannot be used: {damaged}")]
    Unread {
        /// What.
        name: String,
        /// Why.
        damaged: Damaged,
    },
    /// What is wanted is in quarantine.
    #[error(
        "{name} is in quarantine ({reason}); `xsplice sync --release {name}` gives it another try"
    )]
    Quarantined {
        /// What.
        name: String,
        /// Why.
        reason: String,
    },
    /// What is wanted is not signed by a key of the host.
    #[error("the manifest of {name} is signed by {signer}")]
    Unverified {
        /// What.
        name: String,
        /// By whom it is signed.
        signer: String,
    },
    /// It is not known which.
    #[error("the store has two payloads of level {level}: {names}; remove one")]
    Ambiguous {
        /// The level.
        level: u32,
        /// Their names.
        names: String,
    },
    /// The host would have less.
    #[error("the level would fall from {from} to {to}; --allow-downgrade allows that")]
    Downgrade {
        /// From.
        from: u32,
        /// To.
        to: u32,
    },
    /// It cannot be done in one step.
    #[error(
        "{name} has hooks and cannot be part of a replace: what is applied must be reverted before \
         it, and for a moment the host is without any payload; --allow-gap allows that"
    )]
    Gap {
        /// Which.
        name: String,
    },
}

impl<'a> Goal<'a> {
    /// The payload, if there is to be one that is known.
    #[must_use]
    pub fn payload(self) -> Option<&'a Entry> {
        match self {
            Self::Payload(entry) => Some(entry),
            Self::Nothing | Self::AsItIs => None,
        }
    }
}

impl<'a> Plan<'a> {
    /// The payload that it uploads.
    #[must_use]
    pub fn uploaded(&self) -> Option<&'a Entry> {
        let mut steps = self.steps.iter();
        let uploads = steps.any(|step| matches!(step, Step::Upload { .. }));
        self.goal.payload().filter(|_| uploads)
    }

    /// What the policy allows, and somebody should know.
    #[must_use]
    pub fn warnings(&self, catalogue: &Catalogue) -> Vec<String> {
        let goal = self.goal.payload();
        let warning = goal.and_then(|entry| entry.warning(catalogue.verify));
        let unread = self.unread.iter();
        let unread = unread.map(|unread| match unread.level {
            Some(level) => format!("not used, and of level {level}: {unread}"),
            None => format!("not used, and may be of any level: {unread}"),
        });
        warning.into_iter().chain(unread).collect()
    }

    /// The payloads that are a sync's to unload as soon as it has begun.
    pub(crate) fn managed(&self) -> impl Iterator<Item = String> {
        self.steps.iter().filter_map(|step| match step {
            Step::Upload { payload } => Some(payload.name.clone()),
            Step::Unload { name } => Some(name.clone()),
            Step::Apply { .. } | Step::Replace { .. } | Step::Revert { .. } => None,
        })
    }

    /// Whether the policy lets this program change anything. A host that is held gets,
    /// unattended, what it had before a boot.
    ///
    /// # Errors
    /// If not.
    pub fn permitted(policy: &Policy, request: &Request) -> Result<(), Blocked> {
        match (policy.managed_by, policy.hold && !request.unattended) {
            (Manager::Xapi, _) => Err(Blocked::Managed),
            (Manager::Xsplice, true) => Err(Blocked::Held),
            (Manager::Xsplice, false) => Ok(()),
        }
    }

    /// Finds the steps.
    ///
    /// # Errors
    /// If there are none that lead there.
    pub fn make(
        observed: &Observed<'a>,
        catalogue: &'a Catalogue,
        policy: &Policy,
        record: &HostRecord,
        request: &Request,
    ) -> Result<Self, Blocked> {
        if let Some((busy, _)) = observed.payloads.iter().find(|(loaded, _)| loaded.busy) {
            let name = busy.name.clone();
            return Err(Blocked::Busy { name });
        }
        let strange = observed.payloads.iter().filter(|(loaded, entry)| {
            loaded.state == State::Unknown || loaded.state == State::Applied && entry.is_none()
        });
        let names: Vec<String> = strange.map(|(loaded, _)| loaded.name.clone()).collect();
        if let Some(unread) = names.iter().find_map(|name| unread(catalogue, name)) {
            return Err(unread);
        }
        if !names.is_empty() {
            return Err(Blocked::Diverged { names });
        }
        let applied: Vec<&'a Entry> = observed.applied().filter_map(|(_, entry)| entry).collect();
        let goal = choose(catalogue, policy, record.kept(&applied), request)?;
        let to = goal.payload().map_or(0, |entry| entry.manifest.level);
        let plan = |steps| {
            Ok(Self {
                goal,
                former: applied
                    .iter()
                    .copied()
                    .max_by_key(|entry| entry.manifest.level),
                steps,
                unread: match is_latest(policy, request) {
                    true => catalogue.unread_above(to).collect(),
                    false => Vec::new(),
                },
            })
        };
        let wanted = match goal {
            Goal::AsItIs => return plan(Vec::new()),
            Goal::Nothing => None,
            Goal::Payload(entry) => Some(entry),
        };
        let from = floor(observed, catalogue, record);
        // A host that boots with no payload, and is to have none, has nothing to lose.
        let has_none = goal == Goal::Nothing && policy.want == Want::None && applied.is_empty();
        if to < from && !has_none && !request.allow_downgrade {
            let cause = passed_over(catalogue, policy, request, to);
            return Err(cause.unwrap_or(Blocked::Downgrade { from, to }));
        }
        steps(observed, record, wanted, &applied, request).and_then(plan)
    }
}

/// The lowest level that is no step back: what the host has, or, if it has nothing, had
/// before the boot. What is in quarantine is not wanted back.
fn floor(observed: &Observed, catalogue: &Catalogue, record: &HostRecord) -> u32 {
    let Some(reached) = record.reached.as_ref().filter(|_| observed.level() == 0) else {
        return observed.level();
    };
    let entry = catalogue.named(&reached.name);
    let given_up = entry.is_some_and(|entry| entry.quarantined.is_some());
    if given_up { 0 } else { reached.level }
}

fn steps(
    observed: &Observed,
    record: &HostRecord,
    wanted: Option<&Entry>,
    applied: &[&Entry],
    request: &Request,
) -> Result<Vec<Step>, Blocked> {
    let name = |entry: &Entry| entry.manifest.name.clone();
    let mut steps = Vec::new();
    // What an earlier sync left behind, and what is uploaded under the name that is needed:
    // which bytes those are is not known. What else others have uploaded is theirs.
    let checked = observed.payloads.iter();
    let checked = checked.filter(|(loaded, _)| loaded.state == State::Checked);
    for (loaded, entry) in checked {
        let in_the_way = wanted.is_some_and(|wanted| wanted.manifest.name == loaded.name);
        match entry {
            Some(_) if in_the_way || record.manages(&loaded.name) => steps.push(Step::Unload {
                name: loaded.name.clone(),
            }),
            None if in_the_way => {
                let name = loaded.name.clone();
                return Err(Blocked::NameTaken { name });
            }
            _ => {}
        }
    }
    let others: Vec<&&Entry> = applied
        .iter()
        .filter(|entry| Some(**entry) != wanted)
        .collect();
    let reverts = || {
        let names = others.iter().rev().map(|entry| name(entry));
        names.map(|name| Step::Revert { name })
    };
    match wanted.filter(|wanted| !applied.contains(wanted)) {
        None => steps.extend(reverts()),
        Some(wanted) => {
            steps.push(Step::Upload {
                payload: wanted.manifest.identity(),
            });
            let mut all = others.iter().map(|entry| **entry).chain([wanted]);
            let hooked = all.find(|entry| !entry.manifest.replaceable);
            match hooked {
                _ if others.is_empty() => steps.push(Step::Apply { name: name(wanted) }),
                None => steps.push(Step::Replace { name: name(wanted) }),
                Some(_) if request.allow_gap => {
                    steps.extend(reverts());
                    steps.push(Step::Apply { name: name(wanted) });
                }
                Some(hooked) => return Err(Blocked::Gap { name: name(hooked) }),
            }
        }
    }
    let unload = others
        .iter()
        .map(|entry| Step::Unload { name: name(entry) });
    steps.extend(unload);
    Ok(steps)
}

/// What the host should have.
fn choose<'a>(
    catalogue: &'a Catalogue,
    policy: &Policy,
    kept: Option<&Identity>,
    request: &Request,
) -> Result<Goal<'a>, Blocked> {
    let missing = |what: String| Blocked::Missing { what };
    let not_there =
        |name: &str, what: String| unread(catalogue, name).unwrap_or_else(|| missing(what));
    if let Some(level) = request.level.filter(|_| !request.unattended) {
        let entry = only(catalogue.entries.iter(), level)?;
        let entry = entry.ok_or_else(|| missing(format!("level {level}")))?;
        return usable(entry, catalogue).map(Goal::Payload);
    }
    if is_as_before(policy, request) {
        let Some(kept) = kept else {
            return Ok(Goal::AsItIs);
        };
        let what = format!("{}, level {}", kept.name, kept.level);
        let entry = catalogue.named(&kept.name);
        let entry = entry.filter(|entry| entry.manifest.identity() == *kept);
        let entry = entry.ok_or_else(|| not_there(&kept.name, what))?;
        return usable(entry, catalogue).map(Goal::Payload);
    }
    match &policy.want {
        Want::None => Ok(Goal::Nothing),
        Want::Named(name) => {
            let entry = catalogue.named(name);
            let entry = entry.ok_or_else(|| not_there(name, name.clone()))?;
            usable(entry, catalogue).map(Goal::Payload)
        }
        Want::Latest => {
            let candidates = || {
                let all = catalogue.entries.iter();
                all.filter(|entry| usable(entry, catalogue).is_ok())
            };
            match candidates().map(|entry| entry.manifest.level).max() {
                None => Ok(Goal::Nothing),
                Some(level) => Ok(only(candidates(), level)?.map_or(Goal::Nothing, Goal::Payload)),
            }
        }
    }
}

/// Why a payload above the level `goal` is not the goal, although the highest level is
/// wanted.
pub(crate) fn passed_over(
    catalogue: &Catalogue,
    policy: &Policy,
    request: &Request,
    goal: u32,
) -> Option<Blocked> {
    let entries = catalogue.entries.iter();
    let mut above = entries.filter(|entry| entry.manifest.level > goal);
    above
        .find_map(|entry| usable(entry, catalogue).err())
        .filter(|_| is_latest(policy, request))
}

/// Whether nobody decides: the host keeps what it had.
fn is_as_before(policy: &Policy, request: &Request) -> bool {
    let decided = policy.auto || policy.want == Want::None;
    request.unattended && (policy.hold || !decided)
}

/// Whether the host is to have the highest level, whichever that is.
fn is_latest(policy: &Policy, request: &Request) -> bool {
    let named = request.level.is_some() && !request.unattended;
    policy.want == Want::Latest && !named && !is_as_before(policy, request)
}

/// That the payload `name` cannot be read, if that is so.
fn unread(catalogue: &Catalogue, name: &str) -> Option<Blocked> {
    let damaged = catalogue.unread_named(name)?.clone();
    let name = name.to_owned();
    Some(Blocked::Unread { name, damaged })
}

/// The one with this level.
fn only<'a>(
    entries: impl Iterator<Item = &'a Entry>,
    level: u32,
) -> Result<Option<&'a Entry>, Blocked> {
    let entries: Vec<&Entry> = entries
        .filter(|entry| entry.manifest.level == level)
        .collect();
    if entries.len() > 1 {
        let names: Vec<&str> = entries.iter().map(|entry| &*entry.manifest.name).collect();
        let names = names.join(", ");
        return Err(Blocked::Ambiguous { level, names });
    }
    Ok(entries.first().copied())
}

/// The payload, if it may be applied.
fn usable<'a>(entry: &'a Entry, catalogue: &Catalogue) -> Result<&'a Entry, Blocked> {
    let name = entry.manifest.name.clone();
    if let Some(damaged) = entry.damaged.clone() {
        return Err(Blocked::Unread { name, damaged });
    }
    if !entry.is_verified(catalogue.verify) {
        let signer = entry.signer.to_string();
        return Err(Blocked::Unverified { name, signer });
    }
    if let Some(quarantined) = &entry.quarantined {
        let reason = quarantined.reason.clone();
        return Err(Blocked::Quarantined { name, reason });
    }
    Ok(entry)
}
