// SPDX-License-Identifier: MIT OR Apache-2.0

//! The payloads that are loaded.

use crate::host::{Hook, Resident, State, Status};
use crate::patch::Patch;
use crate::problem::Problem;
use crate::stage::Function;
use crate::{Errno, Host, Region};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use xsplice_abi::payload::Expectation;
use xsplice_abi::preimage::Preimage;

/// Names a loaded payload for as long as the engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(u64);

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
    pub(crate) build_id: Vec<u8>,
    pub(crate) depends: Vec<u8>,
    pub(crate) memory: Box<dyn Resident>,
    pub(crate) text: Range<u64>,
    pub(crate) functions: Vec<Function>,
    pub(crate) expectations: Vec<Expectation>,
    pub(crate) preimages: Vec<Preimage>,
    pub(crate) hooks: Hooks,
    pub(crate) metadata: Vec<String>,
    pub(crate) problems: Vec<Problem>,
    /// Names of its new symbols.
    pub(crate) symbols: Vec<Vec<u8>>,
    /// Payloads whose symbols it refers to, or whose code it patches.
    pub(crate) uses: BTreeSet<Id>,
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

/// Addresses of a payload's hooks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hooks {
    pub(crate) load: Vec<u64>,
    pub(crate) unload: Vec<u64>,
    /// The other kinds, of which there is at most one each.
    pub(crate) single: BTreeMap<Hook, u64>,
}

impl Hooks {
    #[inline(never)]
    pub(crate) fn add(&mut self, hook: Hook, addr: u64) {
        match hook {
            Hook::Load => self.load.push(addr),
            Hook::Unload => self.unload.push(addr),
            single => {
                self.single.insert(single, addr);
            }
        }
    }

    /// Whether one of them is run outside of the window. What such hooks do
    /// cannot be put together for several payloads.
    pub(crate) fn vetoing(&self) -> Option<Hook> {
        [
            Hook::PreApply,
            Hook::PostApply,
            Hook::PreRevert,
            Hook::PostRevert,
        ]
        .into_iter()
        .find(|hook| self.single.contains_key(hook))
    }
}

impl Loaded {
    /// The name it was loaded under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its build-id.
    #[must_use]
    pub fn build_id(&self) -> &[u8] {
        &self.build_id
    }

    /// The build-id that it goes on top of.
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

    /// Whether it can be applied: it has no writable data that a revert left
    /// with the values of the time before.
    pub(crate) fn pristine(&self) -> bool {
        !self.reverted || !self.writable_data
    }

    /// Runs one hook. `None` when there is none of this kind.
    pub(crate) fn call(&mut self, hook: Hook) -> Option<Result<(), Errno>> {
        let addr = *self.hooks.single.get(&hook)?;
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

/// The payloads that are loaded, in the order in which they were.
#[derive(Debug, Default)]
pub struct Stack {
    /// Boxed: nodes of the tree are moved over the stack, which is small.
    loaded: BTreeMap<Id, Box<Loaded>>,
    names: BTreeMap<String, Id>,
    /// Those that are applied, the first applied first.
    applied: Vec<Id>,
    /// Where each new symbol is; the oldest payload first.
    symbols: BTreeMap<Vec<u8>, Vec<(Id, u64)>>,
    /// Code of payloads: where it ends and whose it is, by where it begins.
    text: BTreeMap<u64, (u64, Id)>,
    next: u64,
}

impl Stack {
    /// No payloads.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            loaded: BTreeMap::new(),
            names: BTreeMap::new(),
            applied: Vec::new(),
            symbols: BTreeMap::new(),
            text: BTreeMap::new(),
            next: 0,
        }
    }

    /// The payloads, oldest first.
    pub fn loaded(&self) -> impl ExactSizeIterator<Item = &Loaded> {
        self.loaded.values().map(|payload| &**payload)
    }

    /// The payloads that are applied, the first applied first.
    pub fn applied(&self) -> impl DoubleEndedIterator<Item = &Loaded> {
        self.applied.iter().filter_map(|id| self.get(*id))
    }

