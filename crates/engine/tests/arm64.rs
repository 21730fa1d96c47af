// SPDX-License-Identifier: MIT OR Apache-2.0

//! Payloads on a hypervisor for ARM64.

use object::SectionKind;
use object::write::SectionId;
use xsplice_abi::trampoline::arm64::{NOP, branch};
use xsplice_engine::{
    Aarch64, Action, Engine, Errno, FileFault, Host as _, Options, Policy, Problem, Refusal,
};
use xsplice_test_host::{
    Hypervisor, OWN_ID, PAYLOADS, Payload, SMALL, TARGET, TEXT, func, is, load,
};

const RET: [u8; 4] = 0xd65f_03c0_u32.to_le_bytes();
const R_AARCH64_PREL32: u32 = 261;
const R_AARCH64_TSTBR14: u32 = 279;
const R_AARCH64_CONDBR19: u32 = 280;
const R_AARCH64_JUMP26: u32 = 282;

fn payload() -> Payload {
    Payload::arm64(&RET.repeat(8), &[func("target")])
}

fn engine() -> Engine<Hypervisor<Aarch64>> {
    Engine::new(Hypervisor::arm64(), Policy::Stock)
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
    let file = Payload::arm64(&RET.repeat(4), &[func("target"), tiny]).bytes();
    let mut engine = engine();
    let before = engine.host().machine();
    let new = engine.upload("fix", &file).unwrap().memory().base();
    engine
        .act("fix", Action::Apply, Options::default())
        .unwrap();
    for old in [TARGET, SMALL] {
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

#[test]
fn no_ops_are_whole_instructions_of_the_function() {
    let nop = |size, old| {
        let func = func("target").with(|record| {
            record.old_size.set(old);
            record.new_size.set(size);
        });
        Payload::arm64(&RET, &[func.nop()])
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

/// Xen cleans so many bytes from the data cache while all CPUs are stopped.
#[test]
fn new_functions_do_not_reach_out_of_text() {
    let of = |size| {
        Payload::arm64(
            &RET.repeat(2048),
            &[func("target").with(|f| f.new_size.set(size))],
        )
    };
    upload(&of(8192)).unwrap();
    for size in [8193, 1 << 20, u32::MAX] {
        refused(&of(size), Errno::EINVAL, is!(function: NewSize { .. }));
    }
}

/// What is behind these bytes may stay in the data cache. Xen's own payload for
/// expectations is such a one, and loads.
#[test]
fn new_functions_that_are_longer_than_their_record_get_a_warning() {
    let warned = |size, symbol, policy| {
        let func = func("target").with(|f| f.new_size.set(size));
        let mut file = Payload::arm64(&RET.repeat(8), &[func]);
        let new_code = file.new_code;
        file.object.symbol_mut(new_code).size = symbol;
        let mut engine = Engine::new(Hypervisor::arm64(), policy);
        let loaded = engine.upload("test", &file.bytes()).expect("it is loaded");
        let mut problems = loaded.problems().iter();
        problems.any(is!(function: NewSizeShort { .. }))
    };
    for (size, symbol) in [(32, 32), (32, 20), (20, 20), (0, 0)] {
        assert!(!warned(size, symbol, Policy::Stock), "{size} {symbol}");
    }
    for (size, symbol) in [(16, 20), (0, 4)] {
        assert!(warned(size, symbol, Policy::Stock), "{size} {symbol}");
        assert!(!warned(size, symbol, Policy::Engine), "{size} {symbol}");
    }
}

#[test]
fn addresses_are_those_of_instructions() {
    let at = |old| {
        let func = func("").with(|record| record.old_addr.set(old));
        Payload::arm64(&RET, &[func])
    };
    upload(&at(TARGET)).unwrap();
    refused(
        &at(TARGET + 2),
        Errno::EINVAL,
        is!(function: Boundary { .. }),
    );
    let small = func("target").with(|record| record.old_size.set(3));
    refused(
        &Payload::arm64(&RET, &[small]),
        Errno::EINVAL,
        is!(function: TooSmall { needed: 4, .. }),
    );
}

/// An address is computed in two steps: what is patched has both or neither.
#[test]
fn addresses_in_two_steps_stay_whole() {
    const NOP_WORD: u32 = u32::from_le_bytes(NOP);
    const ADRP_X1: u32 = 0x9000_0001;
    const LOAD_X1: u32 = 0xf940_0422; // ldr x2, [x1, #8]
    const ADD_X1: u32 = 0x9100_4021; // add x1, x1, #16
    const ADRP_X3: u32 = 0x9000_0003;
    const RETURN: u32 = u32::from_le_bytes(RET);
    let uploaded = |code: [u32; 8], at: u64, nops: u32| {
        let engine = &mut engine();
        let place = usize::try_from(TARGET - TEXT).unwrap();
        let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        engine.host().memory().machine.text[place..place + 32].copy_from_slice(&bytes);
        let func = func("").with(|record| {
            record.old_addr.set(TARGET + at);
            record.old_size.set(u32::try_from(32 - at).unwrap());
            record.new_size.set(if nops == 0 { 4 } else { nops });
        });
        let func = if nops == 0 { func } else { func.nop() };
        let file = Payload::arm64(&RET, &[func]).bytes();
        engine.upload("test", &file).map(drop)
    };
    let split = |code, at, nops, side, (first, second)| {
        let refusal = uploaded(code, at, nops).expect_err("half of an address");
        let found = is!(function: Pair { what, first: a, second: b, .. }
            if (*what, *a, *b) == (side, TARGET + first, TARGET + second));
        assert!(refusal.problems.iter().any(found), "{refusal}");
        assert_eq!(refusal.errno(), Errno::EINVAL);
    };
    let near = [
        NOP_WORD, ADRP_X1, NOP_WORD, LOAD_X1, NOP_WORD, ADD_X1, NOP_WORD, RETURN,
    ];
    // Jumps: before and at the first, between, at the partner, behind.
    for at in [0, 4, 16, 20] {
        uploaded(near, at, 0).unwrap();
    }
    for at in [8, 12] {
        split(near, at, 0, "begin", (4, 12));
    }
    // No-ops: none of the two, both, the first, the second.
    for (at, nops) in [(0, 4), (4, 12), (0, 28), (16, 4)] {
        uploaded(near, at, nops).unwrap();
    }
    for (at, nops) in [(0, 8), (4, 4), (4, 8)] {
        split(near, at, nops, "end", (4, 12));
    }
    split(near, 12, 4, "begin", (4, 12));
    // Another register, another page, another function.
    for code in [
        [
            ADRP_X3, NOP_WORD, LOAD_X1, NOP_WORD, NOP_WORD, NOP_WORD, NOP_WORD, RETURN,
        ],
        [
            ADRP_X1, NOP_WORD, ADRP_X1, LOAD_X1, NOP_WORD, NOP_WORD, NOP_WORD, RETURN,
        ],
        [
            ADRP_X1, NOP_WORD, RETURN, LOAD_X1, NOP_WORD, NOP_WORD, NOP_WORD, RETURN,
        ],
    ] {
        uploaded(code, 4, 0).unwrap();
    }
}

#[test]
fn payloads_for_other_machines_are_refused_by_both() {
    let x86 = Payload::new(&[func("target")]);
    let message = refused(&x86, Errno::EOPNOTSUPP, is!(file: OtherMachine { .. }));
    assert!(message.contains("is for x86-64, and this hypervisor is for ARM64"));
    let refusal = load(&payload().bytes()).expect_err("an x86-64 hypervisor");
    assert_eq!(refusal.errno(), Errno::EOPNOTSUPP);
    let [Problem::File(FileFault::OtherMachine { .. })] = refusal.problems[..] else {
        panic!("{refusal}");
    };
}

/// In every object again, so they are neither new nor duplicates.
#[test]
fn mapping_symbols_are_no_new_symbols() {
    let mut file = payload();
    for name in ["$x", "$d", "$x.1"] {
        let text = file.text;
        file.symbol(name, Some((text, 4)));
    }
    let mut engine = engine();
    engine.host().noted();
    engine.upload("first", &file.bytes()).unwrap();
    let symbols = engine.host().noted().registered.symbols;
    assert!(symbols.iter().all(|(name, ..)| !name.starts_with('$')));
    // They would also be the starts of functions, to which hooks could lead.
    let mut other = payload();
    let text = other.text;
    other.symbol("$y", Some((text, 4)));
    let both = engine.upload("second", &other.bytes());
    let is_duplicate = is!(symbol: Duplicate { .. });
    assert!(both.is_err_and(|refusal| !refusal.problems.iter().any(is_duplicate)));
}

#[test]
fn exception_tables_are_refused() {
    let mut file = payload();
    file.section(".ex_table", SectionKind::ReadOnlyData, &[0; 8], 4);
    refused(&file, Errno::EOPNOTSUPP, is!(section: NoExceptions));
}

/// Xen's own handler only takes file names of the hypervisor.
#[test]
fn a_warn_is_refused_where_the_hypervisor_stops_at_it() {
    let with = |table: &str, name: Option<u64>| {
        let mut file = payload();
        let frame = file.section(table, SectionKind::ReadOnlyData, &[0; 16], 4);
        let strings = file.section(".rodata.file", SectionKind::ReadOnlyData, b"file.c\0", 1);
        let strings = file.object.section_symbol(strings);
        let (code, name) = (file.new_code, name.map(|name| file.absolute("name", name)));
        for (offset, symbol) in [(0, code), (4, name.unwrap_or(strings)), (8, strings)] {
            let place = i64::try_from(offset).unwrap();
            file.relocation(frame, offset, R_AARCH64_PREL32, symbol, place);
        }
        file
    };
    let warn = with(".bug_frames.1", None);
    let message = refused(&warn, Errno::EINVAL, is!(entry: Unusable { .. }));
    assert!(message.contains("stops at this WARN"), "{message}");
    let mut engine = engine();
    engine.host().memory().machine.text[0x104] = 0;
    let own = with(".bug_frames.1", Some(TARGET));
    engine.upload("test", &own.bytes()).unwrap();
    for table in [".bug_frames.2", ".bug_frames.3"] {
        upload(&with(table, None)).unwrap();
    }
    let mut hypervisor = Hypervisor::arm64();
    hypervisor.limits.file_names = true;
    let mut ours = Engine::new(hypervisor, Policy::Engine);
    ours.upload("test", &warn.bytes()).unwrap();
}

/// With an alternative for the code at the start of the text, replaced by these bytes.
fn alternative(condition: u16, lengths: [u8; 2], replacement: &[u8]) -> Payload {
    with_alternative(condition, lengths, replacement).0
}

/// The payload, and the section of the replacement.
fn with_alternative(condition: u16, lengths: [u8; 2], replacement: &[u8]) -> (Payload, SectionId) {
    let mut file = payload();
    let code = file.section(".altinstr_replacement", SectionKind::Text, replacement, 4);
    let mut entry = vec![0; 8];
    entry.extend(condition.to_le_bytes());
    entry.extend(lengths);
    let table = file.section(".altinstructions", SectionKind::ReadOnlyData, &entry, 1);
    let replacement = file.object.section_symbol(code);
    let text = file.new_code;
    file.relocation(table, 0, R_AARCH64_PREL32, text, 0);
    file.relocation(table, 4, R_AARCH64_PREL32, replacement, 0);
    (file, code)
}

#[test]
fn alternatives_that_the_hypervisor_would_stop_at_are_refused() {
    let wrong = |file: &Payload, part: &str| {
        let message = refused(file, Errno::EINVAL, is!(entry: Unusable { .. }));
        assert!(message.contains(part), "{message}");
    };
    upload(&alternative(8, [4, 4], &NOP)).unwrap();
    upload(&alternative(17, [8, 8], &NOP.repeat(2))).unwrap();
    wrong(&alternative(8, [4, 8], &NOP.repeat(2)), "another length");
    wrong(&alternative(8, [8, 4], &NOP.repeat(2)), "another length");
    wrong(
        &alternative(8, [6, 6], &NOP.repeat(2)),
        "whole instructions",
    );
    wrong(&alternative(19, [4, 4], &NOP), "processor feature");
    wrong(
        &alternative(8, [8, 8], &NOP),
        "outside .altinstr_replacement",
    );
    // A function writes the code; the section starts with one.
    upload(&alternative(18, [4, 0], &NOP)).unwrap();
    wrong(&alternative(18, [4, 4], &NOP), "a function that writes one");
}

#[test]
fn replacements_mean_the_same_where_they_are_copied() {
    let word = |word: u32| word.to_le_bytes();
    let with = |words: &[[u8; 4]]| {
        let bytes = words.concat();
        let length = u8::try_from(bytes.len()).unwrap();
        alternative(8, [length, length], &bytes)
    };
    // b.eq to the next one, which moves with it.
    upload(&with(&[word(0x5400_0020), NOP])).unwrap();
    for (wrong, part) in [
        (word(0x9000_0000), "depends on where it is"), // adrp
        (word(0x1000_0000), "depends on where it is"), // adr
        (word(0x5800_0040), "depends on where it is"), // ldr of a literal
        (word(0x1400_0400), "no code of the hypervisor"), // b to the payload
    ] {
        let message = refused(
            &with(&[wrong, NOP]),
            Errno::EINVAL,
            is!(entry: Unusable { .. }),
        );
        assert!(message.contains(part), "{message}");
    }
    let branching = |instruction: u32, r_type, to: u64| {
        let (mut file, code) = with_alternative(8, [4, 4], &word(instruction));
        let symbol = file.absolute("there", to);
        file.relocation(code, 0, r_type, symbol, 0);
        file
    };
    upload(&branching(0x1400_0000, R_AARCH64_JUMP26, TARGET)).unwrap();
    upload(&branching(0x5400_0000, R_AARCH64_CONDBR19, TARGET)).unwrap();
}

#[test]
fn relocations_are_checked_as_the_architecture_demands() {
    let relocated = |instruction: u32, r_type, to: u64| {
        let code = [instruction.to_le_bytes(), RET].concat();
        let mut file = Payload::arm64(&code, &[func("target")]);
        let (text, symbol) = (file.text, file.absolute("there", to));
        file.relocation(text, 0, r_type, symbol, 0);
        file
    };
    // Xen checks a tbz with the range of a conditional branch, and cuts the rest off.
    let tbz = 0x3600_0000;
    let near = PAYLOADS - (32 << 10);
    upload(&relocated(tbz, R_AARCH64_TSTBR14, near)).unwrap();
    for (instruction, r_type, to) in [
        (tbz, R_AARCH64_TSTBR14, near - 4),
        (tbz, R_AARCH64_TSTBR14, TEXT + 2),
        (0x5400_0000, R_AARCH64_CONDBR19, TEXT + 1),
        (0x1400_0000, R_AARCH64_JUMP26, TEXT - (128 << 20)),
        (0xd280_0000, 263, 0x1_0000), // MOVW_UABS_G0
        (0xd280_0000, 270, 0x1_0000), // MOVW_SABS_G0
    ] {
        refused(
            &relocated(instruction, r_type, to),
            Errno::EOVERFLOW,
            is!(relocation: Overflow { .. }),
        );
    }
    upload(&relocated(0xd280_0000, 263, 0xffff)).unwrap();
    // A literal pool, and one that does nothing.
    for (r_type, advice) in [(273, "without literal pools"), (0, "remove it")] {
        let message = refused(
            &relocated(0x5800_0000, r_type, TEXT),
            Errno::EOPNOTSUPP,
            is!(relocation: Stock { .. }),
        );
        assert!(message.contains(advice), "{message}");
    }
}

#[test]
fn a_full_window_is_named_as_the_reason() {
    let mut engine = engine();
    let mut last = None;
    let file = payload().bytes();
    let own = file.windows(20).position(|bytes| bytes == OWN_ID).unwrap();
    for index in 0..600_u32 {
        let mut file = file.clone();
        file[own..own + 4].copy_from_slice(&index.to_le_bytes());
        if let Err(refusal) = engine.upload(&format!("p{index}"), &file) {
            last = Some(refusal);
            break;
        }
    }
    let refusal = last.expect("2 MiB are full");
    assert_eq!(refusal.errno(), Errno::ENOMEM);
    let message = refusal.to_string();
    assert!(
        message.contains("all payloads together can have 0x200000"),
        "{message}"
    );
    assert!(engine.stack().loaded().len() > 100);
}

#[test]
fn bug_frames_have_sixteen_bytes() {
    let mut file = payload();
    let frames = file.section(".bug_frames.2", SectionKind::ReadOnlyData, &[0; 16], 4);
    let text = file.section(".rodata.str", SectionKind::ReadOnlyData, b"file.c\0", 1);
    let (code, name) = (file.new_code, file.object.section_symbol(text));
    file.relocation(frames, 0, R_AARCH64_PREL32, code, 0);
    file.relocation(frames, 4, R_AARCH64_PREL32, name, 4);
    upload(&file).unwrap();

    let mut file = payload();
    file.section(".bug_frames.2", SectionKind::ReadOnlyData, &[0; 8], 4);
    refused(&file, Errno::EINVAL, is!(section: EntrySize { .. }));
}
