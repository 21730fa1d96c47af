// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the engine keeps of payloads, and finds again: by name, by address and by
//! what they patch, whatever the order in which they came and went.

use object::SectionKind;
use sha2::{Digest as _, Sha256};
use xsplice_abi::payload::section;
use xsplice_abi::preimage::{self, Preimage};
use xsplice_engine::{
    Action, Cause, Engine, Guard, Hook, Host as _, Options, Policy, Problem, State, WriteAccess,
    hash,
};
use xsplice_test_host::{
    Func, Hypervisor, OWN_ID, PAYLOADS, Payload, TARGET, TEXT, XEN_ID, engine, func, is, payloads,
};

const R_64: u32 = 1;
const NODEPS: Options = Options {
    nodeps: true,
    timeout: 0,
};

#[track_caller]
fn upload(engine: &mut Engine<Hypervisor>, name: &str, payload: &Payload) {
    if let Err(refusal) = engine.upload(name, &payload.bytes()) {
        panic!("{refusal}");
    }
}

fn act(engine: &mut Engine<Hypervisor>, name: &str, action: Action) -> Result<(), Cause> {
    let done = engine.act(name, action, NODEPS);
    done.map_err(|failure| failure.cause)
}

/// The problems for which an action does not begin.
fn unmet(done: Result<(), Cause>) -> Vec<Problem> {
    match done {
        Err(Cause::Unmet { problems }) => problems,
        other => panic!("another outcome: {other:?}"),
    }
}

fn at(addr: u64, old_size: u32) -> Func {
    func("x").with(|f| {
        f.old_addr.set(addr);
        f.old_size.set(old_size);
    })
}

#[test]
fn what_a_payload_says_of_itself() {
    let mut engine = engine();
    let mut payload = Payload::new(&[func("target")]);
    payload.section(".data", SectionKind::Data, &[1; 8], 8);
    upload(&mut engine, "a", &payload);
    // Records are no variables.
    upload(
        &mut engine,
        "b",
        &Payload::on(&OWN_ID, &[7; 20], &[func("target")]),
    );
    let [a, b] = ["a", "b"].map(|name| engine.stack().find(name).unwrap());
    assert_eq!((a.build_id(), a.depends()), (&OWN_ID[..], &XEN_ID[..]));
    assert_eq!((b.build_id(), b.depends()), (&[7; 20][..], &OWN_ID[..]));
    assert!(a.has_variables() && !b.has_variables());
    assert!(a.patches().is_empty());
    assert_eq!((a.times().waiting, a.times().window), (0, 0));
    act(&mut engine, "a", Action::Apply).unwrap();
    let a = engine.stack().find("a").unwrap();
    let patched: Vec<u64> = a.patches().iter().map(|patch| patch.addr).collect();
    assert_eq!(patched, [TARGET]);
    assert!(a.times().waiting > 0 && a.times().window > 0);
}

#[test]
fn text_is_opened_for_hooks_that_run_in_the_window() {
    for (hooks, access) in [
        (None, WriteAccess::Alias),
        (Some(section::HOOKS_PREAPPLY), WriteAccess::Alias),
        (Some(section::HOOKS_POSTREVERT), WriteAccess::Alias),
        (Some(section::HOOKS_LOAD), WriteAccess::InPlace),
        (Some(section::HOOKS_UNLOAD), WriteAccess::InPlace),
        (Some(section::HOOKS_APPLY), WriteAccess::InPlace),
        (Some(section::HOOKS_REVERT), WriteAccess::InPlace),
    ] {
        let mut engine = engine();
        let payload = Payload::new(&[func("target")]);
        let payload = hooks.into_iter().fold(payload, |p, name| p.hooks(name, 1));
        upload(&mut engine, "a", &payload);
        engine.host().noted();
        act(&mut engine, "a", Action::Apply).unwrap();
        let opened = engine.host().noted().opened;
        assert_eq!(opened, [(TARGET..TARGET + 5, access)], "{hooks:?}");
    }
}

