// SPDX-License-Identifier: MIT OR Apache-2.0

//! Stops all CPUs of a hypervisor, runs a closure, and lets them go.
//!
//! One CPU [leads](Rendezvous::lead). The others come to
//! [`check`](Rendezvous::check) on their way back to a guest, where nothing of
//! the hypervisor is on their stack, and stay there until the closure has run.
//! What the closure does is its own business: patching, or loading microcode
//! (`tests/microcode.rs` shows that, with work for each CPU).
//!
//! # Algorithm
//!
//! One shared *word* says which meeting there is and how far it is; it is
//! written by the leader only. One *place* for each CPU says how far that CPU
//! came in which meeting; it is written by this CPU only.
//!
//! | leader | word | a follower's place |
//! | --- | --- | --- |
//! | takes the lead (compare-exchange) and interrupts the others | `n, gather` | |
//! | waits until all places say `n, waiting` | | `n, waiting` |
//! | turns interrupts off and asks the others to | `n, mask` | |
//! | waits until all places say `n, masked` | | interrupts off; `n, masked` |
//! | runs the closure | | |
//! | lets them go | `n, idle` | synchronises; `n, idle`; interrupts on |
//! | synchronises; interrupts on | | |
//!
//! When the time is over in one of the two waits, the leader writes `n, idle` at
//! once: whoever is waiting sees another word than the one it waits for, and
//! goes. Numbers make a late CPU harmless: one that arrives for meeting *n* when
//! it is over writes a place that no later meeting counts.
//!
//! A CPU that is offline is not waited for. It may [come
//! back](Rendezvous::online) at any moment; it then waits for the end of a
//! meeting before it runs anything else.
//!
//! # Events that cannot be masked
//!
//! Non-maskable interrupts and machine checks reach a CPU in a meeting too. Their
//! handlers ask [`hold`](Rendezvous::hold) first: from the moment at which a CPU
//! says `masked` to the one at which it has synchronised, the event is noted and
//! the handler returns; when the CPU goes on, also after a meeting that was given
//! up, [`Platform::replay`] raises it again there. As with the processor's own
//! latch for NMIs, an event of a kind that comes twice is replayed once.
//!
//! A CPU asks about its own place only, and a handler runs on that CPU: an
//! event is either handled before its CPU can be counted as masked, or held.
//! The leader holds events from the moment at which others may. Were it to
//! handle a machine check that reaches all CPUs, whose handlers wait for each
//! other, it would wait for those who wait for it; so it waits until its time
//! is over, at most.
//!
//! A CPU that is offline may be parked: it runs nothing but the handlers of these
//! events. It has no use for a non-maskable interrupt, which is dropped. A machine
//! check is handled, but not while a closure runs: its handler waits for the end of
//! the closure, or the leader waits for the end of the handler, which says so with
//! [`handled`](Rendezvous::handled).
//!
//! # Memory ordering
//!
//! * *Closure after everything before.* A follower writes its place with
//!   release, after everything it did; the leader reads it with acquire before
//!   it runs the closure. So the closure sees all of it, and nothing that a
//!   follower did can come to pass after it.
//! * *Everything after sees the closure.* The leader writes `idle` with release
//!   after the closure; a follower reads the word with acquire before it goes.
//! * *Nobody runs during the closure.* A follower leaves its loop only when the
//!   word changes, which only the leader does, and does not between its reading
//!   the place and the end of the closure.
//! * *Coming online.* The CPU writes its place and then reads the word; the
//!   leader writes the word and then reads the place. At least one must see the
//!   other, which release and acquire do not give: both have a sequentially
//!   consistent fence in between. So do an offline CPU that handles an event and
//!   the leader, with the word that begins the last wait.
//! * *Next leader.* Taking the lead reads with acquire what the leader before
//!   wrote with release, so that closures happen one after the other.
//!
//! `tests/loom.rs` checks this in all interleavings, and in all results that
//! the memory model allows, for three CPUs.
//!
//! * **Trusts** that each CPU calls with its own number, from one context at a
//!   time (interrupt handlers that call [`hold`](Rendezvous::hold) aside).
//! * **Guarantees** that while the closure runs, every other CPU is offline or
//!   inside of this crate, with its interrupts off.
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

/// What the rendezvous needs of the hypervisor.
pub trait Platform {
    /// Nanoseconds since some moment in the past.
    fn now(&self) -> u64;
    /// Tells the processor that this CPU waits in a loop.
    fn relax(&self);
    /// Makes `cpu` come to [`Rendezvous::check`] soon.
    fn kick(&self, cpu: u32);
    /// Turns this CPU's interrupts off.
    fn mask(&self);
    /// Turns them on again.
    fn unmask(&self);
    /// Makes this CPU forget the instructions that it has fetched already.
    fn synchronise(&self);
    /// Raises `events`, which were held on this CPU, on it again.
    fn replay(&self, events: Events);
}

