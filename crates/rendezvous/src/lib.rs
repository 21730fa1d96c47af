// SPDX-License-Identifier: MIT OR Apache-2.0

//! Stops all CPUs of a hypervisor, runs a closure, and releases them.
//!
//! One CPU [leads](Rendezvous::lead). The others enter [`check`](Rendezvous::check)
//! on their way back to a guest, with no hypervisor function on their call stack, and
//! stay there until the closure has run. The closure may patch code; or it has the
//! stopped CPUs work too, in [phases](Rendezvous::lead_in_phases), to load microcode
//! for example (`examples/microcode.rs`).
//!
//! # Algorithm
//!
//! A shared *word* holds the number of the current rendezvous and its phase; only the
//! leader writes it. Each CPU has a *slot* with the rendezvous and phase it has
//! reached; only that CPU writes it.
//!
//! | leader | word | a follower's slot |
//! | --- | --- | --- |
//! | takes the lead (compare-exchange) and interrupts the others | `n, gather` | |
//! | waits until all slots are `n, waiting` | | `n, waiting` |
//! | turns interrupts off and tells the others to | `n, mask` | |
//! | waits until all slots are `n, masked` | | interrupts off; `n, masked` |
//! | runs the closure | | |
//! | for each phase *p* of the closure: starts it | `n, work p` | does its work; `n, work p` |
//! | waits until all slots are `n, work p` | | |
//! | releases them | `n, idle` | synchronises; `n, idle`; interrupts on |
//! | synchronises; interrupts on | | |
//!
//! If one of the two waits times out, the leader writes `n, idle` at once: waiting
//! CPUs see a different word than they expect, and leave. Numbers make a late CPU
//! harmless: if it arrives for rendezvous *n* after its end, its slot does not count
//! in any later one.
//!
//! Once a phase has begun, there is no way back: a CPU that is at work cannot be
//! interrupted, and the others must not run meanwhile. When a phase times out, the
//! closure decides whether to [wait on](Stopped::wait); no CPU is released, and no other
//! phase begins, before all CPUs have finished this one.
//!
//! The leader does not wait for offline CPUs. One may [come
//! online](Rendezvous::online) at any moment; it then waits for the end of any
//! current rendezvous before it runs anything else.
//!
//! # Events that cannot be masked
//!
//! Non-maskable interrupts and machine checks reach a CPU during a rendezvous too.
//! Their handlers call [`hold`](Rendezvous::hold) first: from the moment a CPU
//! reports `masked` until it has synchronised, the event is recorded and the handler
//! returns; when the CPU resumes, even after an aborted rendezvous,
//! [`Platform::replay`] raises it again there. As with the processor's own NMI latch,
//! two events of the same kind are replayed once.
//!
//! `hold` only looks at the slot of its own CPU, and the handler runs on that CPU: an
//! event is either handled before its CPU can be counted as masked, or held. The
//! leader holds events from the moment others may. Were it to handle a broadcast
//! machine check, whose handlers wait for each other, it would wait for CPUs that
//! wait for it; such a wait ends at the latest with the rendezvous timeout.
//!
//! Holding an event still takes a few instructions. If not even these may run while
//! others work, a follower [stays](Platform::stays_in_nmi) in the handler of an NMI,
//! where the processor blocks further ones: with its interrupts off, it raises one on
//! itself, and is `masked` once it has entered the handler. If the NMI does not come, the
//! CPU does not come, and the rendezvous times out. The processor may have merged an NMI
//! of another source with this one: it is replayed like one that was held.
//!
//! An offline CPU may be parked: it runs only the handlers of these events.
//! Non-maskable interrupts are dropped there. A machine check is handled, but not
//! while a closure runs: its handler waits for the end of the closure, or the leader
//! waits for the handler, which reports its end with
//! [`handled`](Rendezvous::handled).
//!
//! # Memory ordering
//!
//! * *Closure after everything before.* A follower writes its slot with release,
//!   after everything it did; the leader reads it with acquire before it runs the
//!   closure. So the closure sees all of it, and none of it can take effect later.
//! * *Everything after sees the closure.* The leader writes `idle` with release after
//!   the closure; a follower reads the word with acquire before it leaves.
//! * *No CPU runs during the closure.* A follower leaves its loop only when the word
//!   becomes `idle`. Only the leader changes it, and not between reading the slot and the
//!   end of the closure.
//! * *Phases.* The word that starts a phase is written with release and read with
//!   acquire, as is the slot that ends it: the work sees everything that the leader did
//!   before, and all work of earlier phases; the leader sees all work.
//! * *Coming online.* The CPU writes its slot and then reads the word; the leader
//!   writes the word and then reads the slot. At least one must see the other's
//!   write, which release and acquire do not guarantee: both have a sequentially
//!   consistent fence in between. The same holds between an offline CPU that handles
//!   an event and the leader, for the word that starts the last wait.
//! * *Next leader.* Taking the lead reads with acquire what the previous leader wrote
//!   with release, so closures are ordered.
//!
//! `tests/loom.rs` checks this for three CPUs in all interleavings and with all
//! results that the memory model allows.
//!
//! * **Trusts** that each CPU calls with its own number, from one context at a time
//!   (except handlers that call [`hold`](Rendezvous::hold)).
//! * **Guarantees** that while the closure runs, every other CPU is offline or inside
//!   this crate with interrupts off, except for its work in a phase.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::vec::Vec;
use core::fmt;
use core::ops::BitOr;
#[cfg(not(loom))]
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use xsplice_fallible::{self as fallible, NoMemory};

