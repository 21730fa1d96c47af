// SPDX-License-Identifier: MIT OR Apache-2.0

//! Actions on payloads: what they do to memory, in which order hooks run, and
//! that a failure at any point leaves everything as it was.

use object::SectionKind;
use sha2::{Digest as _, Sha256};
use std::io::Write as _;
use xsplice_abi::payload::section;
use xsplice_abi::preimage::{self, Preimage};
use xsplice_engine::{
    Absent, Action, Cause, Engine, Errno, Failure, Guard, Hook, Host as _, Options, Progress, State,
};
use xsplice_test_host::{
    ENDBR_TARGET, Hypervisor, OWN_ID, PAYLOADS, Payload, TARGET, TEXT, XEN_ID, engine, func,
};

/// Build-id of the payload that depends on [`OWN_ID`].
const SECOND_ID: [u8; 20] = [0x33; 20];
/// Build-id of the payload that replaces the others.
const THIRD_ID: [u8; 20] = [0x44; 20];

trait Short {
    fn load(&mut self, name: &str, payload: &Payload);
    fn act_on(&mut self, name: &str, action: Action) -> Result<(), Cause>;
    fn at(&self, addr: u64) -> u8;
    fn state(&self, name: &str) -> State;
    fn result(&self, name: &str) -> i32;
    fn applied(&self) -> Vec<String>;
}

impl Short for Engine<Hypervisor> {
    #[track_caller]
    fn load(&mut self, name: &str, payload: &Payload) {
        if let Err(refusal) = self.upload(name, &payload.bytes()) {
            panic!("{refusal}");
        }
    }

    fn act_on(&mut self, name: &str, action: Action) -> Result<(), Cause> {
        let result = self.act(name, action, Options::default());
        result.map_err(|failure| failure.cause)
    }

    fn at(&self, addr: u64) -> u8 {
        let mut byte = [0];
        assert!(self.host().read(addr, &mut byte));
        byte[0]
    }

    fn state(&self, name: &str) -> State {
        self.stack().find(name).unwrap().state()
    }

    fn result(&self, name: &str) -> i32 {
        self.stack().find(name).unwrap().result()
    }

    fn applied(&self) -> Vec<String> {
        self.stack()
            .applied()
            .map(|p| p.name().to_owned())
            .collect()
    }
}

#[test]
fn the_life_of_a_payload() {
    let mut engine = engine();
    let before = engine.host().machine();
    let payload = Payload::new(&[func("target"), func("endbr_target")]);
    engine.load("first", &payload);
    assert_eq!(engine.state("first"), State::Checked);
    let loaded = engine.host().machine();

    let started = engine.start("first", Action::Apply, Options::default());
    assert_eq!(started, Ok(Progress::Pending));
    assert_eq!(
        (engine.result("first"), engine.pending()),
        (-11, Some("first"))
    );
    assert_eq!(
        engine.host().machine(),
        loaded,
        "nothing is written before the window"
    );
    let busy = engine.act_on("first", Action::Unload).unwrap_err();
    assert_eq!(
        busy,
        Cause::Busy {
            other: "first".into()
        }
    );
    engine.run().unwrap();

    assert_eq!(
        (engine.state("first"), engine.result("first")),
        (State::Applied, 0)
    );
    let mut jump = [0; 5];
    assert!(engine.host().read(TARGET, &mut jump));
    let distance = i32::try_from(PAYLOADS - TARGET - 5).unwrap().to_le_bytes();
    assert_eq!((jump[0], &jump[1..]), (0xe9, &distance[..]));
    assert_eq!(
        (engine.at(ENDBR_TARGET), engine.at(ENDBR_TARGET + 4)),
        (0xf3, 0xe9)
    );
    assert_eq!(engine.act_on("first", Action::Unload), Err(Cause::Applied));
    let again = engine.act_on("first", Action::Apply);
    assert_eq!(again, Ok(()), "there is nothing to do");

    engine.act_on("first", Action::Revert).unwrap();
    assert_eq!(engine.host().machine(), loaded);
    let again = engine.act_on("first", Action::Revert);
    assert_eq!(again, Ok(()), "there is nothing to do");
    engine.act_on("first", Action::Apply).unwrap();
    engine.act_on("first", Action::Revert).unwrap();
    engine.act_on("first", Action::Unload).unwrap();
    assert_eq!(engine.host().machine(), before);
    assert_eq!(
        engine.act_on("first", Action::Apply),
        Err(Cause::NoSuchPayload)
    );
}

