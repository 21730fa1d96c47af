// SPDX-License-Identifier: MIT OR Apache-2.0

//! Payloads on a hypervisor for ARM32.

use object::SectionKind;
use object::write::SectionId;
use xsplice_abi::trampoline::arm32::{NOP, branch};
use xsplice_engine::{
    Action, Arm32, Engine, Errno, FileFault, Host as _, Options, Policy, Problem, Refusal,
};
use xsplice_test_host::{
    Hypervisor, INIT, PAYLOADS, Payload, SMALL, TARGET, TEXT, func, is, load, on_arm32, payloads,
};

const RET: [u8; 4] = 0xe12f_ff1e_u32.to_le_bytes(); // bx lr
const R_ARM_ABS32: u32 = 2;
const R_ARM_REL32: u32 = 3;
const R_ARM_CALL: u32 = 28;
const R_ARM_JUMP24: u32 = 29;
const R_ARM_MOVW_ABS_NC: u32 = 43;
const R_ARM_MOVT_ABS: u32 = 44;

fn payload() -> Payload {
    Payload::arm32(&RET.repeat(8), &[func("target")])
}

fn engine() -> Engine<Hypervisor<Arm32>> {
    Engine::new(Hypervisor::arm32(), Policy::Engine)
}

fn upload(payload: &Payload) -> Result<(), Refusal> {
    engine().upload("test", &payload.bytes()).map(drop)
}

/// The payload is refused with this result and, among others, this problem.
fn refused(payload: &Payload, errno: Errno, expected: impl Fn(&Problem) -> bool) -> String {
    let refusal = upload(payload).expect_err("it is refused");
    assert!(refusal.problems.iter().any(expected), "{refusal}");
    assert_eq!(refusal.errno(), errno, "{refusal}");
    refusal.to_string()
}

#[test]
fn a_function_of_one_instruction_becomes_a_branch_and_is_restored() {
    let tiny = func("tiny").with(|record| record.old_size.set(4));
    let file = Payload::arm32(&RET.repeat(4), &[func("target"), tiny]).bytes();
    let mut engine = engine();
    let before = engine.host().machine();
    let new = engine.upload("fix", &file).unwrap().memory().base();
    engine
        .act("fix", Action::Apply, Options::default())
        .unwrap();
    for old in [TARGET, SMALL].map(on_arm32) {
        let mut bytes = [0; 8];
        assert!(engine.host().read(old, &mut bytes));
        assert_eq!(bytes[..4], branch(old, new).unwrap());
        assert_eq!(bytes[4..], NOP);
    }
    for action in [Action::Revert, Action::Unload] {
        engine.act("fix", action, Options::default()).unwrap();
    }
    assert_eq!(engine.host().machine(), before);
}

/// Records have the width of the machine's addresses, in the file and in memory.
#[test]
fn records_have_addresses_of_four_bytes() {
    let mut engine = engine();
    engine.host().noted();
    let tiny = func("tiny").with(|record| record.old_size.set(4));
    let file = Payload::arm32(&RET.repeat(4), &[func("target"), tiny]);
    engine.upload("fix", &file.bytes()).unwrap();
    let funcs = engine.host().noted().registered.funcs;
    assert_eq!(funcs.end - funcs.start, 2 * 92);
    for (index, old) in [TARGET, SMALL].map(on_arm32).into_iter().enumerate() {
        let mut addr = [0; 4];
        let place = funcs.start + 92 * index as u64 + 8;
        assert!(engine.host().read(place, &mut addr));
        assert_eq!(u64::from(u32::from_le_bytes(addr)), old);
    }
    // As long as they would be on another machine.
    let mut file = payload();
    file.section(".livepatch.hooks.load", SectionKind::Data, &[0; 6], 4);
    let message = refused(
        &file,
        Errno::EINVAL,
        is!(section: EntrySize { size: 6, .. }),
    );
    assert!(message.contains("a multiple of 4 (pointers)"), "{message}");
    let mut file = payload();
    file.section(".livepatch.hooks.preapply", SectionKind::Data, &[0; 8], 4);
    let message = refused(
        &file,
        Errno::EINVAL,
        is!(section: EntrySize { size: 8, .. }),
    );
    assert!(message.contains("one pointer (4 bytes)"), "{message}");
}

