// SPDX-License-Identifier: MIT OR Apache-2.0

//! What loads, and what each kind of mistake gives: which error, which result.

use object::SectionKind;
use xsplice_abi::note::build_id_note;
use xsplice_abi::payload::{LivepatchFunc, section};
use xsplice_abi::preimage::{self, Preimage};
use xsplice_engine::{
    Action, Cause, Engine, EntryFault, Errno, Failure, FunctionFault, Host as _, LandingPads,
    Loader, Options, Policy, Problem, Protection, Severity, Stack,
};
use xsplice_test_host::{
    BOOT_DATA, DENIED, ENDBR_TARGET, Func, Hypervisor, INIT, OWN_ID, PAYLOADS, Payload, SMALL,
    TARGET, TEXT, USES_BOOT_DATA, XEN_ID, engine, func, is, load,
};

const R_64: u32 = 1;
const R_PC32: u32 = 2;
const R_PLT32: u32 = 4;
const R_32S: u32 = 11;

/// Asserts that the payload is refused, for a reason among others, with `errno`.
#[track_caller]
fn refused(payload: &Payload, errno: Errno, reason: impl Fn(&Problem) -> bool) {
    let refusal = load(&payload.bytes()).expect_err("this payload should be refused");
    assert!(
        refusal.problems.iter().any(reason),
        "another reason: {refusal}"
    );
    assert_eq!(refusal.errno(), errno, "{refusal}");
}

/// Loads and applies the payload on an engine of its own.
fn apply(payload: &Payload) -> Result<(), Failure> {
    let mut engine = engine();
    if let Err(refusal) = engine.upload("test", &payload.bytes()) {
        panic!("{refusal}");
    }
    engine.act("test", Action::Apply, Options::default())
}

/// Asserts that the payload loads, but does not apply, with `errno`.
#[track_caller]
fn not_applied(payload: &Payload, errno: Errno) {
    let failure = apply(payload).expect_err("this payload should not apply");
    assert_eq!(failure.errno(), errno);
    let Cause::Unmet { problems } = failure.cause else {
        panic!("another reason: {failure}");
    };
    assert_eq!(problems[0].severity(), Severity::NotApplied);
}

type Reason = fn(&Problem) -> bool;

#[test]
fn the_console_gets_the_first_problems_of_a_refusal_and_how_many_more() {
    let mut payload = Payload::new(&[func("target")]);
    for number in 0..50 {
        let name = format!("unknown_{number}");
        let symbol = payload.symbol(&name, None);
        payload.relocation(payload.text, 8, R_64, symbol, 0);
    }
    let mut engine = engine();
    let refusal = engine.upload("a\nforged: applied", &payload.bytes());
    let refusal = refusal.expect_err("nobody knows these symbols").to_string();
    assert!(refusal.contains("unknown_49"), "{refusal}");
    let console = engine.host().memory().logged.join("\n");
    let lines: Vec<&str> = console.lines().collect();
    assert_eq!(lines.len(), 12, "{console}");
    assert!(lines[0].starts_with("a\\nforged: applied was not loaded"));
    let last = "  and 40 more; `xsplice check` shows all";
    assert_eq!(lines[11], last, "{console}");
}

#[test]
fn a_refusal_has_two_hundred_problems_and_how_many_more() {
    let mut payload = Payload::new(&[func("target")]);
    for number in 0..450 {
        let symbol = payload.symbol(&format!("unknown_{number}"), None);
        payload.relocation(payload.text, 8, R_64, symbol, 0);
    }
    let refusal = load(&payload.bytes()).unwrap_err();
    assert_eq!((refusal.problems.len(), refusal.more), (200, 250));
    let text = refusal.to_string();
    assert_eq!(text.lines().count(), 202);
    assert_eq!(text.lines().next_back(), Some("  and 250 more"));
}

#[test]
fn a_payload_that_has_no_place() {
    let mut payload = Payload::new(&[func("target")]);
    // With its first page of text and of read-only data, more than 32 MiB.
    for _ in 0..15 {
        payload.zeros(2 << 20);
    }
    let mut engine = engine();
    // The made-up hypervisor has 8 MiB for payloads.
    let refusal = engine.upload("large", &payload.bytes()).unwrap_err();
    assert_eq!(refusal.errno(), Errno::ENOMEM);
    assert!(refusal.problems.iter().any(is!(problem: NoMemory { .. })));
    payload.zeros(2 << 20);
    refused(
        &payload,
        Errno::ENOMEM,
        is!(problem: TooLarge {
            limit: 0x200_0000,
            ..
        }),
    );
}

#[test]
fn what_is_not_written_any_more_is_protected() {
    let mut engine = engine();
    engine.host().noted();
    // Text, no other data than records, and notes.
    let loaded = engine.upload("test", &Payload::new(&[func("target")]).bytes());
    let base = loaded.unwrap().memory().base();
    let page = |number: u64| base + number * 0x1000..base + (number + 1) * 0x1000;
    let expected = [(page(0), Protection::Text), (page(2), Protection::ReadOnly)];
    assert_eq!(engine.host().noted().protected, expected);
}

#[test]
fn the_console_gets_the_metadata_of_what_is_applied() {
    let mut payload = Payload::new(&[func("target")]);
    let data = b"author=me\0forged=a\nb\0";
    payload.section(".modinfo", SectionKind::ReadOnlyData, data, 1);
    let mut engine = engine();
    engine.upload("test", &payload.bytes()).expect("it is good");
    engine.host().memory().logged.clear();
    let mut act = |action| engine.act("test", action, Options::default());
    act(Action::Apply).expect("it applies");
    act(Action::Revert).expect("it reverts");
    let console = engine.host().memory().logged.clone();
    let shown = console.iter().filter(|line| line.starts_with("  "));
    let shown: Vec<&str> = shown.map(String::as_str).collect();
    assert_eq!(shown, ["  author=me", "  forged=a\\nb"], "{console:?}");
}

#[test]
fn a_good_payload_loads_and_applies() {
    let mut payload = Payload::new(&[func("target")]);
    let (text, code) = (payload.text, payload.new_code);
    let helper = payload.symbol("file.c#local", None);
    payload.relocation(text, 4, R_PLT32, helper, -4);
    payload.relocation(text, 8, R_64, code, 0);
    let file = payload.bytes();
    let verified = load(&file).unwrap_or_else(|refusal| panic!("{refusal}"));
    assert!(verified.problems().is_empty() && verified.can_reapply());
    assert_eq!(verified.build_id(), OWN_ID);
    let [function] = verified.functions() else {
        panic!("one function")
    };
    assert_eq!(
        (
            verified
                .function_name(&Hypervisor::new(), function)
                .as_str(),
            function.old_addr
        ),
        ("target", TARGET)
    );
    assert_eq!((function.old_size, function.new_size), (32, 16));
    assert_eq!(function.patch_offset, 0);
}

#[test]
fn a_trampoline_goes_behind_endbr() {
    let payload = Payload::new(&[func("endbr_target")]);
    let file = payload.bytes();
    let verified = load(&file).unwrap();
    assert_eq!(verified.functions()[0].old_addr, ENDBR_TARGET);
    assert_eq!(verified.functions()[0].patch_offset, 4);
    refused(
        &Payload::new(&[func("endbr_target").with(|f| f.old_size.set(8))]),
        Errno::EINVAL,
        is!(function: TooSmall {
            needed: 9,
            old_size: 8,
            ..
        }),
    );
    assert!(load(&Payload::new(&[func("target").with(|f| f.old_size.set(5))]).bytes()).is_ok());
}

