// SPDX-License-Identifier: MIT OR Apache-2.0

//! Threads that act as CPUs.

use crate::machine::{Machine, Shared, lock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long a guest runs before it enters the hypervisor again.
const GUEST: Duration = Duration::from_micros(100);

/// CPUs that run guests until this is dropped.
#[derive(Debug)]
pub struct Cpus {
    machine: Arc<Shared>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Cpus {
    /// Starts CPUs 1 to `cpus`, each running the guest that `guest` creates for it: a
    /// function that is called in a loop and enters the hypervisor through its
    /// argument. CPU 0 is the leader's thread.
    #[must_use]
    pub fn run<G>(machine: &Machine, cpus: u32, guest: impl Fn(u32) -> G) -> Self
    where
        G: FnMut(&dyn Fn(u64, u64, u64) -> i64) + Send + 'static,
    {
        let shared = machine.shared();
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for cpu in 1..cpus {
            let (machine, stop) = (Arc::clone(shared), Arc::clone(&stop));
            let mut guest = guest(cpu);
            let run = move || {
                machine.rendezvous.online(cpu, &*machine);
                while !stop.load(Ordering::Relaxed) {
                    guest(&|number, a, b| machine.hypercall(number, a, b));
                    machine.rendezvous.check(cpu, &*machine);
                    // In the guest, until it exits or an interrupt comes.
                    thread::park_timeout(GUEST);
                }
                machine.rendezvous.offline(cpu);
            };
            let thread = thread::spawn(run);
            let index = usize::try_from(cpu).unwrap_or(usize::MAX);
            if let Some(slot) = lock(&shared.threads).get_mut(index) {
                *slot = Some(thread.thread().clone());
            }
            threads.push(thread);
        }
        Self {
            machine: Arc::clone(shared),
            stop,
            threads,
        }
    }
}

impl Drop for Cpus {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // A guest that panicked has printed its message.
            let _: thread::Result<()> = thread.join();
        }
        lock(&self.machine.threads).fill(None);
    }
}
