// SPDX-License-Identifier: MIT OR Apache-2.0

//! No input may panic: a payload that uses everything, cut off at every length
//! and with every byte changed.

mod common;

use common::{Payload, func, load};
use object::SectionKind;
use xsplice_abi::payload::section;

/// A payload with one of each kind of section and relocation.
fn everything() -> Vec<u8> {
    let mut payload = Payload::new(&[
        func("target").expecting(&[0xcc; 8]),
        func("endbr_target").nop(),
    ]);
    let (text, code) = (payload.text, payload.new_code);
    let local = payload.symbol("file.c#local", None);
    payload.relocation(text, 2, 4, local, -4);
    payload.symbol("helper", Some((text, 8)));
    let hooks = payload.section(section::HOOKS_LOAD, SectionKind::Data, &[0; 16], 8);
    payload.relocation(hooks, 0, 1, code, 0);
    payload.relocation(hooks, 8, 1, code, 8);
    let hook = payload.section(section::HOOKS_PREAPPLY, SectionKind::Data, &[0; 8], 8);
    payload.relocation(hook, 0, 1, code, 0);
    payload.section(".modinfo", SectionKind::ReadOnlyData, b"key=value\0", 1);
    let bss = payload
        .object
        .add_section(vec![], b".bss".to_vec(), SectionKind::UninitializedData);
    payload.object.append_section_bss(bss, 64, 8);
    for name in [".bug_frames.0", ".ex_table"] {
        let table = payload.section(name, SectionKind::ReadOnlyData, &[0; 8], 4);
        payload.relocation(table, 0, 2, code, 1);
        payload.relocation(table, 4, 2, code, 2);
    }
    let entry = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 4, 0, 0];
    let table = payload.section(".altinstructions", SectionKind::ReadOnlyData, &entry, 1);
    let replacements = payload.section(".altinstr_replacement", SectionKind::Text, &[0x90; 4], 1);
    let replacement = payload.object.section_symbol(replacements);
    payload.relocation(table, 0, 2, code, 0);
    payload.relocation(table, 4, 2, replacement, 0);
    payload.bytes()
}

#[test]
fn the_payload_loads_when_it_is_whole() {
    let verified = load(&everything()).unwrap_or_else(|refusal| panic!("{refusal}"));
    assert!(verified.problems().is_empty(), "{:?}", verified.problems());
}

#[test]
fn cut_off_at_every_length() {
    let file = everything();
    for length in 0..file.len() {
        assert!(
            load(&file[..length]).is_err(),
            "{length} of {} bytes",
            file.len()
        );
    }
}

#[test]
fn every_value_of_every_header_byte() {
    let file = everything();
    let table = u64::from_le_bytes(file[40..48].try_into().unwrap());
    let table = usize::try_from(table).unwrap();
    let places: Vec<usize> = (0..64).chain(table..file.len()).collect();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for places in places.chunks(places.len().div_ceil(workers)) {
            let mut changed = file.clone();
            scope.spawn(move || {
                for at in places {
                    let original = changed[*at];
                    for value in 0..=u8::MAX {
                        changed[*at] = value;
                        let _ = load(&changed).map_err(|refusal| refusal.to_string());
                    }
                    changed[*at] = original;
                }
            });
        }
    });
}

#[test]
fn every_other_byte_with_each_bit_flipped() {
    let file = everything();
    for at in 0..file.len() {
        let mut changed = file.clone();
        for bit in 0..8 {
            changed[at] = file[at] ^ (1 << bit);
            let _ = load(&changed).map_err(|refusal| refusal.to_string());
        }
        changed[at] = !file[at];
        let _ = load(&changed).map_err(|refusal| refusal.to_string());
    }
}