#[test]
fn function_records() {
    let cases: [(Func, Errno, Reason); 11] = [
        (
            func("target").with(|f| f.version = 1),
            Errno::EOPNOTSUPP,
            is!(function: Version { .. }),
        ),
        (
            func("target").with(|f| f.old_size.set(0)),
            Errno::EINVAL,
            is!(function: NoOldSize),
        ),
        (
            func("target").with(|f| f.old_size.set(4)),
            Errno::EINVAL,
            is!(function: TooSmall { .. }),
        ),
        (func("nowhere"), Errno::ENOENT, is!(function: Unknown)),
        (func(""), Errno::EINVAL, is!(function: Name { .. })),
        (
            func("at_boot"),
            Errno::EINVAL,
            is!(function: OldInit { addr: INIT, .. }),
        ),
        (
            func("x").with(|f| f.old_addr.set(0x1000)),
            Errno::EINVAL,
            is!(function: OldAddress { .. }),
        ),
        (
            func("target")
                .nop()
                .with(|f| f.new_addr.set(TARGET.wrapping_add(1 << 40))),
            Errno::EOVERFLOW,
            is!(function: Distance { .. }),
        ),
        (
            func("target").nop().with(|f| f.new_size.set(32)),
            Errno::EOPNOTSUPP,
            is!(function: NopTooLong { .. }),
        ),
        (
            func("target").nop().with(|f| f.old_size.set(15)),
            Errno::EINVAL,
            is!(function: NopPastEnd { .. }),
        ),
        (
            func("endbr_target").nop().with(|f| f.new_size.set(3)),
            Errno::EINVAL,
            is!(function: NopInEndbr { .. }),
        ),
    ];
    for (function, errno, reason) in cases {
        refused(&Payload::new(&[function]), errno, reason);
    }
    let longest = func("target").nop().with(|f| f.new_size.set(31));
    apply(&Payload::new(&[longest])).unwrap();
}

/// `len` bytes at `offset` of a function of two instructions of 5 bytes each.
fn no_ops(offset: u64, len: u32) -> Payload {
    let function = func("x").nop().with(|f| {
        f.old_addr.set(SMALL + offset);
        f.new_size.set(len);
        f.old_size.set(10);
    });
    Payload::new(&[function])
}

#[test]
fn no_ops_are_whole_instructions() {
    for (offset, len) in [(0, 5), (0, 10), (5, 5), (0, 0), (5, 0)] {
        apply(&no_ops(offset, len)).unwrap();
    }
    for (offset, len, what, begin) in [
        (0, 9, "end", SMALL + 5),
        (0, 1, "end", SMALL),
        (5, 1, "end", SMALL + 5),
        (1, 4, "begin", SMALL),
        (6, 4, "begin", SMALL + 5),
    ] {
        refused(
            &no_ops(offset, len),
            Errno::EINVAL,
            is!(function: Boundary { what: w, begin: b, length: 5, .. } if (*w, *b) == (what, begin)),
        );
    }
    let unclear = func("small").nop().with(|f| f.new_size.set(12));
    refused(
        &Payload::new(&[unclear]),
        Errno::EINVAL,
        is!(function: Undecodable { addr } if *addr == SMALL + 10),
    );
}

#[test]
fn jumps_begin_at_instructions() {
    let at = |name| Payload::new(&[func(name).with(|f| f.old_size.set(16))]);
    apply(&at("small+5")).unwrap();
    refused(
        &at("small+0x4"),
        Errno::EINVAL,
        is!(function: Boundary {
            what: "begin",
            begin: SMALL,
            size: 5,
            ..
        }),
    );
}

/// However many records there are for one function, it is decoded once.
#[test]
fn decoding_takes_linear_time() {
    const FUNCTION: u64 = TEXT + 0x500;
    const SIZE: u64 = 0xb00;
    let mut hypervisor = Hypervisor::new();
    hypervisor.functions.push(FUNCTION..FUNCTION + SIZE);
    // From the end to the beginning, all of them within the function.
    let records: Vec<_> = (0..SIZE / 8)
        .rev()
        .map(|index| {
            func("").with(|f| {
                f.old_addr.set(FUNCTION + 8 * index);
                f.old_size.set(8);
            })
        })
        .collect();
    let mut engine = Engine::new(hypervisor, Policy::Stock);
    engine
        .upload("many", &Payload::new(&records).bytes())
        .unwrap();
    let (read, records) = (engine.host().memory().read, records.len());
    let limit = usize::try_from(SIZE).unwrap() + 32 * records;
    assert!(read <= limit, "{read} bytes read for {records} records");
}

/// What is read of the hypervisor is no more than all of its text and a little for
/// each record, whatever the records say and however they lie.
#[test]
fn records_are_read_once() {
    let read_for = |records: &[Func]| {
        let mut payload = Payload::new(records);
        let symbol = payload.absolute("boot", INIT + 4);
        payload.relocation(payload.text, 4, R_PC32, symbol, -4);
        let mut engine = engine();
        engine.upload("many", &payload.bytes()).unwrap_err();
        let memory = engine.host().memory();
        memory.read
    };
    let record = |at: u64, old_size: u32| {
        func("").with(|f| {
            f.old_addr.set(at);
            f.old_size.set(old_size);
        })
    };
    let limit = |records: u64| usize::try_from(0x1000 * 2 + 64 * records).unwrap();
    // All of the text again and again, from one place and from many.
    let same: Vec<_> = (0..100).map(|_| record(TEXT, 0x1000)).collect();
    let nested: Vec<_> = (0..100)
        .map(|n| record(TEXT + n, 0x1000 - u32::try_from(n).unwrap()))
        .collect();
    // Next to each other: the old code is looked through, once.
    let side_by_side: Vec<_> = (0..12).map(|n| record(TEXT + 64 * n, 64)).collect();
    for records in [same, nested, side_by_side] {
        let (read, count) = (read_for(&records), records.len() as u64);
        assert!(read <= limit(count), "{read} bytes for {count} records");
    }
}

#[test]
fn sections_have_bytes_of_their_own() {
    let mut file = Payload::new(&[func("target")]).bytes();
    let at = |file: &[u8], place: usize| u64::from_le_bytes(*file[place..].first_chunk().unwrap());
    let table = usize::try_from(at(&file, 40)).unwrap();
    let size = file.len() as u64;
    // The first section is all of the file but its header.
    for (field, value) in [(24, 64), (32, size - 64)] {
        file[table + 64 + field..][..8].copy_from_slice(&value.to_le_bytes());
    }
    let refusal = load(&file).unwrap_err();
    let found = refusal
        .problems
        .iter()
        .any(is!(file: SectionsOverlap { .. }));
    assert!(found, "{refusal}");
}

#[test]
fn preimage_notes_are_about_different_bytes() {
    let note = |address| Preimage {
        address,
        size: 32,
        hash: [0; 32],
        masked: Vec::new(),
    };
    let with = |addresses: &[u64]| {
        let mut payload = Payload::new(&[func("target")]);
        let mut notes = Vec::new();
        for address in addresses {
            note(*address).append_to(&mut notes);
        }
        let section = payload.section(preimage::SECTION, SectionKind::Note, &notes, 4);
        payload.set_flags(section, 0);
        payload
    };
    load(&with(&[TARGET + 32, TARGET]).bytes()).unwrap();
    // No more than there can be of code, all together.
    let large = |more: u32| {
        let mut payload = Payload::new(&[func("target")]);
        let mut notes = Vec::new();
        for number in 0..33 {
            let note = Preimage {
                size: if number < 32 { 1 << 20 } else { more },
                ..note(TARGET + (number << 20))
            };
            note.append_to(&mut notes);
        }
        let section = payload.section(preimage::SECTION, SectionKind::Note, &notes, 4);
        payload.set_flags(section, 0);
        payload
    };
    load(&large(0).bytes()).unwrap();
    refused(&large(1), Errno::EINVAL, is!(section: PreimageSize { .. }));
    for addresses in [[TARGET, TARGET], [TARGET + 31, TARGET]] {
        refused(
            &with(&addresses),
            Errno::EINVAL,
            is!(section: PreimageOverlap { .. }),
        );
    }
}

