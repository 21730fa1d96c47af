// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor, as far as it is needed here.

use std::time::Duration;
use xsplice_abi::errno::Errno;

/// A hypervisor with live patching.
pub trait Host {
    /// What it holds, in the order of upload.
    ///
    /// # Errors
    /// Its answer.
    fn list(&self) -> Result<Vec<Loaded>, Fault>;

    /// Checks the payload `data` before it is uploaded, as far as that is possible.
    ///
    /// # Errors
    /// Why it would be refused.
    fn check(&self, name: &str, data: &[u8]) -> Result<(), Fault>;

    /// Uploads the payload `data` as `name`.
    ///
    /// # Errors
    /// Its answer.
    fn upload(&mut self, name: &str, data: &[u8]) -> Result<(), Fault>;

    /// Changes the payload `name`, once, and waits until that has ended.
    ///
    /// # Errors
    /// Its answer; `EBUSY` or `EAGAIN` if it was busy.
    fn change(&mut self, name: &str, change: Change) -> Result<(), Fault>;

    /// Waits, before something is tried again.
    fn pause(&mut self, time: Duration);
}

/// A change of a payload that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Apply it.
    Apply,
    /// Revert all others and apply it.
    Replace,
    /// Revert it.
    Revert,
    /// Unload it.
    Unload,
}

/// A payload in the hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: State,
    /// Whether something is being done with it.
    pub busy: bool,
    /// Its `key=value` texts; `None` if the hypervisor does not tell.
    pub metadata: Option<Vec<String>>,
}

/// The state of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Uploaded, not in use.
    Checked,
    /// In use.
    Applied,
    /// One that is not known here.
    Unknown,
}

/// Why the hypervisor did not do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its error number; `None` if it was not asked.
    pub errno: Option<Errno>,
    /// In words.
    pub message: String,
    /// What it printed about it.
    pub console: Vec<String>,
}

impl Fault {
    /// Whether it may work in a moment.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self.errno, Some(Errno::EBUSY | Errno::EAGAIN))
    }

    /// Whether the fault is the payload's. It is not for want of time or memory, nor if the
    /// request did not reach the payload: if it was interrupted, not permitted to the
    /// program, not understood, or about a name that is there or not there.
    #[must_use]
    pub fn is_of_payload(&self) -> bool {
        !self.is_busy()
            && !matches!(
                self.errno,
                Some(
                    Errno::ENOMEM
                        | Errno::EEXIST
                        | Errno::ENOENT
                        | Errno::EFAULT
                        | Errno::EINTR
                        | Errno::EACCES
                        | Errno::ENOSYS
                )
            )
    }
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self {
            errno: Some(errno),
            message: errno.to_string(),
            console: Vec::new(),
        }
    }
}
