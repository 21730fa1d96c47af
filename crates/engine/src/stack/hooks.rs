// SPDX-License-Identifier: MIT OR Apache-2.0

//! The hooks of a payload.

use crate::host::Hook;
use alloc::vec::Vec;
use xsplice_fallible::{self as fallible, NoMemory};

/// Addresses of a payload's hooks.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    pub(crate) load: Vec<u64>,
    pub(crate) unload: Vec<u64>,
    /// The unique kinds, by number; 0 if there is none, as in the payload.
    single: [u64; 8],
}

impl Hooks {
    #[inline(never)]
    pub(crate) fn add(&mut self, hook: Hook, addr: u64) -> Result<(), NoMemory> {
        match hook {
            Hook::Load => fallible::push(&mut self.load, addr),
            Hook::Unload => fallible::push(&mut self.unload, addr),
            single => {
                if let Some(place) = self.single.get_mut(single as usize) {
                    *place = addr;
                }
                Ok(())
            }
        }
    }

    /// The hook of a unique kind.
    pub(crate) fn single(&self, hook: Hook) -> Option<u64> {
        let addr = self.single.get(hook as usize).copied();
        addr.filter(|addr| *addr != 0)
    }

    /// A hook that runs outside the window, if any. Such hooks cannot be combined for
    /// several payloads.
    pub(crate) fn vetoing(&self) -> Option<Hook> {
        [
            Hook::PreApply,
            Hook::PostApply,
            Hook::PreRevert,
            Hook::PostRevert,
        ]
        .into_iter()
        .find(|hook| self.single(*hook).is_some())
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.load.is_empty() && self.unload.is_empty() && self.single.iter().all(|addr| *addr == 0)
    }

    /// Whether one of them runs in the window.
    pub(crate) fn in_window(&self) -> bool {
        let in_place = [Hook::Apply, Hook::Revert];
        !self.load.is_empty()
            || !self.unload.is_empty()
            || in_place.iter().any(|hook| self.single(*hook).is_some())
    }
}