#[test]
fn names_with_offsets() {
    let found = |name| {
        let file = Payload::new(&[func(name)]).bytes();
        let verified = load(&file);
        verified
            .ok()
            .map(|verified| verified.functions()[0].old_addr)
    };
    assert_eq!(found("target+0x10"), Some(TARGET + 16));
    assert_eq!(found("file.c#local+10"), Some(TEXT + 0x18a));
    for name in [
        "target+",
        "+1",
        "target+x",
        "target+-1",
        "nothing+1",
        "target+1+1",
    ] {
        assert_eq!(found(name), None, "{name}");
    }
    let mut payload = Payload::new(&[func("target")]);
    let (text, symbol) = (payload.text, payload.symbol("at_boot+1", None));
    payload.relocation(text, 4, R_PC32, symbol, -4);
    refused(&payload, Errno::EINVAL, is!(relocation: Init { .. }));
}

#[test]
fn addresses_of_init_code_are_refused_too() {
    let mut payload = Payload::new(&[func("target")]);
    let symbol = payload.absolute("boot", INIT + 4);
    payload.relocation(payload.text, 4, R_PC32, symbol, -4);
    refused(&payload, Errno::EINVAL, is!(relocation: Init { .. }));
}

#[test]
fn what_the_old_code_refers_to_stays_what_it_is() {
    let payload = |old_addr: u64, referred: u64, addend: i64| {
        let function = func("uses").with(|f| f.old_addr.set(old_addr));
        let mut payload = Payload::new(&[function]);
        let symbol = payload.absolute("boot_data", referred);
        payload.relocation(payload.text, 4, R_PC32, symbol, addend);
        payload
    };
    // Also with an operand between the displacement and the end.
    for addend in [-4, -5, -8] {
        let file = payload(USES_BOOT_DATA, BOOT_DATA, addend).bytes();
        let loaded = load(&file);
        assert!(loaded.is_ok(), "{addend}: {loaded:?}");
    }
    for (function, referred) in [
        (TARGET, BOOT_DATA),
        (USES_BOOT_DATA, BOOT_DATA + 16),
        (USES_BOOT_DATA, BOOT_DATA - 16),
    ] {
        let payload = payload(function, referred, -4);
        refused(&payload, Errno::EINVAL, is!(relocation: Init { .. }));
    }
}

/// Wherever in the old code it is, and however many other references there are.
#[test]
fn all_of_the_old_code_is_looked_through() {
    const OLD: u64 = TEXT + 0x500;
    const SIZE: u64 = 400;
    let upload = |offset: u64, value: u64| {
        let mut engine = engine();
        let at = usize::try_from(OLD + offset - TEXT).unwrap();
        let field = u32::try_from(value - (OLD + offset + 4)).unwrap();
        engine.host().memory().machine.text[at..at + 4].copy_from_slice(&field.to_le_bytes());
        let function = func("x").with(|f| {
            f.old_addr.set(OLD);
            f.old_size.set(u32::try_from(SIZE).unwrap());
        });
        let mut payload = Payload::new(&[function]);
        let symbol = payload.absolute("boot_data", BOOT_DATA);
        for addend in [0, -1, -4, -8, -8, -3] {
            payload.relocation(payload.text, 4, R_PC32, symbol, addend);
        }
        let refusal = engine.upload("test", &payload.bytes()).map(drop);
        let problems = refusal.map_or_else(|refusal| refusal.problems, |()| Vec::new());
        let init = problems
            .iter()
            .filter(|problem| is!(relocation: Init { .. })(problem));
        init.count()
    };
    for offset in (0..8)
        .chain(118..134)
        .chain(245..262)
        .chain(SIZE - 8..=SIZE - 4)
    {
        assert_eq!(upload(offset, BOOT_DATA), 0, "{offset}");
    }
    for offset in [SIZE - 3, SIZE] {
        assert_eq!(upload(offset, BOOT_DATA), 6, "{offset}");
    }
    // Of the references that it does not have, each is one too many.
    assert_eq!(upload(0, BOOT_DATA - 5), 4);
    assert_eq!(upload(0, BOOT_DATA + 0x100), 6);
}

#[test]
fn every_function_with_a_patched_byte_is_asked_about() {
    let at = |addr: u64, old_size: u32| {
        func("x").with(|f| {
            f.old_addr.set(addr);
            f.old_size.set(old_size);
            f.new_size.set(13);
        })
    };
    let reason: Reason = is!(function: Denied {
        reason: "it handles NMIs",
        ..
    });
    for function in [
        at(DENIED, 16),
        at(DENIED + 16, 16),
        // The last of a jump, and of thirteen no-ops from the padding before.
        at(DENIED - 4, 16),
        at(DENIED - 12, 16).nop(),
    ] {
        refused(&Payload::new(&[function]), Errno::EPERM, reason);
    }
    // What is only said to belong to the old function is not written over.
    load(&Payload::new(&[at(DENIED - 32, 64)]).bytes()).unwrap();
    load(&Payload::new(&[at(DENIED - 5, 32)]).bytes()).unwrap();
}

#[test]
fn patched_bytes_are_of_one_function() {
    let upload = |function| {
        let mut hypervisor = Hypervisor::new();
        hypervisor.denied = None;
        let mut engine = Engine::new(hypervisor, Policy::Stock);
        let uploaded = engine.upload("test", &Payload::new(&[function]).bytes());
        uploaded.map(|_| ()).map_err(|refusal| refusal.problems)
    };
    let at = |addr: u64| func("x").with(|f| f.old_addr.set(addr));
    for function in [at(DENIED - 4), at(DENIED - 1), at(DENIED - 15).nop()] {
        let problems = upload(function).unwrap_err();
        assert!(
            problems
                .iter()
                .any(is!(function: NextFunction { next: DENIED, .. })),
            "{problems:?}"
        );
    }
    upload(at(DENIED - 5)).unwrap();
    upload(at(DENIED - 16).nop()).unwrap();
}

#[test]
fn functions_must_not_overlap() {
    let next = |at| func("next").with(|f| f.old_addr.set(TARGET + at));
    let pair = |problem: &Problem| match problem {
        Problem::Function {
            index,
            fault: FunctionFault::Overlap { other, .. },
            ..
        } => Some((*index, *other)),
        _ => None,
    };
    let overlap = |index, other| move |problem: &Problem| pair(problem) == Some((index, other));
    refused(
        &Payload::new(&[next(31), func("target")]),
        Errno::EINVAL,
        overlap(0, 1),
    );
    assert!(load(&Payload::new(&[next(32), func("target")]).bytes()).is_ok());
    // Every two that follow each other are looked at, and named in their order.
    refused(
        &Payload::new(&[func("target"), next(64), next(95)]),
        Errno::EINVAL,
        overlap(2, 1),
    );
    let same = [next(0), next(64), next(64), next(64), next(64), next(32)];
    let refusal = load(&Payload::new(&same).bytes()).unwrap_err();
    let pairs = refusal.problems.iter().filter_map(pair);
    assert_eq!(pairs.collect::<Vec<_>>(), [(2, 1), (3, 2), (4, 3)]);
}

#[test]
fn every_function_is_decoded() {
    let inside = |addr: u64| {
        let function = func("x").nop().with(|f| f.new_size.set(1));
        function.with(|f| f.old_addr.set(addr))
    };
    let payload = Payload::new(&[func("target"), inside(SMALL)]);
    refused(
        &payload,
        Errno::EINVAL,
        is!(function: Boundary { what: "end", .. }),
    );
}

#[test]
fn expectations() {
    let good = Payload::new(&[func("target").expecting(&[0xcc; 31])]);
    apply(&good).unwrap();
    let whole = func("target")
        .expecting(&[0xcc; 31])
        .with(|f| f.old_size.set(31));
    apply(&Payload::new(&[whole])).unwrap();
    not_applied(
        &Payload::new(&[func("target").expecting(&[0xcc, 0xcd])]),
        Errno::EINVAL,
    );
    let long = func("target")
        .expecting(&[0xcc; 31])
        .with(|f| f.old_size.set(30));
    not_applied(&Payload::new(&[long]), Errno::ERANGE);
    let reserved = func("target")
        .expecting(&[0xcc])
        .with(|f| f.expect.flags |= 0x80);
    not_applied(&Payload::new(&[reserved]), Errno::EINVAL);
}

