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

/// A payload for ARM32 with one of each kind of section and relocation.
pub fn arm32() -> Vec<u8> {
    const CODE: [u32; 8] = [
        0xe301_0800, // movw r0, #0x1800
        0xe341_0800, // movt r0, #0x1800
        0xebff_fffe, // bl
        0xeaff_fffe, // b
        0x0000_0010, // .word
        0xe12f_ff1e, // bx lr
        0xe1a0_0000, // nop
        0xe12f_ff1e, // bx lr
    ];
    let code = CODE.map(u32::to_le_bytes);
    let mut payload = Payload::arm32(
        code.as_flattened(),
        &[
            func("target"),
            func("tiny").with(|record| record.old_size.set(4)),
        ],
    );
    let (text, code) = (payload.text, payload.new_code);
    let target = payload.symbol("target", None);
    for (offset, r_type) in [(0, 43), (4, 44), (8, 28), (12, 29)] {
        payload.relocation(text, offset, r_type, target, 0);
    }
    payload.relocation(text, 16, 2, code, 0x10);
    with_tables(payload, 3, CODE[6])
}

/// A payload for ARM64 with one of each kind of section, and with relocations of
/// instructions and of data.
pub fn arm64() -> Vec<u8> {
    const CODE: [u32; 8] = [
        0x9000_0000, // adrp x0
        0x9100_0000, // add x0, x0, #0
        0x9400_0000, // bl
        0x1400_0000, // b
        0,           // .xword
        0,
        0xd65f_03c0, // ret
        0xd503_201f, // nop
    ];
    let code = CODE.map(u32::to_le_bytes);
    let mut payload = Payload::arm64(
        code.as_flattened(),
        &[
            func("target"),
            func("tiny").with(|record| record.old_size.set(4)),
        ],
    );
    let (text, code) = (payload.text, payload.new_code);
    let target = payload.symbol("target", None);
    for (offset, r_type) in [(0, 275), (4, 277), (8, 283), (12, 282)] {
        payload.relocation(text, offset, r_type, target, 0);
    }
    payload.relocation(text, 16, 257, code, 0x18);
    with_tables(payload, 261, CODE[7])
}

/// The file, with hooks and tables in addition, for which `relative` is a relocation and
/// `nop` an instruction.
fn with_tables(mut payload: Payload, relative: u32, nop: u32) -> Vec<u8> {
    let (text, code) = (payload.text, payload.new_code);
    payload.symbol("helper", Some((text, 24)));
    payload.symbol("$d", Some((text, 16)));
    payload = payload
        .hooks(section::HOOKS_LOAD, 1)
        .hooks(section::HOOKS_UNLOAD, 1)
        .hooks(section::HOOKS_PREAPPLY, 1);
    payload.section(".modinfo", SectionKind::ReadOnlyData, b"key=value\0", 1);
    let frames = payload.section(".bug_frames.0", SectionKind::ReadOnlyData, &[0; 16], 4);
    payload.relocation(frames, 0, relative, code, 0);
    // At an odd address: nothing is read as an aligned word.
    payload.section(".odd", SectionKind::ReadOnlyData, &[0; 3], 1);
    let entry = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 4];
    let table = payload.section(".altinstructions", SectionKind::ReadOnlyData, &entry, 1);
    let replacements = payload.section(
        ".altinstr_replacement",
        SectionKind::Text,
        &nop.to_le_bytes(),
        4,
    );
    let replacement = payload.object.section_symbol(replacements);
    payload.relocation(table, 0, relative, code, 0);
    payload.relocation(table, 4, relative, replacement, 0);
    payload.bytes()
}
