// SPDX-License-Identifier: MIT OR Apache-2.0

//! Loading microcode while all CPUs are stopped.
//!
//! The threads of a core share its microcode, and must not run anything while one of
//! them loads it. The leader is the first to load it: if its core does not take it, no
//! other is asked to. Then the primary threads of all other cores do, at the same time;
//! then the other threads read the new revision.

use crate::ffi::{self, Phase};
use crate::host::{Cpus, log};
use xsplice_engine::Errno;
use xsplice_rendezvous::{Rendezvous, Stopped, Unfinished};

const SECOND: u64 = 1_000_000_000;
/// How long the CPUs have to reach the rendezvous, and to turn their interrupts off.
/// The hypercall has no timeout for that; Xen itself waits without limit.
const ARRIVAL: u64 = SECOND;
/// How long no CPU may finish its work in a phase. Xen's own limit, after which it
/// panics, as this does: a core that does not finish cannot be left alone, nor can its
/// other threads run.
const PROGRESS: u64 = SECOND;

/// The phases, in this order.
const PHASES: [Phase; 2] = [Phase::PrimaryLoads, Phase::SiblingReads];

/// Has all CPUs load the microcode that the shim has. Called with the lock held, and
/// while no CPU can come or go.
///
/// # Errors
/// `EBUSY` if CPUs do not come, and the error of the leader. The shim has those of
/// other CPUs.
pub(crate) fn load(rendezvous: &Rendezvous) -> Result<(), Errno> {
    let start = ffi::now();
    let met = rendezvous.lead_in_phases(ffi::cpu(), ARRIVAL, &Cpus, |stopped| {
        let begin = ffi::now();
        let mut loaded = Ok(());
        ffi::in_window(|| loaded = all_phases(stopped));
        (loaded, begin, ffi::now())
    });
    match met {
        Ok((loaded, begin, end)) => {
            log(format_args!(
                "microcode: waited {} ns, stopped for {} ns",
                begin.saturating_sub(start),
                end.saturating_sub(begin)
            ));
            loaded
        }
        Err(failure) => {
            log(format_args!(
                "microcode was not loaded (EBUSY): {failure}; try again"
            ));
            Err(Errno::EBUSY)
        }
    }
}

fn all_phases(stopped: &mut Stopped<'_, Cpus>) -> Result<(), Errno> {
    Errno::check(ffi::microcode_first())?;
    for _ in PHASES {
        let mut before = usize::MAX;
        let mut ended = stopped.run(PROGRESS);
        while let Err(Unfinished(left)) = ended {
            if left >= before {
                stuck(left);
            }
            before = left;
            ended = stopped.wait(PROGRESS);
        }
    }
    Ok(())
}

#[expect(clippy::panic, reason = "the panic handler stops Xen")]
fn stuck(cpus: usize) -> ! {
    panic!("microcode: {cpus} CPUs have begun to load it and do not finish")
}

/// This CPU's part of a phase.
pub(crate) fn work(phase: u8) {
    if let Some(phase) = PHASES.get(usize::from(phase)) {
        ffi::microcode_work(*phase);
    }
}
