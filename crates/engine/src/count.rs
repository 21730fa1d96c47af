// SPDX-License-Identifier: MIT OR Apache-2.0

//! Counters.

use crate::Times;
use crate::action::{Action, Cause};

/// Counts of what an engine has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Payloads that were loaded.
    pub loaded: u64,
    /// Payloads that were refused.
    pub refused: u64,
    /// Payloads that were applied.
    pub applied: u64,
    /// Payloads that were reverted, except by a replace.
    pub reverted: u64,
    /// Payloads that replaced others.
    pub replaced: u64,
    /// Payloads that were unloaded.
    pub unloaded: u64,
    /// Actions that failed.
    pub failed: u64,
    /// Those of them whose rendezvous timed out.
    pub absent: u64,
    /// Number of windows.
    pub windows: u64,
    /// The longest window, in nanoseconds.
    pub longest_window: u64,
    /// The longest time to reach a rendezvous, in nanoseconds.
    pub longest_waiting: u64,
}

impl Counters {
    pub(crate) const fn new() -> Self {
        Self {
            loaded: 0,
            refused: 0,
            applied: 0,
            reverted: 0,
            replaced: 0,
            unloaded: 0,
            failed: 0,
            absent: 0,
            windows: 0,
            longest_window: 0,
            longest_waiting: 0,
        }
    }

    pub(crate) fn upload(&mut self, loaded: bool) {
        let counter = match loaded {
            true => &mut self.loaded,
            false => &mut self.refused,
        };
        *counter = counter.saturating_add(1);
    }

    pub(crate) fn done(&mut self, action: Action) {
        let counter = match action {
            Action::Apply => &mut self.applied,
            Action::Revert => &mut self.reverted,
            Action::Replace => &mut self.replaced,
            Action::Unload => &mut self.unloaded,
        };
        *counter = counter.saturating_add(1);
    }

    pub(crate) fn failed(&mut self, cause: &Cause) {
        self.failed = self.failed.saturating_add(1);
        if matches!(cause, Cause::Absent(_)) {
            self.absent = self.absent.saturating_add(1);
        }
    }

    pub(crate) fn window(&mut self, times: Times) {
        self.windows = self.windows.saturating_add(1);
        self.longest_window = self.longest_window.max(times.window);
        self.longest_waiting = self.longest_waiting.max(times.waiting);
    }
}