#[test]
fn dependencies() {
    let notes = [section::BUILD_ID, section::DEPENDS, section::XEN_DEPENDS];
    for missing in notes {
        let mut payload = Payload::bare();
        for name in notes.into_iter().filter(|name| *name != missing) {
            payload.note(name, &XEN_ID);
        }
        refused(
            &payload,
            Errno::EINVAL,
            is!(file: Missing { name } if *name == missing),
        );
    }
    let mut twice = Payload::new(&[func("target")]);
    twice.note(section::DEPENDS, &XEN_ID);
    refused(&twice, Errno::EINVAL, is!(section: Duplicate { .. }));

    let mut other = Payload::bare();
    other.note(section::XEN_DEPENDS, &[9; 20]);
    refused(&other, Errno::EINVAL, is!(problem: OtherHypervisor { .. }));

    let mut bad = Payload::bare();
    bad.section(section::BUILD_ID, SectionKind::ReadOnlyData, &[1; 16], 4);
    refused(&bad, Errno::EINVAL, is!(section: Note));
}

#[test]
fn sections_that_must_be_unique() {
    let unique = [
        section::BUILD_ID,
        section::DEPENDS,
        section::XEN_DEPENDS,
        section::FUNCS,
        section::MODINFO,
        section::HOOKS_LOAD,
        section::HOOKS_REVERT,
        ".altinstructions",
        ".altinstr_replacement",
        ".ex_table",
        ".bug_frames.0",
        ".bug_frames.3",
        ".alt_call_sites",
    ];
    for name in unique {
        let mut payload = Payload::new(&[func("target")]);
        for _ in 0..2 {
            payload.section(name, SectionKind::ReadOnlyData, b"", 1);
        }
        refused(&payload, Errno::EINVAL, |problem| {
            let twice = is!(section: Duplicate { .. })(problem);
            twice && problem.to_string().contains(name)
        });
    }
}

#[test]
fn sections_that_must_have_contents() {
    let hooks = [
        section::HOOKS_LOAD,
        section::HOOKS_UNLOAD,
        section::HOOKS_PREAPPLY,
        section::HOOKS_REVERT,
    ];
    for name in hooks {
        let mut payload = Payload::new(&[func("target")]);
        payload.section(name, SectionKind::ReadOnlyData, b"", 1);
        refused(&payload, Errno::EINVAL, is!(section: Empty));
    }
    let mut payload = Payload::new(&[]);
    payload.section(section::FUNCS, SectionKind::ReadOnlyData, b"", 1);
    refused(&payload, Errno::EINVAL, is!(section: Empty));
    let mut payload = Payload::bare();
    payload.section(section::BUILD_ID, SectionKind::ReadOnlyData, b"", 4);
    refused(&payload, Errno::EINVAL, is!(section: Empty));
}

#[test]
fn what_can_be_known_of_a_payload_before_it_is_loaded() {
    let mut hypervisor = Hypervisor::new();
    hypervisor.limits.landing_pads = LandingPads::Wanted;
    let mut payload = Payload::new(&[func("target")]).hooks(section::HOOKS_LOAD, 1);
    let data = b"key=value\0";
    payload.section(section::MODINFO, SectionKind::ReadOnlyData, data, 1);
    let file = payload.bytes();
    let loader = Loader {
        host: &hypervisor,
        stack: &Stack::new(),
        policy: Policy::Stock,
    };
    let verified = loader.load("test", &file).unwrap();
    assert_eq!(verified.problems().len(), 1);
    let mut warned = verified.problems().iter();
    assert!(warned.all(is!(entry: NoLandingPad { checked: false, .. })));
    assert_eq!(verified.metadata(), ["key=value"]);
}

/// On top of a payload: calls its `helper`, and sees its trampoline.
fn second(own: u8, depends: &[u8], expect: &[u8]) -> Payload {
    let mut payload = Payload::bare();
    payload.note(section::BUILD_ID, &[own; 20]);
    payload.note(section::DEPENDS, depends);
    payload.note(section::XEN_DEPENDS, &XEN_ID);
    let text = payload.text;
    let helper = payload.symbol("helper", None);
    payload.relocation(text, 4, R_PC32, helper, -4);
    let funcs = Payload::record(&func("target").expecting(expect));
    payload.section(section::MODINFO, SectionKind::ReadOnlyData, b"a=b\0", 1);
    let section = payload.section(section::FUNCS, SectionKind::Data, &funcs, 8);
    let code = payload.new_code;
    payload.relocation(section, 8, R_64, code, 0);
    payload
}

#[test]
fn a_stack_of_payloads() {
    let mut engine = engine();
    let mut first = Payload::new(&[func("target")]);
    let text = first.text;
    first.symbol("helper", Some((text, 8)));
    engine.upload("first", &first.bytes()).unwrap();
    engine
        .act("first", Action::Apply, Options::default())
        .unwrap();

    // An address at the very end, read through what is applied.
    let edge = Payload::new(&[func("").with(|f| f.name.set(u64::MAX))]);
    let edge = engine.upload("edge", &edge.bytes()).unwrap_err();
    assert!(
        edge.problems
            .iter()
            .any(is!(function: Name { addr: u64::MAX, .. }))
    );

    let mut again = Payload::on(&OWN_ID, &OWN_ID, &[func("target")]);
    again.symbol("helper", Some((again.text, 8)));
    let again = engine.upload("again", &again.bytes()).unwrap_err();
    assert_eq!(again.errno(), Errno::EEXIST);
    assert!(
        again
            .problems
            .iter()
            .any(is!(problem: BuildIdLoaded { .. }))
    );
    assert!(again.problems.iter().any(is!(symbol: Duplicate { .. })));

    let mut unmet = |name: &str, payload: Payload| {
        engine.upload(name, &payload.bytes()).unwrap();
        let failure = engine.act(name, Action::Apply, Options::default());
        match failure.unwrap_err().cause {
            Cause::Unmet { problems } => problems,
            cause => panic!("another reason: {cause}"),
        }
    };
    let untouched = unmet("untouched", second(0x34, &OWN_ID, &[0xcc]));
    assert!(untouched.iter().any(is!(function: Expectation { .. })));
    let base = unmet("base", second(0x35, &XEN_ID, &[0xe9]));
    assert!(
        base.iter()
            .any(is!(problem: Depends { replaces: true, .. }))
    );
    let good = second(0x33, &OWN_ID, &[0xe9]);
    let good = engine.upload("good", &good.bytes()).unwrap();
    assert_eq!(good.metadata(), ["a=b"]);
    engine
        .act("good", Action::Apply, Options::default())
        .unwrap();
    refused(
        &second(0x36, &XEN_ID, &[0xcc]),
        Errno::ENOENT,
        is!(symbol: Unknown),
    );
}

#[test]
fn names() {
    let file = Payload::new(&[func("target")]).bytes();
    let mut engine = engine();
    for (name, good) in [
        ("", false),
        (&"x".repeat(128), false),
        (&"x".repeat(127), true),
    ] {
        let errno = engine
            .upload(name, &file)
            .map_err(|refusal| refusal.errno());
        assert_eq!(errno.err(), (!good).then_some(Errno::EINVAL));
    }
    let again = engine.upload(&"x".repeat(127), &file).unwrap_err();
    assert_eq!(again.errno(), Errno::EEXIST);
    assert!(matches!(again.problems[..], [Problem::NameTaken]));
}

