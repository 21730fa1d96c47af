// SPDX-License-Identifier: MIT OR Apache-2.0

//! Another use of the rendezvous: loading microcode.
//!
//! Every core must load it itself, while nothing else runs on any CPU, because its
//! threads share what is being replaced. The closure gives the signal, each waiting
//! CPU does the work once, and the closure waits for all of them.
#![cfg(not(loom))]

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Instant;
use xsplice_rendezvous::{Events, Platform, Rendezvous};

const CPUS: u32 = 4;
const SECOND: u64 = 1_000_000_000;

/// The shared state of an update.
#[derive(Default)]
struct Update {
    /// The revision to load; 0 if there is none.
    wanted: AtomicU32,
    /// Number of CPUs that have loaded it.
    loaded: AtomicU32,
}

/// A processor.
struct Cpu<'u> {
    update: &'u Update,
    start: Instant,
    /// The revision of its microcode.
    revision: Cell<u32>,
    stopped: Cell<bool>,
}

impl<'u> Cpu<'u> {
    fn new(update: &'u Update) -> Self {
        Self {
            update,
            start: Instant::now(),
            revision: Cell::new(1),
            stopped: Cell::new(false),
        }
    }

    /// Loads the wanted revision, if it has not yet.
    fn load(&self) {
        let wanted = self.update.wanted.load(Ordering::Acquire);
        if wanted > self.revision.get() {
            assert!(self.stopped.get(), "interrupts are on");
            self.revision.set(wanted);
            self.update.loaded.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Platform for Cpu<'_> {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos().try_into().unwrap()
    }
    /// The work is done while waiting.
    fn relax(&self) {
        self.load();
        thread::yield_now();
    }
    fn kick(&self, _cpu: u32) {}
    fn mask(&self) {
        self.stopped.set(true);
    }
    fn unmask(&self) {
        self.stopped.set(false);
    }
    fn synchronise(&self) {}
    fn replay(&self, _events: Events) {}
}

#[test]
fn every_cpu_loads_microcode_while_all_are_stopped() {
    let (rendezvous, update) = (Rendezvous::new(CPUS).unwrap(), Update::default());
    let (ready, done) = (AtomicU32::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for number in 1..CPUS {
            let (rendezvous, update) = (&rendezvous, &update);
            let (ready, done) = (&ready, &done);
            scope.spawn(move || {
                let cpu = Cpu::new(update);
                rendezvous.online(number, &cpu);
                ready.fetch_add(1, Ordering::Release);
                while !done.load(Ordering::Acquire) {
                    rendezvous.check(number, &cpu);
                    // The guest.
                    thread::yield_now();
                }
                rendezvous.offline(number);
                assert_eq!(cpu.revision.get(), 2);
            });
        }
        let cpu = Cpu::new(&update);
        rendezvous.online(0, &cpu);
        while ready.load(Ordering::Acquire) < CPUS - 1 {
            thread::yield_now();
        }
        let met = rendezvous.lead(0, 60 * SECOND, &cpu, || {
            update.wanted.store(2, Ordering::Release);
            while update.loaded.load(Ordering::Acquire) < CPUS {
                cpu.relax();
            }
        });
        assert_eq!(met, Ok(()));
        assert_eq!(cpu.revision.get(), 2);
        done.store(true, Ordering::Release);
    });
}
