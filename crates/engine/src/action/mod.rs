// SPDX-License-Identifier: MIT OR Apache-2.0

//! Actions on payloads, each of them a transaction.

mod failure;
mod prepare;
mod window;

pub use failure::{Cause, Failure};

use crate::count::Counters;
use crate::format::MAX_NAME;
use crate::host::{Hook, State, WriteAccess};
use crate::patch::{Patch, Write};
use crate::problem::{FileFault, Problem, Refusal, same};
use crate::stack::{Id, Loaded, Noted, Times};
use crate::{Errno, Host, Loader, Policy, Stack};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use xsplice_fallible as fallible;

/// An action on a loaded payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Unload it.
    Unload,
    /// Restore the functions that it patches.
    Revert,
    /// Patch the functions.
    Apply,
    /// Revert all applied payloads, and apply it.
    Replace,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unload => "unload",
            Self::Revert => "revert",
            Self::Apply => "apply",
            Self::Replace => "replace",
        })
    }
}

/// Options of an action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Apply, whatever is on top of the stack (`LIVEPATCH_ACTION_APPLY_NODEPS`).
    /// That the payload is for this hypervisor was checked when it was loaded.
    pub nodeps: bool,
    /// Timeout of the rendezvous in nanoseconds; 0 for [`Engine::DEFAULT_TIMEOUT`].
    pub timeout: u32,
}

/// What is checked about the text below a payload before it is applied. Its
/// expectations are always checked.
///
/// ```
/// use xsplice_engine::{Action, Cause, Engine, Guard, Options, Policy};
/// # use xsplice_test_host::{Hypervisor, Payload, func};
/// # let hypervisor = Hypervisor::new();
/// # let file = Payload::new(&[func("target")]).bytes();
///
/// let mut engine = Engine::new(hypervisor, Policy::Engine).with_guard(Guard::OldCode);
/// // This payload has no preimage notes.
/// engine.upload("fix", &file)?;
/// let failure = engine.act("fix", Action::Apply, Options::default()).unwrap_err();
/// assert!(matches!(failure.cause, Cause::Unmet { .. }));
/// # Ok::<(), xsplice_engine::Refusal>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Guard {
    /// The build-id of what it depends on.
    Stack,
    /// The hash of each old function, from its preimage notes: payloads can be
    /// stacked in any order that leaves these functions unchanged.
    OldCode,
    /// The build-id, and any hashes in the payload.
    #[default]
    Both,
}

/// The result of [`Engine::start`].
///
/// ```
/// use xsplice_engine::{Action, Engine, Options, Policy, Progress};
/// # use xsplice_test_host::{Hypervisor, Payload, func};
/// # let mut engine = Engine::new(Hypervisor::new(), Policy::Engine);
/// # engine.upload("fix", &Payload::new(&[func("target")]).bytes())?;
///
/// // In the context of a hypercall:
/// let progress = engine.start("fix", Action::Apply, Options::default())?;
/// // Where all CPUs can be stopped:
/// if progress == Progress::Pending {
///     assert_eq!(engine.pending(), Some("fix"));
///     engine.run()?;
/// }
/// assert_eq!(engine.counters().applied, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Done, or nothing to do: the payload is in the target state of the action.
    Done,
    /// Everything is prepared; [`Engine::run`] does the rest.
    Pending,
}

/// Live patching of one hypervisor.
///
/// ```
/// use xsplice_engine::{Action, Engine, Options, Policy, State};
/// # use xsplice_test_host::{Hypervisor, Payload, func};
/// # let hypervisor = Hypervisor::new();
/// # let file = Payload::new(&[func("target")]).bytes();
///
/// // `hypervisor` implements `Host`, and `file` is a payload.
/// let mut engine = Engine::new(hypervisor, Policy::Engine);
/// engine.upload("fix", &file)?;
/// engine.act("fix", Action::Apply, Options::default())?;
/// assert_eq!(engine.stack().find("fix").unwrap().state(), State::Applied);
///
/// let failure = engine.act("fix", Action::Unload, Options::default()).unwrap_err();
/// assert_eq!(
///     failure.to_string(),
///     "cannot unload fix (EINVAL): it is applied; revert it first"
/// );
/// engine.act("fix", Action::Revert, Options::default())?;
/// engine.act("fix", Action::Unload, Options::default())?;
/// assert_eq!(engine.stack().loaded().len(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Engine<H> {
    host: H,
    policy: Policy,
    guard: Guard,
    stack: Stack,
    pending: Option<Pending>,
    counters: Counters,
}

