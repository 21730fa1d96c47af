// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lists of hosts and their hypervisors: a list is refused as a whole, or accepted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xsplice_store::Fleet;

fuzz_target!(|file: &[u8]| {
    if let Ok(text) = std::str::from_utf8(file)
        && let Err(refused) = Fleet::parse(text)
    {
        assert!(refused.to_string().starts_with("line "), "{refused}");
    }
});
