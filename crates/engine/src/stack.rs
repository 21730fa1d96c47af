// SPDX-License-Identifier: MIT OR Apache-2.0

//! The payloads that are loaded.

use crate::host::{Hook, Resident, State, Status};
use crate::names::{Name, Names};
use crate::patch::Patch;
use crate::problem::Problem;
use crate::sort::sort;
use crate::stage::Function;
use crate::{Errno, Host, Region};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::ops::Range;
use xsplice_abi::payload::Expectation;
use xsplice_fallible::{self as fallible, NoMemory, Room};

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

/// Addresses of a payload's hooks.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    pub(crate) load: Vec<u64>,
    pub(crate) unload: Vec<u64>,
    /// The other kinds, of which there is at most one each, by their numbers; 0
    /// where there is none, as in the payload.
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

    /// The hook of a kind of which there is at most one.
    pub(crate) fn single(&self, hook: Hook) -> Option<u64> {
        let addr = self.single.get(hook as usize).copied();
        addr.filter(|addr| *addr != 0)
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
        .find(|hook| self.single(*hook).is_some())
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.load.is_empty() && self.unload.is_empty() && self.single.iter().all(|addr| *addr == 0)
    }

    /// Whether one of them is run in the window.
    pub(crate) fn in_window(&self) -> bool {
        let in_place = [Hook::Apply, Hook::Revert];
        !self.load.is_empty()
            || !self.unload.is_empty()
            || in_place.iter().any(|hook| self.single(*hook).is_some())
    }
}

/// Symbols of a payload that others can refer to. Where two have the same name,
/// the first counts.
#[derive(Debug, Default)]
pub(crate) struct NewSymbols {
    names: Names,
    /// The name of each, and the address.
    list: Vec<(Name, u64)>,
}

impl NewSymbols {
    pub(crate) fn add(&mut self, name: &[u8], addr: u64) -> Result<(), NoMemory> {
        let name = self.names.add(name)?;
        fallible::push(&mut self.list, (name, addr))
    }

    fn name(&self, index: usize) -> &[u8] {
        let name = self.list.get(index).map(|(name, _)| *name);
        self.names.get(name.unwrap_or_default())
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.list.iter().map(|(name, _)| self.names.get(*name))
    }
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

    fn set_reverted(&mut self) {
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

/// What a payload can be found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Name,
    BuildId,
    /// The new symbol of this index.
    Symbol(usize),
}

/// That a payload has a name, a build-id or a symbol.
#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: u64,
    owner: Id,
    key: Key,
}

impl Loaded {
    fn key(&self, key: Key) -> &[u8] {
        match key {
            Key::Name => self.name.as_bytes(),
            Key::BuildId => &self.build_id,
            Key::Symbol(index) => self.symbols.name(index),
        }
    }

    /// Everything that it can be found by.
    fn entries(&self) -> Result<Vec<Entry>, NoMemory> {
        let build_id = Some(Key::BuildId).filter(|_| !self.build_id.is_empty());
        let symbols = (0..self.symbols.list.len()).map(Key::Symbol);
        let mut entries = fallible::with_room(2 + symbols.len())?;
        for key in [Key::Name].into_iter().chain(build_id).chain(symbols) {
            let entry = Entry {
                hash: hash(self.key(key)),
                owner: self.id,
                key,
            };
            fallible::push(&mut entries, entry)?;
        }
        // The order of symbols of the same name must not change.
        let index = |entry: &Entry| match entry.key {
            Key::Symbol(index) => index,
            _ => 0,
        };
        let full = |entry: &Entry| (self.key(entry.key), index(entry));
        sort(&mut entries, |a, b| {
            // The hashes of most of them say it.
            a.hash < b.hash || a.hash == b.hash && full(a) < full(b)
        });
        // The first symbol of a name counts. With the others, whoever looks for one
        // that is applied would go through all of them, again for each.
        let symbol = |entry: &Entry| matches!(entry.key, Key::Symbol(_));
        entries.dedup_by(|next, first| {
            let both = symbol(first) && symbol(next) && first.hash == next.hash;
            both && self.key(first.key) == self.key(next.key)
        });
        Ok(entries)
    }
}

/// The FNV-1a hash (draft-eastlake-fnv, section 2).
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Code of a payload.
#[derive(Clone, Copy, Debug)]
struct Text {
    start: u64,
    end: u64,
    owner: Id,
}

/// A function that is patched now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patched {
    start: u64,
    end: u64,
    owner: Id,
    /// Its number among the functions of its owner.
    index: usize,
}

