// SPDX-License-Identifier: MIT OR Apache-2.0
//! How failures of the store are reported.

use crate::output::{Ended, Failure, Kind, complain};
use std::process::ExitCode;
use xsplice_store::{Blocked, Fault, LockError, Why};

/// Why a command could not begin, or go on.
pub(super) enum Failed {
    /// Another run has the lock.
    Locked(LockError),
    /// Something else.
    Other(anyhow::Error),
}

impl From<LockError> for Failed {
    fn from(error: LockError) -> Self {
        Self::Locked(error)
    }
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl From<xsplice_store::Error> for Failed {
    fn from(error: xsplice_store::Error) -> Self {
        Self::Other(error.into())
    }
}

/// Another run is at work: this one has changed nothing.
pub(super) fn locked(error: &LockError, json: bool) -> ExitCode {
    let kind = match error {
        LockError::Held => Kind::Busy,
        LockError::Disk(_) => Kind::Failed,
    };
    complain!("error: {error}");
    Ended::<()>::badly(Failure::new(kind, error.to_string())).tell(json)
}

/// Why there is no plan.
fn blocked(blocked: &Blocked) -> Failure {
    let kind = match blocked {
        Blocked::Busy { .. } => Kind::Busy,
        _ => Kind::Refused,
    };
    Failure::new(kind, blocked.to_string())
}

/// Why a run failed that `changed` something, or nothing.
pub(super) fn why(why: &Why, changed: bool) -> Failure {
    match (why, why.fault()) {
        (Why::Blocked(reason), _) => blocked(reason),
        (_, Some(answer)) => fault(answer, &why.to_string(), changed),
        _ => Failure::new(Kind::Failed, why.to_string()),
    }
}

/// The hypervisor's answer.
fn fault(fault: &Fault, message: &str, changed: bool) -> Failure {
    let kind = match fault.errno {
        Some(_) if fault.is_busy() && !changed => Kind::Busy,
        Some(_) => Kind::Hypervisor,
        None => Kind::Refused,
    };
    Failure::new(kind, message)
        .with_errno(fault.errno)
        .with_console(&fault.console)
}
