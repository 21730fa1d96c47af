// SPDX-License-Identifier: MIT OR Apache-2.0

//! The full life cycle of a possible payload: whatever it is, it leaves no trace.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xsplice_engine::{Action, Architecture, Engine, Options, Policy};
use xsplice_test_host::{Hypervisor, engine};

/// `e_machine` of files for ARM32, and where it is.
const ARM32: (usize, u8) = (18, 40);

fuzz_target!(|file: &[u8]| {
    if file.get(ARM32.0) == Some(&ARM32.1) {
        live(Engine::new(Hypervisor::arm32(), Policy::Engine), file);
    } else {
        live(engine(), file);
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