#[test]
fn relocations() {
    // Whether a relocation is refused, at offset 12 of 16 bytes of text.
    let with = |r_type, symbol: &str, addend| {
        let mut payload = Payload::new(&[func("target")]);
        let (text, symbol) = (payload.text, payload.symbol(symbol, None));
        payload.relocation(text, 12, r_type, symbol, addend);
        payload
    };
    refused(
        &with(R_64, "target", 0),
        Errno::EINVAL,
        is!(relocation: PastEnd { offset: 12, .. }),
    );
    refused(
        &with(99, "target", 0),
        Errno::EOPNOTSUPP,
        is!(relocation: Unknown { r_type: 99, .. }),
    );
    refused(
        &with(R_32S, "target", 0),
        Errno::EOPNOTSUPP,
        is!(relocation: Stock { .. }),
    );
    refused(
        &with(R_PC32, "target", 1 << 32),
        Errno::EOVERFLOW,
        is!(relocation: Overflow { .. }),
    );
    refused(
        &with(R_PC32, "unknown", 0),
        Errno::ENOENT,
        is!(symbol: Unknown),
    );
    refused(
        &with(R_PC32, "at_boot", 0),
        Errno::EINVAL,
        is!(relocation: Init { addr: INIT, .. }),
    );
    assert!(load(&with(R_PC32, "target", 0).bytes()).is_ok());
}

/// Notes and metadata are read from the file, by people too.
#[test]
fn relocations_do_not_change_what_a_payload_says_of_itself() {
    let note = build_id_note(&XEN_ID);
    let sections = [
        (section::BUILD_ID, note.as_slice()),
        (section::DEPENDS, &note),
        (section::XEN_DEPENDS, &note),
        (section::MODINFO, b"author=somebody\0"),
    ];
    for changed in 0..sections.len() {
        let mut payload = Payload::bare().hooks(section::HOOKS_LOAD, 1);
        for (index, (name, data)) in sections.iter().enumerate() {
            let section = payload.section(name, SectionKind::ReadOnlyData, data, 4);
            let code = payload.new_code;
            if index == changed {
                payload.relocation(section, 4, R_64, code, 0);
            }
        }
        let what = "it would change what is read from the file";
        refused(
            &payload,
            Errno::EINVAL,
            is!(section: Relocations { what: w } if *w == what),
        );
    }
}

#[test]
fn what_is_not_loaded_has_no_address() {
    // Also of the type that writes nothing.
    for r_type in [R_PC32, 0] {
        let mut payload = Payload::new(&[func("target")]);
        let section = payload.section(".debug", SectionKind::Debug, &[0; 8], 1);
        let symbol = payload.symbol("debugged", Some((section, 4)));
        payload.relocation(payload.text, 4, r_type, symbol, -4);
        refused(&payload, Errno::EINVAL, |problem| {
            let ignored = is!(relocation: Ignored)(problem);
            ignored && problem.to_string().contains(", for debugged:")
        });
    }
}

#[test]
fn an_old_function_lies_in_text_with_both_ends() {
    // The text has 0x1000 bytes.
    let at = |offset: u64, old_size: u32| {
        let function = func("x").with(|f| {
            f.old_addr.set(TEXT + offset);
            f.old_size.set(old_size);
        });
        Payload::new(&[function])
    };
    load(&at(0xff0, 16).bytes()).unwrap();
    for (offset, old_size) in [(0xff0, 17), (0xff0, u32::MAX), (0xfff, 16)] {
        refused(
            &at(offset, old_size),
            Errno::EINVAL,
            is!(function: OldAddress { .. }),
        );
    }
}

#[test]
fn new_code_is_code() {
    let to = |new_addr: u64| {
        let function = func("target").nop();
        Payload::new(&[function.with(|f| f.new_addr.set(new_addr))])
    };
    load(&to(SMALL).bytes()).unwrap();
    for new_addr in [INIT, TEXT - 16, PAYLOADS - 16, PAYLOADS + 0x1000] {
        refused(
            &to(new_addr),
            Errno::EINVAL,
            is!(function: NewAddress {
                what: "it is not code",
                ..
            }),
        );
    }
}

#[test]
fn relocations_that_xen_leaves_open() {
    const TYPES: [(u32, usize); 10] = [
        (R_64, 8),
        (R_PC32, 4),
        (R_PLT32, 4),
        (10, 4),
        (R_32S, 4),
        (12, 2),
        (13, 2),
        (14, 1),
        (15, 1),
        (24, 8),
    ];
    let mut payload = Payload::new(&[func("target")]);
    let data = payload.section(".data", SectionKind::Data, &[0xaa; 16 * TYPES.len()], 8);
    let absolute = payload.absolute("small_number", 0x40);
    let here = payload.object.section_symbol(data);
    for ((r_type, _), at) in TYPES.iter().zip((0..).step_by(16)) {
        let relative = matches!(r_type, 2 | 4 | 13 | 15 | 24);
        let symbol = if relative { here } else { absolute };
        payload.relocation(data, at, *r_type, symbol, 2);
    }
    refused(&payload, Errno::EOPNOTSUPP, is!(relocation: Stock { .. }));
    let mut engine = Engine::new(Hypervisor::new(), Policy::Engine);
    let loaded = engine.upload("test", &payload.bytes()).unwrap();
    // On the page behind the text, the function's record comes first.
    let at = loaded.memory().base() + 0x1000 + size_of::<LivepatchFunc>() as u64;
    let mut bytes = vec![0; 16 * TYPES.len()];
    assert!(engine.host().read(at, &mut bytes));
    for ((r_type, size), (place, offset)) in TYPES
        .iter()
        .zip(bytes.chunks(16).zip((0_i64..).step_by(16)))
    {
        let relative = matches!(r_type, 2 | 4 | 13 | 15 | 24);
        let value = if relative { 2 - offset } else { 0x42 };
        let mut expected = [0xaa; 16];
        expected[..*size].copy_from_slice(&value.to_le_bytes()[..*size]);
        assert_eq!(place, expected, "type {r_type}");
    }
}

#[test]
fn new_symbols_are_unique_except_where_only_a_replace_applies() {
    let with = |own: u8, depends: &[u8]| {
        let mut payload = Payload::on(depends, &[own; 20], &[func("target")]);
        payload.symbol("helper", Some((payload.text, 8)));
        payload.bytes()
    };
    let mut engine = engine();
    engine.upload("first", &with(1, &XEN_ID)).unwrap();
    let refusal = engine.upload("second", &with(2, &XEN_ID)).unwrap_err();
    assert!(
        refusal.problems.len() == 1
            && is!(symbol: Duplicate { owner } if owner == "first")(&refusal.problems[0]),
        "the first can still be applied, or the second: {refusal}"
    );
    let act = |engine: &mut Engine<_>, name, action| engine.act(name, action, Options::default());
    act(&mut engine, "first", Action::Apply).unwrap();
    let refusal = engine.upload("on-top", &with(3, &[1; 20])).unwrap_err();
    assert_eq!(refusal.errno(), Errno::EEXIST);
    engine.upload("instead", &with(4, &XEN_ID)).unwrap();
    let nodeps = Options {
        nodeps: true,
        timeout: 0,
    };
    let failure = engine.act("instead", Action::Apply, nodeps).unwrap_err();
    assert_eq!(failure.errno(), Errno::EEXIST, "{failure}");
    act(&mut engine, "instead", Action::Replace).unwrap();
}

/// The code of a function that cannot be patched is no new one because of that.
#[test]
fn a_refused_function_has_one_reason() {
    let denied = func("").with(|f| f.old_addr.set(DENIED));
    let mut payload = Payload::new(&[denied]);
    payload.symbol("target", Some((payload.text, 0)));
    let refusal = load(&payload.bytes()).unwrap_err();
    assert_eq!(refusal.problems.len(), 1, "{refusal}");
    assert!(is!(function: Denied { .. })(&refusal.problems[0]));
}