    /// The payload called `name`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Loaded> {
        self.get(self.id(name)?)
    }

    pub(crate) fn id(&self, name: &str) -> Option<Id> {
        self.names.get(name).copied()
    }

    pub(crate) fn get(&self, id: Id) -> Option<&Loaded> {
        self.loaded.get(&id).map(|payload| &**payload)
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> Option<&mut Loaded> {
        self.loaded.get_mut(&id).map(|payload| &mut **payload)
    }

    /// The payload that was applied last.
    pub(crate) fn top(&self) -> Option<&Loaded> {
        self.applied().next_back()
    }

    /// A new symbol of a loaded payload; the oldest payload comes first.
    pub(crate) fn symbol(&self, name: &[u8]) -> Option<(Id, u64)> {
        self.symbols.get(name)?.first().copied()
    }

    /// An applied payload, other than `id`, that has a new symbol of that name.
    pub(crate) fn applied_symbol(&self, name: &[u8], id: Id) -> Option<&Loaded> {
        let places = self.symbols.get(name)?.iter();
        let mut others = places.filter(|(owner, _)| *owner != id);
        others.find_map(|(owner, _)| {
            let other = self.get(*owner)?;
            (other.state == State::Applied).then_some(other)
        })
    }

    /// The payload whose code is at `addr`.
    pub(crate) fn owner(&self, addr: u64) -> Option<Id> {
        let (_, (end, id)) = self.text.range(..=addr).next_back()?;
        (addr < *end).then_some(*id)
    }

    /// What an address belongs to, payloads included.
    pub(crate) fn region(&self, host: &impl Host, addr: u64) -> Region {
        match self.owner(addr) {
            Some(_) => Region::Text,
            None => host.region(addr),
        }
    }

    /// A number for the next payload.
    pub(crate) fn next_id(&self) -> Id {
        Id(self.next)
    }

    /// Adds a payload with its new symbols.
    pub(crate) fn push(&mut self, payload: Box<Loaded>, symbols: BTreeMap<Vec<u8>, u64>) {
        let id = payload.id;
        self.next = self.next.max(id.0.saturating_add(1));
        for (name, addr) in symbols {
            self.symbols.entry(name).or_default().push((id, addr));
        }
        self.text.insert(payload.text.start, (payload.text.end, id));
        self.names.insert(payload.name.clone(), id);
        self.loaded.insert(id, payload);
    }

    /// Removes a payload that is not applied, and frees its memory.
    pub(crate) fn remove(&mut self, id: Id) {
        let Some(payload) = self.loaded.remove(&id) else {
            return;
        };
        for name in &payload.symbols {
            if let Some(places) = self.symbols.get_mut(name) {
                places.retain(|(owner, _)| *owner != id);
                if places.is_empty() {
                    self.symbols.remove(name);
                }
            }
        }
        self.text.remove(&payload.text.start);
        self.names.remove(&payload.name);
    }

    /// Room for one more payload to be applied, so that [`set_applied`] does
    /// not allocate.
    ///
    /// [`set_applied`]: Self::set_applied
    pub(crate) fn reserve(&mut self) {
        self.applied.reserve(1);
    }

    /// Notes that a payload is applied, on top of all others.
    pub(crate) fn set_applied(&mut self, id: Id) {
        if let Some(payload) = self.loaded.get_mut(&id) {
            payload.state = State::Applied;
            self.applied.push(id);
        }
    }

    /// Notes that the payload on top is reverted.
    pub(crate) fn set_reverted(&mut self, id: Id) {
        if let Some(payload) = self.loaded.get_mut(&id) {
            payload.state = State::Checked;
            payload.reverted = true;
            self.applied.pop_if(|applied| *applied == id);
        }
    }

    /// Notes what a hook that ran after an action has reverted.
    pub(crate) fn adopt(&mut self, id: Id) {
        let top = self.top().is_some_and(|top| top.id == id);
        let reverted = |payload: &Loaded| payload.state == State::Checked;
        if top && self.get(id).is_some_and(reverted) {
            self.set_reverted(id);
        }
    }
}
