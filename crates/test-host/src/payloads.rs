// SPDX-License-Identifier: MIT OR Apache-2.0

//! Payloads that have what there can be.

use crate::{Payload, func};
use object::SectionKind;
use xsplice_abi::payload::section;

/// A payload with one of each kind of section and relocation.
pub fn everything() -> Vec<u8> {
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
        payload.relocation(table, 4, 2, code, 4);
    }
    let entry = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 4, 0, 0];
    let table = payload.section(".altinstructions", SectionKind::ReadOnlyData, &entry, 1);
    let replacements = payload.section(".altinstr_replacement", SectionKind::Text, &[0x90; 4], 1);
    let replacement = payload.object.section_symbol(replacements);
    payload.relocation(table, 0, 2, code, 0);
    payload.relocation(table, 4, 2, replacement, 0);
    payload.bytes()
}

/// Hooks of every kind that are called once.
pub fn hooks() -> Vec<u8> {
    let kinds = [
        section::HOOKS_UNLOAD,
        section::HOOKS_PREAPPLY,
        section::HOOKS_APPLY,
        section::HOOKS_POSTAPPLY,
        section::HOOKS_PREREVERT,
        section::HOOKS_REVERT,
        section::HOOKS_POSTREVERT,
    ];
    let payload = Payload::new(&[func("target")]);
    let payload = kinds.iter().fold(payload, |p, kind| p.hooks(kind, 1));
    payload.bytes()
}

/// A payload as small as it can be.
pub fn small() -> Vec<u8> {
    Payload::new(&[func("target")]).bytes()
}