#[test]
fn what_happened_is_counted() {
    let mut engine = engine();
    assert!(engine.upload("bad", b"not a payload").is_err());
    engine.load("first", &Payload::new(&[func("target")]));
    engine.host().memory().late = true;
    assert!(matches!(
        engine.act_on("first", Action::Apply),
        Err(Cause::Absent(_))
    ));
    engine.host().memory().late = false;
    engine.act_on("first", Action::Apply).unwrap();
    engine.act_on("first", Action::Apply).unwrap();
    engine.act_on("first", Action::Revert).unwrap();
    engine.act_on("first", Action::Replace).unwrap();
    assert_eq!(engine.act_on("first", Action::Unload), Err(Cause::Applied));
    engine.act_on("first", Action::Revert).unwrap();
    engine.act_on("first", Action::Unload).unwrap();
    let counters = engine.counters();
    assert_eq!((counters.loaded, counters.refused), (1, 1));
    assert_eq!(
        (counters.applied, counters.replaced),
        (1, 1),
        "{counters:?}"
    );
    assert_eq!((counters.reverted, counters.unloaded), (2, 1));
    assert_eq!((counters.failed, counters.absent), (2, 1));
    assert_eq!(counters.windows, 4);
    // The clock of this hypervisor goes on with each call that can fail.
    assert!(
        counters.longest_window > 0 && counters.longest_waiting > 0,
        "{counters:?}"
    );
}

/// As in Xen: which failures the call that asked for the action reports, and which
/// are only in the payload's result.
#[test]
fn where_a_failure_is_reported() {
    let hook = |hook| Cause::Hook {
        owner: String::new(),
        hook,
        errno: Errno::EPERM,
    };
    let absent = Absent {
        step: "",
        cpus: vec![],
    };
    let errno = Errno::EBUSY;
    for (cause, only_in_result) in [
        (Cause::NeedsReload, true),
        (Cause::Absent(absent), true),
        (Cause::Closed { errno }, true),
        (Cause::Unexpected { index: 0 }, true),
        (hook(Hook::Apply), true),
        (hook(Hook::Revert), true),
        (hook(Hook::PreApply), false),
        (hook(Hook::PreRevert), false),
        (Cause::NoSuchPayload, false),
        (Cause::Applied, false),
        (Cause::Dangling, false),
        (Cause::Unmet { problems: vec![] }, false),
    ] {
        let failure = Failure {
            payload: String::new(),
            action: Action::Apply,
            cause,
        };
        assert_eq!(failure.only_in_result(), only_in_result, "{failure}");
    }
}

#[test]
fn no_ops() {
    let mut engine = engine();
    let nop = |size| func("target").nop().with(|f| f.new_size.set(size));
    engine.load("nop", &Payload::new(&[nop(11)]));
    engine.act_on("nop", Action::Apply).unwrap();
    let mut bytes = [0; 12];
    assert!(engine.host().read(TARGET, &mut bytes));
    assert_eq!(
        bytes,
        [0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0, 0x0f, 0x1f, 0x00, 0xcc]
    );
}

#[test]
fn only_the_top_is_reverted() {
    let mut engine = engine();
    engine.load("first", &Payload::new(&[func("target")]));
    engine.load(
        "second",
        &Payload::on(&OWN_ID, &SECOND_ID, &[func("target")]),
    );
    let failure = engine.act_on("second", Action::Apply).unwrap_err();
    assert!(matches!(failure, Cause::Unmet { .. }), "{failure}");
    assert_eq!(
        engine.result("second"),
        0,
        "the call says it, not the payload"
    );
    engine.act_on("first", Action::Apply).unwrap();
    engine.act_on("second", Action::Apply).unwrap();
    assert_eq!(
        engine.act_on("first", Action::Revert),
        Err(Cause::NotOnTop {
            top: "second".into()
        })
    );
    engine.act_on("second", Action::Revert).unwrap();
    engine.act_on("first", Action::Revert).unwrap();
    assert_eq!(engine.at(TARGET), 0xcc);
    let options = Options {
        nodeps: true,
        timeout: 1,
    };
    engine.act("second", Action::Apply, options).unwrap();
    assert_eq!(engine.applied(), ["second"]);
}

