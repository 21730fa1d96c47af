// SPDX-License-Identifier: MIT OR Apache-2.0

//! The full life cycle of a possible payload: whatever it is, it leaves no trace.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xsplice_engine::{Action, Architecture, Engine, Options, Policy};
use xsplice_test_host::{Hypervisor, engine};

/// Where `e_machine` is, and what it is in files for ARM32 and ARM64.
const MACHINE: usize = 18;
const ARM32: u8 = 40;
const ARM64: u8 = 183;

fuzz_target!(|file: &[u8]| {
    match file.get(MACHINE) {
        Some(&ARM32) => live(Engine::new(Hypervisor::arm32(), Policy::Engine), file),
        Some(&ARM64) => live(Engine::new(Hypervisor::arm64(), Policy::Engine), file),
        _ => live(engine(), file),
    }
});

fn live(mut engine: Engine<Hypervisor<impl Architecture>>, file: &[u8]) {
    let before = engine.host().machine();
    if engine.upload("payload", file).is_ok() {
        for action in [Action::Apply, Action::Revert, Action::Unload] {
            let done = engine.act("payload", action, Options::default());
            assert!(done.is_ok() || action == Action::Apply, "{done:?}");
        }
    }
    assert_eq!(engine.host().machine(), before);
}
