// SPDX-License-Identifier: MIT OR Apache-2.0

//! The loaded payloads.

mod hooks;
mod index;
mod loaded;
mod symbols;

pub(crate) use hooks::Hooks;
pub use index::hash;
pub(crate) use loaded::Id;
pub use loaded::{Loaded, Times};
pub(crate) use symbols::NewSymbols;

use crate::host::State;
use crate::sort::sort;
use crate::stage::Function;
use crate::{Host, Region};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cmp::Ordering;
use index::{Entry, Key};
use xsplice_fallible::{self as fallible, NoMemory, Room};

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
    /// Its index among the functions of its owner.
    index: usize,
}

/// The loaded payloads, in load order.
#[derive(Debug, Default)]
pub struct Stack {
    /// Oldest first, so sorted by id.
    loaded: Vec<(Id, Box<Loaded>)>,
    /// The applied ones, in the order of their applies.
    applied: Vec<Id>,
    /// Sorted by hash, then by key, then oldest payload first.
    entries: Vec<Entry>,
    /// By address.
    text: Vec<Text>,
    /// Sorted by address; for a function that is patched again, the last patch is
    /// last.
    patched: Vec<Patched>,
    next: u64,
}

/// The records of an apply, and memory for them.
#[derive(Debug)]
pub(crate) struct Noted {
    patched: Vec<Patched>,
    room: (Room<Id>, Room<Patched>),
}

/// Merges sorted items into a sorted list, after equal ones.
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

    /// The index entries for `bytes`, oldest payload first.
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

    /// A new symbol of the oldest loaded payload that has it.
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
        // Most addresses are the hypervisor's, which is below all payloads.
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

    /// The kind of memory at an address, payloads included.
    #[inline(always)]
    pub(crate) fn region(&self, host: &impl Host, addr: u64) -> Region {
        match self.owner(addr) {
            Some(_) => Region::Text,
            None => host.region(addr),
        }
    }

    /// The id for the next payload.
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
        // Nothing can fail from here on.
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

    /// A patched function that overlaps `function` but is not the same one, and the
    /// payload that patches it.
    pub(crate) fn overlapping(&self, function: &Function) -> Option<(&Loaded, &Function)> {
        let (start, end) = (function.old_addr, function.end());
        let first = self
            .patched
            .partition_point(|patched| patched.start < start);
        let after = self
            .patched
            .partition_point(|patched| patched.start <= start);
        // Those at the same address are for the same function; any of them may be the
        // longest.
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

    /// Prepares the records of an apply.
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

    /// Records that a payload is applied, on top of all others.
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

    /// Records that the top payload is reverted.
    pub(crate) fn set_reverted(&mut self, id: Id) {
        if let Some(payload) = self.get_mut(id) {
            payload.set_reverted();
        }
        self.applied.pop_if(|applied| *applied == id);
        self.patched.retain(|patched| patched.owner != id);
    }

    /// Records that all payloads are reverted.
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

    /// Records what a hook reverted after an action.
    pub(crate) fn adopt(&mut self, id: Id) {
        let top = self.top().is_some_and(|top| top.id == id);
        let reverted = |payload: &Loaded| payload.state == State::Checked;
        if top && self.get(id).is_some_and(reverted) {
            self.set_reverted(id);
        }
    }
}