/// A prepared action.
#[derive(Debug)]
struct Pending {
    action: Action,
    payload: Id,
    /// None for a revert, which needs no memory.
    applying: Option<Box<Applying>>,
    timeout: u32,
}

/// The preparation of an apply or replace. Boxed, because it is made deep in the call
/// stack.
#[derive(Debug)]
struct Applying {
    reverts: Reverts,
    /// The records to make once it is done.
    noted: Option<Noted>,
}

/// The payloads that a replace reverts.
#[derive(Debug, Default)]
struct Reverts {
    /// The payload on top first.
    payloads: Vec<Revert>,
    /// All their writes in one list, which the window walks once.
    writes: Vec<Write>,
    /// Whether memory must be checked again after the reverts: hooks revert, with
    /// unpredictable effects.
    look_again: bool,
}

/// A payload that a replace reverts.
#[derive(Debug)]
struct Revert {
    payload: Id,
    /// The end of its part of [`Reverts::writes`].
    written: usize,
    /// Whether it has hooks that run in the window: then it is reverted separately,
    /// and its part is the expected result.
    hooked: bool,
}

impl<H: Host> Engine<H> {
    /// Default timeout of the rendezvous: 30 ms.
    pub const DEFAULT_TIMEOUT: u32 = 30_000_000;

    /// Live patching of `host`, without payloads.
    pub const fn new(host: H, policy: Policy) -> Self {
        Self {
            host,
            policy,
            guard: Guard::Both,
            stack: Stack::new(),
            pending: None,
            counters: Counters::new(),
        }
    }

    /// Sets a guard other than [`Guard::Both`].
    #[must_use]
    pub const fn with_guard(mut self, guard: Guard) -> Self {
        self.guard = guard;
        self
    }

    /// The hypervisor.
    pub const fn host(&self) -> &H {
        &self.host
    }

    /// The payloads.
    pub const fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Statistics so far.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// The payload with a prepared action that has not run yet.
    pub fn pending(&self) -> Option<&str> {
        let pending = self.pending.as_ref();
        pending.map(|pending| self.name(pending.payload))
    }

    /// Loads the payload `file` under `name`.
    ///
    /// # Errors
    /// [`Refusal`] with every problem that could be found; nothing of the
    /// payload stays in memory.
    pub fn upload(&mut self, name: &str, file: &[u8]) -> Result<&Loaded, Refusal> {
        let result = self.load(name, file);
        self.counters.upload(result.is_ok());
        result.map_err(|refusal| self.refused(name, refusal))?;
        let gone = || Refusal::new(name, Problem::File(FileFault::NothingToDo));
        let payload = self.stack.find(name).ok_or_else(gone)?;
        // A console is slow, and a loaded payload does nothing yet: no other line.
        let mut problems = payload.problems().iter();
        if let Some(problem) = problems.find(|p| matches!(p, Problem::Signature { .. })) {
            let name = name.as_bytes().escape_ascii();
            self.host
                .log(format_args!("{name} was loaded, but {problem}"));
        }
        Ok(payload)
    }

    fn load(&mut self, name: &str, file: &[u8]) -> Result<(), Refusal> {
        let (length, limit) = (name.len(), MAX_NAME);
        if length == 0 || length > limit {
            return Err(Refusal::new(name, Problem::Name { length, limit }));
        }
        if self.stack.find(name).is_some() {
            return Err(Refusal::new(name, Problem::NameTaken));
        }
        let loader = Loader {
            host: &self.host,
            stack: &self.stack,
            policy: self.policy,
        };
        let payload = loader.load(name, file)?;
        payload.install(&mut self.stack)
    }

    /// Logs a refusal.
    #[inline(never)]
    fn refused(&self, name: &str, mut refusal: Refusal) -> Refusal {
        if refusal.payload.is_empty() {
            // The payload's memory is free again.
            refusal.payload = same(name);
        }
        self.host.log(format_args!("{}", refusal.brief()));
        refusal
    }

    /// Does the part of `action` that can be done while the hypervisor runs: checks,
    /// the bytes to write, and the hook that can veto it. The rest needs the window
    /// and is left to [`run`](Self::run).
    ///
    /// # Errors
    /// [`Failure`] if the action is not possible; then nothing has changed, except by
    /// the pre-apply or pre-revert hook.
    #[inline(never)]
    pub fn start(
        &mut self,
        name: &str,
        action: Action,
        options: Options,
    ) -> Result<Progress, Failure> {
        self.prepare(name, action, options).map_err(|cause| {
            let failure = Failure {
                payload: same(name),
                action,
                cause,
            };
            self.counters.failed(&failure.cause);
            self.host.log(format_args!("{failure}"));
            failure
        })
    }