#[test]
fn symbols() {
    let mut payload = Payload::new(&[func("target")]);
    let text = payload.text;
    payload.symbol("target", Some((text, 4)));
    refused(&payload, Errno::EEXIST, is!(symbol: Duplicate { .. }));
    let mut payload = Payload::new(&[func("target")]);
    payload.symbol(&"x".repeat(128), Some((payload.text, 4)));
    refused(
        &payload,
        Errno::EINVAL,
        is!(symbol: TooLong { length: 128, .. }),
    );
    let mut payload = Payload::new(&[func("target")]);
    payload.symbol(&"x".repeat(127), Some((payload.text, 4)));
    assert!(load(&payload.bytes()).is_ok());
}

#[test]
fn sections() {
    refused(&Payload::new(&[]), Errno::EINVAL, is!(file: NothingToDo));
    let mut payload = Payload::new(&[func("target")]);
    let section = payload.section(".wx", SectionKind::Data, &[0; 8], 8);
    payload.set_flags(section, 7);
    refused(&payload, Errno::EOPNOTSUPP, is!(section: WritableText));
}

/// A payload with a section of ones.
fn table(name: &str, size: usize) -> Payload {
    let mut payload = Payload::new(&[func("target")]);
    payload.section(name, SectionKind::ReadOnlyData, &vec![1; size], 1);
    payload
}

#[test]
fn tables_have_whole_entries() {
    refused(
        &table(".bug_frames.0", 12),
        Errno::EINVAL,
        is!(section: EntrySize { size: 12, .. }),
    );
    refused(
        &table(".ex_table", 4),
        Errno::EINVAL,
        is!(section: EntrySize { .. }),
    );
    refused(
        &table(".ex_table", 8),
        Errno::EINVAL,
        is!(entry: NotInText { .. }),
    );
    refused(&table(".modinfo", 3), Errno::EINVAL, is!(section: Metadata));
    refused(
        &table(".altinstructions", 14),
        Errno::EINVAL,
        is!(section: AlternativesAlone { .. }),
    );
    refused(
        &table(section::HOOKS_LOAD, 12),
        Errno::EINVAL,
        is!(section: EntrySize { .. }),
    );
    refused(&table(section::HOOKS_LOAD, 16), Errno::EINVAL, |problem| {
        matches!(
            problem,
            Problem::Entry {
                index: 1,
                fault: EntryFault::Unusable { .. },
                ..
            }
        )
    });
    refused(
        &table(section::HOOKS_APPLY, 16),
        Errno::EINVAL,
        is!(section: EntrySize { .. }),
    );
    let mut alternatives = table(".altinstructions", 13);
    alternatives.section(".altinstr_replacement", SectionKind::Text, &[0x90; 4], 1);
    refused(
        &alternatives,
        Errno::EINVAL,
        is!(section: EntrySize { size: 13, .. }),
    );
}

#[test]
fn tables_of_unknown_kinds_are_refused() {
    // Neither Xen nor the engine would do anything with them.
    for name in [".bug_frames.4", ".ex_table.pre", ".livepatch.hooks.late"] {
        let is_it = |problem: &Problem| {
            let unknown = is!(section: UnknownTable)(problem);
            unknown && problem.to_string().contains(name)
        };
        refused(&table(name, 8), Errno::EOPNOTSUPP, is_it);
        load(&table(name, 0).bytes()).expect("there is nothing in it");
    }
}

/// An entry of `.altinstructions`, after its two displacements.
#[derive(Clone, Copy)]
struct Entry {
    /// Where in the new code, or in the replacements.
    orig: i64,
    repl: i64,
    feature: u16,
    orig_len: u8,
    repl_len: u8,
    pad_len: u8,
    used: u8,
}

const ENTRY: Entry = Entry {
    orig: 0,
    repl: 0,
    feature: 1,
    orig_len: 4,
    repl_len: 4,
    pad_len: 0,
    used: 0,
};

/// New code and replacements, and entries for them.
fn alternatives_of(code: &[u8], replacements: &[u8], entries: &[Entry]) -> Payload {
    let mut payload = Payload::with_code(code);
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| {
            let [low, high] = entry.feature.to_le_bytes();
            let Entry {
                orig_len,
                repl_len,
                pad_len,
                used,
                ..
            } = *entry;
            let rest = [low, high, orig_len, repl_len, pad_len, used];
            [&[0; 8][..], &rest].concat()
        })
        .collect();
    let table = payload.section(".altinstructions", SectionKind::ReadOnlyData, &bytes, 1);
    let kind = SectionKind::Text;
    let section = payload.section(".altinstr_replacement", kind, replacements, 1);
    let replacement = payload.object.section_symbol(section);
    for (entry, at) in entries.iter().zip((0..).step_by(14)) {
        let code = payload.new_code;
        payload.relocation(table, at, R_PC32, code, entry.orig);
        payload.relocation(table, at + 4, R_PC32, replacement, entry.repl);
    }
    payload
}

fn alternative(entry: Entry) -> Payload {
    alternatives_of(&[0x90; 16], &[0x90; 4], &[entry])
}

#[test]
fn alternatives_are_where_they_belong_and_fit() {
    let with = |orig, orig_len, repl_len| {
        alternative(Entry {
            orig,
            orig_len,
            repl_len,
            ..ENTRY
        })
    };
    assert!(load(&with(0, 4, 4).bytes()).is_ok());
    entry_refused(&with(0, 3, 4), "longer than its code");
    entry_refused(&with(0, 5, 5), "outside .altinstr_replacement");
    entry_refused(&with(-1, 4, 4), "outside the payload's text");
    entry_refused(&with(0x1000, 4, 4), "outside the payload's text");
    let long = |pad_len| Entry { pad_len, ..ENTRY };
    let code = [0x90; 512];
    load(&alternatives_of(&code, &[0x90; 4], &[long(251)]).bytes()).unwrap();
    entry_refused(
        &alternatives_of(&code, &[0x90; 4], &[long(252)]),
        "more than 255 bytes",
    );
}

/// Asserts that an entry of a table is refused with these words.
#[track_caller]
fn entry_refused(payload: &Payload, words: &str) {
    refused(
        payload,
        Errno::EINVAL,
        is!(entry: Unusable { what, .. } if what.contains(words)),
    );
}

#[test]
fn alternatives_are_for_features_that_the_hypervisor_knows() {
    let with = |feature| alternative(Entry { feature, ..ENTRY });
    for feature in [0, 63, 0x8000, 0x803f] {
        load(&with(feature).bytes()).unwrap();
    }
    for feature in [64, 0x7fff, 0x8040, 0xffff] {
        entry_refused(&with(feature), "a processor feature");
    }
    entry_refused(&alternative(Entry { used: 1, ..ENTRY }), "applied already");
}

#[test]
fn alternatives_for_one_place_are_next_to_each_other() {
    let two = |first, second| alternatives_of(&[0x90; 16], &[0x90; 4], &[first, second]);
    let at = |orig| Entry { orig, ..ENTRY };
    load(&two(at(0), at(0)).bytes()).unwrap();
    load(&two(at(4), at(0)).bytes()).unwrap();
    entry_refused(&two(at(0), at(2)), "a part of its code");
    entry_refused(&two(at(2), at(0)), "a part of its code");
    let longer = Entry {
        pad_len: 1,
        ..at(0)
    };
    entry_refused(&two(at(0), longer), "other lengths");
    let many = [8, 0, 0, 0, 0, 0, 0].map(at);
    load(&alternatives_of(&[0x90; 16], &[0x90; 4], &many).bytes()).unwrap();
    let apart = alternatives_of(&[0x90; 16], &[0x90; 4], &[at(0), at(8), at(0)]);
    entry_refused(&apart, "not next to it");
}

/// A call, to `to` from the place that it stands at.
fn call(to: i32) -> [u8; 5] {
    let [a, b, c, d] = (to - 5).to_le_bytes();
    [0xe8, a, b, c, d]
}

const LONG: Entry = Entry {
    orig_len: 6,
    repl_len: 5,
    ..ENTRY
};

