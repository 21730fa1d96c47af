// SPDX-License-Identifier: MIT OR Apache-2.0

//! A hypervisor whose CPUs are threads loads microcode: each core must load it itself,
//! while its other thread, which shares what is being replaced, is stopped.
//!
//! ```sh
//! cargo run --package xsplice-rendezvous --example microcode
//! ```

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Instant;
use xsplice_rendezvous::{Events, Failure, Platform, Rendezvous};

/// Two cores: CPUs 0 and 1 are threads of one, 2 and 3 of the other.
const CPUS: u32 = 4;
/// The CPU that leads.
const LEADER: u32 = 0;
const PATIENT: u64 = 10_000_000_000;

/// The phases.
const LOAD: u8 = 0;
const READ: u8 = 1;

/// The first thread of the core of `cpu`.
fn primary(cpu: u32) -> u32 {
    cpu / 2 * 2
}

/// What all CPUs share.
struct Machine {
    start: Instant,
    /// The revision to load.
    wanted: u32,
    /// The revision that each core has, and that each CPU believes that it has.
    cores: [AtomicU32; CPUS as usize / 2],
    known: [AtomicU32; CPUS as usize],
}

impl Machine {
    fn core(&self, cpu: u32) -> &AtomicU32 {
        &self.cores[cpu as usize / 2]
    }

    /// Has the core load the microcode.
    fn load(&self, cpu: u32) {
        self.core(cpu).store(self.wanted, Ordering::Relaxed);
        self.read(cpu);
    }

    fn read(&self, cpu: u32) {
        let revision = self.core(cpu).load(Ordering::Relaxed);
        self.known[cpu as usize].store(revision, Ordering::Relaxed);
    }
}

/// One of the CPUs.
struct Cpu<'m> {
    number: u32,
    machine: &'m Machine,
}

impl Platform for Cpu<'_> {
    fn now(&self) -> u64 {
        u64::try_from(self.machine.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
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
    /// The leader has loaded it for its own core.
    fn work(&self, phase: u8) {
        let is_primary = primary(self.number) == self.number;
        match phase {
            LOAD if is_primary => self.machine.load(self.number),
            READ if !is_primary => self.machine.read(self.number),
            _ => {}
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rendezvous = Rendezvous::new(CPUS)?;
    let machine = Machine {
        start: Instant::now(),
        wanted: 2,
        cores: [const { AtomicU32::new(1) }; CPUS as usize / 2],
        known: [const { AtomicU32::new(1) }; CPUS as usize],
    };
    let (ready, stop) = (AtomicU32::new(0), AtomicBool::new(false));

    let loaded = thread::scope(|scope| {
        for number in (0..CPUS).filter(|cpu| *cpu != LEADER) {
            let (rendezvous, machine, ready, stop) = (&rendezvous, &machine, &ready, &stop);
            scope.spawn(move || {
                let cpu = Cpu { number, machine };
                rendezvous.online(number, &cpu);
                ready.fetch_add(1, Ordering::Relaxed);
                while !stop.load(Ordering::Relaxed) {
                    rendezvous.check(number, &cpu);
                    // The guest.
                    thread::yield_now();
                }
                rendezvous.offline(number);
            });
        }
        let cpu = Cpu {
            number: LEADER,
            machine: &machine,
        };
        rendezvous.online(LEADER, &cpu);
        while ready.load(Ordering::Relaxed) < CPUS - 1 {
            thread::yield_now();
        }
        let loaded = rendezvous.lead_in_phases(LEADER, PATIENT, &cpu, |stopped| {
            machine.load(LEADER);
            for phase in ["to load it", "to read its revision"] {
                stopped.run(PATIENT).map_err(|_| phase)?;
            }
            Ok::<(), &str>(())
        });
        stop.store(true, Ordering::Relaxed);
        loaded
    });
    check(loaded, &machine)?;
    println!("{CPUS} CPUs have revision {}", machine.wanted);
    Ok(())
}

/// Whether all CPUs have it, and know that.
fn check(loaded: Result<Result<(), &str>, Failure>, machine: &Machine) -> Result<(), String> {
    let loaded = loaded.map_err(|failure| failure.to_string())?;
    loaded.map_err(|what| format!("a CPU takes too long {what}"))?;
    let has_it = |revision: &AtomicU32| revision.load(Ordering::Relaxed) == machine.wanted;
    let all = machine.cores.iter().chain(&machine.known).all(has_it);
    all.then_some(())
        .ok_or_else(|| "not all CPUs have it".to_owned())
}

#[test]
fn every_cpu_loads_microcode_while_all_are_stopped() {
    main().unwrap();
}
