// SPDX-License-Identifier: MIT OR Apache-2.0

//! Events that cannot be masked are held during a rendezvous, and only then.
#![cfg(not(loom))]

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use xsplice_rendezvous::{Events, Failure, Platform, Rendezvous};

/// One CPU that receives an event at every step of the rendezvous.
struct Alone<'r> {
    rendezvous: &'r Rendezvous,
    kicked: Cell<u32>,
    /// The steps, and whether the event at each was held.
    done: RefCell<Vec<(&'static str, bool)>>,
    replayed: Cell<Events>,
}

impl<'r> Alone<'r> {
    fn new(rendezvous: &'r Rendezvous) -> Self {
        Self {
            rendezvous,
            kicked: Cell::new(0),
            done: RefCell::default(),
            replayed: Cell::default(),
        }
    }

    fn event(&self, during: &'static str) {
        let held = self.rendezvous.hold(0, Events::NMI, self);
        self.done.borrow_mut().push((during, held));
    }
}

impl Platform for Alone<'_> {
    fn now(&self) -> u64 {
        0
    }
    fn relax(&self) {}
    fn kick(&self, _cpu: u32) {
        self.kicked.set(self.kicked.get() + 1);
    }
    fn mask(&self) {
        self.event("mask");
    }
    fn unmask(&self) {
        self.event("unmask");
    }
    fn synchronise(&self) {
        self.event("synchronise");
    }
    fn replay(&self, events: Events) {
        self.event("replay");
        assert_eq!(self.replayed.replace(events), Events::default(), "once");
    }
}

#[test]
fn events_are_held_while_the_cpu_is_stopped() {
    let rendezvous = Rendezvous::new(2).unwrap();
    let alone = Alone::new(&rendezvous);
    rendezvous.online(0, &alone);
    assert!(!rendezvous.hold(0, Events::NMI, &alone), "nothing goes on");
    let met = rendezvous.lead(0, 0, &alone, || {
        alone.event("closure");
        assert!(rendezvous.hold(0, Events::MACHINE_CHECK, &alone));
        assert!(
            !rendezvous.hold(2, Events::NMI, &alone),
            "it does not exist"
        );
        assert_eq!(rendezvous.lead(1, 0, &alone, || ()), Err(Failure::Busy));
    });
    assert_eq!(met, Ok(()));
    let expected = [
        ("mask", false),
        ("closure", true),
        // Until then it might run stale prefetched instructions.
        ("synchronise", true),
        ("unmask", false),
        ("replay", false),
    ];
    assert_eq!(alone.done.take(), expected);
    let both = Events::NMI | Events::MACHINE_CHECK;
    assert_eq!(alone.replayed.take(), both);
    assert!(both.contains(Events::NMI) && !Events::NMI.contains(both));
    assert_eq!(both | Events::NMI, both);
    assert!(!rendezvous.hold(0, Events::NMI, &alone), "it is over");
}

#[test]
fn an_offline_cpu_drops_nmis() {
    let rendezvous = Rendezvous::new(2).unwrap();
    let alone = Alone::new(&rendezvous);
    rendezvous.online(0, &alone);
    assert!(rendezvous.hold(1, Events::NMI, &alone));
    let met = rendezvous.lead(0, 0, &alone, || {
        assert!(rendezvous.hold(1, Events::NMI, &alone));
    });
    assert_eq!(met, Ok(()));
    rendezvous.online(1, &alone);
    assert!(!rendezvous.hold(1, Events::NMI, &alone));
}

#[test]
fn the_leader_waits_for_a_machine_check_on_an_offline_cpu() {
    let rendezvous = Rendezvous::new(2).unwrap();
    let alone = Alone::new(&rendezvous);
    rendezvous.online(0, &alone);
    assert!(!rendezvous.hold(1, Events::MACHINE_CHECK, &alone));
    assert!(
        rendezvous.hold(1, Events::NMI, &alone),
        "one inside the other"
    );
    let met = rendezvous.lead(0, 0, &alone, || unreachable!());
    assert_eq!(met, Err(Failure::NotWaiting(vec![1])));
    assert_eq!(alone.kicked.get(), 0, "it runs nothing else");
    rendezvous.handled(1);
    rendezvous.handled(0);
    assert_eq!(rendezvous.lead(0, 0, &alone, || ()), Ok(()));
}

