// SPDX-License-Identifier: MIT OR Apache-2.0
//! The payloads that a host should have, and how it gets and keeps them.
//!
//! *What it is*: a [`Catalogue`] is what the store on disk has for a hypervisor: each
//! payload with its [`Manifest`], which is signed. [`Plan::make`] compares it with what
//! the hypervisor has applied and with the host's [`Policy`]; [`Sync`] does the steps of
//! the plan; [`Report`] has the state of the host in one word. The hypervisor is a trait
//! ([`Host`]), and so is the file system ([`Disk`]).
//!
//! *What it trusts*: the keys of the host, its policy, and what it wrote itself. Nothing
//! that is in the store is trusted before its signature and hash are verified, if the
//! policy demands signatures; no file makes it panic.
//!
//! *What it guarantees*: the bytes that are uploaded are those that were verified. Files
//! are written so that a reader, or the next boot, finds the old or the new one. Before
//! the hypervisor is asked to change, the attempt is on disk: if the host dies, the next
//! boot knows with which payload. If a step fails, the sync restores the former
//! payload; whatever could not be restored, or recorded, is in the summary.
#![forbid(unsafe_code)]

mod catalogue;
mod chain;
mod coverage;
mod date;
mod disk;
mod driver;
mod history;
mod host;
mod identity;
mod install;
mod installed;
mod journal;
mod keys;
mod lock;
mod manifest;
mod metrics;
mod paths;
mod plan;
mod policy;
mod progress;
mod quarantine;
mod report;
mod retries;
mod rotated;
mod series;
mod sync;
mod uploaded;

pub use catalogue::{Catalogue, Damaged, Entry, Origin, Trust};
pub use chain::{Break, Broken};
pub use coverage::{Coverage, Covered, Fleet};
pub use date::Date;
pub use disk::{Disk, Root, append, replace};
pub use history::{Action, Event, History, Line, Outcome, Recorder};
pub use host::{Change, Fault, Host, Loaded, State};
pub use identity::{BuildId, Identity, Moment, Sha256};
pub use install::{Incoming, Judged, Removal, install, remove};
pub use journal::{Journal, Log, Unlogged};
pub use keys::{Keys, Signer};
pub use lock::{Lock, LockError};
pub use manifest::{Hunks, Manifest, Patch, Release, SCHEMA};
pub use metrics::metrics;
pub use paths::Paths;
pub use plan::{Blocked, Goal, Observed, Plan, Request, Step};
pub use policy::{Audit, Manager, Policy, Verify, Want};
pub use progress::{Attempt, Failed, HostRecord, Managed, Progress};
pub use quarantine::{Quarantine, Quarantined};
pub use report::{Condition, Held, Known, Report};
pub use retries::Retries;
pub use series::{Base, Has, Reason, Series, Standing, Task, makefile, ninja, page};
pub use sync::{Sync, SyncError, SyncSummary};

use std::path::PathBuf;

/// Why the store cannot be read or written, or does not take something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system's answer.
    #[error("{}: {error}", path.display())]
    Disk {
        /// The file or directory.
        path: PathBuf,
        /// What it answered.
        error: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{}: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// What was given is not good.
    #[error("{1}")]
    Refused(Refusal, String),
}

/// Why what was given is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is not as it must be.
    Invalid,
    /// It is not signed by a key of the host that is valid today.
    Unverified,
    /// The store has another payload in its place.
    Taken,
    /// There is none.
    Missing,
    /// The host needs it.
    Needed,
    /// It cannot be recorded, and must be.
    Unrecorded,
}

impl Error {
    /// What is wrong, for those who name the path themselves.
    pub(crate) fn cause(&self) -> String {
        match self {
            Self::Disk { error, .. } => error.to_string(),
            Self::Damaged { why, .. } => why.clone(),
            Self::Refused(_, why) => why.clone(),
        }
    }

    pub(crate) fn invalid(why: impl Into<String>) -> Self {
        Self::Refused(Refusal::Invalid, why.into())
    }

    pub(crate) fn damaged(path: &std::path::Path, why: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            why: why.into(),
        }
    }
}

/// What the store's functions return.
pub type Result<T> = std::result::Result<T, Error>;
