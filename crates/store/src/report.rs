// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of the host, in a word and in detail. Reading it changes nothing.

use crate::host::State;
use crate::installed::{self, Next};
use crate::plan::{Blocked, Goal, Observed, Plan, Request, Step, passed_over};
use crate::policy::Want;
use crate::{
    BuildId, Catalogue, Damaged, Disk, HostRecord, Moment, Origin, Policy, Quarantine, Quarantined,
    Sha256, Signer,
};
use schemars::JsonSchema;
use serde::Serialize;

/// The state of the host, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// It has what its policy wants.
    Current,
    /// Its policy wants something else.
    Behind,
    /// Its policy wants nothing, and it has nothing.
    NothingToApply,
    /// Its policy wants something else, and says hold.
    Held,
    /// The last attempt failed.
    ApplyFailed,
    /// What it would have is in quarantine.
    Quarantined,
    /// What it would have is not signed by a key of the host.
    Unverified,
    /// Something is applied that is not from the store.
    Diverged,
    /// A file of the store cannot be read, so that what it is to have is not known.
    StoreDamaged,
    /// The store has no directory for this hypervisor.
    HypervisorUnknown,
    /// There is nothing for the running hypervisor, and the next boot starts another one.
    RebootRequired,
    /// The hypervisor has no live patching.
    NoLivepatch,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Current,
        Self::Behind,
        Self::NothingToApply,
        Self::Held,
        Self::ApplyFailed,
        Self::Quarantined,
        Self::Unverified,
        Self::Diverged,
        Self::StoreDamaged,
        Self::HypervisorUnknown,
        Self::RebootRequired,
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
            Self::StoreDamaged => "store-damaged",
            Self::HypervisorUnknown => "hypervisor-unknown",
            Self::RebootRequired => "reboot-required",
            Self::NoLivepatch => "no-livepatch",
        }
    }

    /// Whether all is as wanted.
    #[must_use]
    pub fn is_as_wanted(self) -> bool {
        matches!(self, Self::Current | Self::NothingToApply)
    }
}

/// The state of the host, in detail.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Report {
    /// In a word.
    pub condition: Condition,
    /// Why it is not as wanted.
    pub reason: Option<String>,
    /// Build-id of the hypervisor.
    pub base: Option<BuildId>,
    /// The level it has; 0 if nothing from the store is applied.
    pub level: u32,
    /// The level that its policy wants; null if that is not known.
    pub wanted: Option<u32>,
    /// Whether what is applied has yet to settle.
    pub settling: bool,
    /// What the hypervisor holds, in the order of upload.
    pub payloads: Vec<Held>,
    /// What is no longer applied.
    pub quarantine: Vec<Quarantined>,
    /// Files of the store that are not used.
    pub damaged: Vec<Damaged>,
    /// What the policy allows and an administrator should know.
    pub warnings: Vec<String>,
    /// Why a reboot is due: the next boot starts another hypervisor.
    pub reboot: Option<String>,
    /// Why it is not known whether a reboot is due.
    pub reboot_unknown: Option<String>,
}

/// A payload that the hypervisor holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Held {
    /// Its name.
    pub name: String,
    /// `checked` (uploaded, not in use), `applied`, or `unknown`.
    pub state: &'static str,
    /// The rest of it.
    #[serde(flatten)]
    pub known: Known,
}

/// What is known about a payload that the hypervisor holds; what only the store knows is
/// null if it does not have the payload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Known {
    /// Place in the stack, the lowest is 1; null if it is not applied, or others are
    /// applied too, since the hypervisor does not tell their order.
    pub position: Option<u32>,
    /// Its build-id.
    pub build_id: Option<BuildId>,
    /// SHA-256 of the file.
    pub sha256: Option<Sha256>,
    /// The build-id that it depends on.
    pub depends: Option<BuildId>,
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
    pub fn without_live_patching(base: Option<BuildId>) -> Self {
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
            warnings: Vec::new(),
            reboot: None,
            reboot_unknown: None,
        }
    }

    /// Finds out, too, whether the next boot starts another hypervisor.
    #[must_use]
    pub fn with_boot(self, disk: &impl Disk) -> Self {
        let Some(base) = &self.base else {
            return self;
        };
        let images = match installed::next(disk, base) {
            Next::MayBeSame => return self,
            Next::Another(images) => images,
            Next::Unknown(reason) => {
                return Self {
                    reboot_unknown: Some(reason),
                    ..self
                };
            }
        };
        let images: Vec<String> = images
            .iter()
            .map(|image| image.display().to_string())
            .collect();
        let reason = format!(
            "the running hypervisor is none of those installed ({}): the next boot starts another \
             one",
            images.join(", ")
        );
        let (condition, why) = match self.condition {
            Condition::HypervisorUnknown => (Condition::RebootRequired, Some(reason.clone())),
            condition => (condition, self.reason),
        };
        Self {
            condition,
            reason: why,
            reboot: Some(reason),
            ..self
        }
    }

    /// Determines the state of the host.
    #[must_use]
    pub fn new(
        observed: &Observed,
        catalogue: &Catalogue,
        policy: &Policy,
        record: &HostRecord,
        quarantine: &Quarantine,
        now: &Moment,
    ) -> Self {
        let plan = Plan::make(observed, catalogue, policy, record, &Request::default());
        let wanted = plan.as_ref().ok().and_then(|plan| match plan.goal {
            Goal::Payload(entry) => Some(entry.manifest.level),
            Goal::Nothing => Some(0),
            Goal::AsItIs => None,
        });
        let judge = Judge {
            observed,
            catalogue,
            policy,
            record,
            now,
        };
        let Verdict(condition, reason) = judge.verdict(&plan);
        let attempt = record.attempt.as_ref();
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
            warnings: catalogue.warnings(),
            reboot: None,
            reboot_unknown: None,
        }
    }
}

