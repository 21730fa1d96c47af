// SPDX-License-Identifier: MIT OR Apache-2.0
//! What programs call the failures of the commands that look at a host or change it. The
//! table in `docs/operating.md` says what they mean; the codes of `xsplice build` are in
//! `docs/refusals.md`.

use clap::ValueEnum;
use xsplice_abi::errno::Errno;
use xsplice_dom0::OpenError;
use xsplice_store::{Blocked, Error, LockError, Refusal, SyncError};

/// Why a command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Code {
    AlreadyLoaded,
    Ambiguous,
    BadName,
    Busy,
    Damaged,
    Diverged,
    Downgrade,
    FileError,
    Gap,
    Held,
    HistoryChanged,
    HypervisorRefused,
    InterfaceUnknown,
    Invalid,
    IsApplied,
    LivePatchingMissing,
    Managed,
    NameTaken,
    Needed,
    NotAPayload,
    NotOnTop,
    NotPermitted,
    NotThere,
    Quarantined,
    SymbolMissing,
    TimedOut,
    Unrecorded,
    Unverified,
    WouldNotLoad,
    WrongHypervisor,
    WrongMachine,
    XenMissing,
}

/// An error that has a code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Coded {
    code: Code,
    message: String,
}

impl Code {
    /// How it is written.
    pub(crate) fn word(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// An error with this code.
    pub(crate) fn error(self, message: impl Into<String>) -> anyhow::Error {
        self.says(message).into()
    }

    /// What an error with another cause says.
    pub(crate) fn says(self, message: impl Into<String>) -> Coded {
        let message = message.into();
        Coded {
            code: self,
            message,
        }
    }

    /// That of an error, if it has one.
    pub(crate) fn of(error: &anyhow::Error) -> Option<Self> {
        if let Some(coded) = error.downcast_ref::<Coded>() {
            return Some(coded.code);
        }
        if let Some(error) = error.downcast_ref::<Error>() {
            return Some(error.into());
        }
        if let Some(error) = error.downcast_ref::<LockError>() {
            return Some(match error {
                LockError::Held => Self::Busy,
                LockError::Disk(_) => Self::FileError,
            });
        }
        if let Some(error) = error.downcast_ref::<OpenError>() {
            return Some(match error {
                OpenError::NoXen => Self::XenMissing,
                OpenError::NotAllowed { .. } => Self::NotPermitted,
                OpenError::Unusable { .. } => Self::FileError,
            });
        }
        error.is::<std::io::Error>().then_some(Self::FileError)
    }

    /// Whether what was given is the reason, and not what the host is like.
    pub(crate) fn is_of_input(self) -> bool {
        !matches!(
            self,
            Self::Busy
                | Self::Damaged
                | Self::FileError
                | Self::HypervisorRefused
                | Self::InterfaceUnknown
                | Self::LivePatchingMissing
                | Self::NotPermitted
                | Self::TimedOut
                | Self::Unrecorded
                | Self::XenMissing
        )
    }

    /// That of the hypervisor's answer to a step of `xsplice sync`.
    pub(crate) fn of_step(errno: Option<Errno>) -> Self {
        match errno {
            None => Self::WouldNotLoad,
            Some(Errno::EAGAIN | Errno::EBUSY) => Self::TimedOut,
            Some(_) => Self::HypervisorRefused,
        }
    }
}

impl From<&Error> for Code {
    fn from(error: &Error) -> Self {
        match error {
            Error::Disk { .. } => Self::FileError,
            Error::Damaged { .. } => Self::Damaged,
            Error::Refused(refusal, _) => match refusal {
                Refusal::Invalid => Self::Invalid,
                Refusal::Unverified => Self::Unverified,
                Refusal::Taken => Self::NameTaken,
                Refusal::Missing => Self::NotThere,
                Refusal::Needed => Self::Needed,
                Refusal::Unrecorded => Self::Unrecorded,
            },
        }
    }
}

impl From<&Blocked> for Code {
    fn from(blocked: &Blocked) -> Self {
        match blocked {
            Blocked::Held => Self::Held,
            Blocked::Managed => Self::Managed,
            Blocked::Busy { .. } => Self::Busy,
            Blocked::Diverged { .. } => Self::Diverged,
            Blocked::NameTaken { .. } => Self::NameTaken,
            Blocked::Missing { .. } => Self::NotThere,
            Blocked::Unread { .. } => Self::Damaged,
            Blocked::Quarantined { .. } => Self::Quarantined,
            Blocked::Unverified { .. } => Self::Unverified,
            Blocked::Ambiguous { .. } => Self::Ambiguous,
            Blocked::Downgrade { .. } => Self::Downgrade,
            Blocked::Gap { .. } => Self::Gap,
        }
    }
}

impl From<&SyncError> for Code {
    fn from(error: &SyncError) -> Self {
        match error {
            SyncError::Blocked(blocked) => blocked.into(),
            SyncError::Store(error) => error.into(),
            SyncError::Step { fault, .. } => Self::of_step(fault.errno),
            SyncError::List(_) => Self::HypervisorRefused,
            SyncError::Elsewhere => Self::Diverged,
            SyncError::Check { .. } => Self::WouldNotLoad,
            SyncError::Unread(_) => Self::Damaged,
            SyncError::Unrecorded => Self::Unrecorded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_does_not_work_is_not_a_refusal_of_the_user() {
        let (path, errno) = ("/dev/xen/privcmd", Errno::ENXIO);
        let unusable = OpenError::Unusable { path, errno };
        let denied = OpenError::NotAllowed { path, errno };
        assert_eq!(Code::of(&unusable.into()), Some(Code::FileError));
        assert_eq!(Code::of(&denied.into()), Some(Code::NotPermitted));
    }

    /// The table has each, in this order, and no other.
    #[test]
    fn each_is_in_the_documentation() {
        let text = include_str!("../../../docs/operating.md");
        let (_, table) = text
            .split_once("| `error.code` of a host |")
            .expect("a table");
        let (table, _) = table.split_once("\n\n").expect("it ends");
        let rows = table.lines().skip(2);
        let rows: Vec<&str> = rows.filter_map(|row| row.split('`').nth(1)).collect();
        let codes = Code::value_variants().iter().map(|code| code.word());
        assert_eq!(rows, codes.collect::<Vec<_>>());
    }
}
