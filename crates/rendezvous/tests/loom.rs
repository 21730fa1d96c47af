// SPDX-License-Identifier: MIT OR Apache-2.0

//! The rendezvous with three CPUs, under a model checker.
//!
//! `cargo xtask test` runs this with `--cfg loom`. The CPUs share an `UnsafeCell`
//! that `loom` tracks: a closure that writes it while a CPU reads it, or without an
//! ordering between the two, fails the test.
//!
//! This explores all interleavings with up to three preemptions (a CPU stops where it
//! could continue; `LOOM_MAX_PREEMPTIONS` changes the number), and all values that
//! each load may return.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use std::cell::Cell;
use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};
use xsplice_rendezvous::{Events, Failure, Platform, Rendezvous};

/// A CPU for which time advances by one with each look at the clock.
#[derive(Default)]
struct Clock {
    now: Cell<u64>,
    spins: Cell<u32>,
}

/// Number of iterations of a wait loop before an execution is run to its end without
/// further branching. An iteration reads one word and changes nothing, so further
/// ones reach no new state.
const SPINS: u32 = 2;

impl Platform for Clock {
    fn now(&self) -> u64 {
        self.now.set(self.now.get() + 1);
        self.now.get()
    }
    fn relax(&self) {
        self.spins.set(self.spins.get() + 1);
        if self.spins.get() > SPINS {
            loom::skip_branch();
        }
        thread::yield_now();
    }
    fn kick(&self, _cpu: u32) {}
    fn mask(&self) {}
    fn unmask(&self) {}
    fn synchronise(&self) {}
    fn replay(&self, events: Events) {
        unreachable!("{events:?}");
    }
}

struct Machine {
    rendezvous: Rendezvous,
    /// The hypervisor's text, written by closures and run by CPUs.
    text: UnsafeCell<u32>,
    /// Number of closures run.
    ran: AtomicUsize,
}

impl Machine {
    /// With CPUs 0 to `online` online.
    fn new(online: u32) -> Arc<Self> {
        let machine = Self {
            rendezvous: Rendezvous::new(3).unwrap(),
            text: UnsafeCell::new(0),
            ran: AtomicUsize::new(0),
        };
        for cpu in 0..online {
            machine.rendezvous.online(cpu, &Clock::default());
        }
        Arc::new(machine)
    }

    fn lead(&self, cpu: u32, timeout: u64) -> Result<(), Failure> {
        self.lead_on(cpu, timeout, &Clock::default())
    }

