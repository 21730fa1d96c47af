// SPDX-License-Identifier: MIT OR Apache-2.0

//! The reader of payload files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xsplice_engine::Parsed;

fuzz_target!(|file: &[u8]| {
    if let Err(refusal) = Parsed::parse("payload", file) {
        assert!(!refusal.problems.is_empty());
    }
});
