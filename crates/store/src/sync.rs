// SPDX-License-Identifier: MIT OR Apache-2.0
//! Brings the host to what its policy wants.
//!
//! What is on the disk is always behind or equal to what happens: the attempt is there
//! before the hypervisor is asked, and the result after it has answered. If the program
//! or the host dies in between, the next run finds the attempt and what the hypervisor
//! has. The attempt is the last that is written before, so that no payload is blamed for
//! what happened without it.

use crate::driver::{Driver, Former};
use crate::history::{Action, Event, Outcome, Recorder};
use crate::host::{Fault, Host, Loaded};
use crate::plan::{Blocked, Goal, Observed, Plan, Request, Step};
use crate::progress::{Attempt, Failed, Progress};
use crate::{
    BuildId, Catalogue, Damaged, Disk, Entry, Error, Identity, Policy, Quarantine, Quarantined,
    Trust, Want,
};
use std::time::{Duration, Instant};

/// One run.
#[derive(Debug)]
pub struct Sync<'a, D, H> {
    /// Where the store is.
    pub disk: &'a D,
    /// The hypervisor.
    pub host: &'a mut H,
    /// Build-id of the hypervisor.
    pub base: &'a BuildId,
    /// What the administrator wants.
    pub policy: &'a Policy,
    /// What is asked for this time.
    pub request: &'a Request,
    /// Writes the history.
    pub recorder: Recorder<'a, D>,
}

/// What a run did.
#[derive(Debug, Default)]
pub struct SyncSummary {
    /// The steps that were done.
    pub steps: Vec<Step>,
    /// The level before.
    pub from: u32,
    /// The level now; `None` if the hypervisor was not asked, or did not answer, or what it
    /// has cannot be read in the store.
    pub level: Option<u32>,
    /// Whether the hypervisor holds or has applied something else than before, or the host,
    /// when it goes down, has taken something else as good.
    pub changed: bool,
    /// How often it was busy.
    pub retries: u32,
    /// Whether the former payload had to be restored, and was.
    pub restored: Option<bool>,
    /// What went into quarantine.
    pub quarantined: Vec<Quarantined>,
    /// What the policy allows, and somebody should know.
    pub warnings: Vec<String>,
    /// What could not be written after it was done.
    pub unrecorded: Vec<String>,
    /// Why it failed.
    pub error: Option<SyncError>,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// There is no way, or the policy does not allow it.
    #[error(transparent)]
    Blocked(#[from] Blocked),
    /// The store, or what this program remembers, cannot be read or written. Nothing was
    /// changed.
    #[error(transparent)]
    Store(#[from] Error),
    /// The hypervisor did not do a step.
    #[error("{step}: {}", fault.message)]
    Step {
        /// The step.
        step: Step,
        /// Its answer.
        fault: Box<Fault>,
    },
    /// The hypervisor does not list its payloads.
    #[error("the hypervisor does not list its payloads: {}", .0.message)]
    List(Fault),
    /// The payload would be refused.
    #[error("{name}: {}", fault.message)]
    Check {
        /// The payload.
        name: String,
        /// Why.
        fault: Fault,
    },
    /// The host has what it is to have, as far as the store can be read.
    #[error("the store cannot be read as a whole, and may have a higher level: {0}")]
    Unread(Damaged),
    /// All steps were done, and still the host has something else.
    #[error("every step was done, and the host still does not have what its policy wants")]
    Elsewhere,
    /// It was done, and that could not be written.
    #[error("it is done, and could not be recorded")]
    Unrecorded,
}

impl SyncError {
    /// The hypervisor's answer, if it was that.
    #[must_use]
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Step { fault, .. } => Some(fault),
            Self::Check { fault, .. } | Self::List(fault) => Some(fault),
            _ => None,
        }
    }
}

impl SyncSummary {
    /// Whether the host has less than before, although it was not to.
    #[must_use]
    pub fn has_less(&self) -> bool {
        self.error.is_some() && self.level.is_some_and(|level| level < self.from)
    }