/// How far a meeting is, or a CPU in it; the lower bits of a word or place.
const STEP_BITS: u32 = 2;
const IDLE: u64 = 0;
const GATHER: u64 = 1;
const MASK: u64 = 2;
/// Steps of a place are those of the word that it answers.
const WAITING: u64 = GATHER;
const MASKED: u64 = MASK;
/// The place of a CPU that is offline; no meeting has this number.
const OFFLINE: u64 = u64::MAX;
/// The place of a CPU that is offline and runs the handler of an event. As with
/// [`OFFLINE`], its step is none.
const HANDLING: u64 = u64::MAX - (1 << STEP_BITS);

const fn compose(meeting: u64, step: u64) -> u64 {
    (meeting << STEP_BITS) | step
}

const fn step(value: u64) -> u64 {
    value & ((1 << STEP_BITS) - 1)
}

const fn meeting(value: u64) -> u64 {
    value >> STEP_BITS
}

/// What belongs to one CPU. Alone in its cache line: others wait on theirs.
#[derive(Debug)]
#[repr(align(64))]
struct Cpu {
    place: AtomicU64,
    /// Events that came in while it had to keep still; used by this CPU only.
    held: AtomicU32,
}

/// A place where all CPUs of a hypervisor meet.
#[derive(Debug)]
pub struct Rendezvous {
    word: AtomicU64,
    cpus: Vec<Cpu>,
}

/// Why a closure did not run. Of the CPUs that did not come, those are named for
/// which there was memory.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// Another CPU leads a meeting.
    Busy,
    /// These CPUs did not come to wait in time.
    NotWaiting(Vec<u32>),
    /// These CPUs did not turn their interrupts off in time.
    NotMasked(Vec<u32>),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cpus, what) = match self {
            Self::Busy => return f.write_str("another rendezvous is in progress"),
            Self::NotWaiting(cpus) => (cpus, "did not come"),
            Self::NotMasked(cpus) => (cpus, "did not turn interrupts off"),
        };
        f.write_str("CPU")?;
        for (index, cpu) in cpus.iter().enumerate() {
            write!(f, "{} {cpu}", if index == 0 { "" } else { "," })?;
        }
        write!(f, " {what} in time")
    }
}

impl core::error::Error for Failure {}

