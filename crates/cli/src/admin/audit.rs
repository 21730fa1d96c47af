// SPDX-License-Identifier: MIT OR Apache-2.0
//! What every change of the hypervisor's payloads has in common, under both names of the
//! tool: one at a time on a host, and all in the history.
//!
//! A change that cannot be recorded is made all the same, with a warning: to revert a bad
//! payload is worth more than its record.

use crate::output::complain;
use crate::store;
use std::time::{Duration, Instant};
use xsplice_dom0::{Privcmd, build_id};
use xsplice_store::{Action, Event, Journal, Lock, LockError, Outcome, Root, Sha256};

/// A change that is under way. Nobody else changes anything until it is dropped.
pub(super) struct Audit {
    _lock: Option<Lock>,
    event: Event,
    begun: Instant,
}

/// What is changed.
pub(super) struct Subject<'a> {
    pub(super) action: Action,
    /// The payload; `None` if it is all of them.
    pub(super) name: Option<&'a str>,
    /// The file that is uploaded.
    pub(super) data: Option<&'a [u8]>,
}

impl Audit {
    /// Waits up to `patience` for others, and records what begins.
    ///
    /// # Errors
    /// If others are still at work, or there can be no lock.
    pub(super) fn begin(
        subject: &Subject,
        hypervisor: &Privcmd,
        patience: Duration,
    ) -> Result<Self, LockError> {
        let lock = Lock::take(&Root::new("/".as_ref()), patience)?;
        Ok(Self::with(Some(lock), subject, hypervisor))
    }

    /// The same for the classic tool, which needs no lock: without a place for one, it goes
    /// on.
    ///
    /// # Errors
    /// If others are still at work.
    pub(super) fn begin_classic(
        subject: &Subject,
        hypervisor: &Privcmd,
        patience: Duration,
    ) -> Result<Self, LockError> {
        match Self::begin(subject, hypervisor, patience) {
            Err(LockError::Disk(_)) => Ok(Self::with(None, subject, hypervisor)),
            begun => begun,
        }
    }

    fn with(lock: Option<Lock>, subject: &Subject, hypervisor: &Privcmd) -> Self {
        let base = build_id(hypervisor).ok().flatten();
        let event = Event {
            base: base.and_then(|id| id.try_into().ok()),
            name: subject.name.map(str::to_owned),
            sha256: subject.data.map(Sha256::of),
            ..Event::new(subject.action, Outcome::Begun, None)
        };
        let audit = Self {
            _lock: lock,
            event,
            begun: Instant::now(),
        };
        audit.record(audit.event.clone());
        audit
    }

    /// Records how it ended: with an error, or that it is done.
    pub(super) fn end(self, error: Option<String>) {
        let outcome = match error {
            None => Outcome::Done,
            Some(_) => Outcome::Failed,
        };
        self.record(Event {
            outcome,
            message: error,
            milliseconds: u64::try_from(self.begun.elapsed().as_millis()).ok(),
            ..self.event.clone()
        });
    }

    fn record(&self, event: Event) {
        let root = Root::new("/".as_ref());
        let log = Journal::new(&root);
        let recorded = store::recorder(&root, &log);
        let recorded = recorded.and_then(|recorder| Ok(recorder.record(event)?));
        if let Err(error) = recorded {
            complain!("warning: not recorded: {error:#}");
        }
    }
}

/// What the history calls an action.
pub(super) fn recorded(action: xsplice_dom0::Action) -> Action {
    match action {
        xsplice_dom0::Action::Apply => Action::Apply,
        xsplice_dom0::Action::Revert => Action::Revert,
        xsplice_dom0::Action::Unload => Action::Unload,
        xsplice_dom0::Action::Replace => Action::Replace,
    }
}