/// The payloads that are loaded, in the order in which they were.
#[derive(Debug, Default)]
pub struct Stack {
    /// The oldest first, and so in the order of their numbers.
    loaded: Vec<(Id, Box<Loaded>)>,
    /// Those that are applied, the first applied first.
    applied: Vec<Id>,
    /// By hash, then by what is hashed, then the oldest payload first.
    entries: Vec<Entry>,
    /// By address.
    text: Vec<Text>,
    /// By address; where a function is patched again, the last one last.
    patched: Vec<Patched>,
    next: u64,
}

/// What has to be noted when a payload is applied, and memory for it.
#[derive(Debug)]
pub(crate) struct Noted {
    patched: Vec<Patched>,
    room: (Room<Id>, Room<Patched>),
}

/// Puts what is in order into a list that is in order, behind what is equal.
fn merge<T: Copy>(list: &mut Vec<T>, room: Room<T>, new: &[T], is_after: impl Fn(&T, &T) -> bool) {
    let mut end = list.len();
    room.append(list, new.iter().copied());
    if end == 0 {
        return;
    }
    for (before, item) in new.iter().enumerate().rev() {
        let unmoved = list.get(..end).unwrap_or_default();
        let place = unmoved.partition_point(|other| !is_after(other, item));
        list.copy_within(place..end, place + before + 1);
        if let Some(place) = list.get_mut(place + before) {
            *place = *item;
        }
        end = place;
    }
}

fn find(loaded: &[(Id, Box<Loaded>)], id: Id) -> Option<&Loaded> {
    let index = loaded.binary_search_by_key(&id, |(id, _)| *id).ok()?;
    loaded.get(index).map(|(_, payload)| &**payload)
}