#[test]
fn without_an_event_nothing_is_replayed() {
    struct Quiet;
    impl Platform for Quiet {
        fn now(&self) -> u64 {
            0
        }
        fn relax(&self) {}
        fn kick(&self, _cpu: u32) {}
        fn mask(&self) {}
        fn unmask(&self) {}
        fn synchronise(&self) {}
        fn replay(&self, events: Events) {
            panic!("{events:?}");
        }
    }
    let rendezvous = Rendezvous::new(1).unwrap();
    rendezvous.online(0, &Quiet);
    assert_eq!(rendezvous.lead(0, 0, &Quiet, || ()), Ok(()));
    assert_eq!(rendezvous.lead(0, 0, &Quiet, || ()), Ok(()));
}

#[test]
fn who_is_missing() {
    let rendezvous = Rendezvous::new(4).unwrap();
    let alone = Alone::new(&rendezvous);
    for cpu in [0, 1, 3] {
        rendezvous.online(cpu, &alone);
    }
    let missing = rendezvous.lead(0, 0, &alone, || unreachable!());
    assert_eq!(missing, Err(Failure::NotWaiting(vec![1, 3])));
    assert_eq!(alone.kicked.get(), 2);
    rendezvous.offline(3);
    let missing = rendezvous
        .lead(0, 0, &alone, || unreachable!())
        .unwrap_err();
    assert_eq!(
        missing.to_string(),
        "not all CPUs are waiting; missing: CPU 1"
    );
    assert!(alone.done.take().is_empty(), "nobody was stopped");
}

/// A CPU that records that it waits, at which point its leader's time is over.
#[derive(Default)]
struct Waits(AtomicBool);

impl Platform for Waits {
    fn now(&self) -> u64 {
        if self.0.load(Ordering::Acquire) {
            u64::MAX
        } else {
            0
        }
    }
    fn relax(&self) {
        self.0.store(true, Ordering::Release);
        thread::yield_now();
    }
    fn kick(&self, _cpu: u32) {}
    fn mask(&self) {}
    fn unmask(&self) {}
    fn synchronise(&self) {}
    fn replay(&self, events: Events) {
        panic!("{events:?}");
    }
}

/// For a leader: time driven by another CPU.
struct Led<'w>(&'w Waits);

impl Platform for Led<'_> {
    fn now(&self) -> u64 {
        self.0.now()
    }
    fn relax(&self) {
        thread::yield_now();
    }
    fn kick(&self, _cpu: u32) {}
    fn mask(&self) {}
    fn unmask(&self) {}
    fn synchronise(&self) {}
    fn replay(&self, events: Events) {
        panic!("{events:?}");
    }
}

#[test]
fn arriving_at_one_rendezvous_does_not_count_for_the_next() {
    let rendezvous = Rendezvous::new(3).unwrap();
    let follower = Waits::default();
    for cpu in 0..3 {
        rendezvous.online(cpu, &follower);
    }
    let left = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !left.load(Ordering::Acquire) {
                rendezvous.check(1, &follower);
            }
        });
        let first = rendezvous.lead(0, 1, &Led(&follower), || unreachable!());
        left.store(true, Ordering::Release);
        assert_eq!(first, Err(Failure::NotWaiting(vec![2])));
    });
    let second = rendezvous.lead(0, 0, &Led(&follower), || unreachable!());
    assert_eq!(second, Err(Failure::NotWaiting(vec![1, 2])));
}

#[test]
fn a_machine_check_on_an_offline_cpu_waits_for_the_closure() {
    let rendezvous = Rendezvous::new(2).unwrap();
    let (leader, parked) = (Waits::default(), Waits::default());
    rendezvous.online(0, &leader);
    let (over, closure_over) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let met = rendezvous.lead(0, 1, &leader, || {
            scope.spawn(|| {
                assert!(!rendezvous.hold(1, Events::MACHINE_CHECK, &parked));
                assert!(closure_over.load(Ordering::Acquire), "beside the closure");
                over.store(true, Ordering::Release);
                rendezvous.handled(1);
            });
            let end = Instant::now() + Duration::from_secs(20);
            while !parked.0.load(Ordering::Acquire) {
                assert!(Instant::now() < end, "it does not wait");
                thread::yield_now();
            }
            closure_over.store(true, Ordering::Release);
        });
        assert_eq!(met, Ok(()));
    });
    assert!(over.into_inner());
    assert_eq!(rendezvous.lead(0, 0, &leader, || ()), Ok(()));
}
