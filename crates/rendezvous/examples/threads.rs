// SPDX-License-Identifier: MIT OR Apache-2.0

//! A hypervisor whose CPUs are threads: all of them are stopped while one runs
//! something.
//!
//! ```sh
//! cargo run --package xsplice-rendezvous --example threads
//! ```

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use xsplice_rendezvous::{Events, Failure, Platform, Rendezvous};

const CPUS: u32 = 4;
/// The CPU that leads.
const LEADER: u32 = 0;
const PATIENT: u64 = 10_000_000_000;

/// What the rendezvous needs. Threads have no interrupts, and look at the rendezvous
/// in every round: nobody has to be kicked.
struct Threads {
    start: Instant,
}

impl Platform for Threads {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
    fn relax(&self) {
        thread::yield_now();
    }
    fn kick(&self, _cpu: u32) {}
    fn mask(&self) {}
    fn unmask(&self) {}
    fn synchronise(&self) {}
    fn replay(&self, events: Events) {
        unreachable!("nothing is held where there are no interrupts: {events:?}");
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rendezvous = Rendezvous::new(CPUS)?;
    let threads = Threads {
        start: Instant::now(),
    };
    let stop = AtomicBool::new(false);
    let rounds = [const { AtomicU64::new(0) }; CPUS as usize];
    let sum = || {
        rounds
            .iter()
            .map(|rounds| rounds.load(Ordering::Relaxed))
            .sum::<u64>()
    };

    thread::scope(|scope| -> Result<(), Failure> {
        for (cpu, rounds) in (0..CPUS).zip(&rounds).skip(1) {
            let (rendezvous, threads, stop) = (&rendezvous, &threads, &stop);
            scope.spawn(move || {
                rendezvous.online(cpu, threads);
                while !stop.load(Ordering::Relaxed) {
                    // A guest runs, and then the hypervisor is about to go back to it.
                    rounds.fetch_add(1, Ordering::Relaxed);
                    rendezvous.check(cpu, threads);
                }
                rendezvous.offline(cpu);
            });
        }
        rendezvous.online(LEADER, &threads);
        while rounds
            .iter()
            .skip(1)
            .any(|rounds| rounds.load(Ordering::Relaxed) == 0)
        {
            thread::yield_now();
        }
        let mut seen = (0, 0);
        let met = rendezvous.lead(LEADER, PATIENT, &threads, || {
            seen.0 = sum();
            thread::sleep(Duration::from_millis(10));
            seen.1 = sum();
        });
        stop.store(true, Ordering::Relaxed);
        assert_eq!(seen.0, seen.1, "nobody ran");
        met
    })?;
    println!(
        "{CPUS} CPUs, {} rounds, and none of them in the closure",
        sum()
    );
    Ok(())
}

#[test]
fn nobody_runs_while_the_closure_does() {
    main().unwrap();
}
