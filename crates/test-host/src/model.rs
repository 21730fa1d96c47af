// SPDX-License-Identifier: MIT OR Apache-2.0

//! A small model of the state table in Xen's live-patch design ("State transition
//! table of LIVEPATCH_ACTION commands"), and the engine next to it.

use crate::{Hypervisor, Payload, TARGET, XEN_ID, engine, func};
use object::SectionKind;
use xsplice_engine::{Action, Engine, Errno, Host as _, Options, State};

/// Names, build-ids and functions to choose from; few, so that they collide.
pub const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// How many build-ids there are.
pub const IDS: u8 = 5;
/// How many functions there are.
pub const FUNCTIONS: u64 = 3;

/// An operation on engine and model.
#[derive(Clone, Debug)]
pub enum Step {
    /// The upload of a payload under one of [`NAMES`].
    Upload(usize, Kind),
    /// An action.
    Act {
        /// On which of [`NAMES`].
        name: usize,
        /// Which one.
        action: Action,
        /// Whether what it depends on need not be on top.
        nodeps: bool,
        /// The rendezvous times out.
        late: bool,
    },
}

/// What distinguishes payloads here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Which of the build-ids it has.
    pub own: u8,
    /// Build-id of what it depends on; none for the hypervisor.
    pub depends: Option<u8>,
    /// Build-id of a payload whose symbol it refers to.
    pub uses: Option<u8>,
    /// Whether it has writable data.
    pub data: bool,
    /// Which function it patches.
    pub function: u64,
}

impl Kind {
    fn bytes(self) -> Vec<u8> {
        let id = |byte: u8| [byte + 1; 20];
        let depends = self.depends.map_or(XEN_ID, id);
        let function = func("").with(|f| f.old_addr.set(address(self.function)));
        let mut payload = Payload::on(&depends, &id(self.own), &[function]);
        let symbol = |own: u8| format!("of_{own}");
        payload.symbol(&symbol(self.own), Some((payload.text, 8)));
        if let Some(uses) = self.uses {
            let used = payload.symbol(&symbol(uses), None);
            payload.relocation(payload.text, 4, 2, used, -4);
        }
        if self.data {
            payload.section(".data", SectionKind::Data, &[1; 8], 8);
        }
        payload.bytes()
    }
}

fn address(function: u64) -> u64 {
    TARGET + 32 * function
}

/// A payload as the model sees it.
#[derive(Clone, Debug)]
struct Entry {
    name: usize,
    kind: Kind,
    /// When it was uploaded; nothing else has this number.
    serial: u32,
    /// That of the payload it refers to.
    uses: Option<u32>,
    reverted: bool,
    result: i32,
}

/// The documented behaviour.
#[derive(Clone, Debug, Default)]
struct Model {
    loaded: Vec<Entry>,
    /// Serials of what is applied, from the bottom up.
    applied: Vec<u32>,
    next: u32,
}

impl Model {
    fn step(&mut self, step: &Step) -> Result<(), Errno> {
        match step {
            Step::Upload(name, kind) => self.upload(*name, *kind),
            Step::Act {
                name,
                action,
                nodeps,
                late,
            } => {
                let index = self.loaded.iter().position(|entry| entry.name == *name);
                let index = index.ok_or(Errno::ENOENT)?;
                let result = self.act(index, *action, *nodeps, *late);
                if let Some(reported) = result.reported {
                    self.loaded[index].result = reported;
                }
                if result.unloaded {
                    self.loaded.remove(index);
                }
                result.returned
            }
        }
    }

    fn upload(&mut self, name: usize, kind: Kind) -> Result<(), Errno> {
        let taken = |entry: &Entry| entry.name == name || entry.kind.own == kind.own;
        if self.loaded.iter().any(taken) {
            return Err(Errno::EEXIST);
        }
        let uses = match kind.uses {
            None => None,
            Some(own) => {
                let found = self.loaded.iter().find(|entry| entry.kind.own == own);
                Some(found.ok_or(Errno::ENOENT)?.serial)
            }
        };
        self.loaded.push(Entry {
            name,
            kind,
            serial: self.next,
            uses,
            reverted: false,
            result: 0,
        });
        self.next += 1;
        Ok(())
    }

    fn act(&mut self, index: usize, action: Action, nodeps: bool, late: bool) -> Outcome {
        let entry = self.loaded[index].clone();
        let is_applied = self.applied.contains(&entry.serial);
        match (action, is_applied) {
            (Action::Unload, false) => {
                let mut applied = self
                    .loaded
                    .iter()
                    .filter(|e| self.applied.contains(&e.serial));
                if applied.any(|other| other.uses == Some(entry.serial)) {
                    return Outcome::refused(Errno::EBUSY);
                }
                Outcome::unloaded()
            }
            (Action::Unload, true) => Outcome::refused(Errno::EINVAL),
            (Action::Revert, false) | (Action::Apply | Action::Replace, true) => {
                Outcome::nothing_to_do()
            }
            (Action::Revert, true) if self.applied.last() != Some(&entry.serial) => {
                Outcome::refused(Errno::EBUSY)
            }
            (Action::Revert, true) => {
                if late {
                    return Outcome::reported(Errno::EBUSY);
                }
                self.applied.pop();
                self.loaded[index].reverted = true;
                Outcome::done()
            }
            (Action::Apply, false) => self.apply(&entry, false, nodeps, late),
            (Action::Replace, false) => self.apply(&entry, true, nodeps, late),
        }
    }