/// The examples in the README are run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// What the rendezvous needs from the hypervisor. `examples/threads.rs` has one whose CPUs
/// are threads.
pub trait Platform {
    /// Nanoseconds since an arbitrary point in time.
    fn now(&self) -> u64;
    /// Tells the processor that this CPU is in a spin loop.
    fn relax(&self);
    /// Makes `cpu` enter [`Rendezvous::check`] soon.
    fn kick(&self, cpu: u32);
    /// Turns this CPU's interrupts off.
    fn mask(&self);
    /// Turns them on again.
    fn unmask(&self);
    /// Serialises this CPU's instruction stream.
    fn synchronise(&self);
    /// Raises `events` on this CPU: they were held, or it is to enter the handler of an
    /// NMI.
    fn replay(&self, events: Events);
    /// Whether this CPU stays in the handler of an NMI while it is stopped. Asked in
    /// each rendezvous, with interrupts off.
    fn stays_in_nmi(&self) -> bool {
        false
    }
    /// What this CPU does in a phase of [`Rendezvous::lead_in_phases`], while all others
    /// do the same or are stopped.
    fn work(&self, phase: u8) {
        let _ = phase;
    }
}

/// Width of the step of a rendezvous or of a CPU in it: the low bits of a word or
/// slot.
const STEP_BITS: u32 = 8;
const IDLE: u64 = 0;
const GATHER: u64 = 1;
/// From this step on, CPUs are stopped.
const MASK: u64 = 3;
/// The steps in which CPUs work: one for each phase, then the first one again.
const FIRST_WORK: u64 = 4;
const LAST_WORK: u64 = 254;
/// The steps of a slot are those of the word that it answers, and this one: an NMI is
/// due, in whose handler the CPU will be masked.
const ENTERING: u64 = 2;
/// The slot of an offline CPU; no rendezvous has this number.
const OFFLINE: u64 = u64::MAX;
/// The slot of an offline CPU that runs the handler of an event.
const HANDLING: u64 = u64::MAX - (1 << STEP_BITS);

const fn compose(number: u64, step: u64) -> u64 {
    (number << STEP_BITS) | step
}

const fn step(value: u64) -> u64 {
    value & ((1 << STEP_BITS) - 1)
}

const fn number(value: u64) -> u64 {
    value >> STEP_BITS
}

/// Whether CPUs are stopped when the word has this value.
const fn stops(word: u64) -> bool {
    step(word) >= MASK
}

/// Whether CPUs are stopped in rendezvous `number` when the word has this value.
const fn stops_for(number: u64, word: u64) -> bool {
    self::number(word) == number && stops(word)
}

/// Whether a CPU with this slot is offline.
const fn is_offline(slot: u64) -> bool {
    slot == OFFLINE || slot == HANDLING
}

/// Per-CPU state. Alone in its cache line, because other CPUs spin on theirs.
#[derive(Debug)]
#[repr(align(64))]
struct Cpu {
    slot: AtomicU64,
    /// Events that arrived while it was stopped; only this CPU uses it.
    held: AtomicU32,
}