#[test]
fn a_branch_of_a_replacement_leads_to_code() {
    let with = |repl: &[u8], entry| alternatives_of(&[0x90; 16], repl, &[entry]);
    // The replacements come behind the new code, and before the page's end.
    load(&with(&call(-16), LONG).bytes()).unwrap();
    let jump = [&[0xe9][..], &call(-16)[1..]].concat();
    load(&with(&jump, LONG).bytes()).unwrap();
    entry_refused(&with(&call(0x100), LONG), "branches to what is no code");
    entry_refused(&with(&call(-0x100), LONG), "branches to what is no code");
    // Four bytes are no such branch, and neither are other instructions.
    let short = Entry {
        repl_len: 4,
        ..LONG
    };
    load(&with(&call(0x100), short).bytes()).unwrap();
    load(&with(&[0xb8, 0, 1, 0, 0], LONG).bytes()).unwrap();
}

/// A call through the pointer that is `slot` from the end of the new code's symbol.
fn indirect(slot: i32) -> Vec<u8> {
    let mut code = vec![0xff, 0x15];
    code.extend(slot.to_le_bytes());
    code.resize(16, 0x90);
    code
}

/// The new code calls through a pointer in the payload's data with this value.
fn through_pointer(entry: Entry, value: u64) -> Payload {
    // Data begin on the page behind the text, with the record of the function.
    let slot = 0x1000 + i32::try_from(size_of::<LivepatchFunc>()).unwrap() - 6;
    let mut payload = alternatives_of(&indirect(slot), &call(0), &[entry]);
    payload.section(".data", SectionKind::Data, &value.to_le_bytes(), 8);
    payload
}

#[test]
fn a_call_becomes_direct_only_where_its_pointer_leads_to_code() {
    let always = Entry {
        feature: 61,
        ..LONG
    };
    for value in [TARGET, 0] {
        load(&through_pointer(always, value).bytes()).unwrap();
    }
    for value in [1, INIT, TEXT - 1, 0x1000, u64::MAX] {
        entry_refused(&through_pointer(always, value), "leads to no code");
    }
    entry_refused(
        &alternatives_of(&indirect(0x7000_0000), &call(0), &[always]),
        "cannot be read",
    );
    // In the hypervisor itself, too.
    let slot = i32::try_from(TEXT.cast_signed() + 0x500 - (PAYLOADS.cast_signed() + 6)).unwrap();
    let payload = alternatives_of(&indirect(slot), &call(0), &[always]).bytes();
    for (value, good) in [(TARGET, true), (INIT, false)] {
        let mut engine = engine();
        let value = value.to_le_bytes();
        engine.host().memory().machine.text[0x500..0x508].copy_from_slice(&value);
        assert_eq!(engine.upload("test", &payload).is_ok(), good);
    }
    // Old code that was made direct while booting does not need the pointer any more.
    let mut freed = alternatives_of(&indirect(0), &call(0), &[always]);
    let (code, pointer) = (freed.text, freed.absolute("pointer", BOOT_DATA));
    freed.relocation(code, 2, R_PC32, pointer, -4);
    entry_refused(&freed, "is freed after boot");
    // A replacement that is a branch to itself is nothing else.
    for other in [
        Entry {
            feature: 1,
            ..always
        },
        Entry {
            feature: 0x8000 | 61,
            ..always
        },
        Entry {
            orig_len: 5,
            ..always
        },
    ] {
        entry_refused(&through_pointer(other, TARGET), "branch to itself");
    }
    entry_refused(
        &alternatives_of(&[0x90; 16], &call(0), &[always]),
        "for a call through a pointer",
    );
}

#[test]
fn call_sites_go_through_pointers_to_code() {
    let with = |code: &[u8], offset: i64, value: u64| {
        let mut payload = Payload::with_code(code);
        payload.section(".data", SectionKind::Data, &value.to_le_bytes(), 8);
        let sites = payload.section(".alt_call_sites", SectionKind::ReadOnlyData, &[0; 4], 4);
        let code = payload.new_code;
        payload.relocation(sites, 0, R_PC32, code, offset);
        payload
    };
    let slot = 0x1000 + i32::try_from(size_of::<LivepatchFunc>()).unwrap() - 6;
    load(&with(&indirect(slot), 0, TARGET).bytes()).unwrap();
    load(&with(&indirect(slot), 0, 0).bytes()).unwrap();
    entry_refused(&with(&indirect(slot), 0, INIT), "leads to no code");
    entry_refused(&with(&indirect(slot), 1, TARGET), "there is none");
    entry_refused(&with(&indirect(slot), 11, TARGET), "outside the payload");
    entry_refused(&with(&indirect(1 << 28), 0, TARGET), "cannot be read");
    let mut odd = Payload::new(&[func("target")]);
    odd.section(".alt_call_sites", SectionKind::ReadOnlyData, &[0; 6], 4);
    refused(&odd, Errno::EINVAL, is!(section: EntrySize { size: 6, .. }));

    let mut hypervisor = Hypervisor::new();
    hypervisor.limits.call_sites = false;
    let mut engine = Engine::new(hypervisor, Policy::Stock);
    let refusal = engine.upload("old", &with(&indirect(slot), 0, TARGET).bytes());
    let problems = refusal.unwrap_err().problems;
    assert!(problems.iter().any(is!(section: CallSites)), "{problems:?}");
}

/// Where something else has changed the code before, the hypervisor finds no call.
#[test]
fn each_call_site_is_changed_once() {
    // Two calls, through the same pointer.
    let slot = 0x1000 + i32::try_from(size_of::<LivepatchFunc>()).unwrap();
    let calls = [slot - 6, slot - 12].map(|slot| indirect(slot)[..6].to_vec());
    let code = [calls.concat(), vec![0x90; 4]].concat();
    let with = |sites: &[i64], alternative: Entry| {
        let mut payload = alternatives_of(&code, &[0x90; 4], &[alternative]);
        payload.section(".data", SectionKind::Data, &TARGET.to_le_bytes(), 8);
        let table = vec![0; 4 * sites.len()];
        let kind = SectionKind::ReadOnlyData;
        let table = payload.section(".alt_call_sites", kind, &table, 4);
        for (site, at) in sites.iter().zip((0_i64..).step_by(4)) {
            let new_code = payload.new_code;
            payload.relocation(table, at.cast_unsigned(), R_PC32, new_code, *site);
        }
        payload
    };
    let at = |orig| Entry { orig, ..ENTRY };
    load(&with(&[0, 6], at(12)).bytes()).unwrap();
    load(&with(&[6, 0], at(12)).bytes()).unwrap();
    for orig in [0, 2, 12] {
        load(&with(&[6], at(orig)).bytes()).unwrap();
    }
    for sites in [&[0, 0][..], &[6, 0, 6]] {
        entry_refused(&with(sites, at(12)), "the code of another entry");
    }
    for (site, orig) in [(6, 3), (6, 6), (0, 5), (6, 11)] {
        entry_refused(&with(&[site], at(orig)), "an alternative goes over");
    }
}

/// A frame of a kind for the new code, with a pointer to `text` at `offset`.
fn frame(kind: &str, words: &[u8], text: &[u8]) -> Payload {
    let mut payload = Payload::new(&[func("target")]);
    let strings = payload.section(".rodata.file", SectionKind::ReadOnlyData, text, 1);
    let frames = payload.section(kind, SectionKind::ReadOnlyData, words, 4);
    let strings = payload.object.section_symbol(strings);
    let code = payload.new_code;
    payload.relocation(frames, 0, R_PC32, code, 0);
    payload.relocation(frames, 4, R_PC32, strings, 4);
    if words.len() > 8 {
        payload.relocation(frames, 12, R_PC32, strings, 12);
    }
    payload
}