    fn apply(&mut self, entry: &Entry, replace: bool, nodeps: bool, late: bool) -> Outcome {
        if entry.reverted && entry.kind.data {
            return Outcome::reported(Errno::EINVAL);
        }
        let there = |serial| self.loaded.iter().any(|other| other.serial == serial);
        if !entry.uses.is_none_or(there) {
            return Outcome::refused(Errno::EINVAL);
        }
        let top = self.applied.last().filter(|_| !replace);
        let top = top.and_then(|top| self.loaded.iter().find(|e| e.serial == *top));
        let fits = entry.kind.depends == top.map(|top| top.kind.own);
        if !fits && (replace || !nodeps) {
            return Outcome::refused(Errno::EINVAL);
        }
        if late {
            return Outcome::reported(Errno::EBUSY);
        }
        if replace {
            for serial in self.applied.drain(..) {
                for other in &mut self.loaded {
                    other.reverted |= other.serial == serial;
                }
            }
        }
        self.applied.push(entry.serial);
        Outcome::done()
    }
}

/// What a call gives, and what the payload's record says afterwards.
struct Outcome {
    returned: Result<(), Errno>,
    reported: Option<i32>,
    unloaded: bool,
}

impl Outcome {
    fn nothing_to_do() -> Self {
        Self {
            returned: Ok(()),
            reported: None,
            unloaded: false,
        }
    }

    fn unloaded() -> Self {
        Self {
            unloaded: true,
            ..Self::nothing_to_do()
        }
    }

    fn refused(errno: Errno) -> Self {
        Self {
            returned: Err(errno),
            reported: None,
            unloaded: false,
        }
    }

    fn reported(errno: Errno) -> Self {
        Self {
            reported: Some(-errno.0),
            ..Self::refused(errno)
        }
    }

    fn done() -> Self {
        Self {
            returned: Ok(()),
            reported: Some(0),
            unloaded: false,
        }
    }
}

fn perform(engine: &mut Engine<Hypervisor>, step: &Step) -> Result<(), Errno> {
    match step {
        Step::Upload(name, kind) => engine
            .upload(NAMES[*name], &kind.bytes())
            .map(|_| ())
            .map_err(|refusal| refusal.errno()),
        Step::Act {
            name,
            action,
            nodeps,
            late,
        } => {
            let options = Options {
                nodeps: *nodeps,
                timeout: 0,
            };
            engine.host().memory().late = *late;
            let result = engine.act(NAMES[*name], *action, options);
            engine.host().memory().late = false;
            result.map_err(|failure| failure.errno())
        }
    }
}

/// Compares everything that can be seen.
fn compare(engine: &Engine<Hypervisor>, model: &Model) {
    let theirs: Vec<_> = model
        .loaded
        .iter()
        .map(|entry| {
            let state = match model.applied.contains(&entry.serial) {
                true => State::Applied,
                false => State::Checked,
            };
            (NAMES[entry.name], state, entry.result)
        })
        .collect();
    let ours: Vec<_> = engine
        .stack()
        .loaded()
        .map(|payload| (payload.name(), payload.state(), payload.result()))
        .collect();
    assert_eq!(ours, theirs);
    let find = |serial: &u32| model.loaded.iter().find(|entry| entry.serial == *serial);
    let theirs: Vec<_> = model
        .applied
        .iter()
        .filter_map(find)
        .map(|entry| NAMES[entry.name])
        .collect();
    let ours: Vec<_> = engine
        .stack()
        .applied()
        .map(|payload| payload.name())
        .collect();
    assert_eq!(ours, theirs);

    let machine = engine.host().machine();
    assert_eq!(machine.payloads.len(), model.loaded.len());
    assert!(machine.open.is_none() && !machine.writing);
    for function in 0..FUNCTIONS {
        let patches = |entry: &&Entry| entry.kind.function == function;
        let top = model.applied.iter().rev().filter_map(find).find(patches);
        let mut bytes = [0; 5];
        assert!(engine.host().read(address(function), &mut bytes));
        let expected = match top {
            None => [0xcc; 5],
            Some(entry) => {
                let payload = engine.stack().find(NAMES[entry.name]);
                let new = payload.map_or(0, |payload| payload.memory().base());
                let distance = new.wrapping_sub(address(function) + 5).to_le_bytes();
                [0xe9, distance[0], distance[1], distance[2], distance[3]]
            }
        };
        assert_eq!(bytes, expected, "function {function}");
    }
}

/// Goes through `steps`, comparing after each, and then takes everything out again.
///
/// # Panics
/// When engine and model differ, or something is left in the end.
pub fn check(steps: &[Step]) {
    let mut engine = engine();
    let mut model = Model::default();
    for step in steps {
        let result = perform(&mut engine, step);
        assert_eq!(result, model.step(step), "{step:?}");
        compare(&engine, &model);
    }
    let names = |payloads: Vec<&xsplice_engine::Loaded>| -> Vec<String> {
        payloads.iter().map(|p| p.name().to_owned()).collect()
    };
    for name in names(engine.stack().applied().rev().collect()) {
        let done = engine.act(&name, Action::Revert, Options::default());
        assert!(done.is_ok(), "{done:?}");
    }
    for name in names(engine.stack().loaded().collect()) {
        let done = engine.act(&name, Action::Unload, Options::default());
        assert!(done.is_ok(), "{done:?}");
    }
    assert_eq!(engine.host().machine(), Hypervisor::new().machine());
}
