// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the host stands, in a word and in detail. It only looks.

use crate::host::State;
use crate::plan::{Blocked, Goal, Observed, Plan, Request, Step, usable};
use crate::policy::Want;
use crate::{
    Catalogue, Damaged, Moment, Origin, Policy, Quarantine, Quarantined, Signer, Standing,
};
use schemars::JsonSchema;
use serde::Serialize;

/// How the host stands. There are no other words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// It has what it is to have.
    Current,
    /// It is to have something else.
    Behind,
    /// It is to have nothing, and has nothing.
    NothingToApply,
    /// It is to have something else, and the policy says hold.
    Held,
    /// The last attempt failed.
    ApplyFailed,
    /// What it would have is in quarantine.
    Quarantined,
    /// What it would have is not signed by a key of the host.
    Unverified,
    /// Something is applied that is not from the store.
    Diverged,
    /// The store has no directory for this hypervisor.
    HypervisorUnknown,
    /// The hypervisor has no live patching.
    NoLivepatch,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Current,
        Self::Behind,
        Self::NothingToApply,
        Self::Held,
        Self::ApplyFailed,
        Self::Quarantined,
        Self::Unverified,
        Self::Diverged,
        Self::HypervisorUnknown,
        Self::NoLivepatch,
    ];

    /// The word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Behind => "behind",
            Self::NothingToApply => "nothing-to-apply",
            Self::Held => "held",
            Self::ApplyFailed => "apply-failed",
            Self::Quarantined => "quarantined",
            Self::Unverified => "unverified",
            Self::Diverged => "diverged",
            Self::HypervisorUnknown => "hypervisor-unknown",
            Self::NoLivepatch => "no-livepatch",
        }
    }

    /// Whether all is as wanted.
    #[must_use]
    pub fn is_as_wanted(self) -> bool {
        matches!(self, Self::Current | Self::NothingToApply)
    }
}

/// How the host stands, in detail.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Report {
    /// In a word.
    pub condition: Condition,
    /// Why it is not as wanted.
    pub reason: Option<String>,
    /// Build-id of the hypervisor.
    pub base: Option<String>,
    /// The level it has; 0 if nothing from the store is applied.
    pub level: u32,
    /// The level it is to have; null if that is not known.
    pub wanted: Option<u32>,
    /// Whether what is applied has yet to prove itself.
    pub settling: bool,
    /// What the hypervisor holds, in the order of upload.
    pub payloads: Vec<Held>,
    /// What is not applied any more.
    pub quarantine: Vec<Quarantined>,
    /// Files of the store that are not used.
    pub damaged: Vec<Damaged>,
}

/// A payload that the hypervisor holds; what only the store knows is null if it does not
/// have the payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Held {
    /// Its name.
    pub name: String,
    /// `checked` (uploaded, not in use), `applied`, or `unknown`.
    pub state: &'static str,
    /// Place in the stack, the lowest is 1; null if it is not applied, or others are
    /// applied too, since the hypervisor does not tell their order.
    pub position: Option<u32>,
    /// Its build-id.
    pub build_id: Option<String>,
    /// SHA-256 of the file.
    pub sha256: Option<String>,
    /// The build-id that it depends on.
    pub depends: Option<String>,
    /// Its level.
    pub level: Option<u32>,
    /// What it fixes.
    pub fixes: Vec<String>,
    /// Who has signed its manifest.
    pub signer: Option<Signer>,
    /// Who put it into the store.
    pub origin: Option<Origin>,
}

impl Report {
    /// Of a hypervisor without live patching.
    #[must_use]
    pub fn without_live_patching(base: Option<String>) -> Self {
        Self {
            condition: Condition::NoLivepatch,
            reason: Some("this hypervisor was built without live patching".to_owned()),
            base,
            level: 0,
            wanted: None,
            settling: false,
            payloads: Vec::new(),
            quarantine: Vec::new(),
            damaged: Vec::new(),
        }
    }

    /// Finds out how the host stands.
    #[must_use]
    pub fn new(
        observed: &Observed,
        catalogue: &Catalogue,
        policy: &Policy,
        standing: &Standing,
        quarantine: &Quarantine,
        now: &Moment,
    ) -> Self {
        let plan = Plan::make(observed, catalogue, policy, standing, &Request::default());
        let wanted = match &plan {
            Ok(Plan {
                goal: Goal::Payload(entry),
                ..
            }) => Some(entry.manifest.level),
            Ok(Plan {
                goal: Goal::Nothing,
                ..
            }) => Some(0),
            Ok(Plan {
                goal: Goal::AsItIs, ..
            })
            | Err(_) => None,
        };
        let (condition, reason) = judge(&plan, observed, catalogue, policy, standing, now);
        let attempt = standing.attempt.as_ref();
        Self {
            condition,
            reason,
            base: Some(catalogue.base.clone()),
            level: observed.level(),
            wanted,
            settling: attempt.is_some_and(|attempt| attempt.done),
            payloads: held(observed),
            quarantine: quarantine.all().to_vec(),
            damaged: catalogue.damaged.clone(),
        }
    }
}