/// The rendezvous of all CPUs of a hypervisor.
///
/// ```
/// use xsplice_rendezvous::{Failure, Rendezvous};
/// # use xsplice_rendezvous::{Events, Platform};
/// # struct Machine;
/// # impl Platform for Machine {
/// #     fn now(&self) -> u64 { 0 }
/// #     fn relax(&self) {}
/// #     fn kick(&self, _cpu: u32) {}
/// #     fn mask(&self) {}
/// #     fn unmask(&self) {}
/// #     fn synchronise(&self) {}
/// #     fn replay(&self, _events: Events) {}
/// # }
/// # let machine = Machine;
///
/// // `machine` implements `Platform`. Of two CPUs, the first is online.
/// let rendezvous = Rendezvous::new(2)?;
/// rendezvous.online(0, &machine);
/// let mut patched = false;
/// rendezvous.lead(0, 1_000_000, &machine, || patched = true)?;
/// assert!(patched);
///
/// // The other one is online too, and does not come.
/// rendezvous.online(1, &machine);
/// let failure = rendezvous.lead(0, 0, &machine, || ()).unwrap_err();
/// assert_eq!(failure, Failure::NotWaiting(vec![1]));
/// assert_eq!(failure.to_string(), "not all CPUs are waiting; missing: CPU 1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Rendezvous {
    word: AtomicU64,
    cpus: Vec<Cpu>,
}

/// Why a closure did not run. The missing CPUs are listed as far as memory allowed.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// Another CPU is the leader of a rendezvous.
    Busy,
    /// These CPUs did not reach the rendezvous in time.
    NotWaiting(Vec<u32>),
    /// These CPUs did not turn their interrupts off in time.
    NotMasked(Vec<u32>),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.step())?;
        let mut separator = "; missing: CPU ";
        for cpu in self.cpus() {
            write!(f, "{separator}{cpu}")?;
            separator = ", CPU ";
        }
        Ok(())
    }
}

impl Failure {
    /// What did not come to pass.
    #[must_use]
    pub const fn step(&self) -> &'static str {
        match self {
            Self::Busy => "another rendezvous is in progress",
            Self::NotWaiting(_) => "not all CPUs are waiting",
            Self::NotMasked(_) => "not all CPUs have interrupts off",
        }
    }

    fn cpus(&self) -> &[u32] {
        match self {
            Self::Busy => &[],
            Self::NotWaiting(cpus) | Self::NotMasked(cpus) => cpus,
        }
    }

    /// The CPUs that are named.
    #[must_use]
    pub fn into_cpus(self) -> Vec<u32> {
        match self {
            Self::Busy => Vec::new(),
            Self::NotWaiting(cpus) | Self::NotMasked(cpus) => cpus,
        }
    }
}

impl core::error::Error for Failure {}

/// This many CPUs have not finished the current phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished(pub usize);

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CPUs that have not finished: {}", self.0)
    }
}

impl core::error::Error for Unfinished {}

/// Kinds of events that cannot be masked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events(u32);

impl Events {
    /// A non-maskable interrupt.
    pub const NMI: Self = Self(1);
    /// A machine check.
    pub const MACHINE_CHECK: Self = Self(2);

    /// Whether all of `kinds` are among these.
    #[must_use]
    pub const fn contains(self, kinds: Self) -> bool {
        self.0 & kinds.0 == kinds.0
    }
}

impl BitOr for Events {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Rendezvous {
    /// For CPUs 0 to `cpus`; all are offline.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new(cpus: u32) -> Result<Self, NoMemory> {
        let cpu = |_| Cpu {
            slot: AtomicU64::new(OFFLINE),
            held: AtomicU32::new(0),
        };
        Ok(Self {
            word: AtomicU64::new(compose(0, IDLE)),
            cpus: fallible::collect((0..cpus).map(cpu))?,
        })
    }

    fn cpu(&self, cpu: u32) -> Option<&Cpu> {
        self.cpus.get(usize::try_from(cpu).ok()?)
    }

    fn others(&self, cpu: u32) -> impl Iterator<Item = (u32, &Cpu)> {
        (0..)
            .zip(&self.cpus)
            .filter(move |(other, _)| *other != cpu)
    }

