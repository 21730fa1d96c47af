// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hypervisor that answers as Xen does.

use super::{Counter, Fault};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use xsplice_abi::errno::Errno;
use xsplice_store::{Change, Host, Loaded, Manifest, State};

type Answer = Result<(), xsplice_store::Fault>;

/// Which live-patch core it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Core {
    /// Xen's: a replace reverts everything, and checks then.
    Stock,
    /// Ours: a replace that fails changes nothing; what was reverted is loaded anew before
    /// it is applied again.
    Ours,
}

#[derive(Debug, Clone)]
struct There {
    manifest: Manifest,
    name: String,
    applied: bool,
    reverted: bool,
}

#[derive(Debug)]
pub(crate) struct Xen {
    core: Core,
    counter: Rc<Counter>,
    /// The payloads that exist, by what they contain.
    known: BTreeMap<Vec<u8>, Manifest>,
    /// In the order of upload.
    there: Vec<There>,
    /// Those whose code is not as expected: levels.
    pub(crate) bad: BTreeSet<u32>,
    /// Those that it refuses to load.
    pub(crate) unloadable: BTreeSet<u32>,
    /// Whether the check before an upload refuses everything.
    pub(crate) refused: bool,
    /// The payload that it is at work on.
    stuck: Option<String>,
    /// What every call answers from now on.
    always: Cell<Option<Errno>>,
    pub(crate) pauses: u32,
}

impl Xen {
    pub(crate) fn new(core: Core, counter: Rc<Counter>) -> Self {
        Self {
            core,
            counter,
            known: BTreeMap::new(),
            there: Vec::new(),
            bad: BTreeSet::new(),
            unloadable: BTreeSet::new(),
            refused: false,
            stuck: None,
            always: Cell::new(None),
            pauses: 0,
        }
    }

    pub(crate) fn know(&mut self, data: &[u8], manifest: &Manifest) {
        self.known.insert(data.to_vec(), manifest.clone());
    }

    /// The levels of what is applied.
    pub(crate) fn applied(&self) -> Vec<u32> {
        let applied = self.there.iter().filter(|there| there.applied);
        applied.map(|there| there.manifest.level).collect()
    }

    /// The names of what is there and not applied.
    pub(crate) fn checked(&self) -> Vec<&str> {
        let checked = self.there.iter().filter(|there| !there.applied);
        checked.map(|there| &*there.name).collect()
    }

    /// Somebody else uploads a payload.
    pub(crate) fn upload_only(&mut self, manifest: &Manifest) {
        self.there.push(There {
            manifest: manifest.clone(),
            name: manifest.name.clone(),
            applied: false,
            reverted: false,
        });
    }

    /// Somebody else loads a payload on top of what is there.
    pub(crate) fn load(&mut self, manifest: &Manifest) {
        self.upload_only(manifest);
        if let Some(there) = self.there.last_mut() {
            there.applied = true;
        }
    }

    pub(crate) fn reset(&mut self) {
        self.there.clear();
        self.stuck = None;
    }

    pub(crate) fn end_of_fault(&mut self) {
        self.stuck = None;
        self.answer_again();
    }

    /// It can be asked again; what it is at work on has not ended.
    pub(crate) fn answer_again(&self) {
        self.always.set(None);
    }

    fn find(&mut self, name: &str) -> Result<&mut There, Errno> {
        let found = self.there.iter_mut().find(|there| there.name == name);
        found.ok_or(Errno::ENOENT)
    }

    fn upload_it(&mut self, name: &str, data: &[u8]) -> Result<(), Errno> {
        let manifest = self.known.get(data).ok_or(Errno::EINVAL)?.clone();
        let twice =
            |there: &There| there.name == name || there.manifest.build_id == manifest.build_id;
        if self.there.iter().any(twice) {
            return Err(Errno::EEXIST);
        }
        if self.unloadable.contains(&manifest.level) {
            return Err(Errno::EINVAL);
        }
        self.there.push(There {
            manifest,
            name: name.to_owned(),
            applied: false,
            reverted: false,
        });
        Ok(())
    }