    fn lead_on(&self, cpu: u32, timeout: u64, platform: &impl Platform) -> Result<(), Failure> {
        self.rendezvous.lead(cpu, timeout, platform, || {
            self.text.with_mut(|text| unsafe { *text += 1 });
            self.ran.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn check(&self, cpu: u32) {
        self.rendezvous.check(cpu, &Clock::default());
    }

    /// Runs code of the hypervisor.
    fn run(&self) -> u32 {
        self.text.with(|text| unsafe { *text })
    }
}

/// Explores; asserts that each of the outcomes has been seen, and no other.
fn explore(expected: &[&'static str], scenario: fn() -> &'static str) {
    static SEEN: LazyLock<Mutex<HashSet<(usize, &'static str)>>> = LazyLock::new(Mutex::default);
    let key = scenario as usize;
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(3));
    model.check(move || {
        let outcome = scenario();
        SEEN.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((key, outcome));
    });
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let seen: HashSet<&str> = seen
        .iter()
        .filter(|(at, _)| *at == key)
        .map(|(_, s)| *s)
        .collect();
    assert_eq!(seen, expected.iter().copied().collect());
}

fn name(result: &Result<(), Failure>) -> &'static str {
    match result {
        Ok(_) => "met",
        Err(Failure::Busy) => "busy",
        Err(Failure::NotWaiting(cpus)) => match cpus.as_slice() {
            [1] => "without 1",
            [2] => "without 2",
            [1, 2] => "without 1 and 2",
            other => panic!("missing: {other:?}"),
        },
        Err(Failure::NotMasked(cpus)) => match cpus.as_slice() {
            [1] => "1 not masked",
            [2] => "2 not masked",
            [1, 2] => "1 and 2 not masked",
            other => panic!("missing: {other:?}"),
        },
        Err(other) => panic!("another outcome: {other}"),
    }
}

/// The possible outcomes of a rendezvous of CPU 0 with two others.
const OUTCOMES: [&str; 7] = [
    "met",
    "without 1",
    "without 2",
    "without 1 and 2",
    "1 not masked",
    "2 not masked",
    "1 and 2 not masked",
];

/// Two CPUs run the hypervisor and enter the check; the leader waits for `timeout`
/// looks at the clock.
fn meet(timeout: u64) -> &'static str {
    let machine = Machine::new(3);
    let followers = [1, 2].map(|cpu| {
        let machine = Arc::clone(&machine);
        thread::spawn(move || {
            machine.run();
            machine.check(cpu);
            machine.run();
            machine.rendezvous.offline(cpu);
        })
    });
    let result = machine.lead(0, timeout);
    let seen = machine.run();
    for follower in followers {
        follower.join().unwrap();
    }
    assert_eq!(seen, u32::from(result.is_ok()));
    assert_eq!(
        machine.ran.load(Ordering::Relaxed),
        usize::from(result.is_ok())
    );
    name(&result)
}

#[test]
fn all_arrive_or_the_missing_are_named() {
    explore(&OUTCOMES, || meet(1));
}

/// CPU 2 is offline at first and comes online at any moment.
#[test]
fn a_cpu_comes_online() {
    explore(&OUTCOMES, || {
        let machine = Machine::new(2);
        let late = Arc::clone(&machine);
        let late = thread::spawn(move || {
            late.rendezvous.online(2, &Clock::default());
            late.run();
            late.rendezvous.offline(2);
        });
        let early = Arc::clone(&machine);
        let early = thread::spawn(move || {
            early.check(1);
            early.rendezvous.offline(1);
        });
        let result = machine.lead(0, 1);
        for cpu in [late, early] {
            cpu.join().unwrap();
        }
        name(&result)
    });
}

/// CPUs 0 and 1 both try to lead; the one that is refused follows.
#[test]
fn a_second_leader() {
    let outcomes = ["one", "none"];
    explore(&outcomes, || {
        let machine = Machine::new(3);
        let lead = |machine: &Machine, cpu| {
            let met = machine.lead(cpu, 1).is_ok();
            machine.check(cpu);
            machine.run();
            machine.rendezvous.offline(cpu);
            met
        };
        let other = Arc::clone(&machine);
        let other = thread::spawn(move || lead(&other, 1));
        machine.rendezvous.offline(2);
        let met = usize::from(lead(&machine, 0)) + usize::from(other.join().unwrap());
        assert_eq!(machine.ran.load(Ordering::Relaxed), met);
        ["none", "one"][met]
    });
}

/// An aborted rendezvous and the next one: a CPU that is late for the first does not
/// count as present in the second.
#[test]
fn one_rendezvous_after_another() {
    let outcomes = ["00", "01", "10", "11"];
    explore(&outcomes, || {
        let machine = Machine::new(2);
        let follower = Arc::clone(&machine);
        let follower = thread::spawn(move || {
            follower.check(1);
            follower.run();
            follower.check(1);
            follower.run();
            follower.rendezvous.offline(1);
        });
        let met = [machine.lead(0, 1), machine.lead(0, 1)].map(|result| result.is_ok());
        follower.join().unwrap();
        match met {
            [false, false] => "00",
            [false, true] => "01",
            [true, false] => "10",
            [true, true] => "11",
        }
    });
}

/// When an event reaches a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// It waits with interrupts on.
    Waiting,
    /// It turns them off.
    Masking,
    /// It waits with interrupts off.
    Still,
    Synchronising,
    /// It turns interrupts on.
    Going,
    /// It has left the rendezvous.
    After,
}

/// The progress of the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Pending,
    Held,
    Handled,
}

/// A CPU that receives an event at a given moment, afterwards if that moment never
/// occurs, or as soon as another CPU gets a broadcast one.
struct Checked {
    event: Events,
    clock: Clock,
    machine: Arc<Machine>,
    cpu: u32,
    at: Moment,
    still: Cell<bool>,
    stage: Cell<Stage>,
    /// Whether a CPU has it, and how many have entered the handler.
    raised: Arc<AtomicBool>,
    here: Arc<AtomicUsize>,
    /// How many must enter it.
    together: usize,
}

impl Checked {
    /// The processor's part: it calls the handler, once.
    fn comes_to(&self, moment: Moment) {
        if self.stage.get() != Stage::Pending {
            return;
        }
        let due = moment == self.at || moment == Moment::After;
        if !due && (self.together == 1 || !self.raised.load(Ordering::Relaxed)) {
            return;
        }
        self.raised.store(true, Ordering::Relaxed);
        self.stage.set(Stage::Held);
        let rendezvous = &self.machine.rendezvous;
        if !rendezvous.hold(self.cpu, self.event, &self.clock) {
            self.handle();
            if self.event == Events::MACHINE_CHECK {
                rendezvous.handled(self.cpu);
            }
        }
    }

