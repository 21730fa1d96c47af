// SPDX-License-Identifier: MIT OR Apache-2.0
//! Brings the host to what it is to have.
//!
//! What is on the disk is always behind or equal to what happens: the attempt is there
//! before the hypervisor is asked, and the result after it has answered. If the program
//! or the host dies in between, the next run finds the attempt and what the hypervisor
//! has. The attempt is the last that is written before, so that no payload is blamed for
//! what happened without it.

use crate::history::{Action, Event, Outcome, Recorder};
use crate::host::{Change, Fault, Host, State};
use crate::plan::{Blocked, Goal, Observed, Plan, Request, Step};
use crate::progress::{Attempt, Failed, Progress};
use crate::{Catalogue, Disk, Entry, Error, Identity, Policy, Quarantine, Quarantined, Want};
use std::time::{Duration, Instant};

/// How often something is tried again if the hypervisor is busy.
const RETRIES: u32 = 5;
/// How long is waited before the first of these; the next one is twice as long.
const PAUSE: Duration = Duration::from_millis(40);

/// One run.
#[derive(Debug)]
pub struct Sync<'a, D, H> {
    /// Where the store is.
    pub disk: &'a D,
    /// The hypervisor.
    pub host: &'a mut H,
    /// Build-id of the hypervisor.
    pub base: &'a str,
    /// What the administrator wants.
    pub policy: &'a Policy,
    /// What is asked for this time.
    pub request: &'a Request,
    /// Writes the history.
    pub recorder: Recorder<'a, D>,
}

/// How a run ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// What was done.
    pub steps: Vec<Step>,
    /// The level before.
    pub from: u32,
    /// The level now; `None` if the hypervisor does not say.
    pub level: Option<u32>,
    /// Whether the hypervisor holds or has applied something else than before, or the host,
    /// when it goes down, has taken something else as good.
    pub changed: bool,
    /// How often it was busy.
    pub retries: u32,
    /// Whether the former payload had to be put back, and was.
    pub put_back: Option<bool>,
    /// What went into quarantine.
    pub quarantined: Vec<Quarantined>,
    /// What could not be written after it was done.
    pub unrecorded: Vec<String>,
    /// Why it failed.
    pub why: Option<Why>,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// There is no way, or it may not be gone.
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
    /// The hypervisor does not say what it has.
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
    /// All steps were done, and still the host has something else.
    #[error("every step was done, and the host still does not have what it is to have")]
    Elsewhere,
    /// It was done, and that could not be written.
    #[error("it is done, and could not be recorded")]
    Unrecorded,
}

impl Why {
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

impl Ended {
    /// Whether the host has less than before, although it was not to.
    #[must_use]
    pub fn has_less(&self) -> bool {
        self.why.is_some() && self.level.is_some_and(|level| level < self.from)
    }
}

/// What is needed to put back what was there.
struct Former<'a> {
    entry: &'a Entry,
    data: Option<Vec<u8>>,
}

