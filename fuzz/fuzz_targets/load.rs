// SPDX-License-Identifier: MIT OR Apache-2.0

//! The full life cycle of a possible payload: whatever it is, it leaves no trace.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xsplice_engine::{Action, Options};
use xsplice_test_host::engine;

fuzz_target!(|file: &[u8]| {
    let mut engine = engine();
    let before = engine.host().machine();
    if engine.upload("payload", file).is_ok() {
        for action in [Action::Apply, Action::Revert, Action::Unload] {
            let done = engine.act("payload", action, Options::default());
            assert!(done.is_ok() || action == Action::Apply, "{done:?}");
        }
    }
    assert_eq!(engine.host().machine(), before);
});