#[test]
fn a_payload_of_every_kind_of_section_runs() {
    let file = payloads::arm32();
    let mut engine = engine();
    let before = engine.host().machine();
    engine.upload("all", &file).unwrap();
    for action in [Action::Apply, Action::Revert, Action::Unload] {
        engine.act("all", action, Options::default()).unwrap();
    }
    assert_eq!(engine.host().machine(), before);
    assert_eq!(engine.host().memory().hooks.len(), 3);
}

#[test]
fn no_ops_are_whole_instructions_of_the_function() {
    let nop = |size, old| {
        let func = func("target").with(|record| {
            record.old_size.set(old);
            record.new_size.set(size);
        });
        Payload::arm32(&RET, &[func.nop()])
    };
    upload(&nop(28, 32)).unwrap();
    refused(
        &nop(6, 32),
        Errno::EOPNOTSUPP,
        is!(function: NopPart { unit: 4, .. }),
    );
    refused(
        &nop(32, 32),
        Errno::EOPNOTSUPP,
        is!(function: NopTooLong { .. }),
    );
}

#[test]
fn addresses_are_those_of_instructions() {
    let at = |old| {
        let func = func("").with(|record| record.old_addr.set(on_arm32(old)));
        Payload::arm32(&RET, &[func])
    };
    upload(&at(TARGET)).unwrap();
    refused(
        &at(TARGET + 2),
        Errno::EINVAL,
        is!(function: Boundary { .. }),
    );
    let small = func("target").with(|record| record.old_size.set(3));
    refused(
        &Payload::arm32(&RET, &[small]),
        Errno::EINVAL,
        is!(function: TooSmall { needed: 4, .. }),
    );
}

/// Uploads a payload that patches `target`, which has this code, `at` bytes after its
/// start, with that many bytes of no-ops, or with a branch.
fn patching(code: [u32; 8], at: u64, nops: u32) -> Result<(), Refusal> {
    let mut engine = engine();
    let place = usize::try_from(TARGET - TEXT).unwrap();
    let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    engine.host().memory().machine.text[place..place + 32].copy_from_slice(&bytes);
    let func = func("").with(|record| {
        record.old_addr.set(on_arm32(TARGET) + at);
        record.old_size.set(u32::try_from(32 - at).unwrap());
        record.new_size.set(nops);
    });
    let func = if nops == 0 { func } else { func.nop() };
    let file = Payload::arm32(&RET, &[func]).bytes();
    engine.upload("test", &file).map(drop)
}

const NOP_WORD: u32 = u32::from_le_bytes(NOP);

/// An address is computed in two steps: what is patched has both or neither.
#[test]
fn addresses_in_two_steps_stay_whole() {
    const MOVW_R1: u32 = 0xe305_1678;
    const MOVT_R1: u32 = 0xe341_1234;
    const MOVW_R3: u32 = 0xe305_3678;
    let code = [
        NOP_WORD, MOVW_R1, MOVW_R3, MOVT_R1, NOP_WORD, NOP_WORD, NOP_WORD, NOP_WORD,
    ];
    for (at, nops) in [(0, 0), (4, 0), (16, 0), (0, 4), (4, 12), (0, 28), (16, 4)] {
        patching(code, at, nops).unwrap();
    }
    for (at, nops, side) in [
        (8, 0, "begin"),
        (12, 0, "begin"),
        (0, 8, "end"),
        (4, 8, "end"),
        (12, 4, "begin"),
    ] {
        let refusal = patching(code, at, nops).expect_err("half of an address");
        let target = on_arm32(TARGET);
        let found = is!(function: Pair { what, first, second, .. }
            if (*what, *first, *second) == (side, target + 4, target + 12));
        assert!(refusal.problems.iter().any(found), "{refusal}");
    }
}

