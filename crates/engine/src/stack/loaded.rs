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

/// Names a loaded payload for as long as the engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(pub(super) u64);

/// How long an action took, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// From asking the CPUs to come together until they had.
    pub waiting: u64,
    /// During which they stood still for the action itself.
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
    /// Preimage notes, as they stand in their section.
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
    /// Per function: what is written over it, and whether it is. The first is
    /// as of the last action; empty before that.
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

    /// Who has signed it: the name of one of the host's keys. `None` if none has, or
    /// if the host does not look at signatures.
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

    /// Result of the last action, as Xen's interface reports it: 0, a negative
    /// error number, or -EAGAIN while an action is under way.
    #[must_use]
    pub fn result(&self) -> i32 {
        self.result
    }

    /// How long the last action took.
    #[must_use]
    pub fn times(&self) -> Times {
        self.times
    }

    /// What it patches.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// For each function, whether it is patched now.
    #[must_use]
    pub fn patched(&self) -> &[bool] {
        &self.patched
    }

    /// For each function, what is written over it; empty before the first apply.
    #[must_use]
    pub fn patches(&self) -> &[Patch] {
        &self.patches
    }

    /// The strings that describe it.
    #[must_use]
    pub fn metadata(&self) -> &[String] {
        &self.metadata
    }

    /// What is odd about it, although it was loaded.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Its memory in the hypervisor.
    #[must_use]
    pub fn memory(&self) -> &dyn Resident {
        &*self.memory
    }

    /// Whether it has writable data: variables, whose values are lost when it is
    /// unloaded.
    #[must_use]
    pub fn has_variables(&self) -> bool {
        self.writable_data
    }

    /// Whether it can be applied: it has no writable data that a revert left
    /// with the values of the time before.
    pub(crate) fn pristine(&self) -> bool {
        !self.reverted || !self.writable_data
    }

    pub(super) fn set_reverted(&mut self) {
        self.state = State::Checked;
        self.reverted = true;
        self.patched.fill(false);
    }

    /// Runs one hook. `None` when there is none of this kind.
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
