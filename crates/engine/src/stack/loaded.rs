// SPDX-License-Identifier: MIT OR Apache-2.0

//! A payload that is loaded.

use super::hooks::Hooks;
use super::symbols::NewSymbols;
use crate::Errno;
use crate::host::{Hook, Resident, State, Status};
use crate::patch::Patch;
use crate::problem::Problem;
use crate::stage::Function;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use xsplice_abi::payload::Expectation;

/// Identifies a loaded payload for the lifetime of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(pub(super) u64);

/// The times of an action, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// From the start of the rendezvous until all CPUs had reached it.
    pub waiting: u64,
    /// The length of the window.
    pub window: u64,
}

/// A payload on the stack.
#[derive(Debug)]
pub struct Loaded {
    pub(crate) id: Id,
    pub(crate) name: String,
    pub(crate) signer: Option<String>,
    pub(crate) build_id: Vec<u8>,
    pub(crate) depends: Vec<u8>,
    pub(crate) memory: Box<dyn Resident>,
    pub(crate) text: Range<u64>,
    pub(crate) functions: Vec<Function>,
    pub(crate) expectations: Vec<Expectation>,
    /// Preimage notes, as in their section.
    pub(crate) preimages: Vec<u8>,
    pub(crate) hooks: Hooks,
    pub(crate) metadata: Vec<String>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) symbols: NewSymbols,
    /// Payloads whose symbols it refers to, or whose code it patches, in order.
    pub(crate) uses: Vec<Id>,
    pub(crate) writable_data: bool,
    pub(crate) reverted: bool,
    pub(crate) state: State,
    /// For each function, its patch, and whether it is applied. Patches are those of
    /// the last action, and empty before.
    pub(crate) patches: Vec<Patch>,
    pub(crate) patched: Vec<bool>,
    pub(crate) result: i32,
    pub(crate) times: Times,
}

impl Loaded {
    /// The name it was loaded under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of the host's key that signed it. `None` if none did, or if the host
    /// ignores signatures.
    #[must_use]
    pub fn signer(&self) -> Option<&str> {
        self.signer.as_deref()
    }

    /// Its build-id.
    #[must_use]
    pub fn build_id(&self) -> &[u8] {
        &self.build_id
    }

    /// The build-id that it depends on.
    #[must_use]
    pub fn depends(&self) -> &[u8] {
        &self.depends
    }

    /// Whether it is applied.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Result of the last action, as Xen's interface reports it: 0, a negative error
    /// number, or -EAGAIN while an action is in progress.
    #[must_use]
    pub fn result(&self) -> i32 {
        self.result
    }

    /// How long the last action took.
    #[must_use]
    pub fn times(&self) -> Times {
        self.times
    }

    /// The functions that it patches.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// For each function, whether it is patched now.
    #[must_use]
    pub fn patched(&self) -> &[bool] {
        &self.patched
    }

    /// The patch for each function; empty before the first apply.
    #[must_use]
    pub fn patches(&self) -> &[Patch] {
        &self.patches
    }

    /// Its metadata strings.
    #[must_use]
    pub fn metadata(&self) -> &[String] {
        &self.metadata
    }

    /// Warnings about it.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Its memory in the hypervisor.
    #[must_use]
    pub fn memory(&self) -> &dyn Resident {
        &*self.memory
    }

    /// Whether it has variables, whose values are lost when it is unloaded.
    #[must_use]
    pub fn has_variables(&self) -> bool {
        self.writable_data
    }

    /// Whether it can be applied: it has no writable data with values from before a
    /// revert.
    pub(crate) fn pristine(&self) -> bool {
        !self.reverted || !self.writable_data
    }

    pub(super) fn set_reverted(&mut self) {
        self.state = State::Checked;
        self.reverted = true;
        self.patched.fill(false);
    }

    /// Runs one hook. `None` if there is none of this kind.
    pub(crate) fn call(&mut self, hook: Hook) -> Option<Result<(), Errno>> {
        let addr = self.hooks.single(hook)?;
        Some(self.call_at(hook, addr))
    }

    pub(crate) fn call_at(&mut self, hook: Hook, addr: u64) -> Result<(), Errno> {
        let mut status = Status {
            state: &mut self.state,
            result: self.result,
            applied: &mut self.patched,
            patches: &self.patches,
        };
        self.memory.call(hook, addr, &mut status)
    }
}