#[test]
fn hooks_of_one_kind_do_without_the_other() {
    for (name, hook) in [
        (section::HOOKS_LOAD, Hook::Load),
        (section::HOOKS_UNLOAD, Hook::Unload),
    ] {
        let mut engine = engine();
        upload(
            &mut engine,
            "a",
            &Payload::new(&[func("target")]).hooks(name, 2),
        );
        act(&mut engine, "a", Action::Apply).unwrap();
        act(&mut engine, "a", Action::Revert).unwrap();
        let called = engine.host().memory().hooks.clone();
        assert_eq!(called, [(hook, OWN_ID[0]); 2]);
        assert_eq!(engine.stack().find("a").unwrap().state(), State::Checked);
        assert_eq!(engine.host().memory().machine.text[0x100], 0xcc);
    }
}

/// The vectors of the algorithm's own description.
#[test]
fn names_are_hashed_as_fnv_1a() {
    assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
    assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);
    assert_eq!(hash(b"foobar"), 0x8594_4171_f739_67e8);
}

/// What a reference to the symbol leads to, from a payload that is loaded for it.
fn resolved(engine: &mut Engine<Hypervisor>, name: &str) -> u64 {
    let mut payload = Payload::on(&OWN_ID, &[8; 20], &[func("target")]);
    let symbol = payload.symbol(name, None);
    payload.relocation(payload.text, 0, R_64, symbol, 0);
    upload(engine, "asks", &payload);
    let base = engine.stack().find("asks").unwrap().memory().base();
    let mut value = [0; 8];
    assert!(engine.host().read(base, &mut value));
    act(engine, "asks", Action::Unload).unwrap();
    u64::from_le_bytes(value)
}

#[test]
fn the_first_symbol_of_a_name_counts() {
    let mut engine = engine();
    let mut payload = Payload::new(&[func("target")]);
    let text = payload.text;
    for offset in (1..16).rev() {
        payload.symbol("same", Some((text, offset)));
        payload.symbol(&format!("other{offset}"), Some((text, offset)));
    }
    upload(&mut engine, "a", &payload);
    let base = engine.stack().find("a").unwrap().memory().base();
    assert_eq!(resolved(&mut engine, "same"), base + 15);
    for offset in 1..16 {
        let name = format!("other{offset}");
        assert_eq!(resolved(&mut engine, &name), base + offset);
    }
}

/// However often a payload has a name, it is kept once: whoever asks for it by each
/// of its symbols does not go through all of them each time.
#[test]
fn a_name_is_kept_once_for_each_payload() {
    let mut engine = engine();
    let mut payload = Payload::new(&[func("target")]);
    for _ in 0..1000 {
        payload.symbol("same", Some((payload.text, 8)));
    }
    // As the payload is called.
    payload.symbol("a", Some((payload.text, 8)));
    upload(&mut engine, "a", &payload);
    // Name, build-id and two symbols.
    let kept = format!("{:?}", engine.stack());
    assert_eq!(kept.matches("Entry {").count(), 4);
    act(&mut engine, "a", Action::Apply).unwrap();
    assert_eq!(engine.stack().find("a").unwrap().state(), State::Applied);
}

#[test]
fn a_symbol_is_taken_while_its_payload_is_applied() {
    let with_helper = |own: u8, function: &'static str| {
        let mut payload = Payload::on(&XEN_ID, &[own; 20], &[func(function)]);
        payload.symbol("helper", Some((payload.text, 8)));
        payload
    };
    let mut engine = engine();
    upload(&mut engine, "a", &with_helper(1, "target"));
    act(&mut engine, "a", Action::Apply).unwrap();
    // It could only replace the other one.
    upload(&mut engine, "b", &with_helper(2, "small"));
    let problems = unmet(act(&mut engine, "b", Action::Apply));
    assert!(
        problems.iter().any(is!(problem: AppliedSymbol { .. })),
        "{problems:?}"
    );
    act(&mut engine, "a", Action::Revert).unwrap();
    act(&mut engine, "b", Action::Apply).unwrap();
    let problems = unmet(act(&mut engine, "a", Action::Apply));
    assert!(
        problems.iter().any(is!(problem: AppliedSymbol { .. })),
        "{problems:?}"
    );
}