#[test]
fn what_refers_to_a_payload_keeps_it() {
    let mut engine = engine();
    let mut first = Payload::new(&[func("target")]);
    first.symbol("helper", Some((first.text, 8)));
    engine.load("first", &first);
    let mut second = Payload::on(&XEN_ID, &SECOND_ID, &[func("target")]);
    let helper = second.symbol("helper", None);
    second.relocation(second.text, 4, 2, helper, -4);
    engine.load("second", &second);
    engine.act_on("second", Action::Apply).unwrap();
    assert_eq!(
        engine.act_on("first", Action::Unload),
        Err(Cause::InUse {
            by: "second".into()
        })
    );
    engine.act_on("second", Action::Revert).unwrap();
    engine.act_on("first", Action::Unload).unwrap();
    assert_eq!(engine.act_on("second", Action::Apply), Err(Cause::Dangling));
}

#[test]
fn data_is_not_used_twice() {
    let mut engine = engine();
    let mut payload = Payload::new(&[func("target")]);
    payload.section(".data", SectionKind::Data, &[1; 8], 8);
    engine.load("first", &payload);
    engine.act_on("first", Action::Apply).unwrap();
    engine.act_on("first", Action::Revert).unwrap();
    assert_eq!(
        engine.act_on("first", Action::Apply),
        Err(Cause::NeedsReload)
    );
    assert_eq!(engine.result("first"), -22);
    assert_eq!(
        engine.act_on("first", Action::Replace),
        Err(Cause::NeedsReload)
    );
    engine.act_on("first", Action::Unload).unwrap();
    engine.load("first", &payload);
    engine.act_on("first", Action::Apply).unwrap();
}

/// Two payloads on each other, and a third that replaces them.
fn stacked(third: &Payload) -> Engine<Hypervisor> {
    let mut engine = engine();
    let hooks = |payload: Payload| {
        payload
            .hooks(section::HOOKS_LOAD, 1)
            .hooks(section::HOOKS_UNLOAD, 1)
    };
    engine.load("first", &hooks(Payload::new(&[func("target")])));
    let other = func("file.c#local");
    let second = Payload::on(&OWN_ID, &SECOND_ID, &[func("target"), other]);
    engine.load("second", &hooks(second));
    engine.act_on("first", Action::Apply).unwrap();
    engine.act_on("second", Action::Apply).unwrap();
    engine.load("third", third);
    engine.host().memory().hooks.clear();
    engine
}

/// Whatever was in the memory that it is put into.
#[test]
fn a_payload_is_zeros_where_its_file_has_nothing() {
    let mut engine = engine();
    let mut payload = Payload::new(&[func("target")]);
    payload.section(".data.first", SectionKind::Data, &[1; 3], 1);
    payload.zeros(100);
    payload.section(".data.last", SectionKind::Data, &[2; 3], 64);
    engine.upload("a", &payload.bytes()).unwrap();
    let machine = engine.host().machine();
    let memory = machine.payloads.values().next().unwrap();
    let find = |bytes: &[u8]| {
        memory
            .windows(3)
            .position(|window| window == bytes)
            .unwrap()
    };
    let (first, last) = (find(&[1; 3]), find(&[2; 3]));
    assert!(last - first >= 128, "{first} {last}");
    assert!(memory[first + 3..last].iter().all(|byte| *byte == 0));
    // Behind the code, up to the end of its page.
    let text = engine.stack().find("a").unwrap().functions()[0];
    let end = usize::try_from(text.new_addr + u64::from(text.new_size) - PAYLOADS).unwrap();
    assert!(end % 0x1000 != 0 && memory[end..0x1000].iter().all(|byte| *byte == 0));
}

