// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every relocation with any values, on any bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xsplice_reloc::reloc::{Field, aarch64, arm32, x86_64};

fuzz_target!(|input: (u8, u16, u64, i64, u64, Vec<u8>)| {
    let (machine, r_type, symbol, addend, place, mut bytes) = input;
    let lookup = match machine % 3 {
        0 => x86_64::lookup,
        1 => aarch64::lookup,
        _ => arm32::lookup,
    };
    let Some(relocation) = lookup(r_type.into()) else {
        return;
    };
    let before = bytes.clone();
    let value = relocation.value(symbol, addend, place);
    if relocation.write(&mut bytes, value).is_err() {
        assert_eq!(bytes, before);
        return;
    }
    assert_eq!(bytes.get(relocation.size..), before.get(relocation.size..));
    let read = relocation.read(&bytes).expect("it was written");
    assert!(relocation.addend(&bytes).is_some());
    if relocation.field == Field::Whole && relocation.size != 0 {
        let unused = 64 - relocation.bits;
        assert_eq!(read, value.cast_signed() << unused >> unused);
    }
});
