// SPDX-License-Identifier: MIT OR Apache-2.0

//! No input may panic, or leave anything behind: payloads cut off at every
//! length and with every byte changed.

use std::io::Write as _;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use xsplice_engine::{Action, Architecture, Engine, Options, Policy};
use xsplice_test_host::payloads::{arm32, arm64, everything, hooks, small};
use xsplice_test_host::{Hypervisor, engine, load};

/// The whole life of what may be a payload, after which the machine must be as
/// it was. Whether it was loaded.
fn live_on(mut engine: Engine<Hypervisor<impl Architecture>>, file: &[u8]) -> bool {
    let before = engine.host().machine();
    let loaded = match engine.upload("payload", file) {
        Ok(_) => true,
        Err(refusal) => {
            assert!(!refusal.to_string().is_empty());
            false
        }
    };
    if loaded {
        for action in [Action::Apply, Action::Revert, Action::Unload] {
            let done = engine.act("payload", action, Options::default());
            assert!(done.is_ok() || action == Action::Apply, "{done:?}");
        }
    }
    assert_eq!(engine.host().machine(), before);
    loaded
}

fn live(file: &[u8]) -> bool {
    live_on(engine(), file)
}

fn live_on_arm32(file: &[u8]) -> bool {
    live_on(Engine::new(Hypervisor::arm32(), Policy::Engine), file)
}

fn live_on_arm64(file: &[u8]) -> bool {
    live_on(Engine::new(Hypervisor::arm64(), Policy::Engine), file)
}

/// Says how many files were tried. Only what is written past the test harness
/// is seen when tests pass.
fn report(what: &str, tried: usize, loaded: usize) {
    let line = format!("{what}: {tried} files tried, {loaded} of them loaded\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Tries variants of files, made by `variant` of a file, a place and a value, on
/// all processors.
fn try_all(
    what: &str,
    live: Live,
    file: &[u8],
    places: &[usize],
    values: Range<usize>,
    variant: fn(&mut Vec<u8>, usize, usize),
) {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let loaded = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for places in places.chunks(places.len().div_ceil(workers)) {
            let (loaded, values) = (&loaded, values.clone());
            scope.spawn(move || {
                let mut changed = Vec::with_capacity(file.len());
                for (at, value) in places
                    .iter()
                    .flat_map(|at| values.clone().map(|v| (*at, v)))
                {
                    changed.clear();
                    changed.extend_from_slice(file);
                    variant(&mut changed, at, value);
                    loaded.fetch_add(usize::from(live(&changed)), Ordering::Relaxed);
                }
            });
        }
    });
    report(what, places.len() * values.len(), loaded.into_inner());
}

type Make = fn() -> Vec<u8>;
type Live = fn(&[u8]) -> bool;

const PAYLOADS: [(&str, Make, Live); 5] = [
    ("everything", everything, live),
    ("hooks", hooks, live),
    ("small", small, live),
    ("arm32", arm32, live_on_arm32),
    ("arm64", arm64, live_on_arm64),
];

/// The offset of the table of sections.
fn section_table(file: &[u8]) -> usize {
    let offset = match file[4] {
        1 => u32::from_le_bytes(file[32..36].try_into().unwrap()).into(),
        _ => u64::from_le_bytes(file[40..48].try_into().unwrap()),
    };
    usize::try_from(offset).unwrap()
}

#[test]
fn the_payloads_load_when_they_are_whole() {
    for (name, payload, live) in PAYLOADS {
        assert!(live(&payload()), "{name}");
    }
    let file = everything();
    let verified = load(&file).unwrap_or_else(|refusal| panic!("{refusal}"));
    assert!(verified.problems().is_empty(), "{:?}", verified.problems());
}

#[test]
fn cut_off_at_every_length() {
    for (name, payload, live) in PAYLOADS {
        let file = payload();
        for length in 0..file.len() {
            assert!(
                !live(&file[..length]),
                "{name}: {length} of {} bytes",
                file.len()
            );
        }
        report(&format!("{name}, cut off"), file.len(), 0);
    }
}

/// The file's header and the table of sections.
#[test]
fn every_value_of_every_header_byte() {
    for (name, payload, live) in PAYLOADS {
        let file = payload();
        let table = section_table(&file);
        let places: Vec<usize> = (0..64).chain(table..file.len()).collect();
        try_all(
            &format!("{name}, headers"),
            live,
            &file,
            &places,
            0..256,
            |file, at, value| file[at] = u8::try_from(value).unwrap(),
        );
    }
}

#[test]
fn every_byte_with_each_bit_flipped() {
    for (name, payload, live) in PAYLOADS {
        let file = payload();
        let places: Vec<usize> = (0..file.len()).collect();
        try_all(
            &format!("{name}, flipped"),
            live,
            &file,
            &places,
            0..9,
            |file, at, value| {
                file[at] ^= 1_u8
                    .checked_shl(u32::try_from(value).unwrap())
                    .unwrap_or(0xff)
            },
        );
    }
}

/// What is tried is near what loads.
#[test]
fn the_payloads_load_as_they_are() {
    for file in [everything(), hooks(), small()] {
        assert!(live(&file));
    }
}