    /// Marks this CPU online. Returns once no rendezvous is in progress without it;
    /// until then, it must not run code that a closure may change.
    pub fn online(&self, cpu: u32, platform: &impl Platform) {
        if let Some(own) = self.cpu(cpu) {
            // The slot of a past rendezvous: online, but has not arrived.
            own.slot.store(compose(0, IDLE), Ordering::Release);
            fence(Ordering::SeqCst);
        }
        self.check(cpu, platform);
    }

    /// Marks this CPU offline: it runs nothing until it is [`online`](Self::online)
    /// again.
    pub fn offline(&self, cpu: u32) {
        if let Some(own) = self.cpu(cpu) {
            own.slot.store(OFFLINE, Ordering::Release);
        }
    }

    /// Called on the way back to a guest, with interrupts on: takes part in a
    /// rendezvous if there is one. Otherwise this is a single load.
    pub fn check(&self, cpu: u32, platform: &impl Platform) {
        let word = self.word.load(Ordering::Acquire);
        if step(word) == IDLE {
            return;
        }
        if let Some(own) = self.cpu(cpu) {
            self.follow(own, number(word), platform);
        }
    }

    fn follow(&self, own: &Cpu, number: u64, platform: &impl Platform) {
        let gather = compose(number, GATHER);
        own.slot.store(gather, Ordering::Release);
        let mut word = self.word.load(Ordering::Acquire);
        while word == gather {
            platform.relax();
            word = self.word.load(Ordering::Acquire);
        }
        if !stops_for(number, word) {
            return;
        }
        platform.mask();
        if platform.stays_in_nmi() {
            own.slot.store(compose(number, ENTERING), Ordering::Relaxed);
            platform.replay(Events::NMI);
            while stops_for(number, self.word.load(Ordering::Acquire)) {
                platform.relax();
            }
        } else {
            self.stay(own, number, platform);
        }
        own.go_on(number, platform);
    }

    /// Reports that this CPU is masked, and does the work of each phase, up to the end
    /// of the rendezvous.
    fn stay(&self, own: &Cpu, number: u64, platform: &impl Platform) {
        let mut done = compose(number, MASK);
        own.slot.store(done, Ordering::Release);
        loop {
            let word = self.word.load(Ordering::Acquire);
            if word == done {
                platform.relax();
            } else if stops_for(number, word) {
                platform.work(work_phase(word));
                done = word;
                own.slot.store(done, Ordering::Release);
            } else {
                return;
            }
        }
    }

    /// Called first by handlers of events that cannot be masked. Returns true if the
    /// handler must return at once: either this CPU is stopped, and
    /// [`Platform::replay`] will raise the event again, or it is offline and the
    /// event is a non-maskable interrupt. Otherwise the handler runs; for a machine
    /// check, it calls [`handled`](Self::handled) at its end.
    #[must_use]
    pub fn hold(&self, cpu: u32, event: Events, platform: &impl Platform) -> bool {
        let Some(own) = self.cpu(cpu) else {
            return false;
        };
        let slot = own.slot.load(Ordering::Relaxed);
        if is_offline(slot) {
            if event != Events::NMI {
                self.handle_offline(own, platform);
            }
            return event == Events::NMI;
        }
        let entered = step(slot) == ENTERING && event == Events::NMI;
        let held = entered || stops(slot);
        if held {
            own.held.fetch_or(event.0, Ordering::Relaxed);
        }
        if entered {
            self.stay(own, number(slot), platform);
        }
        held
    }