impl Stack {
    /// No payloads.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            loaded: Vec::new(),
            applied: Vec::new(),
            entries: Vec::new(),
            text: Vec::new(),
            patched: Vec::new(),
            next: 0,
        }
    }

    /// The payloads, oldest first.
    pub fn loaded(&self) -> impl ExactSizeIterator<Item = &Loaded> {
        self.loaded.iter().map(|(_, payload)| &**payload)
    }

    /// The payloads that are applied, the first applied first.
    pub fn applied(&self) -> impl DoubleEndedIterator<Item = &Loaded> {
        self.applied.iter().filter_map(|id| self.get(*id))
    }

    /// The payload called `name`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Loaded> {
        let mut found = self.entries(name.as_bytes());
        let named = found.find(|entry| entry.key == Key::Name)?;
        self.get(named.owner)
    }

    /// The payload with this build-id.
    pub(crate) fn with_build_id(&self, build_id: &[u8]) -> Option<&Loaded> {
        let mut found = self.entries(build_id);
        let same = found.find(|entry| entry.key == Key::BuildId)?;
        self.get(same.owner)
    }

    pub(crate) fn get(&self, id: Id) -> Option<&Loaded> {
        find(&self.loaded, id)
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> Option<&mut Loaded> {
        let index = self.loaded.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        let (_, payload) = self.loaded.get_mut(index)?;
        Some(&mut **payload)
    }

    /// The payload that was applied last.
    pub(crate) fn top(&self) -> Option<&Loaded> {
        self.applied().next_back()
    }

    /// What can be found by `bytes`; the oldest payload comes first.
    fn entries(&self, bytes: &[u8]) -> impl Iterator<Item = &Entry> {
        let hash = hash(bytes);
        let order = move |entry: &Entry| {
            let owner = || find(&self.loaded, entry.owner);
            let key = || owner().map_or(&[][..], |owner| owner.key(entry.key));
            entry.hash.cmp(&hash).then_with(|| key().cmp(bytes))
        };
        let start = self
            .entries
            .partition_point(|entry| order(entry) == Ordering::Less);
        let found = self.entries.get(start..).unwrap_or_default().iter();
        found.take_while(move |entry| order(entry) == Ordering::Equal)
    }

    /// The symbols called `name`, with their owners.
    fn symbols(&self, name: &[u8]) -> impl Iterator<Item = (&Loaded, u64)> {
        self.entries(name).filter_map(|entry| {
            let Key::Symbol(index) = entry.key else {
                return None;
            };
            let owner = self.get(entry.owner)?;
            let (_, addr) = owner.symbols.list.get(index)?;
            Some((owner, *addr))
        })
    }

    /// A new symbol of a loaded payload; the oldest payload comes first.
    pub(crate) fn symbol(&self, name: &[u8]) -> Option<(Id, u64)> {
        let (owner, addr) = self.symbols(name).next()?;
        Some((owner.id, addr))
    }

    /// An applied payload, other than `id`, that has a new symbol of that name.
    pub(crate) fn applied_symbol(&self, name: &[u8], id: Id) -> Option<&Loaded> {
        let mut owners = self.symbols(name).map(|(owner, _)| owner);
        owners.find(|owner| owner.id != id && owner.state == State::Applied)
    }

    /// The payload whose code is at `addr`.
    #[inline]
    pub(crate) fn owner(&self, addr: u64) -> Option<Id> {
        // It is mostly asked for addresses of the hypervisor, which is before them.
        match self.text.first() {
            Some(first) if first.start <= addr => self.owner_of(addr),
            _ => None,
        }
    }

    #[inline(never)]
    fn owner_of(&self, addr: u64) -> Option<Id> {
        let behind = self.text.partition_point(|text| text.start <= addr);
        let text = self.text.get(behind.checked_sub(1)?)?;
        (addr < text.end).then_some(text.owner)
    }

    /// What an address belongs to, payloads included.
    #[inline(always)]
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

    /// Adds a payload.
    #[inline(never)]
    pub(crate) fn push(&mut self, payload: Box<Loaded>) -> Result<(), NoMemory> {
        let id = payload.id;
        let entries = payload.entries()?;
        let text = Text {
            start: payload.text.start,
            end: payload.text.end,
            owner: id,
        };
        let room = Room::new(&self.entries, entries.len())?;
        let room_for_text = Room::new(&self.text, 1)?;
        Room::new(&self.loaded, 1)?.append(&mut self.loaded, [(id, payload)]);
        // From here on nothing fails.
        self.next = self.next.max(id.0.saturating_add(1));
        let loaded = &self.loaded;
        let key = |entry: &Entry| find(loaded, entry.owner).map(|owner| owner.key(entry.key));
        merge(&mut self.entries, room, &entries, |a, b| {
            let hashes = a.hash.cmp(&b.hash);
            hashes.then_with(|| key(a).cmp(&key(b))) == Ordering::Greater
        });
        merge(&mut self.text, room_for_text, &[text], |a, b| {
            a.start > b.start
        });
        Ok(())
    }

    /// Removes a payload that is not applied, and frees its memory.
    #[inline(never)]
    pub(crate) fn remove(&mut self, id: Id) {
        self.entries.retain(|entry| entry.owner != id);
        self.text.retain(|text| text.owner != id);
        self.loaded.retain(|(loaded, _)| *loaded != id);
    }

    /// A function that is patched and shares bytes with `function`, but is not
    /// the same function; and who patches it.
    pub(crate) fn overlapping(&self, function: &Function) -> Option<(&Loaded, &Function)> {
        let (start, end) = (function.old_addr, function.end());
        let first = self
            .patched
            .partition_point(|patched| patched.start < start);
        let after = self
            .patched
            .partition_point(|patched| patched.start <= start);
        // Those at one place are for the same function; any of them may be the longest.
        let below = self.patched.get(..first).unwrap_or_default();
        let nearest = below.last().map(|below| below.start);
        let below = below.iter().rev();
        let mut below = below.take_while(|below| Some(below.start) == nearest);
        let below = below.find(|below| below.end > start);
        let inside = self.patched.get(after).filter(|inside| inside.start < end);
        let found = below.or(inside)?;
        let owner = self.get(found.owner)?;
        Some((owner, owner.functions.get(found.index)?))
    }

    /// What is needed to note that a payload is applied.
    #[inline(never)]
    pub(crate) fn to_note(&self, payload: &Loaded) -> Result<Noted, NoMemory> {
        let functions = payload.functions.iter().enumerate();
        let mut patched = fallible::collect(functions.map(|(index, function)| Patched {
            start: function.old_addr,
            end: function.end(),
            owner: payload.id,
            index,
        }))?;
        sort(&mut patched, |a, b| a.start < b.start);
        let room = (
            Room::new(&self.applied, 1)?,
            Room::new(&self.patched, patched.len())?,
        );
        Ok(Noted { patched, room })
    }

    /// Notes that a payload is applied, on top of all others.
    pub(crate) fn set_applied(&mut self, id: Id, noted: Noted) {
        if let Some(payload) = self.get_mut(id) {
            payload.state = State::Applied;
            payload.patched.fill(true);
        }
        let Noted { patched, room } = noted;
        let (one, functions) = room;
        one.append(&mut self.applied, [id]);
        merge(&mut self.patched, functions, &patched, |a, b| {
            a.start > b.start
        });
    }

    /// Notes that the payload on top is reverted.
    pub(crate) fn set_reverted(&mut self, id: Id) {
        if let Some(payload) = self.get_mut(id) {
            payload.set_reverted();
        }
        self.applied.pop_if(|applied| *applied == id);
        self.patched.retain(|patched| patched.owner != id);
    }

    /// Notes that all payloads are reverted.
    pub(crate) fn set_all_reverted(&mut self) {
        let mut applied = core::mem::take(&mut self.applied);
        for id in applied.drain(..) {
            if let Some(payload) = self.get_mut(id) {
                payload.set_reverted();
            }
        }
        self.applied = applied;
        self.patched.clear();
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