impl<D: Disk, H: Host> Sync<'_, D, H> {
    /// Does it.
    pub fn run(mut self) -> Ended {
        let mut ended = Ended::default();
        let why = self.try_run(&mut ended).err();
        ended.why = why;
        if ended.why.is_none() && !ended.unrecorded.is_empty() {
            ended.why = Some(Why::Unrecorded);
        }
        ended
    }

    /// Only takes what is applied as good, however short the host has lived with it: it
    /// goes down in order. Then no payload is why it does.
    pub fn settle_now(self) -> Ended {
        let mut ended = Ended::default();
        ended.why = self.try_settle_now(&mut ended).err();
        ended
    }

    fn try_settle_now(&self, ended: &mut Ended) -> Result<(), Why> {
        let (mut progress, quarantine) = self.recover(ended)?;
        let catalogue = Catalogue::read(self.disk, self.base, self.policy, &quarantine)?;
        let observed = self.list().map(|list| Observed::new(list, &catalogue));
        let standing = progress.entry(self.base);
        let before = standing.clone();
        if let Some(attempt) = &standing.attempt {
            let is_done = |observed: &Observed| is_as_attempted(observed, attempt);
            match observed.as_ref().is_ok_and(is_done) {
                true => standing.take_as_done(),
                false => standing.attempt = None,
            }
        }
        if *standing != before {
            progress.write(self.disk)?;
        }
        let observed = observed?;
        ended.from = observed.level();
        ended.level = Some(ended.from);
        let settled = self.settle(&mut progress, &observed, Duration::ZERO);
        ended.changed = progress.of(self.base) != before;
        Ok(settled?)
    }

    fn try_run(&mut self, ended: &mut Ended) -> Result<(), Why> {
        Plan::permitted(self.policy, self.request)?;
        let (mut progress, mut quarantine) = self.recover(ended)?;
        let catalogue = Catalogue::read(self.disk, self.base, self.policy, &quarantine)?;
        let before = self.list()?;
        let observed = Observed::new(before.clone(), &catalogue);
        ended.from = observed.level();
        ended.level = Some(ended.from);
        let time = Duration::from_secs(self.policy.settle.into());
        self.settle(&mut progress, &observed, time)?;
        let standing = progress.of(self.base);
        let plan = Plan::make(&observed, &catalogue, self.policy, &standing, self.request)?;
        if plan.steps.is_empty() {
            return Ok(self.note_reached(&mut progress, &observed, plan.goal)?);
        }
        let goal = match plan.goal {
            Goal::Payload(entry) => Some(entry),
            Goal::Nothing | Goal::AsItIs => None,
        };
        let uploads = plan
            .steps
            .iter()
            .any(|step| matches!(step, Step::Upload { .. }));
        // Bytes that may not be applied are not uploaded to put something back, either.
        let former = plan.former.map(|entry| Former {
            entry,
            data: Some(entry)
                .filter(|entry| entry.is_verified(catalogue.verify))
                .and_then(|entry| entry.read(self.disk).ok()),
        });
        let identity = goal.map(|entry| entry.manifest.identity());
        let begun = Instant::now();
        let event = |outcome| Event {
            base: Some(self.base.to_owned()),
            signer: goal.map(|entry| entry.signer.to_string()),
            ..Event::new(Action::Sync, outcome, identity.clone())
        };
        let failed = |why: &Why| Event {
            message: Some(why.to_string()),
            ..event(Outcome::Failed)
        };
        let data = match self.prepare(goal.filter(|_| uploads)) {
            Ok(data) => data,
            Err(why) => {
                progress.entry(self.base).failed = Some(self.failure(identity.clone(), &why));
                ended.keep(progress.write(self.disk));
                ended.keep(self.recorder.record(failed(&why)));
                return Err(why);
            }
        };
        self.recorder.record(event(Outcome::Begun))?;
        let attempt = self.attempt(identity.clone(), false);
        let unsettled = progress.entry(self.base).attempt.replace(attempt);
        if let Err(error) = progress.write(self.disk) {
            // It may be there all the same.
            progress.entry(self.base).attempt = unsettled;
            ended.keep(progress.write(self.disk));
            let why = error.into();
            ended.keep(self.recorder.record(failed(&why)));
            return Err(why);
        }

        let mut taken = self.take(&plan.steps, data.as_deref(), ended);
        let mut at_work = false;
        let mut after = self.host.list();
        let reached = after
            .as_ref()
            .is_ok_and(|after| is_reached(after, &plan, &catalogue));
        if taken.is_ok() && after.is_ok() && !reached {
            taken = Err(Why::Elsewhere);
        }
        if let Err(why) = &taken
            && !reached
        {
            // While it is still at work, nothing can be put back.
            at_work = after
                .as_ref()
                .is_ok_and(|after| after.iter().any(|l| l.busy));
            if !at_work {
                ended.put_back = self.put_back(former, goal, ended);
                after = self.host.list();
            }
            if let (Some(payload), true) = (&identity, is_fault_of_payload(why, goal)) {
                let quarantined = Quarantined {
                    payload: payload.clone(),
                    reason: why.to_string(),
                    date: self.recorder.now.date.clone(),
                };
                ended.keep(quarantine.add(self.disk, quarantined.clone()));
                ended.quarantined.push(quarantined);
            }
        }
        match &after {
            Ok(after) => {
                ended.changed = *after != before;
                ended.level = Some(Observed::new(after.clone(), &catalogue).level());
            }
            Err(_) => (ended.changed, ended.level) = (true, None),
        }

        let standing = progress.entry(self.base);
        if reached {
            standing.take_as_done();
        } else if let Err(why) = &taken {
            standing.failed = Some(self.failure(identity.clone(), why));
            // What is still at work may yet be applied. What has failed is forgotten, and
            // what the host had begun to live with before is not, if it has it still.
            if !at_work {
                let is_there = |attempt: &Attempt| {
                    after.as_ref().is_ok_and(|after| {
                        is_as_attempted(&Observed::new(after.clone(), &catalogue), attempt)
                    })
                };
                standing.attempt = unsettled.filter(is_there);
            }
        }
        ended.keep(progress.write(self.disk));
        let outcome = if taken.is_ok() {
            Outcome::Done
        } else {
            Outcome::Failed
        };
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).ok();
        ended.keep(self.recorder.record(Event {
            milliseconds,
            retries: Some(ended.retries),
            message: taken.as_ref().err().map(ToString::to_string),
            ..event(outcome)
        }));
        taken
    }

    /// Reads and checks the payload that is to be uploaded.
    fn prepare(&self, uploaded: Option<&Entry>) -> Result<Option<Vec<u8>>, Why> {
        let Some(entry) = uploaded else {
            return Ok(None);
        };
        let data = entry.read(self.disk)?;
        let name = entry.manifest.name.clone();
        let checked = self.host.check(&name, &data);
        checked.map_err(|fault| Why::Check { name, fault })?;
        Ok(Some(data))
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
    fn failure(&self, payload: Option<Identity>, why: &Why) -> Failed {
        Failed {
            payload,
            reason: why.to_string(),
            date: self.recorder.now.date.clone(),
        }
    }

    fn list(&self) -> Result<Vec<crate::Loaded>, Why> {
        self.host.list().map_err(Why::List)
    }

    /// Finds out whether the host went down with something.
    fn recover(&self, ended: &mut Ended) -> Result<(Progress, Quarantine), Why> {
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
            ended.quarantined.push(quarantined);
        }
        if progress != before {
            progress.write(self.disk)?;
        }
        Ok((progress, quarantine))
    }

    /// Takes what is applied as good, if the host has lived with it for this `time`.
    fn settle(
        &self,
        progress: &mut Progress,
        observed: &Observed,
        time: Duration,
    ) -> Result<(), Error> {
        let standing = progress.entry(self.base);
        let attempted = standing.attempt.as_ref().and_then(|a| a.payload.clone());
        if attempted.is_none_or(|payload| !has(observed, &payload))
            || !standing.has_settled(&self.recorder.now, time)
        {
            return Ok(());
        }
        standing.settle();
        let payload = standing.reached.clone();
        progress.write(self.disk)?;
        self.recorder.record(Event {
            base: Some(self.base.to_owned()),
            ..Event::new(Action::Settle, Outcome::Done, payload)
        })
    }

    /// The host has what it is to have. An earlier run may have done everything, and ended
    /// before it could write that; or somebody else applied what is wanted now, which the
    /// host then has yet to live with.
    fn note_reached(
        &self,
        progress: &mut Progress,
        observed: &Observed,
        goal: Goal,
    ) -> Result<(), Error> {
        let standing = progress.entry(self.base);
        let before = standing.clone();
        let attempt = standing.attempt.as_ref();
        if attempt.is_some_and(|attempt| is_as_attempted(observed, attempt)) {
            standing.take_as_done();
        } else {
            // What was begun has come to nothing, and is not why the host may yet go down.
            standing.attempt = None;
            if !self.request.unattended {
                standing.failed = None;
                let adopted = match goal {
                    Goal::Payload(entry) => Some(entry.manifest.identity()),
                    Goal::Nothing | Goal::AsItIs => None,
                };
                standing.attempt = adopted
                    .filter(|payload| standing.reached.as_ref() != Some(payload))
                    .map(|payload| self.attempt(Some(payload), true));
            }
        }
        // The host has no payload, since it booted, and is to have none from now on.
        if self.policy.want == Want::None && observed.applied().next().is_none() {
            standing.reached = None;
        }
        match *standing != before {
            true => progress.write(self.disk),
            false => Ok(()),
        }
    }

    /// Takes the steps, up to the first that fails.
    fn take(&mut self, steps: &[Step], data: Option<&[u8]>, ended: &mut Ended) -> Result<(), Why> {
        for step in steps {
            let done = self.step(step, data, &mut ended.retries);
            done.map_err(|fault| Why::Step {
                step: step.clone(),
                fault: Box::new(fault),
            })?;
            ended.steps.push(step.clone());
        }
        Ok(())
    }

    /// Takes a step; if the hypervisor is busy, a few times.
    fn step(&mut self, step: &Step, data: Option<&[u8]>, retries: &mut u32) -> Result<(), Fault> {
        let (mut pause, mut tries) = (PAUSE, 0);
        loop {
            let done = match step {
                Step::Upload { payload } => {
                    self.host.upload(&payload.name, data.unwrap_or_default())
                }
                Step::Apply { name } => self.host.change(name, Change::Apply),
                Step::Replace { name } => self.host.change(name, Change::Replace),
                Step::Revert { name } => self.host.change(name, Change::Revert),
                Step::Unload { name } => self.host.change(name, Change::Unload),
            };
            match done {
                Err(fault) if fault.is_busy() && tries < RETRIES => {
                    tries += 1;
                    *retries += 1;
                    self.host.pause(pause);
                    pause *= 2;
                }
                done => return done,
            }
        }
    }

    /// Puts back what was applied before, and unloads what was to be applied. Says whether
    /// it had to be put back, and is there again.
    fn put_back(
        &mut self,
        former: Option<Former>,
        goal: Option<&Entry>,
        ended: &mut Ended,
    ) -> Option<bool> {
        let retries = &mut ended.retries;
        let state = |host: &H, entry: &Entry| {
            let list = host.list().unwrap_or_default();
            let mut list = list.into_iter();
            let found = list.find(|loaded| loaded.name == entry.manifest.name);
            found.map(|loaded| loaded.state)
        };
        let put_back = former.and_then(|Former { entry, data }| {
            if state(self.host, entry) == Some(State::Applied) {
                return None;
            }
            let name = || entry.manifest.name.clone();
            let apply = Step::Apply { name: name() };
            if state(self.host, entry) == Some(State::Checked) {
                if self.step(&apply, None, retries).is_ok() {
                    return Some(true);
                }
                // Its data may not be as in the beginning: it is loaded anew.
                let _ = self.step(&Step::Unload { name: name() }, None, retries);
            }
            let Some(data) = data else {
                return Some(false);
            };
            let upload = Step::Upload {
                payload: entry.manifest.identity(),
            };
            let uploaded = self.step(&upload, Some(&data), retries);
            let applied = uploaded.and_then(|()| self.step(&apply, None, retries));
            Some(applied.is_ok())
        });
        if let Some(goal) = goal
            && state(self.host, goal) == Some(State::Checked)
        {
            let name = goal.manifest.name.clone();
            // What stays is unloaded by the next run.
            let _ = self.step(&Step::Unload { name }, None, retries);
        }
        put_back
    }
}

impl Ended {
    /// Remembers what could not be written.
    fn keep(&mut self, written: crate::Result<()>) {
        self.unrecorded
            .extend(written.err().map(|error| error.to_string()));
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
fn is_reached(loaded: &[crate::Loaded], plan: &Plan, catalogue: &Catalogue) -> bool {
    let observed = Observed::new(loaded.to_vec(), catalogue);
    let wanted = match plan.goal {
        Goal::Payload(entry) => Some(entry),
        Goal::Nothing | Goal::AsItIs => None,
    };
    let mut applied = observed.applied().map(|(_, entry)| entry);
    match wanted {
        None => applied.next().is_none(),
        Some(wanted) => applied.next() == Some(Some(wanted)) && applied.next().is_none(),
    }
}

/// Whether the payload that was to be applied is why it failed.
fn is_fault_of_payload(why: &Why, goal: Option<&Entry>) -> bool {
    let Why::Step { step, fault } = why else {
        return false;
    };
    let of = match step {
        Step::Upload { payload } => &payload.name,
        Step::Apply { name } | Step::Replace { name } => name,
        Step::Revert { .. } | Step::Unload { .. } => return false,
    };
    fault.is_of_payload() && goal.is_some_and(|goal| goal.manifest.name == *of)
}