#[test]
fn replace() {
    // It expects the text without the other two.
    let third = Payload::on(&XEN_ID, &THIRD_ID, &[func("target").expecting(&[0xcc; 31])]);
    let mut engine = stacked(&third);
    engine.act_on("third", Action::Replace).unwrap();
    assert_eq!(engine.applied(), ["third"]);
    assert_eq!((engine.at(TARGET), engine.at(TEXT + 0x180)), (0xe9, 0xcc));
    let hooks = engine.host().memory().hooks.clone();
    assert_eq!(hooks, [(Hook::Unload, 0x33), (Hook::Unload, 0x22)]);
    engine.act_on("third", Action::Revert).unwrap();
    assert_eq!(engine.at(TARGET), 0xcc);
}

/// What a replace puts back is not always as long as a jump.
#[test]
fn replace_puts_code_back_that_no_ops_went_over() {
    let mut engine = engine();
    let no_ops = func("target").nop().with(|f| f.new_size.set(11));
    engine.load("no-ops", &Payload::new(&[no_ops]));
    let before = engine.host().machine();
    engine.act_on("no-ops", Action::Apply).unwrap();
    assert_ne!(engine.host().machine(), before);
    let elsewhere = Payload::on(&XEN_ID, &THIRD_ID, &[func("file.c#local")]);
    engine.load("elsewhere", &elsewhere);
    engine.act_on("elsewhere", Action::Replace).unwrap();
    assert_eq!(engine.applied(), ["elsewhere"]);
    engine.act_on("elsewhere", Action::Revert).unwrap();
    engine.act_on("elsewhere", Action::Unload).unwrap();
    assert_eq!(engine.host().machine(), before);
}

#[test]
fn replace_that_cannot_succeed_reverts_nothing() {
    let third = Payload::on(&XEN_ID, &THIRD_ID, &[func("target").expecting(&[0xe9])]);
    let mut engine = stacked(&third);
    let before = engine.host().machine();
    let failure = engine.act_on("third", Action::Replace).unwrap_err();
    assert!(matches!(failure, Cause::Unmet { .. }), "{failure}");
    assert_eq!(engine.host().machine(), before);
    assert!(engine.host().memory().hooks.is_empty());
    assert_eq!(engine.applied(), ["first", "second"]);
}

#[test]
fn replace_puts_the_others_back() {
    let third = Payload::on(&XEN_ID, &THIRD_ID, &[func("target")]).hooks(section::HOOKS_APPLY, 1);
    let mut engine = stacked(&third);
    let before = engine.host().machine();
    engine.host().memory().hook_fails = Some(Hook::Apply);
    let failure = engine.act_on("third", Action::Replace).unwrap_err();
    let (owner, hook, errno) = ("third".into(), Hook::Apply, Errno::EPERM);
    assert_eq!(failure, Cause::Hook { owner, hook, errno });
    assert_eq!(engine.host().machine(), before);
    assert_eq!(engine.applied(), ["first", "second"]);
    let hooks = engine.host().memory().hooks.clone();
    let (unload, load) = (Hook::Unload, Hook::Load);
    let expected = [
        (unload, 0x33),
        (unload, 0x22),
        (Hook::Apply, 0x44),
        (load, 0x22),
        (load, 0x33),
    ];
    assert_eq!(hooks, expected);
    engine.host().memory().hook_fails = None;
    engine.act_on("second", Action::Revert).unwrap();
    engine.act_on("first", Action::Revert).unwrap();
    assert_eq!((engine.at(TARGET), engine.at(TEXT + 0x180)), (0xcc, 0xcc));
}

#[test]
fn replace_takes_no_vetoing_hooks() {
    let third =
        Payload::on(&XEN_ID, &THIRD_ID, &[func("target")]).hooks(section::HOOKS_POSTREVERT, 1);
    let mut engine = stacked(&third);
    let failure = engine.act_on("third", Action::Replace).unwrap_err();
    assert!(
        matches!(
            failure,
            Cause::Vetoing {
                hook: Hook::PostRevert,
                ..
            }
        ),
        "{failure}"
    );
}