    /// Runs code that may be patched, and waits for the other handlers.
    fn handle(&self) {
        self.machine.run();
        self.here.fetch_add(1, Ordering::AcqRel);
        while self.here.load(Ordering::Acquire) < self.together {
            thread::yield_now();
        }
        self.machine.run();
        self.stage.set(Stage::Handled);
    }
}

impl Platform for Checked {
    fn now(&self) -> u64 {
        self.clock.now()
    }
    fn relax(&self) {
        self.comes_to(match self.still.get() {
            true => Moment::Still,
            false => Moment::Waiting,
        });
        self.clock.relax();
    }
    fn kick(&self, _cpu: u32) {}
    fn mask(&self) {
        self.still.set(true);
        self.comes_to(Moment::Masking);
    }
    fn unmask(&self) {
        self.still.set(false);
        self.comes_to(Moment::Going);
    }
    fn synchronise(&self) {
        self.comes_to(Moment::Synchronising);
    }
    fn replay(&self, events: Events) {
        assert_eq!((events, self.stage.get()), (self.event, Stage::Held));
        // It is raised again, and its handler calls `hold` again.
        assert!(!self.machine.rendezvous.hold(self.cpu, events, &self.clock));
        self.handle();
    }
}

/// An event reaches CPU 0, the leader, and CPU 1, at any moment of each; `together`
/// of them wait for each other in the handler. It is handled once, and not while the
/// closure runs.
fn events(event: Events, together: usize) {
    /// Enough looks at the clock to wait in both steps.
    const TIMEOUT: u64 = 2;
    let moments = [
        Moment::Waiting,
        Moment::Masking,
        Moment::Still,
        Moment::Synchronising,
        Moment::Going,
        Moment::After,
    ];
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(3));
    let met = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    for at in moments.iter().flat_map(|a| moments.map(|b| [*a, b])) {
        let met = std::sync::Arc::clone(&met);
        model.check(move || {
            let machine = Machine::new(2);
            let raised = Arc::new(AtomicBool::new(false));
            let here = Arc::new(AtomicUsize::new(0));
            let cpu = |cpu: u32| Checked {
                event,
                clock: Clock::default(),
                machine: Arc::clone(&machine),
                cpu,
                at: at[usize::try_from(cpu).unwrap()],
                still: Cell::new(false),
                stage: Cell::new(Stage::Pending),
                raised: Arc::clone(&raised),
                here: Arc::clone(&here),
                together,
            };
            let (leader, follower) = (cpu(0), cpu(1));
            let end = move |cpu: &Checked| {
                cpu.comes_to(Moment::After);
                assert_eq!(cpu.stage.get(), Stage::Handled, "{at:?}");
                cpu.machine.rendezvous.offline(cpu.cpu);
            };
            let follower = thread::spawn(move || {
                follower.machine.rendezvous.check(1, &follower);
                end(&follower);
            });
            if machine.lead_on(0, TIMEOUT, &leader).is_ok() {
                met.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            end(&leader);
            follower.join().unwrap();
        });
    }
    assert!(met.load(std::sync::atomic::Ordering::Relaxed) > 0);
}

#[test]
fn an_nmi() {
    events(Events::NMI, 1);
}

#[test]
fn a_machine_check_on_one_cpu() {
    events(Events::MACHINE_CHECK, 1);
}

/// A CPU that holds it does not block the others in the handler forever.
#[test]
fn a_machine_check_on_all_cpus() {
    events(Events::MACHINE_CHECK, 2);
}

/// A parked CPU runs the handler of a machine check before, after or instead of the
/// closure, but never concurrently.
#[test]
fn a_machine_check_on_an_offline_cpu() {
    explore(&["met", "without 2", "2 not masked"], || {
        let machine = Machine::new(1);
        let parked = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let clock = Clock::default();
                let held = machine.rendezvous.hold(2, Events::MACHINE_CHECK, &clock);
                assert!(!held, "nobody would replay it");
                machine.run();
                machine.rendezvous.handled(2);
            })
        };
        let met = machine.lead(0, 2);
        parked.join().unwrap();
        assert_eq!(machine.run(), u32::from(met.is_ok()));
        name(&met)
    });
}

/// A parked CPU drops an NMI at any moment: it runs no code that may be patched.
#[test]
fn an_nmi_on_an_offline_cpu() {
    explore(&["met"], || {
        let machine = Machine::new(1);
        let parked = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let clock = Clock::default();
                assert!(machine.rendezvous.hold(2, Events::NMI, &clock));
            })
        };
        let met = machine.lead(0, 2);
        parked.join().unwrap();
        name(&met)
    });
}
