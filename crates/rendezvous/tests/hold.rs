// SPDX-License-Identifier: MIT OR Apache-2.0

//! Events that cannot be masked are kept for later in a meeting, and only then.
#![cfg(not(loom))]

use std::cell::Cell;
use xsplice_rendezvous::{Failure, Held, Platform, Rendezvous};

/// One CPU, on which an interrupt comes each time interrupts are turned off or on.
#[derive(Default)]
struct Alone {
    kicked: Cell<u32>,
}

impl Platform for Alone {
    fn now(&self) -> u64 {
        0
    }
    fn relax(&self) {}
    fn kick(&self, _cpu: u32) {
        self.kicked.set(self.kicked.get() + 1);
    }
    fn mask(&self) {}
    fn unmask(&self) {}
    fn synchronise(&self) {}
}

#[test]
fn events_are_given_back() {
    let rendezvous = Rendezvous::new(2).unwrap();
    let alone = Alone::default();
    assert_eq!(rendezvous.online(0, &alone), Held(0));
    assert!(!rendezvous.hold(0, Held::NMI), "nothing goes on");
    let held = rendezvous.lead(0, 0, &alone, || {
        assert!(rendezvous.hold(0, Held::NMI));
        assert!(rendezvous.hold(0, Held::MACHINE_CHECK));
        assert!(!rendezvous.hold(1, Held::NMI), "it is offline");
        assert_eq!(rendezvous.lead(1, 0, &alone, || ()), Err(Failure::Busy));
    });
    assert_eq!(held, Ok(Held(Held::NMI | Held::MACHINE_CHECK)));
    assert!(!rendezvous.hold(0, Held::NMI), "it is over");
    assert_eq!(rendezvous.lead(0, 0, &alone, || ()), Ok(Held(0)));
}

#[test]
fn who_is_missing() {
    let rendezvous = Rendezvous::new(4).unwrap();
    let alone = Alone::default();
    for cpu in [0, 1, 3] {
        let _ = rendezvous.online(cpu, &alone);
    }
    let missing = rendezvous.lead(0, 0, &alone, || unreachable!());
    assert_eq!(missing, Err(Failure::NotWaiting(vec![1, 3])));
    assert_eq!(alone.kicked.get(), 2);
    rendezvous.offline(3);
    let missing = rendezvous
        .lead(0, 0, &alone, || unreachable!())
        .unwrap_err();
    assert_eq!(missing.to_string(), "CPU 1 did not come in time");
}