/// Compilers put tables behind what leads elsewhere, and the running hypervisor does not
/// know where.
#[test]
fn data_between_instructions_is_not_patched() {
    const TABLE: u32 = 0x0020_0100;
    for end in [
        0xea00_0002, // b
        0xeb00_0000, // bl, of what may not return
        0xe12f_ff1e, // bx lr
        0xe8bd_8010, // pop {r4, pc}
        0xe7f0_00f0, // udf
    ] {
        let code = [
            NOP_WORD, end, TABLE, TABLE, NOP_WORD, NOP_WORD, NOP_WORD, NOP_WORD,
        ];
        for (at, nops) in [(0, 0), (4, 0), (0, 4), (0, 8), (4, 4)] {
            patching(code, at, nops).unwrap();
        }
        for (at, nops) in [(8, 0), (12, 0), (16, 0), (0, 12), (0, 28), (4, 8), (8, 4)] {
            let refusal = patching(code, at, nops).expect_err("it may be data");
            let data = on_arm32(TARGET) + 8;
            let found = is!(function: Undecodable { addr } if *addr == data);
            assert!(refusal.problems.iter().any(found), "{refusal}");
        }
    }
}

#[test]
fn payloads_for_other_machines_are_refused_by_both() {
    for other in [
        Payload::new(&[func("target")]),
        Payload::arm64(&RET, &[func("target")]),
    ] {
        let message = refused(&other, Errno::EOPNOTSUPP, is!(file: OtherMachine { .. }));
        assert!(
            message.contains("and this hypervisor is for ARM32"),
            "{message}"
        );
    }
    let refusal = load(&payload().bytes()).expect_err("an x86-64 hypervisor");
    assert_eq!(refusal.errno(), Errno::EOPNOTSUPP);
    let [Problem::File(FileFault::OtherMachine { .. })] = refusal.problems[..] else {
        panic!("{refusal}");
    };
}

#[test]
fn headers_are_those_of_the_machine() {
    let whole = payload().bytes();
    let reason = |file: &[u8]| {
        let refusal = engine().upload("test", file).map(drop).unwrap_err();
        assert_eq!(refusal.problems.len(), 1, "{refusal}");
        refusal.problems.into_iter().next().unwrap()
    };
    let with = |at: usize, value: u8| {
        let mut file = whole.clone();
        file[at] = value;
        reason(&file)
    };
    assert!(is!(file: Machine { field: "class", value: 2 })(&with(4, 2)));
    assert!(is!(file: Machine { field: "data encoding", .. })(&with(
        5, 2
    )));
    // The version of the EABI is in the highest byte of the flags.
    let fault = with(39, 4);
    let flags = is!(file: Header { field: "e_flags", value: 0x0400_0000, .. });
    assert!(flags(&fault), "{fault}");
    let cut = is!(file: HeaderCutOff { size: 51, whole: 52 });
    assert!(cut(&reason(&whole[..51])));
}

/// In every object again, so they are neither new nor duplicates.
#[test]
fn mapping_symbols_are_no_new_symbols_and_thumb_code_is_refused() {
    let mut file = payload();
    let text = file.text;
    for name in ["$a", "$d", "$a.1"] {
        file.symbol(name, Some((text, 4)));
    }
    let mut engine = engine();
    engine.host().noted();
    engine.upload("first", &file.bytes()).unwrap();
    let symbols = engine.host().noted().registered.symbols;
    assert!(symbols.iter().all(|(name, ..)| !name.starts_with('$')));
    for name in ["$t", "$t.3"] {
        let mut file = payload();
        let text = file.text;
        file.symbol(name, Some((text, 4)));
        refused(&file, Errno::EINVAL, is!(symbol: ForeignCode));
    }
    // It is a name like others.
    let mut file = payload();
    let text = file.text;
    file.symbol("$table", Some((text, 4)));
    upload(&file).unwrap();
}

/// Compilers name strings, because `movw` and `movt` cannot have an offset of 64 KiB.
#[test]
fn labels_of_strings_are_no_new_symbols() {
    let mut file = payload();
    let section =
        file.object
            .add_section(vec![], b".rodata.str".to_vec(), SectionKind::ReadOnlyString);
    file.object.append_section_data(section, b"text\0", 1);
    file.symbol(".LC0", Some((section, 0)));
    let mut engine = engine();
    engine.host().noted();
    engine.upload("first", &file.bytes()).unwrap();
    let symbols = engine.host().noted().registered.symbols;
    assert!(symbols.iter().all(|(name, ..)| name != ".LC0"));
}