/// Whether a payload that calls through a pointer with this value is loaded: only if
/// there is code.
fn is_code(engine: &mut Engine<Hypervisor>, value: u64) -> bool {
    // Data begin on the page behind the text.
    let mut payload = Payload::with_code(&{
        let mut code = vec![0xff, 0x15];
        code.extend((0x1000 + 104 - 6_i32).to_le_bytes());
        code.resize(16, 0x90);
        code
    });
    payload.section(".data", SectionKind::Data, &value.to_le_bytes(), 8);
    let sites = payload.section(".alt_call_sites", SectionKind::ReadOnlyData, &[0; 4], 4);
    let code = payload.new_code;
    payload.relocation(sites, 0, 2, code, 0);
    match engine.upload("calls", &payload.bytes()) {
        Ok(_) => {
            act(engine, "calls", Action::Unload).unwrap();
            true
        }
        Err(refusal) => {
            assert!(
                refusal.problems.iter().any(is!(entry: Unusable { .. })),
                "{refusal}"
            );
            false
        }
    }
}

#[test]
fn code_of_payloads_is_found_by_address() {
    let mut engine = engine();
    let payload = |own: u8| Payload::on(&XEN_ID, &[own; 20], &[func("target")]);
    let base =
        |engine: &Engine<Hypervisor>, name| engine.stack().find(name).unwrap().memory().base();
    for (name, own) in [("a", 1), ("b", 2), ("c", 3)] {
        upload(&mut engine, name, &payload(own));
    }
    assert_eq!(base(&engine, "a"), PAYLOADS);
    // The newest one is the lowest.
    act(&mut engine, "a", Action::Unload).unwrap();
    upload(&mut engine, "d", &payload(4));
    assert_eq!(base(&engine, "d"), PAYLOADS);
    for name in ["b", "c", "d"] {
        let base = base(&engine, name);
        for (addr, code) in [
            (base - 1, false),
            (base, true),
            (base + 15, true),
            (base + 16, false),
        ] {
            assert_eq!(is_code(&mut engine, addr), code, "{name}: {addr:#x}");
        }
    }
}

#[test]
fn what_leads_to_a_payload_by_address_keeps_it() {
    let mut engine = engine();
    upload(&mut engine, "first", &Payload::new(&[func("target")]));
    let base = engine.stack().find("first").unwrap().memory().base();
    let function = func("small").nop().with(|f| f.new_addr.set(base));
    upload(
        &mut engine,
        "second",
        &Payload::on(&XEN_ID, &[2; 20], &[function]),
    );
    act(&mut engine, "second", Action::Apply).unwrap();
    let done = act(&mut engine, "first", Action::Unload);
    let by = "second".to_owned();
    assert_eq!(done, Err(Cause::InUse { by }));
}

#[test]
fn all_payloads_that_are_referred_to_are_kept() {
    let mut engine = engine();
    let names = ["first", "second", "third"];
    for (name, own) in names.iter().zip(1..) {
        let mut payload = Payload::on(&XEN_ID, &[own; 20], &[func("target")]);
        payload.symbol(&format!("helper of {name}"), Some((payload.text, 8)));
        upload(&mut engine, name, &payload);
    }
    let mut payload = Payload::on(&XEN_ID, &[9; 20], &[func("small")]);
    for name in ["third", "first", "second", "first"] {
        let symbol = payload.symbol(&format!("helper of {name}"), None);
        payload.relocation(payload.text, 0, R_64, symbol, 0);
    }
    upload(&mut engine, "all", &payload);
    act(&mut engine, "all", Action::Apply).unwrap();
    for name in names {
        let done = act(&mut engine, name, Action::Unload);
        let by = "all".to_owned();
        assert_eq!(done, Err(Cause::InUse { by }), "{name}");
    }
}

