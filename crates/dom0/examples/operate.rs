// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs live-patch operations in sequence: `cargo xtask bench xen` runs it in dom0.
//!
//! `operate upload NAME FILE apply NAME replace NAME revert NAME unload NAME`

use std::error::Error;
use std::time::Duration;
use xsplice_dom0::{Action, Errno, Livepatch, Privcmd};

/// Rendezvous timeout: emulated CPUs are slow.
const TIMEOUT_NS: u32 = 2_000_000_000;
/// Pause before an action: the stock core waits in vain for a CPU that has not seen
/// the end of the previous one.
const PAUSE: Duration = Duration::from_millis(20);
/// Tries for an action whose rendezvous times out: the pause makes that rare, not
/// impossible.
const TRIES: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let privcmd = Privcmd::open()?;
    let livepatch = Livepatch::negotiate(&privcmd).map_err(|errno| errno.to_string())?;
    let mut words = std::env::args().skip(1);
    while let Some(operation) = words.next() {
        let name = words.next().ok_or("which payload?")?;
        let failed = |errno: Errno| format!("{operation} {name}: {errno}");
        let action = match operation.as_str() {
            "upload" => {
                let data = std::fs::read(words.next().ok_or("which file?")?)?;
                livepatch.upload(&name, &data, false).map_err(failed)?;
                continue;
            }
            "apply" => Action::Apply,
            "replace" => Action::Replace,
            "revert" => Action::Revert,
            "unload" => Action::Unload,
            _ => return Err(format!("{operation}: no such operation").into()),
        };
        act(&livepatch, &name, action).map_err(failed)?;
    }
    Ok(())
}

fn act(livepatch: &Livepatch<'_, Privcmd>, name: &str, action: Action) -> Result<(), Errno> {
    let mut tries = 0;
    loop {
        std::thread::sleep(PAUSE);
        tries += 1;
        match livepatch.act(name, action, TIMEOUT_NS, false) {
            Err(Errno::EBUSY) if tries < TRIES => {}
            done => return done,
        }
    }
}