/// The state of the host, and why it is not as wanted.
struct Verdict(Condition, Option<String>);

/// What the verdict depends on, beside the plan.
struct Judge<'a> {
    observed: &'a Observed<'a>,
    catalogue: &'a Catalogue,
    policy: &'a Policy,
    record: &'a HostRecord,
    now: &'a Moment,
}

impl Judge<'_> {
    fn verdict(&self, plan: &Result<Plan, Blocked>) -> Verdict {
        let plan = match plan {
            Ok(plan) => plan,
            Err(blocked) => return self.without_plan(blocked),
        };
        let changes = plan.steps.iter();
        let changes = changes.filter(|step| !matches!(step, Step::Unload { .. }));
        let changes = changes.count() > 0;
        let goal = plan.goal.payload();
        let goal = goal.map_or(0, |entry| entry.manifest.level);
        let held = changes && self.policy.hold;
        let held = held.then(|| Verdict(Condition::Held, Some(Blocked::Held.to_string())));
        held.or_else(|| self.failed())
            .or_else(|| self.interrupted().filter(|_| changes))
            .or_else(|| {
                let request = Request::default();
                let blocked = passed_over(self.catalogue, self.policy, &request, goal);
                blocked.map(|blocked| of(&blocked))
            })
            .or_else(|| self.behind(goal).filter(|_| changes))
            .or_else(|| unread(plan))
            .unwrap_or_else(|| self.reached(plan.goal))
    }

    fn without_plan(&self, blocked: &Blocked) -> Verdict {
        let Verdict(condition, reason) = of(blocked);
        match condition {
            Condition::Behind if self.policy.hold => Verdict(Condition::Held, reason),
            Condition::Behind => self.failed().unwrap_or(Verdict(condition, reason)),
            _ => Verdict(condition, reason),
        }
    }

    /// The last attempt failed.
    fn failed(&self) -> Option<Verdict> {
        let failed = self.record.failed.as_ref()?;
        let name = failed.payload.as_ref();
        let name = name.map_or("to have no payload", |payload| &payload.name);
        let reason = format!("{name} failed on {}: {}", failed.date, failed.reason);
        Some(Verdict(Condition::ApplyFailed, Some(reason)))
    }

    /// The last attempt did not end.
    fn interrupted(&self) -> Option<Verdict> {
        let attempt = self.record.attempt.as_ref()?;
        (!attempt.done && attempt.boot == self.now.boot).then(|| {
            let reason = "the last run was interrupted, or is still at work".to_owned();
            Verdict(Condition::ApplyFailed, Some(reason))
        })
    }

    fn behind(&self, goal: u32) -> Option<Verdict> {
        let level = self.observed.level();
        let reason = format!("it has level {level}, and its policy wants {goal}");
        Some(Verdict(Condition::Behind, Some(reason)))
    }

    /// There is nothing to do.
    fn reached(&self, goal: Goal) -> Verdict {
        match goal {
            Goal::Payload(_) => Verdict(Condition::Current, None),
            _ if !self.catalogue.known && self.policy.want != Want::None => {
                let base = &self.catalogue.base;
                let reason = format!("the store has nothing for the hypervisor {base}");
                Verdict(Condition::HypervisorUnknown, Some(reason))
            }
            _ => Verdict(Condition::NothingToApply, None),
        }
    }
}

/// It has the highest level that can be read.
fn unread(plan: &Plan) -> Option<Verdict> {
    let [unread, ..] = plan.unread.as_slice() else {
        return None;
    };
    let reason = format!("the store may have a higher level, and cannot be read: {unread}");
    Some(Verdict(Condition::StoreDamaged, Some(reason)))
}

/// The state that a plan is blocked in.
fn of(blocked: &Blocked) -> Verdict {
    let condition = match blocked {
        Blocked::Diverged { .. } => Condition::Diverged,
        Blocked::Quarantined { .. } => Condition::Quarantined,
        Blocked::Unverified { .. } => Condition::Unverified,
        Blocked::Unread { .. } => Condition::StoreDamaged,
        _ => Condition::Behind,
    };
    Verdict(condition, Some(blocked.to_string()))
}

fn held(observed: &Observed) -> Vec<Held> {
    let loaded = observed.payloads.iter().map(|(loaded, _)| loaded);
    let held = loaded.zip(Known::of(observed)).map(|(loaded, known)| Held {
        name: loaded.name.clone(),
        state: match loaded.state {
            State::Checked => "checked",
            State::Applied => "applied",
            State::Unknown => "unknown",
        },
        known,
    });
    held.collect()
}

impl Known {
    /// What is known about each payload that the hypervisor holds.
    #[must_use]
    pub fn of(observed: &Observed) -> Vec<Self> {
        let alone = observed.applied().count() == 1;
        let payloads = observed.payloads.iter().map(|(loaded, entry)| {
            let manifest = entry.map(|entry| &entry.manifest);
            Self {
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
}