#[test]
fn patched_functions_are_found_in_any_order() {
    let payload = |own: u8, functions: &[Func]| Payload::on(&XEN_ID, &[own; 20], functions);
    let overlaps = |engine: &mut Engine<Hypervisor>, name| {
        let problems = unmet(act(engine, name, Action::Apply));
        problems.iter().any(is!(function: AppliedOverlap { .. }))
    };
    let mut engine = engine();
    // Within a payload, and from one to the next.
    let first = payload(1, &[at(TARGET + 64, 32), at(TARGET, 32)]);
    upload(&mut engine, "first", &first);
    upload(&mut engine, "second", &payload(2, &[at(TARGET - 64, 32)]));
    for (name, own, addr) in [
        ("a", 3, TARGET + 8),
        ("b", 4, TARGET + 72),
        ("c", 5, TARGET - 56),
    ] {
        upload(&mut engine, name, &payload(own, &[at(addr, 8)]));
    }
    for name in ["first", "second"] {
        act(&mut engine, name, Action::Apply).unwrap();
    }
    for name in ["a", "b", "c"] {
        assert!(overlaps(&mut engine, name), "{name}");
    }
    act(&mut engine, "second", Action::Revert).unwrap();
    assert!(overlaps(&mut engine, "a") && overlaps(&mut engine, "b"));
    act(&mut engine, "c", Action::Apply).unwrap();
    act(&mut engine, "c", Action::Revert).unwrap();
    act(&mut engine, "first", Action::Revert).unwrap();
    for name in ["a", "b"] {
        act(&mut engine, name, Action::Apply).unwrap();
    }
}

/// Also where it is patched again as a shorter one.
#[test]
fn a_function_that_is_patched_twice_is_as_long_as_ever() {
    let mut engine = engine();
    for (name, own, function) in [
        ("first", 1, at(TARGET, 32)),
        ("again", 2, at(TARGET, 8)),
        ("inside", 3, at(TARGET + 16, 16)),
    ] {
        let payload = Payload::on(&XEN_ID, &[own; 20], &[function]);
        upload(&mut engine, name, &payload);
    }
    act(&mut engine, "first", Action::Apply).unwrap();
    act(&mut engine, "again", Action::Apply).unwrap();
    let problems = unmet(act(&mut engine, "inside", Action::Apply));
    assert!(
        problems.iter().any(is!(function: AppliedOverlap { .. })),
        "{problems:?}"
    );
}

#[test]
fn an_apply_that_its_last_hook_undoes() {
    let mut engine = engine();
    upload(&mut engine, "below", &Payload::new(&[func("target")]));
    let payload = Payload::on(&OWN_ID, &[2; 20], &[func("small")]);
    upload(
        &mut engine,
        "top",
        &payload.hooks(section::HOOKS_POSTAPPLY, 1),
    );
    act(&mut engine, "below", Action::Apply).unwrap();
    engine.host().memory().hook_reverts = true;
    act(&mut engine, "top", Action::Apply).unwrap();
    let applied: Vec<&str> = engine.stack().applied().map(|p| p.name()).collect();
    assert_eq!(applied, ["below"]);
    act(&mut engine, "below", Action::Revert).unwrap();
}

#[test]
fn what_a_payload_wants_below_it() {
    let replaces = |depends: &[u8], below: bool| {
        let mut engine = engine();
        if below {
            upload(&mut engine, "below", &Payload::new(&[func("target")]));
            act(&mut engine, "below", Action::Apply).unwrap();
        }
        let payload = Payload::on(depends, &[2; 20], &[func("small")]);
        upload(&mut engine, "a", &payload);
        let done = engine.act("a", Action::Apply, Options::default());
        let problems = unmet(done.map_err(|failure| failure.cause));
        match problems[..] {
            [Problem::Depends { replaces, .. }] => replaces,
            _ => panic!("{problems:?}"),
        }
    };
    assert!(replaces(&XEN_ID, true));
    assert!(!replaces(&[9; 20], true));
    assert!(!replaces(&[9; 20], false));
}

#[test]
fn preimage_notes_come_in_any_order() {
    let mut payload = Payload::new(&[at(TARGET, 32), at(TARGET + 64, 32)]);
    let mut notes = Vec::new();
    for address in [TARGET + 64, TARGET] {
        Preimage {
            address,
            size: 32,
            hash: Sha256::digest([0xcc; 32]).into(),
            masked: vec![],
        }
        .append_to(&mut notes);
    }
    payload.section(preimage::SECTION, SectionKind::Note, &notes, 4);
    let mut engine = engine().with_guard(Guard::OldCode);
    upload(&mut engine, "a", &payload);
    act(&mut engine, "a", Action::Apply).unwrap();
}