fn judge(
    plan: &Result<Plan, Blocked>,
    observed: &Observed,
    catalogue: &Catalogue,
    policy: &Policy,
    standing: &Standing,
    now: &Moment,
) -> (Condition, Option<String>) {
    let plan = match plan {
        Ok(plan) => plan,
        Err(blocked) => {
            let cause = match blocked {
                Blocked::Downgrade { to, .. } => passed_over(*to, catalogue, policy),
                _ => None,
            };
            let blocked = cause.as_ref().unwrap_or(blocked);
            let condition = match blocked {
                Blocked::Diverged { .. } => Condition::Diverged,
                Blocked::Quarantined { .. } => Condition::Quarantined,
                Blocked::Unverified { .. } => Condition::Unverified,
                _ if policy.hold => Condition::Held,
                _ if standing.failed.is_some() => return failed(standing),
                _ => Condition::Behind,
            };
            return (condition, Some(blocked.to_string()));
        }
    };
    let changes = plan
        .steps
        .iter()
        .any(|step| !matches!(step, Step::Unload { .. }));
    if changes && policy.hold {
        return (Condition::Held, Some(Blocked::Held.to_string()));
    }
    if standing.failed.is_some() {
        return failed(standing);
    }
    let unfinished = standing.attempt.as_ref();
    if changes && unfinished.is_some_and(|a| !a.done && a.boot == now.boot) {
        let reason = "the last run was interrupted, or is still at work".to_owned();
        return (Condition::ApplyFailed, Some(reason));
    }
    let goal = match plan.goal {
        Goal::Payload(entry) => entry.manifest.level,
        Goal::Nothing | Goal::AsItIs => 0,
    };
    if let Some(blocked) = passed_over(goal, catalogue, policy) {
        let condition = match blocked {
            Blocked::Quarantined { .. } => Condition::Quarantined,
            _ => Condition::Unverified,
        };
        return (condition, Some(blocked.to_string()));
    }
    if changes {
        let reason = format!("it has level {}, and is to have {goal}", observed.level());
        return (Condition::Behind, Some(reason));
    }
    match plan.goal {
        Goal::Payload(_) => (Condition::Current, None),
        _ if !catalogue.known && policy.want != Want::None => {
            let base = &catalogue.base;
            let reason = format!("the store has nothing for the hypervisor {base}");
            (Condition::HypervisorUnknown, Some(reason))
        }
        _ => (Condition::NothingToApply, None),
    }
}

/// The last attempt failed.
fn failed(standing: &Standing) -> (Condition, Option<String>) {
    let reason = standing.failed.as_ref().map(|failed| {
        let name = failed.payload.as_ref();
        let name = name.map_or("to have no payload", |payload| &payload.name);
        format!("{name} failed on {}: {}", failed.date, failed.reason)
    });
    (Condition::ApplyFailed, reason)
}

/// Why the payload with the highest level is not what the host is to have, although the
/// policy wants the latest; `goal` is the level that it is to have.
fn passed_over(goal: u32, catalogue: &Catalogue, policy: &Policy) -> Option<Blocked> {
    let entries = catalogue.entries.iter();
    let mut above = entries.filter(|entry| entry.manifest.level > goal);
    above
        .find_map(|entry| usable(entry, catalogue).err())
        .filter(|_| policy.want == Want::Latest)
}

fn held(observed: &Observed) -> Vec<Held> {
    let alone = observed.applied().count() == 1;
    let payloads = observed.payloads.iter().map(|(loaded, entry)| {
        let manifest = entry.map(|entry| &entry.manifest);
        Held {
            name: loaded.name.clone(),
            state: match loaded.state {
                State::Checked => "checked",
                State::Applied => "applied",
                State::Unknown => "unknown",
            },
            position: (alone && loaded.state == State::Applied).then_some(1),
            build_id: manifest.map(|manifest| manifest.build_id.clone()),
            sha256: manifest.map(|manifest| manifest.sha256.clone()),
            depends: manifest.map(|manifest| manifest.base.clone()),
            level: manifest.map(|manifest| manifest.level),
            fixes: manifest.map_or(Vec::new(), |manifest| manifest.fixes.clone()),
            signer: entry.map(|entry| entry.signer.clone()),
            origin: entry.map(|entry| entry.origin),
        }
    });
    payloads.collect()
}