/// A payload with every kind of hook.
fn hooked() -> Payload {
    let kinds = [
        (section::HOOKS_LOAD, 2),
        (section::HOOKS_UNLOAD, 2),
        (section::HOOKS_PREAPPLY, 1),
        (section::HOOKS_POSTAPPLY, 1),
        (section::HOOKS_PREREVERT, 1),
        (section::HOOKS_POSTREVERT, 1),
    ];
    let payload = Payload::new(&[func("target"), func("endbr_target")]);
    kinds
        .into_iter()
        .fold(payload, |payload, (name, count)| payload.hooks(name, count))
}

#[test]
fn the_order_of_hooks() {
    let mut engine = engine();
    engine.load("first", &hooked());
    engine.act_on("first", Action::Apply).unwrap();
    engine.act_on("first", Action::Revert).unwrap();
    let hooks: Vec<Hook> = engine
        .host()
        .memory()
        .hooks
        .iter()
        .map(|(hook, _)| *hook)
        .collect();
    let expected = [
        Hook::PreApply,
        Hook::Load,
        Hook::Load,
        Hook::PostApply,
        Hook::PreRevert,
        Hook::Unload,
        Hook::Unload,
        Hook::PostRevert,
    ];
    assert_eq!(hooks, expected);
}

/// Before the window, nothing has happened that a post hook could be after.
#[test]
fn text_that_cannot_be_written() {
    let mut engine = engine();
    let payload = Payload::new(&[func("target")]);
    engine.load("first", &payload.hooks(section::HOOKS_POSTAPPLY, 1));
    let before = everything(&engine);
    for (fail_in, errno, hooks) in [
        (1, Errno::ENOMEM, &[][..]),
        // The second is the rendezvous.
        (3, Errno::EBUSY, &[(Hook::PostApply, OWN_ID[0])]),
    ] {
        {
            let mut memory = engine.host().memory();
            (memory.calls, memory.fail_in) = (0, Some(fail_in));
        }
        let failure = engine.act_on("first", Action::Apply);
        assert_eq!(failure, Err(Cause::Closed { errno }));
        assert_eq!(engine.result("first"), -errno.0);
        assert_eq!(everything(&engine), before);
        assert_eq!(engine.host().memory().hooks, hooks);
    }
    engine.host().memory().fail_in = None;
    engine.act_on("first", Action::Apply).unwrap();
}

#[test]
fn hooks_in_place_of_actions() {
    let payload = hooked()
        .hooks(section::HOOKS_APPLY, 1)
        .hooks(section::HOOKS_REVERT, 1);
    let mut engine = engine();
    engine.load("first", &payload);
    let before = engine.host().machine();
    engine.act_on("first", Action::Apply).unwrap();
    assert_eq!(
        engine.stack().find("first").unwrap().patched(),
        [true, true]
    );
    let applied = engine.host().machine();
    assert_ne!(applied, before, "the hook has patched");
    engine.host().memory().hook_fails = Some(Hook::Revert);
    engine.host().memory().hooks.clear();
    let failure = engine.act_on("first", Action::Revert).unwrap_err();
    assert!(
        matches!(
            failure,
            Cause::Hook {
                hook: Hook::Revert,
                ..
            }
        ),
        "{failure}"
    );
    assert_eq!(engine.host().machine(), applied);
    assert_eq!(
        (engine.state("first"), engine.result("first")),
        (State::Applied, -1)
    );
    let hooks: Vec<Hook> = engine
        .host()
        .memory()
        .hooks
        .iter()
        .map(|(hook, _)| *hook)
        .collect();
    assert_eq!(hooks, [Hook::PreRevert, Hook::Revert, Hook::PostRevert]);
}

/// Everything that an action could change.
type Everything = (
    xsplice_test_host::Machine,
    Vec<String>,
    Vec<(String, State, Vec<bool>)>,
);

fn everything(engine: &Engine<Hypervisor>) -> Everything {
    let payloads = engine.stack().loaded();
    let payloads = payloads.map(|p| (p.name().to_owned(), p.state(), p.patched().to_vec()));
    (
        engine.host().machine(),
        engine.applied(),
        payloads.collect(),
    )
}