    fn change_it(&mut self, name: &str, change: Change) -> Result<(), Errno> {
        let (core, bad) = (self.core, self.bad.clone());
        let others = self
            .there
            .iter()
            .filter(|there| there.applied && there.name != name);
        let hooked = others.clone().any(|there| !there.manifest.replaceable);
        let others = others.count();
        let there = self.find(name)?;
        let unfit = bad.contains(&there.manifest.level);
        let hooked = hooked || !there.manifest.replaceable;
        let stale = core == Core::Ours && there.reverted;
        match (change, there.applied) {
            (Change::Apply | Change::Replace, true) | (Change::Revert, false) => Err(Errno::EINVAL),
            (Change::Unload, true) => Err(Errno::EINVAL),
            (Change::Unload, false) => {
                self.there.retain(|there| there.name != name);
                Ok(())
            }
            // A payload with all fixes depends on the bare hypervisor.
            (Change::Apply, false) if others > 0 || unfit || stale => Err(Errno::EINVAL),
            (Change::Apply, false) => {
                there.applied = true;
                Ok(())
            }
            // Only one is ever applied here.
            (Change::Revert, true) => {
                (there.applied, there.reverted) = (false, true);
                Ok(())
            }
            (Change::Replace, false) if hooked => Err(Errno::EOPNOTSUPP),
            (Change::Replace, false) => {
                if core == Core::Ours && unfit {
                    return Err(Errno::EINVAL);
                }
                for other in self.there.iter_mut().filter(|there| there.applied) {
                    (other.applied, other.reverted) = (false, true);
                }
                if unfit {
                    return Err(Errno::EINVAL);
                }
                self.find(name)?.applied = true;
                Ok(())
            }
        }
    }

    /// Whether it can be asked at all, without changing it.
    fn look(&self) -> Answer {
        if self.counter.is_over() {
            return Err(Errno::EINTR.into());
        }
        match self.counter.next() {
            None => self.always.get().map_or(Ok(()), |errno| Err(errno.into())),
            Some(Fault::Fails(errno)) => Err(errno.into()),
            Some(Fault::FailsFromNowOn(errno)) => {
                self.always.set(Some(errno));
                Err(errno.into())
            }
            Some(Fault::Late | Fault::Stuck) => Err(Errno::EAGAIN.into()),
            Some(_) => Err(Errno::EINTR.into()),
        }
    }

    fn answer(&mut self, name: &str, effect: impl Fn(&mut Self) -> Result<(), Errno>) -> Answer {
        let gone = || Err(Errno::EINTR.into());
        if self.counter.is_over() {
            return gone();
        }
        let fault = self.counter.next();
        match fault {
            None => match self.always.get() {
                Some(errno) => Err(errno.into()),
                None if self.stuck.is_some() => Err(Errno::EBUSY.into()),
                None => Ok(effect(self)?),
            },
            Some(Fault::KilledBefore | Fault::DiesBefore) => gone(),
            Some(Fault::KilledAfter | Fault::DiesAfter) => {
                let _ = effect(self);
                gone()
            }
            Some(Fault::Late) => {
                let _ = effect(self);
                Err(Errno::EAGAIN.into())
            }
            Some(Fault::Stuck) => {
                self.stuck = Some(name.to_owned());
                Err(Errno::EAGAIN.into())
            }
            Some(Fault::Fails(errno)) => Err(errno.into()),
            Some(Fault::FailsFromNowOn(errno)) => {
                self.always.set(Some(errno));
                Err(errno.into())
            }
        }
    }
}

impl Host for Xen {
    fn list(&self) -> Result<Vec<Loaded>, xsplice_store::Fault> {
        self.look()?;
        let list = self.there.iter().map(|there| Loaded {
            name: there.name.clone(),
            state: match there.applied {
                true => State::Applied,
                false => State::Checked,
            },
            busy: self.stuck.as_ref() == Some(&there.name),
            metadata: Some(there.manifest.metadata.clone()),
        });
        Ok(list.collect())
    }

    fn check(&self, _name: &str, _data: &[u8]) -> Answer {
        self.look()?;
        match self.refused {
            true => Err(Errno::EINVAL.into()),
            false => Ok(()),
        }
    }

    fn upload(&mut self, name: &str, data: &[u8]) -> Answer {
        self.answer(name, |xen| xen.upload_it(name, data))
    }

    fn change(&mut self, name: &str, change: Change) -> Answer {
        self.answer(name, |xen| xen.change_it(name, change))
    }

    fn pause(&mut self, _time: Duration) {
        self.pauses += 1;
    }
}