/// Kinds of what cannot be masked.
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
    /// [`NoMemory`] for so many.
    pub fn new(cpus: u32) -> Result<Self, NoMemory> {
        let cpu = |_| Cpu {
            place: AtomicU64::new(OFFLINE),
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

    /// This CPU is there from now on. Returns when no meeting goes on of which
    /// it is not part; before that, it must not run what a closure may change.
    pub fn online(&self, cpu: u32, platform: &impl Platform) {
        if let Some(own) = self.cpu(cpu) {
            // Of a meeting that is over: it is there, but has not come.
            own.place.store(compose(0, IDLE), Ordering::Release);
            fence(Ordering::SeqCst);
        }
        self.check(cpu, platform);
    }

    /// This CPU is gone from now on: it runs nothing until it is
    /// [`online`](Self::online) again.
    pub fn offline(&self, cpu: u32) {
        if let Some(own) = self.cpu(cpu) {
            own.place.store(OFFLINE, Ordering::Release);
        }
    }

    /// To be called on the way back to a guest, with interrupts on: takes part
    /// in a meeting if there is one. Otherwise this is one load.
    pub fn check(&self, cpu: u32, platform: &impl Platform) {
        let word = self.word.load(Ordering::Acquire);
        if step(word) == IDLE {
            return;
        }
        if let Some(own) = self.cpu(cpu) {
            self.follow(own, meeting(word), platform);
        }
    }

    fn follow(&self, own: &Cpu, meeting: u64, platform: &impl Platform) {
        let wait_while = |step| {
            let waits_for = compose(meeting, step);
            let mut word = self.word.load(Ordering::Acquire);
            while word == waits_for {
                platform.relax();
                word = self.word.load(Ordering::Acquire);
            }
            word
        };
        own.place
            .store(compose(meeting, WAITING), Ordering::Release);
        if wait_while(GATHER) != compose(meeting, MASK) {
            return;
        }
        platform.mask();
        own.place.store(compose(meeting, MASKED), Ordering::Release);
        wait_while(MASK);
        own.go_on(meeting, platform);
    }

    /// To be called first by handlers of what cannot be masked. Returns true if
    /// the handler must return at once: this CPU must keep still, and
    /// [`Platform::replay`] gives the event back; or it is offline and the event is
    /// a non-maskable interrupt. Otherwise the handler runs, and calls
    /// [`handled`](Self::handled) at its end if the event is a machine check.
    #[must_use]
    pub fn hold(&self, cpu: u32, event: Events, platform: &impl Platform) -> bool {
        let Some(own) = self.cpu(cpu) else {
            return false;
        };
        let place = own.place.load(Ordering::Relaxed);
        if step(place) == MASKED {
            own.held.fetch_or(event.0, Ordering::Relaxed);
            return true;
        }
        if ![OFFLINE, HANDLING].contains(&place) {
            return false;
        }
        if event != Events::NMI {
            self.handle_offline(own, platform);
        }
        event == Events::NMI
    }

    /// This CPU, which is offline, is about to run a handler: not while a closure
    /// runs.
    fn handle_offline(&self, own: &Cpu, platform: &impl Platform) {
        loop {
            own.place.store(HANDLING, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if step(self.word.load(Ordering::Acquire)) != MASK {
                break;
            }
            own.place.store(OFFLINE, Ordering::Release);
            while step(self.word.load(Ordering::Acquire)) == MASK {
                platform.relax();
            }
        }
        platform.synchronise();
    }

    /// The handler of a machine check, for which [`hold`](Self::hold) returned
    /// false, is done.
    pub fn handled(&self, cpu: u32) {
        if let Some(own) = self.cpu(cpu)
            && own.place.load(Ordering::Relaxed) == HANDLING
        {
            own.place.store(OFFLINE, Ordering::Release);
        }
    }

    /// Stops all other CPUs that are online, runs `closure`, lets them go.
    /// Called with interrupts on, on a CPU that is online.
    ///
    /// # Errors
    /// [`Failure`] when another CPU leads (let this one come to
    /// [`check`](Self::check) then), or when not all came within `timeout`
    /// nanoseconds. `closure` has not run then.
    pub fn lead(
        &self,
        cpu: u32,
        timeout: u64,
        platform: &impl Platform,
        closure: impl FnOnce(),
    ) -> Result<(), Failure> {
        // Nothing is allocated while CPUs wait. Without memory there are no names.
        let mut missing = fallible::with_room(self.cpus.len()).unwrap_or_default();
        let before = self.word.load(Ordering::Relaxed);
        let meeting = meeting(before).wrapping_add(1);
        let gather = compose(meeting, GATHER);
        let (Some(own), true) = (self.cpu(cpu), step(before) == IDLE) else {
            return Err(Failure::Busy);
        };
        self.word
            .compare_exchange(before, gather, Ordering::AcqRel, Ordering::Relaxed)
            .map_err(|_| Failure::Busy)?;
        // A CPU that comes online sees the word, or is seen.
        fence(Ordering::SeqCst);
        let deadline = platform.now().saturating_add(timeout);
        for (other, state) in self.others(cpu) {
            let place = state.place.load(Ordering::Relaxed);
            if ![OFFLINE, HANDLING].contains(&place) {
                platform.kick(other);
            }
        }
        let mut all_reach = |step| {
            self.all_reach(
                cpu,
                compose(meeting, step),
                deadline,
                platform,
                &mut missing,
            )
        };
        if !all_reach(WAITING) {
            self.word.store(compose(meeting, IDLE), Ordering::Release);
            return Err(Failure::NotWaiting(missing));
        }
        platform.mask();
        own.place.store(compose(meeting, MASKED), Ordering::Release);
        self.word.store(compose(meeting, MASK), Ordering::Release);
        // An offline CPU that handles an event sees the word, or is seen.
        fence(Ordering::SeqCst);
        let met = all_reach(MASKED);
        if met {
            closure();
        }
        self.word.store(compose(meeting, IDLE), Ordering::Release);
        own.go_on(meeting, platform);
        met.then_some(()).ok_or(Failure::NotMasked(missing))
    }

    /// Waits until the places of all other CPUs are `place`; when they are not in
    /// time, puts those into `missing` that it has room for.
    fn all_reach(
        &self,
        cpu: u32,
        place: u64,
        deadline: u64,
        platform: &impl Platform,
        missing: &mut Vec<u32>,
    ) -> bool {
        let there = |other: &Cpu| [place, OFFLINE].contains(&other.place.load(Ordering::Acquire));
        loop {
            if self.others(cpu).all(|(_, other)| there(other)) {
                return true;
            }
            if platform.now() >= deadline {
                break;
            }
            platform.relax();
        }
        let mut all = true;
        for (other, _) in self.others(cpu).filter(|(_, other)| !there(other)) {
            all = false;
            if missing.len() < missing.capacity() {
                // There is room.
                let _: Result<(), NoMemory> = fallible::push(missing, other);
            }
        }
        all
    }
}

impl Cpu {
    /// This CPU has kept still in `meeting`, which is over.
    fn go_on(&self, meeting: u64, platform: &impl Platform) {
        platform.synchronise();
        // From here on, whatever comes is handled as it comes.
        self.place.store(compose(meeting, IDLE), Ordering::Relaxed);
        // Not before the place is written.
        let held = self.held.swap(0, Ordering::AcqRel);
        platform.unmask();
        if held != 0 {
            platform.replay(Events(held));
        }
    }
}