    #[inline(never)]
    fn prepare(&mut self, name: &str, action: Action, options: Options) -> Result<Progress, Cause> {
        let payload = self.stack.find(name).ok_or(Cause::NoSuchPayload)?;
        let id = payload.id;
        if let Some(pending) = &self.pending {
            let other = same(self.name(pending.payload));
            return Err(Cause::Busy { other });
        }
        let veto = match (action, payload.state) {
            (Action::Unload, State::Checked) => {
                prepare::unload(&self.stack, id)?;
                self.stack.remove(id);
                self.counters.done(action);
                self.host.log(format_args!("{name}: unloaded"));
                return Ok(Progress::Done);
            }
            (Action::Unload, State::Applied) => return Err(Cause::Applied),
            (Action::Revert, State::Checked)
            | (Action::Apply | Action::Replace, State::Applied) => return Ok(Progress::Done),
            (Action::Revert, State::Applied) => {
                prepare::revert(&self.stack, id)?;
                Hook::PreRevert
            }
            (Action::Apply | Action::Replace, State::Checked) => Hook::PreApply,
        };
        let applying = match action {
            Action::Revert => None,
            _ => Some(self.prepare_apply(id, action, options)?),
        };
        if let Some(payload) = self.stack.get_mut(id)
            && let Some(Err(errno)) = payload.call(veto)
        {
            self.set_result(id, Some(errno));
            return Err(Cause::Hook {
                owner: same(name),
                hook: veto,
                errno,
            });
        }
        self.pending = Some(Pending {
            action,
            payload: id,
            applying,
            timeout: match options.timeout {
                0 => Self::DEFAULT_TIMEOUT,
                timeout => timeout,
            },
        });
        self.set_result(id, Some(Errno::EAGAIN));
        Ok(Progress::Pending)
    }

    #[inline(never)]
    fn prepare_apply(
        &mut self,
        id: Id,
        action: Action,
        options: Options,
    ) -> Result<Box<Applying>, Cause> {
        let new = Applying {
            reverts: Reverts::default(),
            noted: None,
        };
        let mut applying = Box::write(fallible::place()?, new);
        let request = prepare::Request {
            payload: id,
            replace: action == Action::Replace,
            nodeps: options.nodeps,
            guard: self.guard,
        };
        let reverts = &mut applying.reverts;
        let patches = match prepare::apply(&self.host, &self.stack, request, reverts) {
            Ok(patches) => patches,
            Err(cause) => {
                if matches!(cause, Cause::NeedsReload) {
                    self.set_result(id, Some(Errno::EINVAL));
                }
                return Err(cause);
            }
        };
        if let Some(payload) = self.stack.get(id) {
            applying.noted = Some(self.stack.to_note(payload)?);
        }
        if let Some(payload) = self.stack.get_mut(id) {
            payload.patches = patches;
        }
        Ok(applying)
    }

    /// Runs the prepared action, if there is one: stops the CPUs, does it, and calls
    /// the post hook.
    ///
    /// # Errors
    /// [`Failure`]; payloads and memory are then unchanged.
    #[inline(never)]
    pub fn run(&mut self) -> Result<(), Failure> {
        let Some(pending) = self.pending.take() else {
            return Ok(());
        };
        let ran = self.stop_and_run(&pending);
        let (action, id) = (pending.action, pending.payload);
        if let Ok((Ok(()), _)) = ran {
            match action {
                Action::Replace => self.stack.set_all_reverted(),
                Action::Revert => self.stack.set_reverted(id),
                Action::Apply | Action::Unload => {}
            }
            if let Some(noted) = pending.applying.and_then(|applying| applying.noted) {
                self.stack.set_applied(id, noted);
            }
        }
        let (result, times) = match ran {
            Ok((outcome, times)) => (outcome.map_err(|stopped| self.cause(stopped)), Some(times)),
            Err(cause) => (Err(cause), None),
        };
        let result = result.map_err(|cause| Failure {
            payload: same(self.name(id)),
            action,
            cause,
        });
        match &result {
            Ok(()) => self.counters.done(action),
            Err(failure) => self.counters.failed(&failure.cause),
        }
        self.set_result(id, result.as_ref().err().map(Failure::errno));
        self.finish(action, id, times);
        match &result {
            Ok(()) => self.log_done(action, id, times.unwrap_or_default()),
            Err(failure) => self.host.log(format_args!("{failure}")),
        }
        result
    }

