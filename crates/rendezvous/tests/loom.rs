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
use xsplice_rendezvous::{Events, Failure, Platform, Rendezvous, Unfinished};

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

/// CPUs that load microcode: CPU 0 leads and loads it first, then CPU 1 does, then CPU 2
/// takes over the result of CPU 1, of whose core it is the other thread.
struct Cores {
    machine: Arc<Machine>,
    /// The revision of each CPU.
    revisions: [UnsafeCell<u32>; 3],
}

/// The phases.
const LOAD: u8 = 0;
const TAKE_OVER: u8 = 1;

impl Cores {
    fn new(online: u32) -> Arc<Self> {
        Arc::new(Self {
            machine: Machine::new(online),
            revisions: std::array::from_fn(|_| UnsafeCell::new(0)),
        })
    }

    fn revision(&self, cpu: usize) -> u32 {
        self.revisions[cpu].with(|revision| unsafe { *revision })
    }

    fn set(&self, cpu: usize, to: u32) {
        self.revisions[cpu].with_mut(|revision| unsafe { *revision = to });
    }

    fn work(&self, cpu: u32, phase: u8) {
        assert_eq!(self.revision(0), 1, "the leader is first");
        match (cpu, phase) {
            (1, LOAD) => self.set(1, 1),
            (2, TAKE_OVER) => self.set(2, self.revision(1)),
            (1 | 2, LOAD | TAKE_OVER) => {}
            _ => panic!("CPU {cpu}, phase {phase}"),
        }
    }

    /// Leads `phases`, and waits for those that time out after `patience`. Returns what happened, and the
    /// revisions that the closure saw at its end: a CPU that has checked before and went
    /// offline takes no part.
    fn lead(&self, phases: u8, timeout: u64, patience: u64) -> (&'static str, [u32; 3]) {
        let clock = Clock::default();
        let all = &self.machine.rendezvous;
        let met = all.lead_in_phases(0, timeout, &clock, |stopped| {
            self.set(0, 1);
            let mut in_time = true;
            for _ in 0..phases {
                if stopped.run(patience).is_err() {
                    in_time = false;
                    while stopped.wait(1).is_err() {
                        thread::yield_now();
                    }
                }
            }
            (in_time, self.all())
        });
        match met {
            Ok((true, seen)) => ("met", seen),
            Ok((false, seen)) => ("late", seen),
            Err(failure) => (name(&Err(failure)), [0; 3]),
        }
    }

    fn all(&self) -> [u32; 3] {
        [0, 1, 2].map(|cpu| self.revision(cpu))
    }
}

/// A CPU that works in phases.
struct Worker {
    clock: Clock,
    cores: Arc<Cores>,
    cpu: u32,
}

impl Worker {
    fn new(cores: &Arc<Cores>, cpu: u32) -> Self {
        Self {
            clock: Clock::default(),
            cores: Arc::clone(cores),
            cpu,
        }
    }
}

impl Platform for Worker {
    fn now(&self) -> u64 {
        self.clock.now()
    }
    fn relax(&self) {
        self.clock.relax();
    }
    fn kick(&self, _cpu: u32) {}
    fn mask(&self) {}
    fn unmask(&self) {}
    fn synchronise(&self) {}
    fn replay(&self, events: Events) {
        unreachable!("{events:?}");
    }
    fn work(&self, phase: u8) {
        self.cores.work(self.cpu, phase);
    }
}

/// Work of different CPUs in different phases is ordered, and over when the CPUs are
/// released.
#[test]
fn phases_follow_each_other() {
    let outcomes = [&["late", "in part"], &OUTCOMES[..]].concat();
    explore(&outcomes, || {
        let cores = Cores::new(3);
        let workers = [1, 2].map(|cpu| {
            let worker = Worker::new(&cores, cpu);
            thread::spawn(move || {
                worker.cores.machine.rendezvous.check(cpu, &worker);
                worker.cores.machine.rendezvous.offline(cpu);
            })
        });
        let (result, seen) = cores.lead(2, 1, 3);
        for worker in workers {
            worker.join().unwrap();
        }
        assert_eq!(cores.all(), seen);
        match (result, seen) {
            ("met" | "late", [1, 0, _] | [1, _, 0]) => "in part",
            _ => result,
        }
    });
}

/// A closure that gives up on a phase releases no CPU before it has finished.
#[test]
fn an_abandoned_phase_is_finished_before_the_release() {
    let outcomes = [
        "without 1",
        "1 not masked",
        "alone",
        "finished",
        "abandoned",
    ];
    explore(&outcomes, || {
        let cores = Cores::new(2);
        let worker = Worker::new(&cores, 1);
        let worker = thread::spawn(move || {
            worker.cores.machine.rendezvous.check(1, &worker);
            worker.cores.machine.rendezvous.offline(1);
        });
        let clock = Clock::default();
        let all = &cores.machine.rendezvous;
        let met = all.lead_in_phases(0, 1, &clock, |stopped| {
            cores.set(0, 1);
            stopped.run(2)
        });
        // The leader goes on, and so the work is done.
        let seen = cores.all();
        worker.join().unwrap();
        assert_eq!(cores.all(), seen);
        match met {
            Ok(Ok(())) if seen == [1, 0, 0] => "alone",
            Ok(Ok(())) => "finished",
            Ok(Err(Unfinished(1))) => "abandoned",
            Ok(Err(other)) => panic!("{other}"),
            Err(failure) => name(&Err(failure)),
        }
    });
}