    /// Remembers what could not be written.
    fn keep(&mut self, written: crate::Result<()>) {
        self.unrecorded
            .extend(written.err().map(|error| error.to_string()));
    }
}

/// A plan that is carried out, and what there was before.
struct Run<'a> {
    plan: &'a Plan<'a>,
    catalogue: &'a Catalogue,
    before: &'a [Loaded],
    former: Option<Former<'a>>,
    begun: Instant,
}

/// What the hypervisor has after the steps.
struct After {
    loaded: std::result::Result<Vec<Loaded>, Fault>,
    /// Whether that is the goal of the plan.
    reached: bool,
    /// Whether it is still at work on something.
    at_work: bool,
}

impl Run<'_> {
    fn goal(&self) -> Option<&Entry> {
        self.plan.goal.payload()
    }

    fn payload(&self) -> Option<Identity> {
        self.goal().map(|entry| entry.manifest.identity())
    }

    fn after(&self, loaded: std::result::Result<Vec<Loaded>, Fault>) -> After {
        let listed = loaded.as_ref();
        After {
            reached: listed.is_ok_and(|loaded| is_reached(loaded, self.plan, self.catalogue)),
            at_work: listed.is_ok_and(|loaded| loaded.iter().any(|payload| payload.busy)),
            loaded,
        }
    }
}

