// SPDX-License-Identifier: MIT OR Apache-2.0

//! Why an action on a payload failed.

use super::Action;
use crate::host::{Absent, Hook};
use crate::problem::Problem;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use thiserror::Error;
use xsplice_abi::errno::Errno;
use xsplice_fallible::NoMemory;

/// A failed action. Nothing has changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// The payload; empty if there was no memory for the name.
    pub payload: String,
    /// The action.
    pub action: Action,
    /// Why.
    pub cause: Cause,
}

/// Why an action failed. Names are empty if there was no memory for them.
#[derive(Debug, PartialEq, Eq, Error)]
#[expect(
    missing_docs,
    reason = "fields are named after what they hold; the message uses each"
)]
#[non_exhaustive]
pub enum Cause {
    /// No payload of that name.
    #[error("no payload of this name is loaded")]
    NoSuchPayload,
    /// Another action has not run yet.
    #[error("an action on {other} is in progress; try again later")]
    Busy { other: String },
    /// Unload, but it is applied.
    #[error("it is applied; revert it first")]
    Applied,
    /// Unload, but an applied payload refers to it (Xen unloads it anyway).
    #[error("{by} is applied and refers to it; revert {by} first")]
    InUse { by: String },
    /// Apply, but a payload that this one refers to was unloaded (Xen applies it
    /// anyway).
    #[error(
        "a payload that it refers to was unloaded after it was loaded; unload it and load it again"
    )]
    Dangling,
    /// Revert, but others are on top of it.
    #[error("{top} is applied on top of it; revert {top} first")]
    NotOnTop { top: String },
    /// Apply after a revert, but its data still has values from the previous apply.
    #[error(
        "it was reverted and has writable data, which is not as it was in the beginning; \
         unload it and load it again"
    )]
    NeedsReload,
    /// It was built for different code than is there.
    #[error("{}", Listed(.problems))]
    Unmet { problems: Vec<Problem> },
    /// Replace, with hooks that run outside the window.
    #[error(
        "{owner} has a {hook} hook, and replace supports none that are run before or after the \
         CPUs stop; revert and apply one by one"
    )]
    Vetoing { owner: String, hook: Hook },
    /// A hook failed.
    #[error("the {hook} hook of {owner} failed ({})", name(*.errno))]
    Hook {
        owner: String,
        hook: Hook,
        errno: Errno,
    },
    /// The rendezvous timed out.
    #[error("the rendezvous failed: {0}; try again")]
    Absent(Absent),
    /// The hypervisor cannot be patched now.
    #[error("the hypervisor cannot be patched now ({})", name(*.errno))]
    Closed { errno: Errno },
    /// After its reverts, a replace found code that the payload cannot be applied to.
    #[error(
        "function {index} does not hold what the payload expects after the others are reverted; \
         they were put back"
    )]
    Unexpected { index: usize },
    /// Out of memory for the engine's own records.
    #[error(transparent)]
    NoMemory(#[from] NoMemory),
}

struct Listed<'a>(&'a [Problem]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

fn name(errno: Errno) -> impl fmt::Display {
    struct Name(Errno);
    impl fmt::Display for Name {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self.0.name() {
                Some(name) => f.write_str(name),
                None => write!(f, "error {}", self.0.0),
            }
        }
    }
    Name(errno)
}

impl Failure {
    /// The result code in Xen's interface.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match &self.cause {
            Cause::NoSuchPayload => Errno::ENOENT,
            Cause::Busy { .. }
            | Cause::InUse { .. }
            | Cause::NotOnTop { .. }
            | Cause::Absent(_) => Errno::EBUSY,
            Cause::Applied | Cause::Dangling | Cause::NeedsReload | Cause::Unexpected { .. } => {
                Errno::EINVAL
            }
            Cause::Unmet { problems } => problems.first().map_or(Errno::EINVAL, Problem::errno),
            Cause::NoMemory(_) => Errno::ENOMEM,
            Cause::Vetoing { .. } => Errno::EOPNOTSUPP,
            Cause::Hook { errno, .. } | Cause::Closed { errno } => *errno,
        }
    }

    /// Whether Xen's interface reports this only as the payload's result, while the
    /// hypercall for the action succeeds.
    #[must_use]
    pub fn only_in_result(&self) -> bool {
        matches!(
            self.cause,
            Cause::NeedsReload | Cause::Absent(_) | Cause::Closed { .. } | Cause::Unexpected { .. }
        ) || matches!(
            self.cause,
            Cause::Hook {
                hook: Hook::Apply | Hook::Revert,
                ..
            }
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            payload,
            action,
            cause,
        } = self;
        let errno = name(self.errno());
        write!(f, "cannot {action} {payload} ({errno}): {cause}")
    }
}

impl core::error::Error for Failure {}