    /// Waits until this offline CPU may run a handler, which is not while a closure
    /// runs.
    fn handle_offline(&self, own: &Cpu, platform: &impl Platform) {
        loop {
            own.slot.store(HANDLING, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if !stops(self.word.load(Ordering::Acquire)) {
                break;
            }
            own.slot.store(OFFLINE, Ordering::Release);
            while stops(self.word.load(Ordering::Acquire)) {
                platform.relax();
            }
        }
        platform.synchronise();
    }

    /// Called at the end of a machine-check handler for which [`hold`](Self::hold)
    /// returned false.
    pub fn handled(&self, cpu: u32) {
        let handling = |own: &&Cpu| own.slot.load(Ordering::Relaxed) == HANDLING;
        if let Some(own) = self.cpu(cpu).filter(handling) {
            own.slot.store(OFFLINE, Ordering::Release);
        }
    }

    /// Stops all other online CPUs, runs `closure`, and releases them. Called with
    /// interrupts on, on an online CPU.
    ///
    /// # Errors
    /// [`Failure`] if another CPU leads (then let this one enter
    /// [`check`](Self::check)), or if not all CPUs arrived within `timeout`
    /// nanoseconds. `closure` has then not run.
    pub fn lead(
        &self,
        cpu: u32,
        timeout: u64,
        platform: &impl Platform,
        closure: impl FnOnce(),
    ) -> Result<(), Failure> {
        self.lead_in_phases(cpu, timeout, platform, |_| closure())
    }

    /// Like [`lead`](Self::lead), but `closure` has the stopped CPUs work, and its
    /// result is returned.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    /// use xsplice_rendezvous::{Platform, Rendezvous, Unfinished};
    /// # use xsplice_rendezvous::Events;
    ///
    /// /// CPU 1 is a thread. In the first phase it loads a revision of its microcode.
    /// #[derive(Default)]
    /// struct Thread {
    ///     revision: AtomicU32,
    /// }
    ///
    /// impl Platform for Thread {
    ///     fn work(&self, phase: u8) {
    ///         assert_eq!(phase, 0);
    ///         self.revision.store(2, Ordering::Relaxed);
    ///     }
    /// #     fn now(&self) -> u64 { 0 }
    /// #     fn relax(&self) { std::thread::yield_now(); }
    /// #     fn kick(&self, _cpu: u32) {}
    /// #     fn mask(&self) {}
    /// #     fn unmask(&self) {}
    /// #     fn synchronise(&self) {}
    /// #     fn replay(&self, _events: Events) {}
    ///     // …
    /// }
    ///
    /// let (rendezvous, thread) = (Rendezvous::new(2)?, Thread::default());
    /// rendezvous.online(0, &thread);
    /// rendezvous.online(1, &thread);
    /// let over = AtomicBool::new(false);
    /// let loaded = std::thread::scope(|scope| {
    ///     scope.spawn(|| {
    ///         while !over.load(Ordering::Relaxed) {
    ///             rendezvous.check(1, &thread);
    ///         }
    ///     });
    ///     let loaded = rendezvous.lead_in_phases(0, 1, &thread, |stopped| {
    ///         assert_eq!(thread.revision.load(Ordering::Relaxed), 0);
    ///         stopped.run(1)?;
    ///         Ok::<u32, Unfinished>(thread.revision.load(Ordering::Relaxed))
    ///     });
    ///     over.store(true, Ordering::Relaxed);
    ///     loaded
    /// });
    /// assert_eq!(loaded, Ok(Ok(2)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As `lead`.
    pub fn lead_in_phases<P: Platform, T>(
        &self,
        cpu: u32,
        timeout: u64,
        platform: &P,
        closure: impl FnOnce(&mut Stopped<'_, P>) -> T,
    ) -> Result<T, Failure> {
        // Nothing is allocated while CPUs wait. Without memory, no CPUs are listed.
        let mut missing = fallible::with_room(self.cpus.len()).unwrap_or_default();
        let before = self.word.load(Ordering::Relaxed);
        let number = number(before).wrapping_add(1);
        let gather = compose(number, GATHER);
        let (Some(own), true) = (self.cpu(cpu), step(before) == IDLE) else {
            return Err(Failure::Busy);
        };
        self.word
            .compare_exchange(before, gather, Ordering::AcqRel, Ordering::Relaxed)
            .map_err(|_| Failure::Busy)?;
        // Either a CPU that comes online sees the word, or this sees its slot.
        fence(Ordering::SeqCst);
        let deadline = platform.now().saturating_add(timeout);
        for (other, state) in self.others(cpu) {
            if !is_offline(state.slot.load(Ordering::Relaxed)) {
                platform.kick(other);
            }
        }
        let met = self.all_reach(cpu, gather, deadline, platform)
            || self.none_missing(cpu, gather, &mut missing);
        if !met {
            self.word.store(compose(number, IDLE), Ordering::Release);
            return Err(Failure::NotWaiting(missing));
        }
        platform.mask();
        let mask = compose(number, MASK);
        own.slot.store(mask, Ordering::Release);
        self.word.store(mask, Ordering::Release);
        // Either an offline CPU that handles an event sees the word, or this sees its
        // slot.
        fence(Ordering::SeqCst);
        let met = self.all_reach(cpu, mask, deadline, platform)
            || self.none_missing(cpu, mask, &mut missing);
        let result = if met {
            let mut stopped = Stopped {
                rendezvous: self,
                leader: cpu,
                word: mask,
                platform,
            };
            let result = closure(&mut stopped);
            stopped.finish();
            Ok(result)
        } else {
            Err(Failure::NotMasked(missing))
        };
        self.word.store(compose(number, IDLE), Ordering::Release);
        own.go_on(number, platform);
        result
    }

    /// The other CPUs whose slots are not `slot`, unless they are offline.
    fn behind(&self, cpu: u32, slot: u64) -> impl Iterator<Item = u32> {
        let there =
            move |other: &Cpu| [slot, OFFLINE].contains(&other.slot.load(Ordering::Acquire));
        self.others(cpu)
            .filter(move |(_, other)| !there(other))
            .map(|(other, _)| other)
    }

    /// Waits until the slots of all other CPUs are `slot`; false on a timeout.
    fn all_reach(&self, cpu: u32, slot: u64, deadline: u64, platform: &impl Platform) -> bool {
        while self.behind(cpu, slot).next().is_some() {
            if platform.now() >= deadline {
                return false;
            }
            platform.relax();
        }
        true
    }

    /// A last look after a timeout: adds those that have not reached `slot` to
    /// `missing`, up to its capacity; returns whether there are none.
    fn none_missing(&self, cpu: u32, slot: u64, missing: &mut Vec<u32>) -> bool {
        let mut none = true;
        for other in self.behind(cpu, slot) {
            none = false;
            if missing.len() < missing.capacity() {
                // There is room.
                let _: Result<(), NoMemory> = fallible::push(missing, other);
            }
        }
        none
    }
}

/// The phase that a word starts.
fn work_phase(word: u64) -> u8 {
    // Steps have eight bits.
    u8::try_from(step(word).saturating_sub(FIRST_WORK)).unwrap_or(u8::MAX)
}

/// The stopped CPUs, as the closure of [`Rendezvous::lead_in_phases`] sees them.
#[derive(Debug)]
pub struct Stopped<'r, P> {
    rendezvous: &'r Rendezvous,
    leader: u32,
    /// What the word is.
    word: u64,
    platform: &'r P,
}

impl<P: Platform> Stopped<'_, P> {
    /// Runs the next phase: each stopped CPU calls [`Platform::work`] with its number,
    /// which counts from 0 (after 250, from 0 again). All of them start at once, after
    /// all have finished the phase before. The leader has no part in it.
    ///
    /// # Errors
    /// [`Unfinished`] if some are still at work after `timeout` nanoseconds.
    pub fn run(&mut self, timeout: u64) -> Result<(), Unfinished> {
        self.finish();
        let step = match step(self.word) {
            MASK | LAST_WORK => FIRST_WORK,
            before => before + 1,
        };
        self.word = compose(number(self.word), step);
        self.rendezvous.word.store(self.word, Ordering::Release);
        self.wait(timeout)
    }

    /// Waits on for the current phase.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn wait(&mut self, timeout: u64) -> Result<(), Unfinished> {
        let deadline = self.platform.now().saturating_add(timeout);
        let (all, leader) = (self.rendezvous, self.leader);
        if all.all_reach(leader, self.word, deadline, self.platform) {
            return Ok(());
        }
        match all.behind(leader, self.word).count() {
            0 => Ok(()),
            unfinished => Err(Unfinished(unfinished)),
        }
    }

    /// Waits for the end of the current phase, however long it takes.
    fn finish(&self) {
        let behind = || self.rendezvous.behind(self.leader, self.word).next();
        while behind().is_some() {
            self.platform.relax();
        }
    }
}

impl Cpu {
    /// Resumes this CPU after `number`.
    fn go_on(&self, number: u64, platform: &impl Platform) {
        platform.synchronise();
        // From here on, events are handled as they arrive.
        self.slot.store(compose(number, IDLE), Ordering::Relaxed);
        // Not before the slot is written.
        let held = self.held.swap(0, Ordering::AcqRel);
        platform.unmask();
        if held != 0 {
            platform.replay(Events(held));
        }
    }
}