impl<D: Disk, H: Host> Sync<'_, D, H> {
    /// Does it.
    pub fn run(mut self) -> SyncSummary {
        let mut summary = SyncSummary::default();
        summary.error = self.try_run(&mut summary).err();
        if summary.error.is_none() && !summary.unrecorded.is_empty() {
            summary.error = Some(SyncError::Unrecorded);
        }
        summary
    }

    /// Only takes what is applied as good, however short the host has run with it: it goes
    /// down in order. Then no payload is why it does.
    pub fn settle_now(mut self) -> SyncSummary {
        let mut summary = SyncSummary::default();
        summary.error = self.try_settle_now(&mut summary).err();
        summary
    }

    fn try_settle_now(&mut self, summary: &mut SyncSummary) -> Result<(), SyncError> {
        let (mut progress, quarantine) = self.recover(summary)?;
        let catalogue = self.catalogue(&progress, &quarantine);
        let observed = self.list().map(|list| Observed::new(list, &catalogue));
        let record = progress.entry(self.base);
        let before = record.clone();
        if let Some(attempt) = &record.attempt {
            let is_done = |observed: &Observed| is_as_attempted(observed, attempt);
            match observed.as_ref().is_ok_and(is_done) {
                true => record.take_as_done(),
                false => record.attempt = None,
            }
        }
        if *record != before {
            progress.write(self.disk)?;
        }
        let observed = observed?;
        summary.from = observed.level();
        summary.level = observed.known_level(&catalogue);
        let settled = self.settle(&mut progress, &observed, Duration::ZERO);
        summary.changed = progress.of(self.base) != before;
        Ok(settled?)
    }

    fn try_run(&mut self, summary: &mut SyncSummary) -> Result<(), SyncError> {
        Plan::permitted(self.policy, self.request)?;
        let (mut progress, mut quarantine) = self.recover(summary)?;
        let catalogue = self.catalogue(&progress, &quarantine);
        let before = self.list()?;
        let observed = Observed::new(before.clone(), &catalogue);
        summary.from = observed.level();
        summary.level = observed.known_level(&catalogue);
        let time = Duration::from_secs(self.policy.settle.into());
        self.settle(&mut progress, &observed, time)?;
        let record = progress.of(self.base);
        let plan = Plan::make(&observed, &catalogue, self.policy, &record, self.request)?;
        summary.warnings = plan.warnings(&catalogue);
        if plan.steps.is_empty() {
            self.note_reached(&mut progress, &observed, plan.goal)?;
            return all_read(&plan);
        }
        let run = Run {
            former: plan.former.map(|entry| self.former(entry, &catalogue)),
            plan: &plan,
            catalogue: &catalogue,
            before: &before,
            begun: Instant::now(),
        };
        let data = self.prepare(&run, &mut progress, summary)?;
        let unsettled = self.begin(&run, &mut progress, summary)?;
        let (taken, after) = self.carry_out(&run, data.as_deref(), &mut quarantine, summary);
        self.conclude(&run, &taken, &after, unsettled, &mut progress, summary);
        taken.and_then(|()| all_read(&plan))
    }

    /// What the store has, and which of it counts.
    fn catalogue(&self, progress: &Progress, quarantine: &Quarantine) -> Catalogue {
        let trust = Trust {
            policy: self.policy,
            record: &progress.of(self.base),
            date: &self.recorder.now.date,
        };
        Catalogue::read(self.disk, self.base, &trust, quarantine)
    }

    /// What is applied now. Bytes that may not be applied are not uploaded to restore
    /// something, either.
    fn former<'a>(&self, entry: &'a Entry, catalogue: &Catalogue) -> Former<'a> {
        let verified = entry.is_verified(catalogue.verify);
        Former {
            entry,
            data: verified.then(|| entry.read(self.disk).ok()).flatten(),
        }
    }

    /// Reads and checks the payload that is to be uploaded, before anything is begun.
    fn prepare(
        &mut self,
        run: &Run,
        progress: &mut Progress,
        summary: &mut SyncSummary,
    ) -> Result<Option<Vec<u8>>, SyncError> {
        let Some(entry) = run.plan.uploaded() else {
            return Ok(None);
        };
        let checked = entry.read(self.disk).map_err(SyncError::from);
        let checked = checked.and_then(|data| {
            let name = entry.manifest.name.clone();
            let checked = Driver::new(self.host).check(&name, &data);
            checked.map_err(|fault| SyncError::Check { name, fault })?;
            Ok(Some(data))
        });
        if let Err(error) = &checked {
            progress.entry(self.base).failed = Some(self.failure(run.payload(), error));
            summary.keep(progress.write(self.disk));
            summary.keep(self.recorder.record(self.failed(run, error)));
        }
        checked
    }

    /// Writes the attempt. Returns the one before it, which had yet to settle.
    fn begin(
        &self,
        run: &Run,
        progress: &mut Progress,
        summary: &mut SyncSummary,
    ) -> Result<Option<Attempt>, SyncError> {
        self.recorder.record(self.event(run, Outcome::Begun))?;
        let attempt = self.attempt(run.payload(), false);
        let record = progress.entry(self.base);
        record.manage(&self.recorder.now.boot, run.plan.managed());
        let unsettled = record.attempt.replace(attempt);
        let Err(error) = progress.write(self.disk) else {
            return Ok(unsettled);
        };
        // It may be there all the same.
        progress.entry(self.base).attempt = unsettled;
        summary.keep(progress.write(self.disk));
        let error = error.into();
        summary.keep(self.recorder.record(self.failed(run, &error)));
        Err(error)
    }

    /// Takes the steps. If one fails, restores what was applied before, and puts the
    /// payload into quarantine if that is its fault.
    fn carry_out(
        &mut self,
        run: &Run,
        data: Option<&[u8]>,
        quarantine: &mut Quarantine,
        summary: &mut SyncSummary,
    ) -> (Result<(), SyncError>, After) {
        let mut driver = Driver::new(self.host);
        let mut taken = driver.take(&run.plan.steps, data, &mut summary.steps);
        let mut after = run.after(driver.list());
        taken = match (taken, &after.loaded) {
            (Ok(()), Err(fault)) => Err(SyncError::List(fault.clone())),
            (Ok(()), Ok(_)) if !after.reached => Err(SyncError::Elsewhere),
            (taken, _) => taken,
        };
        let failed = taken.as_ref().err().filter(|_| !after.reached);
        // While it is still at work, nothing can be restored. If only the last list is
        // missing, all was done.
        let undo = !after.at_work && !matches!(failed, Some(SyncError::List(_)));
        if failed.is_some() && undo {
            summary.restored = run
                .former
                .as_ref()
                .and_then(|former| driver.restore(former));
            run.goal().iter().for_each(|goal| driver.sweep(goal));
            after = run.after(driver.list());
        }
        summary.retries = driver.retries;
        if let (Some(error), Some(payload)) = (failed, run.payload())
            && is_fault_of_payload(error, run.goal())
        {
            let quarantined = Quarantined {
                payload,
                reason: error.to_string(),
                date: self.recorder.now.date.clone(),
            };
            summary.keep(quarantine.add(self.disk, quarantined.clone()));
            summary.quarantined.push(quarantined);
        }
        (taken, after)
    }

    /// Writes how it ended.
    fn conclude(
        &self,
        run: &Run,
        taken: &Result<(), SyncError>,
        after: &After,
        unsettled: Option<Attempt>,
        progress: &mut Progress,
        summary: &mut SyncSummary,
    ) {
        let observed = after.loaded.as_ref().ok();
        let observed = observed.map(|loaded| Observed::new(loaded.clone(), run.catalogue));
        let same = after.loaded.as_ref().is_ok_and(|now| now == run.before);
        summary.changed = !same;
        summary.level = observed.as_ref().map(Observed::level);
        let record = progress.entry(self.base);
        if let Ok(loaded) = &after.loaded {
            record.forget_unloaded(loaded);
        }
        if after.reached {
            record.take_as_done();
        } else if let Err(error) = taken {
            record.failed = Some(self.failure(run.payload(), error));
            // What is still at work, or may have been done, may yet be applied. What has
            // failed is forgotten, and what the host had begun to run with before is not,
            // if it has it still.
            let unknown = after.loaded.is_err() && matches!(error, SyncError::List(_));
            if !after.at_work && !unknown {
                record.attempt = unsettled.filter(|attempt| {
                    let observed = observed.as_ref();
                    observed.is_some_and(|observed| is_as_attempted(observed, attempt))
                });
            }
        }
        summary.keep(progress.write(self.disk));
        let outcome = match taken {
            Ok(()) => Outcome::Done,
            Err(_) => Outcome::Failed,
        };
        summary.keep(self.recorder.record(Event {
            milliseconds: u64::try_from(run.begun.elapsed().as_millis()).ok(),
            retries: Some(summary.retries),
            message: taken.as_ref().err().map(ToString::to_string),
            ..self.event(run, outcome)
        }));
    }

    /// An event of this run.
    fn event(&self, run: &Run, outcome: Outcome) -> Event {
        Event {
            base: Some(self.base.clone()),
            signer: run.goal().map(|entry| entry.signer.to_string()),
            ..Event::new(Action::Sync, outcome, run.payload())
        }
    }

    fn failed(&self, run: &Run, error: &SyncError) -> Event {
        Event {
            message: Some(error.to_string()),
            ..self.event(run, Outcome::Failed)
        }
    }

    /// What is begun, or `done`, at this moment.
    fn attempt(&self, payload: Option<Identity>, done: bool) -> Attempt {
        Attempt {
            payload,
            boot: self.recorder.now.boot.clone(),
            uptime: self.recorder.now.uptime.as_secs(),
            done,
        }
    }

    /// What has failed at this moment.
    fn failure(&self, payload: Option<Identity>, error: &SyncError) -> Failed {
        Failed {
            payload,
            reason: error.to_string(),
            date: self.recorder.now.date.clone(),
        }
    }

    fn list(&mut self) -> Result<Vec<Loaded>, SyncError> {
        Driver::new(self.host).list().map_err(SyncError::List)
    }

    /// Finds out whether the host went down with something.
    fn recover(&self, summary: &mut SyncSummary) -> Result<(Progress, Quarantine), SyncError> {
        let mut progress = Progress::read(self.disk)?;
        let mut quarantine = Quarantine::read(self.disk)?;
        let before = progress.clone();
        for quarantined in progress.recover(&self.recorder.now) {
            quarantine.add(self.disk, quarantined.clone())?;
            self.recorder.record(Event {
                message: Some(quarantined.reason.clone()),
                ..Event::new(
                    Action::Quarantine,
                    Outcome::Done,
                    Some(quarantined.payload.clone()),
                )
            })?;
            summary.quarantined.push(quarantined);
        }
        if progress != before {
            progress.write(self.disk)?;
        }
        Ok((progress, quarantine))
    }

    /// Takes what is applied as good, if the host has run with it for this `time`.
    fn settle(
        &self,
        progress: &mut Progress,
        observed: &Observed,
        time: Duration,
    ) -> Result<(), Error> {
        let record = progress.entry(self.base);
        let attempted = record.attempt.as_ref().and_then(|a| a.payload.clone());
        if attempted.is_none_or(|payload| !has(observed, &payload))
            || !record.has_settled(&self.recorder.now, time)
        {
            return Ok(());
        }
        record.settle();
        let payload = record.reached.clone();
        progress.write(self.disk)?;
        self.recorder.record(Event {
            base: Some(self.base.clone()),
            ..Event::new(Action::Settle, Outcome::Done, payload)
        })
    }

    /// The host has what it is to have. An earlier run may have done everything, and ended
    /// before it could write that; or somebody else applied what is wanted now, which
    /// then has yet to settle.
    fn note_reached(
        &self,
        progress: &mut Progress,
        observed: &Observed,
        goal: Goal,
    ) -> Result<(), Error> {
        let record = progress.entry(self.base);
        let before = record.clone();
        let attempt = record.attempt.as_ref();
        if attempt.is_some_and(|attempt| is_as_attempted(observed, attempt)) {
            record.take_as_done();
        } else {
            // What was begun has come to nothing, and is not why the host may yet go down.
            record.attempt = None;
            if !self.request.unattended {
                record.failed = None;
                let adopted = goal.payload().map(|entry| entry.manifest.identity());
                record.attempt = adopted
                    .filter(|payload| record.reached.as_ref() != Some(payload))
                    .map(|payload| self.attempt(Some(payload), true));
            }
        }
        // The host has no payload, since it booted, and is to have none from now on.
        if self.policy.want == Want::None && observed.applied().next().is_none() {
            record.reached = None;
        }
        match *record != before {
            true => progress.write(self.disk),
            false => Ok(()),
        }
    }
}