#[test]
fn exception_tables_are_refused() {
    let mut file = payload();
    file.section(".ex_table", SectionKind::ReadOnlyData, &[0; 8], 4);
    refused(&file, Errno::EOPNOTSUPP, is!(section: NoExceptions));
}

/// With an alternative for the code at the start of the text, replaced by these bytes, and
/// the section of the replacement.
fn alternative(condition: u16, lengths: [u8; 2], replacement: &[u8]) -> (Payload, SectionId) {
    let mut file = payload();
    let code = file.section(".altinstr_replacement", SectionKind::Text, replacement, 4);
    let mut entry = vec![0; 8];
    entry.extend(condition.to_le_bytes());
    entry.extend(lengths);
    let table = file.section(".altinstructions", SectionKind::ReadOnlyData, &entry, 1);
    let replacement = file.object.section_symbol(code);
    let text = file.new_code;
    file.relocation(table, 0, R_ARM_REL32, text, 0);
    file.relocation(table, 4, R_ARM_REL32, replacement, 0);
    (file, code)
}

#[test]
fn alternatives_that_the_hypervisor_would_stop_at_are_refused() {
    let wrong = |(file, _): (Payload, SectionId), part: &str| {
        let message = refused(&file, Errno::EINVAL, is!(entry: Unusable { .. }));
        assert!(message.contains(part), "{message}");
    };
    upload(&alternative(8, [4, 4], &NOP).0).unwrap();
    upload(&alternative(17, [8, 8], &NOP.repeat(2)).0).unwrap();
    upload(&alternative(18, [4, 0], &NOP).0).unwrap();
    wrong(alternative(8, [4, 8], &NOP.repeat(2)), "another length");
    wrong(alternative(8, [6, 6], &NOP.repeat(2)), "whole instructions");
    wrong(alternative(19, [4, 4], &NOP), "processor feature");
}

/// A file of a hypervisor does not always say how many processor features there are.
#[test]
fn a_feature_that_the_hypervisor_may_not_know_is_refused() {
    let upload = |condition, lengths| {
        let mut hypervisor = Hypervisor::arm32();
        hypervisor.limits.all_features = false;
        let (file, _) = alternative(condition, lengths, &NOP);
        let mut engine = Engine::new(hypervisor, Policy::Engine);
        let uploaded = engine.upload("test", &file.bytes());
        uploaded.map(drop).map_err(|refusal| refusal.to_string())
    };
    upload(17, [4, 4]).unwrap();
    for (condition, lengths) in [(18, [4, 0]), (18, [4, 4]), (19, [4, 4])] {
        let message = upload(condition, lengths).unwrap_err();
        assert!(message.contains("may not know"), "{message}");
    }
}

#[test]
fn replacements_mean_the_same_where_they_are_copied() {
    let word = |word: u32| word.to_le_bytes();
    let with = |words: [u32; 4]| {
        let bytes = words.map(word).concat();
        alternative(8, [16, 16], &bytes).0
    };
    // beq to the third one, which moves with it.
    upload(&with([0x0a00_0000, NOP_WORD, NOP_WORD, NOP_WORD])).unwrap();
    for (wrong, part) in [
        (0xe28f_0008, "depends on where it is"),    // add r0, pc, #8
        (0xe59f_0008, "depends on where it is"),    // ldr r0, [pc, #8]
        (0xea00_0400, "no code of the hypervisor"), // b to the payload
        // To itself, and to what is 8 bytes behind the end: Xen does not count how far the
        // processor is ahead.
        (0xeaff_fffe, "no code of the hypervisor"),
        (0xea00_0004, "no code of the hypervisor"),
    ] {
        let message = refused(
            &with([wrong, NOP_WORD, NOP_WORD, NOP_WORD]),
            Errno::EINVAL,
            is!(entry: Unusable { .. }),
        );
        assert!(message.contains(part), "{message}");
    }
    let branching = |to: u64| {
        let (mut file, code) = alternative(8, [4, 4], &word(0xebff_fffe));
        let symbol = file.absolute("there", on_arm32(to));
        file.relocation(code, 0, R_ARM_CALL, symbol, 0);
        file
    };
    upload(&branching(TARGET)).unwrap();
    refused(
        &branching(TEXT + 0x8000),
        Errno::EINVAL,
        is!(entry: Unusable { .. }),
    );
}