#[test]
fn strings_of_the_hypervisor_end_soon() {
    let mut payload = Payload::new(&[func("target")]);
    let frames = payload.section(".bug_frames.1", SectionKind::ReadOnlyData, &[0; 8], 4);
    let (code, name) = (payload.new_code, payload.absolute("name", TEXT));
    payload.relocation(frames, 0, 2, code, 0);
    payload.relocation(frames, 4, 2, name, 4);
    let mut engine = Engine::new(Hypervisor::without_zeros(), Policy::Engine);
    let refusal = engine.upload("a", &payload.bytes()).unwrap_err();
    assert!(
        refusal.problems.iter().any(is!(entry: Unusable { .. })),
        "{refusal}"
    );
    let read = engine.host().memory().read;
    assert!(
        (0x1_0000..0x1_1000).contains(&read),
        "{read} bytes were read"
    );
}

#[test]
fn the_description_that_a_host_gets() {
    let mut engine = engine();
    engine.host().noted();
    engine.upload("all", &payloads::everything()).unwrap();
    let loaded = engine.stack().find("all").unwrap();
    let base = loaded.memory().base();
    let host = engine.host();
    let registered = host.noted().registered;
    let read = |range: &std::ops::Range<u64>| {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        assert!(host.read(range.start, &mut bytes));
        bytes
    };
    assert_eq!(registered.name, "all");
    assert_eq!(
        (&registered.build_id[..], &registered.depends[..]),
        (&OWN_ID[..], &XEN_ID[..])
    );
    assert_eq!(
        (registered.text.start, registered.data.start),
        (base, base + 0x1000)
    );
    assert_eq!(registered.read_only.start, base + 0x2000);
    for (range, inside) in [
        (&registered.funcs, &registered.data),
        (&registered.alternatives, &registered.read_only),
        (&registered.exceptions, &registered.read_only),
        (&registered.bug_frames[0], &registered.read_only),
        (&registered.metadata, &registered.read_only),
    ] {
        assert!(inside.start <= range.start && range.end <= inside.end);
    }
    assert_eq!(read(&registered.metadata), b"key=value\0");
    let alternative = read(&registered.alternatives);
    assert_eq!(alternative[8..], [1, 0, 4, 4, 0, 0]);
    assert_eq!(alternative.len(), 14);
    for table in [&registered.exceptions, &registered.bug_frames[0]] {
        assert_eq!(read(table).len(), 8);
    }
    for table in registered.bug_frames[1..]
        .iter()
        .chain([&registered.call_sites])
    {
        assert!(table.is_empty());
    }
    // The addresses that their names were found at are filled in.
    let functions = read(&registered.funcs);
    let addr = |record: &[u8]| u64::from_le_bytes(*record[16..].first_chunk().unwrap());
    let addrs: Vec<u64> = functions.chunks(104).map(addr).collect();
    assert_eq!(addrs, [TARGET, xsplice_test_host::ENDBR_TARGET]);
    let names: Vec<(&str, u64, bool)> = registered
        .symbols
        .iter()
        .map(|(name, addr, _, new)| (name.as_str(), *addr, *new))
        .collect();
    let expected = [("new_code", base, false), ("helper", base + 8, true)];
    assert_eq!(names, expected);
}

#[test]
fn which_symbols_a_host_gets_and_which_are_new() {
    let mut payload = Payload::new(&[]);
    let text = payload.text;
    // Records that lead to later code first, and symbols in the other order.
    for offset in [5, 10, 12] {
        payload.symbol(&format!("at {offset}"), Some((text, offset)));
    }
    let mut records = Payload::record(&func("target")).repeat(3);
    for (record, addr) in records.chunks_mut(104).zip([0, 64, 128]) {
        record[16..24].copy_from_slice(&(TARGET + addr).to_le_bytes());
    }
    let funcs = payload.section(section::FUNCS, SectionKind::Data, &records, 8);
    let code = payload.new_code;
    for (record, offset) in [(0, 10), (104, 5), (208, 0)] {
        payload.relocation(funcs, record + 8, R_64, code, offset);
    }
    // What a linker makes of strings that are the same.
    let merged = payload.section(".rodata.str", SectionKind::ReadOnlyString, b"a\0b\0", 1);
    let plain = payload.section(".rodata", SectionKind::ReadOnlyData, b"a\0b\0", 1);
    for (name, section) in [
        (".Lmerged", merged),
        ("merged", merged),
        (".Lplain", plain),
        ("absent", plain),
    ] {
        payload.symbol(name, Some((section, 2)));
    }
    let mut engine = engine();
    engine.host().noted();
    upload(&mut engine, "a", &payload);
    let registered = engine.host().noted().registered;
    let symbols = registered
        .symbols
        .iter()
        .map(|(name, _, _, new)| (name.as_str(), *new));
    let mut symbols: Vec<_> = symbols.collect();
    symbols.sort_unstable();
    let expected = [
        (".Lplain", true),
        ("absent", true),
        ("at 10", false),
        ("at 12", true),
        ("at 5", false),
        ("merged", true),
        ("new_code", false),
    ];
    assert_eq!(symbols, expected);
}