/// Refuses to call it done if there may be a higher level.
fn all_read(plan: &Plan) -> Result<(), SyncError> {
    match plan.unread.as_slice() {
        [] => Ok(()),
        [unread, ..] => Err(SyncError::Unread((*unread).clone())),
    }
}

/// Whether the payload is applied.
fn has(observed: &Observed, payload: &Identity) -> bool {
    let mut applied = observed.applied().filter_map(|(_, entry)| entry);
    applied.any(|entry| entry.manifest.identity() == *payload)
}

/// Whether what was begun is done.
fn is_as_attempted(observed: &Observed, attempt: &Attempt) -> bool {
    match &attempt.payload {
        Some(payload) => has(observed, payload),
        None => observed.applied().next().is_none(),
    }
}

/// Whether the hypervisor has applied what it is to have, and nothing else.
fn is_reached(loaded: &[Loaded], plan: &Plan, catalogue: &Catalogue) -> bool {
    let observed = Observed::new(loaded.to_vec(), catalogue);
    let mut applied = observed.applied().map(|(_, entry)| entry);
    match plan.goal.payload() {
        None => applied.next().is_none(),
        Some(wanted) => applied.next() == Some(Some(wanted)) && applied.next().is_none(),
    }
}

/// Whether the payload that was to be applied is why it failed.
fn is_fault_of_payload(error: &SyncError, goal: Option<&Entry>) -> bool {
    let SyncError::Step { step, fault } = error else {
        return false;
    };
    let of = match step {
        Step::Upload { payload } => &payload.name,
        Step::Apply { name } | Step::Replace { name } => name,
        Step::Revert { .. } | Step::Unload { .. } => return false,
    };
    fault.is_of_payload() && goal.is_some_and(|goal| goal.manifest.name == *of)
}