/// Does something again and again, with a later call into the host failing each
/// time, until none fails. After each failure all must be as before. Returns how
/// many failures there were.
fn exhaust(
    engine: &mut Engine<Hypervisor>,
    mut act: impl FnMut(&mut Engine<Hypervisor>) -> bool,
) -> usize {
    for fail_in in 1.. {
        let before = everything(engine);
        {
            let mut memory = engine.host().memory();
            (memory.calls, memory.fail_in) = (0, Some(fail_in));
        }
        let done = act(engine);
        let failed = engine.host().memory().calls >= fail_in;
        engine.host().memory().fail_in = None;
        // What cannot be read may not have been needed.
        let needed = !engine.host().memory().reads_fail;
        assert!(done || failed, "it fails by itself");
        assert!(
            !(done && failed && needed),
            "call {fail_in} failed unnoticed"
        );
        if !done {
            assert_eq!(everything(engine), before, "call {fail_in}");
            continue;
        }
        return usize::try_from(fail_in).unwrap() - 1;
    }
    unreachable!("actions make fewer calls")
}

/// Every call into the host that can fail does so once, in every action; after
/// each failure the machine is as it was, and the action then succeeds.
#[test]
fn a_failure_at_every_point() {
    let in_place = |payload: Payload| {
        payload
            .hooks(section::HOOKS_APPLY, 1)
            .hooks(section::HOOKS_REVERT, 1)
    };
    let plain = || Payload::new(&[func("target")]);
    let with_data = || {
        let small = func("small").nop().with(|f| f.new_size.set(10));
        let mut payload = Payload::new(&[func("target"), small]);
        payload.section(".data", SectionKind::Data, &[1; 5000], 8);
        payload
    };
    let mut failures = 0;
    for reads_fail in [false, true] {
        for first in [plain(), with_data(), hooked(), in_place(hooked())] {
            let mut engine = engine();
            engine.host().memory().reads_fail = reads_fail;
            failures += exhaust(&mut engine, |e| e.upload("first", &first.bytes()).is_ok());
            for action in [Action::Apply, Action::Revert, Action::Unload] {
                failures += exhaust(&mut engine, |e| e.act_on("first", action).is_ok());
            }
            assert_eq!(engine.host().machine(), Hypervisor::new().machine());
        }
        let third = || Payload::on(&XEN_ID, &THIRD_ID, &[func("target"), func("endbr_target")]);
        let second = || Payload::on(&OWN_ID, &SECOND_ID, &[func("target"), func("file.c#local")]);
        for lower in [plain(), in_place(plain())] {
            for upper in [second(), in_place(second())] {
                for third in [third(), in_place(third())] {
                    let mut engine = engine();
                    engine.load("first", &lower);
                    engine.load("second", &upper);
                    engine.act_on("first", Action::Apply).unwrap();
                    engine.act_on("second", Action::Apply).unwrap();
                    engine.load("third", &third);
                    engine.host().memory().reads_fail = reads_fail;
                    failures +=
                        exhaust(&mut engine, |e| e.act_on("third", Action::Replace).is_ok());
                    engine.host().memory().reads_fail = false;
                    engine.act_on("third", Action::Revert).unwrap();
                    for name in ["first", "second", "third"] {
                        engine.act_on(name, Action::Unload).unwrap();
                    }
                    assert_eq!(engine.host().machine(), Hypervisor::new().machine());
                }
            }
        }
    }
    let line = format!("{failures} failures, each undone\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    assert!(failures >= 150, "only {failures} points were tried");
}

/// A payload that says of the whole function at `addr` that it is `code`.
fn with_preimage(own: u8, depends: &[u8], name: &'static str, addr: u64, code: &[u8]) -> Payload {
    let mut payload = Payload::on(depends, &[own; 20], &[func(name)]);
    let mut note = Vec::new();
    Preimage {
        address: addr,
        size: u32::try_from(code.len()).unwrap(),
        hash: Sha256::digest(code).into(),
        masked: vec![],
    }
    .append_to(&mut note);
    payload.section(preimage::SECTION, SectionKind::Note, &note, 4);
    payload
}

#[test]
fn guards() {
    let whole = |byte| [byte; 32];
    let good = |own, depends: &[u8]| with_preimage(own, depends, "target", TARGET, &whole(0xcc));
    let bad = |own, depends: &[u8]| with_preimage(own, depends, "target", TARGET, &whole(0xcd));
    let plain = |own: u8, depends: &[u8]| Payload::on(depends, &[own; 20], &[func("target")]);
    let foreign = [9; 20];
    for (guard, payload, applies) in [
        (Guard::Both, good(1, &XEN_ID), true),
        (Guard::Both, good(1, &foreign), false),
        (Guard::Both, bad(1, &XEN_ID), false),
        (Guard::Both, plain(1, &XEN_ID), true),
        (Guard::Stack, bad(1, &XEN_ID), true),
        (Guard::Stack, good(1, &foreign), false),
        (Guard::OldCode, good(1, &foreign), true),
        (Guard::OldCode, bad(1, &XEN_ID), false),
        (Guard::OldCode, plain(1, &XEN_ID), false),
    ] {
        let mut engine = engine().with_guard(guard);
        engine.load("payload", &payload);
        let result = engine.act_on("payload", Action::Apply);
        assert_eq!(result.is_ok(), applies, "{guard:?}: {result:?}");
    }
}

#[test]
fn a_replace_looks_at_what_will_be_there() {
    let third = with_preimage(0x44, &XEN_ID, "target", TARGET, &[0xcc; 32]);
    let mut engine = stacked(&third);
    engine.act_on("third", Action::Replace).unwrap();
}

/// A replace on an applied payload that is reverted by a hook, which leaves a byte
/// at this distance from the old function as well.
fn replace_after_a_hook(leaves: u64, expected: &[u8]) -> (Engine<Hypervisor>, Result<(), Cause>) {
    let mut engine = engine();
    let first = Payload::new(&[func("target")]).hooks(section::HOOKS_REVERT, 1);
    engine.load("first", &first);
    engine.act_on("first", Action::Apply).unwrap();
    let function = match expected {
        [] => func("target"),
        bytes => func("target").expecting(bytes),
    };
    engine.load("third", &Payload::on(&XEN_ID, &THIRD_ID, &[function]));
    engine.host().memory().hook_leaves = Some((TARGET + leaves, 0xcd));
    let done = engine.act_on("third", Action::Replace);
    engine.host().memory().hook_leaves = None;
    (engine, done)
}

#[test]
fn what_a_revert_hook_leaves_is_held_against_expectations() {
    let (engine, done) = replace_after_a_hook(8, &[0xcc; 9]);
    assert!(
        matches!(done, Err(Cause::Unexpected { index: 0 })),
        "{done:?}"
    );
    assert_eq!(engine.applied(), ["first"]);
    assert_eq!((engine.at(TARGET), engine.at(TARGET + 8)), (0xe9, 0xcd));
    let (engine, done) = replace_after_a_hook(9, &[0xcc; 9]);
    done.unwrap();
    assert_eq!(engine.applied(), ["third"]);
}

#[test]
fn what_a_revert_hook_leaves_is_what_the_next_revert_puts_back() {
    let (mut engine, done) = replace_after_a_hook(2, &[]);
    done.unwrap();
    engine.act_on("third", Action::Revert).unwrap();
    let left = [0, 1, 2, 3].map(|offset| engine.at(TARGET + offset));
    assert_eq!(left, [0xcc, 0xcc, 0xcd, 0xcc]);
}

#[test]
fn functions_of_applied_payloads_do_not_overlap() {
    let at = |own: u8, addr: u64| {
        let function = func("x").with(|f| f.old_addr.set(addr));
        Payload::on(&XEN_ID, &[own; 20], &[function])
    };
    let nodeps = Options {
        nodeps: true,
        timeout: 0,
    };
    let mut engine = engine();
    for (index, (addr, applies)) in [
        (TARGET, true),
        (TARGET + 31, false),
        (TARGET - 31, false),
        (TARGET - 32, true),
        (TARGET + 32, true),
        (TARGET, true),
    ]
    .into_iter()
    .enumerate()
    {
        let own = u8::try_from(index).unwrap() + 1;
        engine.load(&format!("p{index}"), &at(own, addr));
        let result = engine.act(&format!("p{index}"), Action::Apply, nodeps);
        assert_eq!(result.is_ok(), applies, "{index}: {result:?}");
    }
}
