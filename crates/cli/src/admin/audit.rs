// SPDX-License-Identifier: MIT OR Apache-2.0
//! What every change of the hypervisor's payloads has in common, under both names of the
//! tool: one at a time on a host, and all in the history.
//!
//! If a change cannot be recorded, the policy of the host says whether it is made.

use crate::output::complain;
use crate::store;
use std::time::{Duration, Instant};
use xsplice_store::{Action, BuildId, Event, Journal, Lock, LockError, Outcome, Root, Sha256};

/// A change that is under way. Nobody else changes anything until it is dropped.
pub(super) struct Audit {
    _lock: Option<Lock>,
    event: Event,
    begun: Instant,
}

/// Why a change is not made.
pub(super) enum NotBegun {
    /// Others are at work, or there can be no lock.
    Locked(LockError),
    /// It cannot be recorded, and must be.
    Unrecorded(xsplice_store::Error),
}

impl NotBegun {
    pub(super) fn into_error(self) -> anyhow::Error {
        match self {
            Self::Locked(error) => error.into(),
            Self::Unrecorded(error) => error.into(),
        }
    }
}

/// What is changed.
pub(super) struct Subject<'a> {
    pub(super) action: Action,
    /// Build-id of the running hypervisor, if that is known.
    pub(super) base: Option<BuildId>,
    /// The payload; `None` if it is all of them.
    pub(super) name: Option<&'a str>,
    /// The file that is uploaded.
    pub(super) data: Option<&'a [u8]>,
}

impl Audit {
    /// Waits up to `patience` for others, and records what begins.
    ///
    /// # Errors
    /// If others are still at work, there can be no lock, or it cannot be recorded and must
    /// be.
    pub(super) fn begin(subject: &Subject, patience: Duration) -> Result<Self, NotBegun> {
        let lock = Lock::take(&root(), patience).map_err(NotBegun::Locked)?;
        Self::with(Some(lock), subject)
    }

    /// The same for the classic tool, which needs no lock: without a place for one, it goes
    /// on.
    ///
    /// # Errors
    /// If others are still at work, or it cannot be recorded and must be.
    pub(super) fn begin_classic(subject: &Subject, patience: Duration) -> Result<Self, NotBegun> {
        match Self::begin(subject, patience) {
            Err(NotBegun::Locked(LockError::Disk(_))) => Self::with(None, subject),
            begun => begun,
        }
    }

    fn with(lock: Option<Lock>, subject: &Subject) -> Result<Self, NotBegun> {
        let event = Event {
            base: subject.base.clone(),
            name: subject.name.map(str::to_owned),
            sha256: subject.data.map(Sha256::of),
            ..Event::new(subject.action, Outcome::Begun, None)
        };
        let audit = Self {
            _lock: lock,
            event,
            begun: Instant::now(),
        };
        let recorded = record(audit.event.clone());
        store::begin(&root(), recorded).map_err(NotBegun::Unrecorded)?;
        Ok(audit)
    }

    /// Records how it ended: with an error, or that it is done.
    pub(super) fn end(self, error: Option<String>) {
        let outcome = match error {
            None => Outcome::Done,
            Some(_) => Outcome::Failed,
        };
        let recorded = record(Event {
            outcome,
            message: error,
            milliseconds: u64::try_from(self.begun.elapsed().as_millis()).ok(),
            ..self.event.clone()
        });
        if let Err(error) = recorded {
            complain!("warning: not recorded: {error:#}");
        }
    }
}

fn root() -> Root {
    Root::new("/".as_ref())
}

fn record(event: Event) -> anyhow::Result<()> {
    let root = root();
    let log = Journal::new(&root);
    Ok(store::recorder(&root, &log)?.record(event)?)
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
