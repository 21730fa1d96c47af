// SPDX-License-Identifier: MIT OR Apache-2.0

//! Manifests in the store: what is accepted is written and read back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xsplice_store::Manifest;

fuzz_target!(|file: &[u8]| {
    if let Ok(manifest) = Manifest::parse(file) {
        let json = manifest.to_json().expect("it is JSON");
        assert_eq!(Manifest::parse(json.as_bytes()), Ok(manifest));
    }
});
