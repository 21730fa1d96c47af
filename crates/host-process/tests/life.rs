// SPDX-License-Identifier: MIT OR Apache-2.0

//! The life cycle of payloads on running code; `cargo xtask test` runs it on ARM64 too.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use xsplice_engine::{Action, Cause, Engine, Errno, Options, Policy, State};
use xsplice_host_process::{Cpus, Machine, call, image, payloads};

fn main() {
    for (name, test) in [
        ("the_life_of_payloads", the_life_of_payloads as fn()),
        ("hooks_are_run", hooks_are_run),
        ("under_load", under_load),
        (
            "a_cpu_that_misses_the_rendezvous_is_named",
            a_cpu_that_misses_the_rendezvous_is_named,
        ),
        ("text_is_protected", text_is_protected),
    ] {
        println!("test {name} ...");
        test();
    }
    println!("all passed");
}

/// Only one image can be mapped at a time.
fn engine(cpus: u32) -> (MutexGuard<'static, ()>, Engine<Machine>) {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let machine = Machine::new(image(), cpus).unwrap_or_else(|error| panic!("{error}"));
    (guard, Engine::new(machine, Policy::Stock))
}

/// Nearly the longest timeouts that the interface allows: this machine may be busy.
const PATIENT: Options = Options {
    nodeps: false,
    timeout: 4_000_000_000,
};

fn upload(engine: &mut Engine<Machine>, name: &str, file: &[u8]) {
    if let Err(refusal) = engine.upload(name, file) {
        panic!("{refusal}");
    }
}

fn act(engine: &mut Engine<Machine>, name: &str, action: Action) {
    if let Err(failure) = engine.act(name, action, PATIENT) {
        panic!("{failure}");
    }
}

/// Whether a request whose end wraps around is granted.
fn wraps_around(engine: &Engine<Machine>) -> bool {
    engine.host().hypercall(call::GRANT, u64::MAX, 2) == 0
}

fn version(engine: &Engine<Machine>) -> i64 {
    engine.host().hypercall(call::VERSION, 0, 0)
}

fn the_life_of_payloads() {
    let (_one, mut engine) = engine(1);
    let original = engine.host().text();
    assert!(wraps_around(&engine) && version(&engine) == 10);
    assert_eq!(engine.host().hypercall(call::GRANT, 4096, 1), -1);

    upload(&mut engine, "grant", payloads::GRANT);
    assert!(wraps_around(&engine), "it is only loaded");
    act(&mut engine, "grant", Action::Apply);
    assert!(!wraps_around(&engine));
    assert_eq!(engine.host().hypercall(call::GRANT, 4095, 1), 0);

    upload(&mut engine, "version", payloads::VERSION);
    act(&mut engine, "version", Action::Apply);
    assert_eq!(version(&engine), 11);
    assert_eq!(
        engine.host().hypercall(call::REFUSALS, 0, 0),
        2,
        "data stays as it is"
    );

    upload(&mut engine, "cumulative", payloads::CUMULATIVE);
    act(&mut engine, "cumulative", Action::Replace);
    assert!(!wraps_around(&engine) && version(&engine) == 12);

    act(&mut engine, "cumulative", Action::Revert);
    assert!(wraps_around(&engine) && version(&engine) == 10);
    assert_eq!(engine.host().text(), original, "bit for bit");
    let again = engine.act("grant", Action::Apply, PATIENT).unwrap_err();
    assert_eq!(again.cause, Cause::NeedsReload, "it has data");
    for name in ["grant", "version", "cumulative"] {
        act(&mut engine, name, Action::Unload);
    }
    assert!(engine.host().is_free_of_payloads());
}

fn hooks_are_run() {
    let (_one, mut engine) = engine(1);
    upload(&mut engine, "hooked", payloads::HOOKED);
    act(&mut engine, "hooked", Action::Apply);
    assert_eq!(version(&engine), 11);
    upload(&mut engine, "grant", payloads::GRANT);
    let options = Options {
        nodeps: true,
        ..PATIENT
    };
    engine.act("grant", Action::Apply, options).unwrap();
    let not_on_top = engine.act("hooked", Action::Revert, PATIENT).unwrap_err();
    assert_eq!(not_on_top.errno(), Errno::EBUSY);
    let vetoing = {
        upload(&mut engine, "cumulative", payloads::CUMULATIVE);
        engine
            .act("cumulative", Action::Replace, PATIENT)
            .unwrap_err()
    };
    assert_eq!(vetoing.errno(), Errno::EOPNOTSUPP);
}