    /// Opens the text, stops the CPUs and runs the window. Returns its outcome, or why
    /// there was no window.
    #[inline(never)]
    fn stop_and_run(
        &mut self,
        pending: &Pending,
    ) -> Result<(Result<(), window::Stopped>, Times), Cause> {
        let (range, access) = self.extent(pending);
        let (host, stack) = (&self.host, &mut self.stack);
        let closed = |errno| Cause::Closed { errno };
        host.open_text(range, access).map_err(closed)?;
        let asked = host.now();
        let mut ran = None;
        let result = host.rendezvous(u64::from(pending.timeout), &mut || {
            let begun = host.now();
            let outcome = window::run(host, stack, pending);
            let times = Times {
                waiting: begun.saturating_sub(asked),
                window: host.now().saturating_sub(begun),
            };
            ran = Some((outcome, times));
        });
        host.close_text();
        // What ran counts, whatever the host returned.
        ran.ok_or_else(|| {
            let absent = result.err().unwrap_or(crate::Absent {
                step: "the window did not open",
                cpus: Vec::new(),
            });
            Cause::Absent(absent)
        })
    }

    /// Records the times of an action, and calls the post hook. As in Xen, there is none
    /// if there was no window.
    fn finish(&mut self, action: Action, id: Id, times: Option<Times>) {
        if let Some(times) = times {
            self.counters.window(times);
        }
        let Some(payload) = self.stack.get_mut(id) else {
            return;
        };
        payload.times = times.unwrap_or_default();
        if times.is_some() {
            let hook = match action {
                Action::Revert => Hook::PostRevert,
                _ => Hook::PostApply,
            };
            let _: Option<Result<(), Errno>> = payload.call(hook);
            self.stack.adopt(id);
        }
    }

    /// Logs what was done, and the metadata of a payload that is now applied.
    #[inline(never)]
    fn log_done(&self, action: Action, id: Id, times: Times) {
        self.host.log(format_args!(
            "{}: {action} done; waited {} ns, stopped for {} ns",
            self.name(id),
            times.waiting,
            times.window
        ));
        let applied = matches!(action, Action::Apply | Action::Replace);
        if let Some(payload) = self.stack.get(id).filter(|_| applied) {
            for line in payload.metadata() {
                self.host.log(format_args!("  {line}"));
            }
        }
    }

    /// [`start`](Self::start) and [`run`](Self::run).
    ///
    /// # Errors
    /// As these.
    pub fn act(&mut self, name: &str, action: Action, options: Options) -> Result<(), Failure> {
        match self.start(name, action, options)? {
            Progress::Done => Ok(()),
            Progress::Pending => self.run(),
        }
    }

    /// What an action writes to, and how that must be writable.
    fn extent(&self, pending: &Pending) -> (Range<u64>, WriteAccess) {
        let Some(payload) = self.stack.get(pending.payload) else {
            return (0..0, WriteAccess::Alias);
        };
        let reverts = pending.applying.as_ref().map(|applying| &applying.reverts);
        let writes = reverts.iter().flat_map(|reverts| &reverts.writes);
        let patches = payload.patches.iter().map(Patch::range);
        let written = patches.chain(writes.map(Write::range));
        let extent = written.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
        let mut reverted = reverts.iter().flat_map(|reverts| &reverts.payloads);
        let hooks = payload.hooks.in_window() || reverted.any(|revert| revert.hooked);
        let access = match hooks {
            true => WriteAccess::InPlace,
            false => WriteAccess::Alias,
        };
        (extent.unwrap_or_default(), access)
    }

    fn name(&self, id: Id) -> &str {
        self.stack.get(id).map_or("", Loaded::name)
    }

    fn set_result(&mut self, id: Id, failed: Option<Errno>) {
        if let Some(payload) = self.stack.get_mut(id) {
            payload.result = failed.map_or(0, |errno| -errno.0);
        }
    }

    fn cause(&self, stopped: window::Stopped) -> Cause {
        match stopped {
            window::Stopped::Closed(errno) => Cause::Closed { errno },
            window::Stopped::Unexpected(index) => Cause::Unexpected { index },
            window::Stopped::Hook(id, hook, errno) => {
                let owner = same(self.name(id));
                Cause::Hook { owner, hook, errno }
            }
        }
    }
}
