// SPDX-License-Identifier: MIT OR Apache-2.0
//! How failures of the store are reported.

use crate::output::{Failure, Kind};
use xsplice_store::{Blocked, Fault, SyncError};

/// Why there is no plan.
fn blocked(blocked: &Blocked) -> Failure {
    let kind = match blocked {
        Blocked::Busy { .. } => Kind::Busy,
        _ => Kind::Refused,
    };
    Failure::new(kind, blocked.to_string())
}

/// Why a run failed that `changed` something, or nothing.
pub(super) fn sync(error: &SyncError, changed: bool) -> Failure {
    let failure = match (error, error.fault()) {
        (SyncError::Blocked(reason), _) => blocked(reason),
        (_, Some(answer)) => fault(answer, &error.to_string(), changed),
        _ => Failure::new(Kind::Failed, error.to_string()),
    };
    failure.with_code(error.into())
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