/// Applies and reverts patches while four CPUs run the patched code. On each, a guest
/// checks that versions only change between its calls, and that nothing is granted
/// while the fix is known to be applied.
fn under_load() {
    const CPUS: u32 = 4;
    let (_one, mut engine) = engine(CPUS);
    let original = engine.host().text();
    let calls = Arc::new(AtomicU64::new(0));
    let bad = Arc::new(AtomicU64::new(0));
    let repaired = Arc::new(AtomicBool::new(false));
    let cpus = Cpus::run(engine.host(), CPUS, |_| {
        let (calls, bad, repaired) = (calls.clone(), bad.clone(), repaired.clone());
        move |hypercall: &dyn Fn(u64, u64, u64) -> i64| {
            // The hypervisor's text does not change between two checks.
            let before = hypercall(call::VERSION, 0, 0);
            let must_be_refused = repaired.load(Ordering::Acquire);
            let granted = hypercall(call::GRANT, u64::MAX, 2) == 0;
            let refused = hypercall(call::GRANT, 0, 1) != 0;
            let after = hypercall(call::VERSION, 0, 0);
            let wrong = before != after || !(10..=12).contains(&before) || refused;
            if wrong || granted && must_be_refused {
                bad.fetch_add(1, Ordering::Relaxed);
            }
            calls.fetch_add(4, Ordering::Relaxed);
        }
    });
    for _ in 0..25 {
        upload(&mut engine, "grant", payloads::GRANT);
        upload(&mut engine, "version", payloads::VERSION);
        upload(&mut engine, "cumulative", payloads::CUMULATIVE);
        act(&mut engine, "grant", Action::Apply);
        repaired.store(true, Ordering::Release);
        act(&mut engine, "version", Action::Apply);
        act(&mut engine, "cumulative", Action::Replace);
        repaired.store(false, Ordering::Release);
        act(&mut engine, "cumulative", Action::Revert);
        for name in ["grant", "version", "cumulative"] {
            act(&mut engine, name, Action::Unload);
        }
    }
    drop(cpus);
    assert_eq!(bad.load(Ordering::Relaxed), 0);
    assert!(calls.load(Ordering::Relaxed) > 100, "the CPUs ran");
    assert_eq!(engine.host().text(), original);
    assert!(engine.host().is_free_of_payloads());
}

fn a_cpu_that_misses_the_rendezvous_is_named() {
    let (_one, mut engine) = engine(4);
    let gate = Arc::new(AtomicU8::new(0));
    let inside = Arc::new(AtomicBool::new(false));
    let cpus = Cpus::run(engine.host(), 4, |cpu| {
        let (gate, inside) = (gate.clone(), inside.clone());
        move |hypercall: &dyn Fn(u64, u64, u64) -> i64| {
            if cpu == 2 {
                inside.store(true, Ordering::Release);
                hypercall(call::STALL, gate.as_ptr().expose_provenance() as u64, 0);
            } else {
                hypercall(call::VERSION, 0, 0);
            }
        }
    });
    while !inside.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(1));
    }
    upload(&mut engine, "grant", payloads::GRANT);
    let original = engine.host().text();
    let options = Options {
        nodeps: false,
        timeout: 300_000_000,
    };
    let failure = engine.act("grant", Action::Apply, options).unwrap_err();
    assert_eq!(failure.errno(), Errno::EBUSY);
    let Cause::Absent(absent) = &failure.cause else {
        panic!("{failure}")
    };
    assert_eq!(absent.cpus, [2], "{failure}");
    let grant = engine.stack().find("grant").unwrap();
    assert_eq!((grant.state(), grant.result()), (State::Checked, -16));
    assert_eq!(engine.host().text(), original);
    gate.store(1, Ordering::Release);
    act(&mut engine, "grant", Action::Apply);
    drop(cpus);
    assert!(!wraps_around(&engine));
}

fn text_is_protected() {
    let (_one, mut engine) = engine(1);
    upload(&mut engine, "grant", payloads::GRANT);
    act(&mut engine, "grant", Action::Apply);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let ours: Vec<&str> = maps
        .lines()
        .filter(|line| line.starts_with("2000"))
        .collect();
    let of = |protection: &str| ours.iter().filter(|line| line.contains(protection)).count();
    assert_eq!(of("wxp"), 0, "{maps}");
    // The image and the payload have code; both have data and read-only data.
    assert!(
        of(" r-xp") >= 2 && of(" rw-p") >= 2 && of(" r--p") >= 2,
        "{maps}"
    );
}