/// A CPU that comes online during a phase waits for the end, and does what is left.
#[test]
fn a_cpu_comes_online_during_phases() {
    let outcomes = ["met", "late", "without 1", "1 not masked"];
    explore(&outcomes, || {
        let cores = Cores::new(1);
        let worker = Worker::new(&cores, 1);
        let worker = thread::spawn(move || {
            worker.cores.machine.rendezvous.online(1, &worker);
            worker.cores.machine.run();
            worker.cores.machine.rendezvous.offline(1);
        });
        let clock = Clock::default();
        let all = &cores.machine.rendezvous;
        let met = all.lead_in_phases(0, 1, &clock, |stopped| {
            cores.machine.text.with_mut(|text| unsafe { *text += 1 });
            cores.set(0, 1);
            stopped.run(1).is_ok()
        });
        worker.join().unwrap();
        match met {
            Ok(true) => "met",
            Ok(false) => "late",
            Err(failure) => name(&Err(failure)),
        }
    });
}

/// A CPU that is stopped in the handler of an NMI. The processor calls the handler when
/// an NMI is due and no handler runs; several that are due are one.
struct InNmi {
    worker: Worker,
    /// When an NMI of the hardware comes.
    hardware: Moment,
    /// Whether it has come.
    came: Cell<bool>,
    /// Whether an NMI that this CPU raises is delivered at once, or some instructions
    /// later.
    prompt: bool,
    due: Cell<bool>,
    in_handler: Cell<bool>,
    /// How often the rest of the handler has run.
    handled: Cell<u32>,
    masked: Cell<bool>,
}

impl InNmi {
    fn comes_to(&self, moment: Moment) {
        if moment == self.hardware && !self.came.replace(true) {
            self.due.set(true);
        }
        self.deliver();
    }

    fn deliver(&self) {
        while !self.in_handler.get() && self.due.replace(false) {
            self.in_handler.set(true);
            let machine = &self.worker.cores.machine;
            if !machine.rendezvous.hold(self.worker.cpu, Events::NMI, self) {
                machine.run();
                self.handled.set(self.handled.get() + 1);
            }
            self.in_handler.set(false);
        }
    }
}

impl Platform for InNmi {
    fn now(&self) -> u64 {
        self.worker.now()
    }
    fn relax(&self) {
        self.comes_to(match self.masked.get() {
            true => Moment::Still,
            false => Moment::Waiting,
        });
        self.worker.relax();
    }
    fn kick(&self, _cpu: u32) {}
    fn mask(&self) {
        self.masked.set(true);
        self.comes_to(Moment::Masking);
    }
    fn unmask(&self) {
        self.masked.set(false);
        self.comes_to(Moment::Going);
    }
    fn synchronise(&self) {
        assert!(!self.in_handler.get());
        self.comes_to(Moment::Synchronising);
    }
    fn replay(&self, events: Events) {
        assert_eq!(events, Events::NMI);
        self.due.set(true);
        if self.prompt {
            self.deliver();
        }
    }
    fn stays_in_nmi(&self) -> bool {
        true
    }
    fn work(&self, phase: u8) {
        assert!(self.in_handler.get(), "only there it is safe");
        self.worker.work(phase);
    }
}

/// The work is done in the handler of an NMI, or the rendezvous times out; an NMI of the
/// hardware is not lost, whenever it comes.
#[test]
fn phases_in_the_handler_of_an_nmi() {
    static SEEN: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(3));
    let moments = [
        Moment::Waiting,
        Moment::Masking,
        Moment::Still,
        Moment::Synchronising,
        Moment::Going,
        Moment::After,
    ];
    let ways = moments.into_iter().flat_map(|at| [(at, true), (at, false)]);
    for (hardware, prompt) in ways {
        model.check(move || {
            let cores = Cores::new(2);
            let cpu = InNmi {
                worker: Worker::new(&cores, 1),
                hardware,
                came: Cell::new(false),
                prompt,
                due: Cell::new(false),
                in_handler: Cell::new(false),
                handled: Cell::new(0),
                masked: Cell::new(false),
            };
            let follower = thread::spawn(move || {
                let all = &cpu.worker.cores.machine.rendezvous;
                all.check(1, &cpu);
                // If its moment did not occur, it comes now.
                if !cpu.came.replace(true) {
                    cpu.due.set(true);
                }
                cpu.deliver();
                assert!((1..=3).contains(&cpu.handled.get()), "{hardware:?}");
                all.offline(1);
            });
            let (result, at_end) = cores.lead(1, 2, 1);
            follower.join().unwrap();
            assert_eq!(cores.all(), at_end);
            let result = match (result, at_end) {
                ("met", [1, 0, _]) => "alone",
                _ => result,
            };
            let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
            seen.insert(result);
        });
    }
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let expected = ["met", "late", "alone", "without 1", "1 not masked"];
    assert_eq!(*seen, HashSet::from(expected));
}