#[test]
fn bug_frames_have_a_place_and_strings_that_end() {
    for kind in [".bug_frames.1", ".bug_frames.2", ".bug_frames.3"] {
        let words = if kind == ".bug_frames.3" { 16 } else { 8 };
        load(&frame(kind, &vec![0; words], b"file.c\0").bytes()).unwrap();
    }
    // What follows the file name in read-only data is the table, which has zeros.
    let unterminated = |kind, text: &[u8]| {
        let mut payload = Payload::new(&[func("target")]);
        let frames = payload.section(kind, SectionKind::ReadOnlyData, &[0; 8], 4);
        let strings = payload.section(".rodata.file", SectionKind::ReadOnlyData, text, 1);
        let strings = payload.object.section_symbol(strings);
        let code = payload.new_code;
        payload.relocation(frames, 0, R_PC32, code, 0);
        payload.relocation(frames, 4, R_PC32, strings, 4);
        payload
    };
    entry_refused(&unterminated(".bug_frames.1", b"file.c"), "does not end");
    load(&unterminated(".bug_frames.1", b"file.c\0").bytes()).unwrap();
    // A message needs a second half.
    entry_refused(&unterminated(".bug_frames.3", b"file.c\0"), "its message");
    let mut nowhere = Payload::new(&[func("target")]);
    nowhere.section(".bug_frames.2", SectionKind::ReadOnlyData, &[1; 8], 4);
    entry_refused(&nowhere, "not in the payload's text");
    let mut function = frame(".bug_frames.0", &[0; 8], b"\0");
    entry_refused(&function, "it is not code");
    function = Payload::new(&[func("target")]);
    let frames = function.section(".bug_frames.0", SectionKind::ReadOnlyData, &[0; 8], 4);
    let code = function.new_code;
    function.relocation(frames, 0, R_PC32, code, 4);
    function.relocation(frames, 4, R_PC32, code, 4);
    load(&function.bytes()).unwrap();
}

#[test]
fn what_is_called_is_the_beginning_of_a_function() {
    let hook = |offset: i64| {
        let mut payload = Payload::new(&[func("target")]);
        let hooks = payload.section(section::HOOKS_LOAD, SectionKind::Data, &[0; 8], 8);
        let code = payload.new_code;
        payload.relocation(hooks, 0, R_64, code, offset);
        payload
    };
    load(&hook(0).bytes()).unwrap();
    let middle: Reason = is!(entry: Unusable {
        what: "no function begins there",
        ..
    });
    refused(&hook(1), Errno::EINVAL, middle);
    // What begins with a section of text needs no symbol.
    let mut plain = Payload::new(&[func("target")]);
    let text = plain.section(".text.plain", SectionKind::Text, &[0x90; 16], 16);
    let hooks = plain.section(section::HOOKS_LOAD, SectionKind::Data, &[0; 8], 8);
    let symbol = plain.object.section_symbol(text);
    plain.relocation(hooks, 0, R_64, symbol, 0);
    load(&plain.bytes()).unwrap();
    // A symbol there makes it one, unless another function is around it.
    let mut labelled = hook(8);
    labelled.symbol("label", Some((labelled.text, 8)));
    load(&labelled.bytes()).unwrap();
    let new_code = labelled.new_code;
    labelled.object.symbol_mut(new_code).size = 16;
    refused(&labelled, Errno::EINVAL, middle);

    let to = |new_addr: u64| func("target").nop().with(|f| f.new_addr.set(new_addr));
    load(&Payload::new(&[to(SMALL)]).bytes()).unwrap();
    for (new_addr, words) in [
        (TARGET, "it is the old one"),
        (SMALL + 5, "no function begins there"),
    ] {
        refused(
            &Payload::new(&[to(new_addr)]),
            Errno::EINVAL,
            is!(function: NewAddress { what, .. } if what.contains(words)),
        );
    }
    let mut payload = Payload::new(&[]);
    let record = Payload::record(&func("target"));
    let funcs = payload.section(section::FUNCS, SectionKind::Data, &record, 8);
    let code = payload.new_code;
    payload.relocation(funcs, 8, R_64, code, 3);
    refused(&payload, Errno::EINVAL, is!(function: NewAddress { .. }));
}

#[test]
fn what_is_called_through_a_pointer_has_a_landing_pad() {
    let upload = |code: &[u8], landing_pads| {
        let mut hypervisor = Hypervisor::new();
        hypervisor.limits.landing_pads = landing_pads;
        let mut payload = Payload::with_code(code);
        let hooks = payload.section(section::HOOKS_PREAPPLY, SectionKind::Data, &[0; 8], 8);
        let new_code = payload.new_code;
        payload.relocation(hooks, 0, R_64, new_code, 0);
        let mut engine = Engine::new(hypervisor, Policy::Stock);
        let uploaded = engine.upload("test", &payload.bytes());
        let warnings = uploaded.map(|loaded| loaded.problems().len());
        warnings.map_err(|refusal| refusal.problems)
    };
    let pad = [&[0xf3, 0x0f, 0x1e, 0xfa][..], &[0x90; 12]].concat();
    for pads in [
        LandingPads::Unused,
        LandingPads::Wanted,
        LandingPads::Checked,
    ] {
        assert_eq!(upload(&pad, pads), Ok(0));
    }
    let without = [0x90; 16];
    assert_eq!(upload(&without, LandingPads::Unused), Ok(0));
    assert_eq!(upload(&without, LandingPads::Wanted), Ok(1));
    let problems = upload(&without, LandingPads::Checked).unwrap_err();
    assert!(
        problems.len() == 1 && problems.iter().all(is!(entry: NoLandingPad { .. })),
        "{problems:?}"
    );
}

#[test]
fn hooks_alone_are_enough() {
    let mut payload = Payload::new(&[]);
    let hooks = payload.section(section::HOOKS_LOAD, SectionKind::Data, &[0; 8], 8);
    let code = payload.new_code;
    payload.relocation(hooks, 0, R_64, code, 0);
    let file = payload.bytes();
    let verified = load(&file).unwrap();
    assert!(verified.functions().is_empty());
    assert!(
        !verified.can_reapply(),
        "the list of hooks is writable data"
    );
}

#[test]
fn all_problems_are_reported_at_once() {
    let mut payload = Payload::new(&[func("nowhere"), func("target").with(|f| f.version = 7)]);
    let (text, unknown) = (payload.text, payload.symbol("unknown", None));
    payload.relocation(text, 0, R_PC32, unknown, 0);
    payload.section(".ex_table", SectionKind::ReadOnlyData, &[0; 3], 1);
    let refusal = load(&payload.bytes()).unwrap_err();
    assert_eq!(refusal.problems.len(), 4, "{refusal}");
    assert_eq!(refusal.errno(), Errno::ENOENT);
}

#[test]
fn files_that_are_no_payloads() {
    let reason = |file: &[u8]| load(file).unwrap_err().problems.remove(0);
    assert!(is!(file: Size { size: 0, .. })(&reason(b"")));
    assert!(is!(file: Size { .. })(&reason(&vec![0; (2 << 20) + 1])));
    assert!(is!(file: NotElf)(&reason(b"#!/bin/sh")));
    assert!(is!(file: HeaderCutOff { size: 4, whole: 64 })(&reason(
        b"\x7fELF"
    )));
    let good = Payload::new(&[func("target")]).bytes();
    let with = |at: usize, byte: u8| {
        let mut file = good.clone();
        file[at] = byte;
        reason(&file)
    };
    assert!(is!(file: Machine { field: "class", .. })(&with(4, 1)));
    assert!(is!(file: Machine {
        field: "machine",
        value: 8
    })(&with(18, 8)));
    assert!(is!(file: OtherMachine { .. })(&with(18, 183)));
    assert!(is!(file: Header {
        field: "e_type",
        value: 2,
        ..
    })(&with(16, 2)));
    assert!(is!(file: TooManySections { limit: 1024, .. })(&with(61, 4)));
    assert!(is!(file: SectionTable { .. })(&with(61, 3)));
    assert_eq!(TEXT % 0x1000, 0);
}