#[test]
fn a_symbol_is_new_among_all_that_are_loaded() {
    let with_helper = |own: u8| {
        let mut payload = Payload::on(&XEN_ID, &[own; 20], &[func("target")]);
        payload.symbol("helper", Some((payload.text, 8)));
        payload
    };
    let mut engine = engine();
    upload(&mut engine, "a", &with_helper(1));
    let refusal = engine.upload("b", &with_helper(2).bytes()).unwrap_err();
    assert!(
        refusal.problems.iter().any(is!(symbol: Duplicate { .. })),
        "{refusal}"
    );
}

#[test]
fn functions_have_names() {
    let mut engine = engine();
    let nameless = at(TARGET + 64, 32);
    let nameless = Func {
        name: "",
        ..nameless
    };
    upload(&mut engine, "a", &Payload::new(&[func("target"), nameless]));
    let loaded = engine.stack().find("a").unwrap();
    let names = loaded.functions().iter().map(|f| f.name(engine.host()));
    assert_eq!(names.collect::<Vec<_>>(), ["target", ""]);
}

/// Their names are in the hypervisor, or in what is going to be loaded.
#[test]
fn functions_have_names_in_a_refusal() {
    let refusal = |function: Func| {
        let mut engine = engine();
        engine.host().memory().machine.text[0x500..0x506].copy_from_slice(b"there\0");
        let refusal = engine.upload("a", &Payload::new(&[function]).bytes());
        refusal.unwrap_err().to_string()
    };
    let old = |f: Func| f.with(|f| f.version = 1);
    let text = refusal(old(func("target")));
    assert!(text.contains("target"), "{text}");
    let text = refusal(old(func("").with(|f| f.name.set(TEXT + 0x500))));
    assert!(text.contains("there"), "{text}");
}

#[test]
fn strings_of_the_hypervisor_are_strings() {
    let upload = |text: &[u8], offset: i64| {
        let mut payload = Payload::new(&[func("target")]);
        let frames = payload.section(".bug_frames.1", SectionKind::ReadOnlyData, &[0; 8], 4);
        let (code, name) = (payload.new_code, payload.absolute("name", TEXT + 0x500));
        payload.relocation(frames, 0, 2, code, 0);
        payload.relocation(frames, 4, 2, name, offset + 4);
        let mut engine = engine();
        engine.host().memory().machine.text[0x500..0x500 + text.len()].copy_from_slice(text);
        engine.upload("a", &payload.bytes()).map(drop).is_ok()
    };
    assert!(upload(b"file.c\0", 0) && upload(b"file.c\0", 6));
    assert!(!upload(b"file.c", 0) && !upload(b"file.c\0", 7));
    assert!(!upload(b"", 0x10_0000));
}

#[test]
fn strings_of_the_payload_may_be_empty() {
    let upload = |offset: i64| {
        let mut payload = Payload::new(&[func("target")]);
        let frames = payload.section(".bug_frames.1", SectionKind::ReadOnlyData, &[0; 8], 4);
        // The last that is only read.
        let strings = payload.section(".rodata.z", SectionKind::ReadOnlyData, b"a\0b", 1);
        let (code, strings) = (payload.new_code, payload.object.section_symbol(strings));
        payload.relocation(frames, 0, 2, code, 0);
        payload.relocation(frames, 4, 2, strings, offset + 4);
        engine().upload("a", &payload.bytes()).map(drop).is_ok()
    };
    assert!(upload(0) && upload(1));
    assert!(!upload(2));
}