/// A payload with one relocated word of code, and where that is.
fn relocated(instruction: u32, r_type: u32, to: u64) -> (Payload, u64) {
    let code = [NOP, instruction.to_le_bytes(), RET].concat();
    let mut file = Payload::arm32(&code, &[func("target")]);
    let (text, symbol) = (file.text, file.absolute("there", to));
    file.relocation(text, 4, r_type, symbol, 0);
    (file, on_arm32(PAYLOADS) + 4)
}

/// The word after relocation.
fn result(instruction: u32, r_type: u32, to: u64) -> u32 {
    let (file, place) = relocated(instruction, r_type, to);
    let mut engine = engine();
    engine.upload("test", &file.bytes()).unwrap();
    let mut word = [0; 4];
    assert!(engine.host().read(place, &mut word));
    u32::from_le_bytes(word)
}

/// Xen loses the lowest bit of half of all distances, and the addends of halves.
#[test]
fn addends_in_instructions_are_counted() {
    let place = on_arm32(PAYLOADS) + 4;
    for to in [on_arm32(TARGET), on_arm32(TARGET) + 4] {
        let [a, b, c, _] = branch(place, to).unwrap();
        let expected = [a, b, c, 0xeb];
        let call = result(0xebff_fffe, R_ARM_CALL, to);
        assert_eq!(call.to_le_bytes(), expected);
        let jump = result(0x0aff_fffe, R_ARM_JUMP24, to);
        assert_eq!(jump.to_le_bytes(), [a, b, c, 0x0a]);
    }
    let to = 0x0020_f000;
    assert_eq!(result(0xe301_0800, R_ARM_MOVW_ABS_NC, to), 0xe300_0800);
    assert_eq!(result(0xe341_0800, R_ARM_MOVT_ABS, to), 0xe340_0021);
    assert_eq!(result(0xe30f_0ffc, R_ARM_MOVW_ABS_NC, to), 0xe30e_0ffc);
    assert_eq!(result(0x10, R_ARM_ABS32, to), 0x0020_f010);
    assert_eq!(
        u64::from(result(0xffff_fff8, R_ARM_REL32, to)),
        (to - 8).wrapping_sub(place) & 0xffff_ffff
    );
}

#[test]
fn relocations_are_checked_as_the_architecture_demands() {
    let far = on_arm32(PAYLOADS) + 4 + (32 << 20) + 8;
    result(0xebff_fffe, R_ARM_CALL, far - 4);
    for (r_type, to) in [
        (R_ARM_CALL, far),
        (R_ARM_JUMP24, far),
        // A Thumb function.
        (R_ARM_CALL, on_arm32(TARGET) + 1),
        (R_ARM_JUMP24, on_arm32(TARGET) + 2),
    ] {
        refused(
            &relocated(0xebff_fffe, r_type, to).0,
            Errno::EOVERFLOW,
            is!(relocation: Overflow { .. }),
        );
    }
    refused(
        &relocated(0xfaff_fffe, R_ARM_CALL, on_arm32(TARGET)).0,
        Errno::EOPNOTSUPP,
        is!(relocation: Thumb { .. }),
    );
    // R_ARM_THM_CALL.
    refused(
        &relocated(0xe300_0000, 10, on_arm32(TARGET)).0,
        Errno::EOPNOTSUPP,
        is!(relocation: Unknown { r_type: 10 }),
    );
}

/// The result of what Xen's own core is known to get right.
fn stock(file: &[u8]) -> Result<(), Refusal> {
    let mut engine = Engine::new(Hypervisor::arm32(), Policy::Stock);
    engine.upload("test", file).map(drop)
}

