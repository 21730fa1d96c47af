// SPDX-License-Identifier: MIT OR Apache-2.0
//! Carries out steps on the hypervisor, and restores the payload that was applied before.

use crate::host::{Change, Fault, Host, Loaded, State};
use crate::plan::Step;
use crate::{Entry, Retries, SyncError};

/// The hypervisor, which is asked again if it is busy.
pub(crate) struct Driver<'a, H> {
    host: &'a mut H,
    /// How often it was asked again.
    pub(crate) retries: u32,
}

/// The payload that was applied before.
pub(crate) struct Former<'a> {
    pub(crate) entry: &'a Entry,
    /// Its file, if it can be read and may be applied.
    pub(crate) data: Option<Vec<u8>>,
}

impl<'a, H: Host> Driver<'a, H> {
    pub(crate) fn new(host: &'a mut H) -> Self {
        Self { host, retries: 0 }
    }

    /// Does `ask`; if the hypervisor is busy, a few times.
    fn ask<T>(&mut self, mut ask: impl FnMut(&mut H) -> Result<T, Fault>) -> Result<T, Fault> {
        let mut retries = Retries::default();
        loop {
            match ask(self.host) {
                Err(fault) if fault.is_busy() => match retries.next() {
                    Some(pause) => {
                        self.retries += 1;
                        self.host.pause(pause);
                    }
                    None => return Err(fault),
                },
                answer => return answer,
            }
        }
    }

    /// What the hypervisor holds.
    pub(crate) fn list(&mut self) -> Result<Vec<Loaded>, Fault> {
        self.ask(|host| host.list())
    }

    /// Checks a payload before it is uploaded.
    pub(crate) fn check(&self, name: &str, data: &[u8]) -> Result<(), Fault> {
        self.host.check(name, data)
    }

    /// Takes the steps, up to the first that fails, and adds to `done` those that are done.
    pub(crate) fn take(
        &mut self,
        steps: &[Step],
        data: Option<&[u8]>,
        done: &mut Vec<Step>,
    ) -> Result<(), SyncError> {
        for step in steps {
            self.step(step, data).map_err(|fault| SyncError::Step {
                step: step.clone(),
                fault: Box::new(fault),
            })?;
            done.push(step.clone());
        }
        Ok(())
    }

    fn step(&mut self, step: &Step, data: Option<&[u8]>) -> Result<(), Fault> {
        let (name, change) = match step {
            Step::Upload { payload } => {
                let data = data.unwrap_or_default();
                return self.ask(|host| host.upload(&payload.name, data));
            }
            Step::Apply { name } => (name, Change::Apply),
            Step::Replace { name } => (name, Change::Replace),
            Step::Revert { name } => (name, Change::Revert),
            Step::Unload { name } => (name, Change::Unload),
        };
        self.ask(|host| host.change(name, change))
    }

    /// The state of a payload; `None` if it is not there.
    fn state(&mut self, entry: &Entry) -> Result<Option<State>, Fault> {
        let list = self.list()?;
        let mut list = list.into_iter();
        let found = list.find(|loaded| loaded.name == entry.manifest.name);
        Ok(found.map(|loaded| loaded.state))
    }

    /// Restores what was applied before. Returns whether it had to, and it is applied
    /// again; `None` also if the hypervisor does not answer, so that neither is known.
    ///
    /// If the hypervisor does not list its payloads, all is tried: it refuses to apply, to
    /// unload or to upload again what is applied.
    pub(crate) fn restore(&mut self, former: &Former) -> Option<bool> {
        let before = self.state(former.entry);
        let restored = match before {
            Ok(Some(State::Applied)) => return None,
            Ok(Some(_)) | Err(_) => self.reapply(former),
            Ok(None) => self.load(former),
        };
        let is_known = before.is_ok();
        match self.state(former.entry) {
            _ if restored => Some(true),
            Ok(Some(State::Applied)) => is_known.then_some(true),
            Ok(_) => Some(false),
            Err(_) => is_known.then_some(false),
        }
    }

    /// Applies what is uploaded; if that fails, loads it anew: its data may not be as in
    /// the beginning.
    fn reapply(&mut self, former: &Former) -> bool {
        let name = || former.entry.manifest.name.clone();
        if self.step(&Step::Apply { name: name() }, None).is_ok() {
            return true;
        }
        let _ = self.step(&Step::Unload { name: name() }, None);
        self.load(former)
    }

    fn load(&mut self, former: &Former) -> bool {
        let Some(data) = &former.data else {
            return false;
        };
        let payload = former.entry.manifest.identity();
        let apply = Step::Apply {
            name: payload.name.clone(),
        };
        let uploaded = self.step(&Step::Upload { payload }, Some(data));
        uploaded.and_then(|()| self.step(&apply, None)).is_ok()
    }

    /// Unloads a payload that is uploaded and not applied. What stays is unloaded by the
    /// next run.
    pub(crate) fn sweep(&mut self, entry: &Entry) {
        if self.state(entry) == Ok(Some(State::Checked)) {
            let name = entry.manifest.name.clone();
            let _ = self.step(&Step::Unload { name }, None);
        }
    }
}