/// What Xen's own core does not perform, or performs wrongly.
#[test]
fn stock_xen_gets_less() {
    let stock = |file: &Payload| stock(&file.bytes());
    let target = on_arm32(TARGET);
    for (instruction, r_type, to, expected) in [
        (0xebff_fffe, R_ARM_CALL, target + 4, None),
        (0xebff_fffe, R_ARM_CALL, target, Some("4 bytes too low")),
        (0xeaff_fffe, R_ARM_JUMP24, target, Some("4 bytes too low")),
        (0xe300_0000, R_ARM_MOVW_ABS_NC, target, None),
        (
            0xe301_0800,
            R_ARM_MOVW_ABS_NC,
            target,
            Some("leaves out the addend"),
        ),
        (
            0xe341_0800,
            R_ARM_MOVT_ABS,
            target,
            Some("leaves out the addend"),
        ),
        // R_ARM_MOVW_PREL_NC
        (0xe300_0000, 45, target, Some("does not perform")),
    ] {
        let (file, _) = relocated(instruction, r_type, to);
        upload(&file).unwrap();
        match (stock(&file), expected) {
            (Ok(()), None) => {}
            (Err(refusal), Some(words)) => {
                assert_eq!(refusal.errno(), Errno::EOPNOTSUPP);
                let message = refusal.to_string();
                assert!(message.contains(words), "{message}");
            }
            (result, _) => panic!("{instruction:#x}: {result:?}"),
        }
    }
    // At an odd address.
    let odd = |file: &mut Payload| {
        file.section(".odd", SectionKind::ReadOnlyData, &[0; 3], 1);
        file.section(".bug_frames.2", SectionKind::ReadOnlyData, &[0; 16], 1);
    };
    let (mut file, _) = relocated(0xe1a0_0000, R_ARM_ABS32, target);
    file.section(".bug_frames.1", SectionKind::ReadOnlyData, &[0; 0], 1);
    stock(&file).unwrap();
    odd(&mut file);
    let refusal = stock(&file).unwrap_err();
    let unaligned = is!(section: StockAlignment { align: 4, .. });
    assert!(refusal.problems.iter().any(unaligned), "{refusal}");
}

/// ARM32 traps where a word is not aligned.
#[test]
fn stock_xen_relocates_aligned_words_only() {
    for (offset, aligned) in [(0, true), (4, true), (1, false), (5, false), (6, false)] {
        let mut file = payload();
        let data = file.section(".data", SectionKind::Data, &[0; 12], 4);
        let code = file.new_code;
        file.relocation(data, offset, R_ARM_ABS32, code, 0);
        upload(&file).unwrap();
        let result = stock(&file.bytes());
        assert_eq!(result.is_ok(), aligned, "{offset}: {result:?}");
        if let Err(refusal) = result {
            assert_eq!(refusal.errno(), Errno::EOPNOTSUPP);
            let message = refusal.to_string();
            assert!(message.contains("crashes the host"), "{message}");
        }
    }
}

/// Offsets in the header of a file, and in that of a section.
mod elf32 {
    pub(super) const TABLE: usize = 32;
    pub(super) const ENTRY_SIZE: usize = 46;
    pub(super) const COUNT: usize = 48;
    pub(super) const TYPE: usize = 4;
    pub(super) const OFFSET: usize = 16;
    pub(super) const SIZE: usize = 20;
    pub(super) const SECTION_ENTRY: usize = 36;
    pub(super) const SHT_SYMTAB: u32 = 2;
    pub(super) const SHT_RELA: u32 = 4;
    pub(super) const SHT_REL: u32 = 9;
}

fn word(file: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*file[at..].first_chunk().unwrap())
}

fn set_word(file: &mut [u8], at: usize, value: u32) {
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The header of the first section of a type.
fn header(file: &[u8], kind: u32) -> usize {
    let (table, count) = (word(file, elf32::TABLE), file[elf32::COUNT]);
    let headers = (0..usize::from(count)).map(|index| table as usize + index * 40);
    let mut headers = headers.filter(|at| word(file, at + elf32::TYPE) == kind);
    headers.next().expect("one")
}

/// Appends `contents` so many bytes behind a multiple of 4; returns their offset.
fn append(file: &mut Vec<u8>, contents: &[u8], behind: usize) -> u32 {
    file.resize(file.len().next_multiple_of(4) + behind, 0);
    let at = file.len();
    file.extend_from_slice(contents);
    u32::try_from(at).unwrap()
}

/// Xen reads the tables of a file in place, by words.
#[test]
fn stock_xen_reads_aligned_records_only() {
    let whole = payload().bytes();
    let refused = |file: &[u8], part: &str| {
        engine().upload("test", file).map(drop).unwrap();
        let refusal = stock(file).expect_err(part);
        assert_eq!(refusal.errno(), Errno::EOPNOTSUPP);
        let message = refusal.to_string();
        assert!(message.contains(part), "{message}");
    };
    stock(&whole).unwrap();
    for kind in [elf32::SHT_SYMTAB, elf32::SHT_REL] {
        for behind in 0..4 {
            let mut file = whole.clone();
            let at = header(&file, kind);
            let (start, size) = (
                word(&file, at + elf32::OFFSET),
                word(&file, at + elf32::SIZE),
            );
            let contents = whole[start as usize..][..size as usize].to_vec();
            let moved = append(&mut file, &contents, behind);
            set_word(&mut file, at + elf32::OFFSET, moved);
            match behind {
                0 => stock(&file).unwrap(),
                _ => refused(&file, "of the file"),
            }
        }
    }
    // Entries with a gap behind each.
    let mut file = whole.clone();
    let at = header(&file, elf32::SHT_REL);
    let (start, size) = (
        word(&file, at + elf32::OFFSET),
        word(&file, at + elf32::SIZE),
    );
    let records = whole[start as usize..][..size as usize].chunks_exact(8);
    let wide: Vec<u8> = records.flat_map(|one| [one, &[0][..]].concat()).collect();
    let moved = append(&mut file, &wide, 0);
    set_word(&mut file, at + elf32::OFFSET, moved);
    set_word(&mut file, at + elf32::SIZE, size / 8 * 9);
    set_word(&mut file, at + elf32::SECTION_ENTRY, 9);
    refused(&file, "entries of 9 bytes");
    // The headers of sections.
    let table = word(&whole, elf32::TABLE) as usize;
    let mut file = whole.clone();
    let moved = append(&mut file, &whole[table..], 2);
    set_word(&mut file, elf32::TABLE, moved);
    refused(&file, "section header table");
    let mut file = whole.clone();
    let wide = whole[table..].chunks_exact(40);
    let wide: Vec<u8> = wide.flat_map(|one| [one, &[0; 2][..]].concat()).collect();
    let moved = append(&mut file, &wide, 0);
    set_word(&mut file, elf32::TABLE, moved);
    file[elf32::ENTRY_SIZE] = 42;
    refused(&file, "section header table");
}

/// Xen clears the field only if the addend is not zero, and records with addends say
/// nothing of the place.
#[test]
fn stock_xen_mixes_values_with_what_is_in_the_place() {
    let target = on_arm32(TARGET) + 4;
    for (instruction, r_type, addend, right) in [
        (0xeb00_0000, R_ARM_CALL, -8, true),
        (0xebff_fffe, R_ARM_CALL, -8, true),
        (0xeb00_0000, R_ARM_CALL, 0, true),
        (0xebff_fffe, R_ARM_CALL, 0, false),
        (0xe300_0000, R_ARM_MOVW_ABS_NC, 0, true),
        (0xe30f_0fff, R_ARM_MOVW_ABS_NC, 0, false),
        (0xe340_0001, R_ARM_MOVT_ABS, 0, false),
        (0xffff_ffff, R_ARM_ABS32, 0, true),
    ] {
        let mut file = relocated(instruction, r_type, target).0.bytes();
        let at = header(&file, elf32::SHT_REL);
        let start = word(&file, at + elf32::OFFSET) as usize;
        let mut record = file[start..start + 8].to_vec();
        record.extend(i32::to_le_bytes(addend));
        let moved = append(&mut file, &record, 0);
        for (field, value) in [
            (elf32::TYPE, elf32::SHT_RELA),
            (elf32::OFFSET, moved),
            (elf32::SIZE, 12),
            (elf32::SECTION_ENTRY, 12),
        ] {
            set_word(&mut file, at + field, value);
        }
        engine().upload("test", &file).map(drop).unwrap();
        let result = stock(&file);
        assert_eq!(result.is_ok(), right, "{instruction:#x}: {result:?}");
        if let Err(refusal) = result {
            let message = refusal.to_string();
            assert!(message.contains("mixes the value"), "{message}");
        }
    }
}

/// The lowest bit of a Thumb function's address is set: called, the processor would run
/// its code as such.
#[test]
fn hooks_are_called_at_instructions() {
    let with_hook = |at: u64, section: &str| {
        let mut file = payload();
        let hook = file.symbol("hook", Some((file.text, at)));
        let table = file.section(section, SectionKind::Data, &[0; 4], 4);
        file.relocation(table, 0, R_ARM_ABS32, hook, 0);
        file
    };
    for section in [".livepatch.hooks.load", ".livepatch.hooks.preapply"] {
        upload(&with_hook(16, section)).unwrap();
        for at in [17, 18] {
            let file = with_hook(at, section);
            let message = refused(&file, Errno::EINVAL, is!(entry: Unusable { .. }));
            assert!(message.contains("no instruction can begin"), "{message}");
        }
    }
}

/// What the hypervisor reads is where words are aligned, wherever the file has it.
#[test]
fn tables_are_aligned() {
    let mut file = payload();
    file.section(".odd", SectionKind::ReadOnlyData, &[0; 3], 1);
    let frames = file.section(".bug_frames.2", SectionKind::ReadOnlyData, &[0; 16], 1);
    let text = file.section(".rodata.str", SectionKind::ReadOnlyData, b"file.c\0", 1);
    let (code, name) = (file.new_code, file.object.section_symbol(text));
    file.relocation(frames, 0, R_ARM_REL32, code, 0);
    file.relocation(frames, 4, R_ARM_REL32, name, 4);
    let mut engine = engine();
    engine.host().noted();
    engine.upload("odd", &file.bytes()).unwrap();
    let frames = engine.host().noted().registered.bug_frames[2].clone();
    assert_eq!((frames.start % 4, frames.end - frames.start), (0, 16));
}

/// New code may keep a reference to what is freed after boot, if the old code has it.
#[test]
fn references_to_boot_code_of_the_old_code_are_kept() {
    let init = on_arm32(INIT) + 0x40;
    // movw r0, #0x40; movt r0, #0x21
    let halves = [0xe300_0040, 0xe340_0021];
    assert_eq!(init, 0x21_0040);
    let call = branch(on_arm32(TARGET), init).unwrap();
    let call = u32::from_le_bytes(call) | 0x0100_0000;
    for (old, r_type, word, kept) in [
        ([call, NOP_WORD], R_ARM_CALL, 0xebff_fffe, true),
        ([NOP_WORD, NOP_WORD], R_ARM_CALL, 0xebff_fffe, false),
        (halves, R_ARM_MOVW_ABS_NC, 0xe300_0000, true),
        ([NOP_WORD, halves[1]], R_ARM_MOVW_ABS_NC, 0xe300_0000, false),
        ([0x0021_0040, NOP_WORD], R_ARM_ABS32, 0, true),
    ] {
        let mut engine = engine();
        let place = usize::try_from(TARGET - TEXT).unwrap();
        let bytes: Vec<u8> = old.iter().flat_map(|word| word.to_le_bytes()).collect();
        engine.host().memory().machine.text[place..place + 8].copy_from_slice(&bytes);
        let (file, _) = relocated(word, r_type, init);
        let loaded = engine.upload("test", &file.bytes()).map(drop);
        assert_eq!(loaded.is_ok(), kept, "{old:x?}: {loaded:?}");
    }
}

#[test]
fn bug_frames_have_sixteen_bytes() {
    let mut file = payload();
    let frames = file.section(".bug_frames.2", SectionKind::ReadOnlyData, &[0; 16], 4);
    let text = file.section(".rodata.str", SectionKind::ReadOnlyData, b"file.c\0", 1);
    let (code, name) = (file.new_code, file.object.section_symbol(text));
    file.relocation(frames, 0, R_ARM_REL32, code, 0);
    file.relocation(frames, 4, R_ARM_REL32, name, 4);
    upload(&file).unwrap();

    let mut file = payload();
    file.section(".bug_frames.2", SectionKind::ReadOnlyData, &[0; 8], 4);
    refused(&file, Errno::EINVAL, is!(section: EntrySize { .. }));
}
