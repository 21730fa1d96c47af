// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen's own test payloads on a hypervisor where everything that can fail does fail,
//! at every point of every action: afterwards nothing has changed.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use xsplice_e2e::{base, own_payloads};
use xsplice_engine::{
    Absent, Action, Any, Description, Engine, Errno, Guard, Hook, Host, Limits, Options, Policy,
    Protection, Region, Resident, Status, WriteAccess,
};
use xsplice_host_image::{Image, Machine};

/// State shared by the host and its payload memory.
#[derive(Debug, Default)]
struct Faults {
    /// Number of calls that can fail so far; the one that fails; whether it was
    /// reached.
    calls: Cell<u32>,
    fail_in: Cell<Option<u32>>,
    /// Every byte of the hypervisor that was ever written.
    written: RefCell<BTreeSet<u64>>,
    /// The memory of payloads: address and size.
    payloads: RefCell<BTreeMap<u64, usize>>,
}

impl Faults {
    fn strike(&self) -> bool {
        self.calls.set(self.calls.get() + 1);
        self.fail_in.get() == Some(self.calls.get())
    }

    fn fail<T>(&self, errno: Errno, then: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        if self.strike() { Err(errno) } else { then() }
    }
}

/// An image's hypervisor with one failing call.
#[derive(Debug)]
struct Failing<'i> {
    machine: Machine<'i>,
    faults: Rc<Faults>,
}

impl Host for Failing<'_> {
    type Architecture = Any;

    fn architecture(&self) -> Any {
        self.machine.architecture()
    }

    fn build_id(&self) -> &[u8] {
        self.machine.build_id()
    }

    fn lookup_symbol(&self, name: &[u8]) -> Option<u64> {
        self.machine.lookup_symbol(name)
    }

    fn limits(&self) -> Limits {
        self.machine.limits()
    }

    fn region(&self, addr: u64) -> Region {
        self.machine.region(addr)
    }

    fn function_at(&self, addr: u64) -> Option<u64> {
        self.machine.function_at(addr)
    }

    fn denied(&self, patched: Range<u64>) -> Option<&'static str> {
        self.machine.denied(patched)
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        self.machine.read(addr, buf)
    }

    fn allocate(&self, size: u64) -> Option<Box<dyn Resident>> {
        if self.faults.strike() {
            return None;
        }
        let memory = self.machine.allocate(size)?;
        let payload = Payload {
            memory,
            faults: Rc::clone(&self.faults),
        };
        let size = usize::try_from(size).ok()?;
        self.faults
            .payloads
            .borrow_mut()
            .insert(payload.base(), size);
        Some(Box::new(payload))
    }

    fn rendezvous(&self, timeout: u64, window: &mut dyn FnMut()) -> Result<(), Absent> {
        if self.faults.strike() {
            return Err(Absent {
                step: "not all CPUs are waiting",
                cpus: vec![1],
            });
        }
        self.machine.rendezvous(timeout, window)
    }

    fn open_text(&self, range: Range<u64>, access: WriteAccess) -> Result<(), Errno> {
        self.faults
            .fail(Errno::ENOMEM, || self.machine.open_text(range, access))
    }

    fn begin_writing(&self) -> Result<(), Errno> {
        self.faults
            .fail(Errno::EBUSY, || self.machine.begin_writing())
    }

    fn write_text(&self, addr: u64, bytes: &[u8]) {
        self.faults
            .written
            .borrow_mut()
            .extend((addr..).zip(bytes).map(|(at, _)| at));
        self.machine.write_text(addr, bytes);
    }

    fn end_writing(&self) {
        self.machine.end_writing();
    }

    fn close_text(&self) {
        self.machine.close_text();
    }

    fn now(&self) -> u64 {
        self.machine.now()
    }

    fn log(&self, line: fmt::Arguments<'_>) {
        self.machine.log(line);
    }

    fn fatal(&self, what: fmt::Arguments<'_>) -> ! {
        panic!("{what}")
    }
}

#[derive(Debug)]
struct Payload {
    memory: Box<dyn Resident>,
    faults: Rc<Faults>,
}

impl Resident for Payload {
    fn base(&self) -> u64 {
        self.memory.base()
    }

    fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }

    fn register(&mut self, payload: &Description<'_>) -> Result<(), Errno> {
        self.faults
            .fail(Errno::ENOMEM, || self.memory.register(payload))
    }

    fn protect(&mut self, range: Range<u64>, protection: Protection) -> Result<(), Errno> {
        self.faults
            .fail(Errno::EFAULT, || self.memory.protect(range, protection))
    }

    fn call(&mut self, hook: Hook, addr: u64, status: &mut Status<'_>) -> Result<(), Errno> {
        let returns_nothing = matches!(
            hook,
            Hook::Load | Hook::Unload | Hook::PostApply | Hook::PostRevert
        );
        if returns_nothing {
            return self.memory.call(hook, addr, status);
        }
        self.faults
            .fail(Errno::EPERM, || self.memory.call(hook, addr, status))
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.faults.payloads.borrow_mut().remove(&self.base());
    }
}

/// Everything that an action could change: bytes of the hypervisor and of payloads,
/// and the engine's state, except results and times.
#[derive(Debug, PartialEq, Eq)]
struct Everything {
    memory: BTreeMap<u64, Vec<u8>>,
    loaded: Vec<String>,
    applied: Vec<String>,
}

fn everything(engine: &Engine<Failing<'_>>) -> Everything {
    let Failing { machine, faults } = engine.host();
    let written = faults.written.borrow();
    let written = written.iter().map(|at| (*at, 1));
    let payloads = faults.payloads.borrow();
    let memory = written.chain(payloads.iter().map(|(at, size)| (*at, *size)));
    let read = |(at, size)| {
        let mut bytes = vec![0; size];
        assert!(machine.read(at, &mut bytes), "{at:#x}");
        (at, bytes)
    };
    let loaded = engine.stack().loaded();
    Everything {
        memory: memory.map(read).collect(),
        loaded: loaded
            .map(|p| format!("{} {:?} {:?}", p.name(), p.state(), p.patched()))
            .collect(),
        applied: engine
            .stack()
            .applied()
            .map(|p| p.name().to_owned())
            .collect(),
    }
}

/// Repeats `act`, with the next call failing each time, until it succeeds; returns
/// the number of failures.
fn exhaust(
    engine: &mut Engine<Failing<'_>>,
    what: &str,
    mut act: impl FnMut(&mut Engine<Failing<'_>>) -> bool,
) -> u32 {
    for fail_in in 1.. {
        engine.host().faults.calls.set(0);
        engine.host().faults.fail_in.set(Some(fail_in));
        let before = everything(engine);
        let done = act(engine);
        let faults = &engine.host().faults;
        assert_eq!(done, faults.calls.get() < fail_in, "{what}, call {fail_in}");
        faults.fail_in.set(None);
        if done {
            return fail_in - 1;
        }
        // Bytes that were written and restored were not in the snapshot before.
        let mut after = everything(engine);
        after.memory.retain(|at, bytes| {
            before.memory.contains_key(at) || !engine.host().is_as_in_image(*at, bytes)
        });
        assert_eq!(after, before, "{what}, call {fail_in}");
    }
    unreachable!("actions make fewer calls")
}

impl Failing<'_> {
    /// Whether the hypervisor itself has `bytes` at `addr`.
    fn is_as_in_image(&self, addr: u64, bytes: &[u8]) -> bool {
        let mut original = vec![0; bytes.len()];
        self.machine.image().read(addr, &mut original) && original == bytes
    }
}

fn engine(image: &Image) -> Engine<Failing<'_>> {
    let host = Failing {
        machine: Machine::new(image),
        faults: Rc::default(),
    };
    Engine::new(host, Policy::Stock).with_guard(Guard::Both)
}

#[test]
fn a_failure_at_every_point() -> anyhow::Result<()> {
    let base = base()?;
    let image = Image::parse(&std::fs::read(&base.xen_syms)?)?;
    let act = |name: &'static str, action| {
        move |engine: &mut Engine<Failing<'_>>| engine.act(name, action, Options::default()).is_ok()
    };
    let (mut failures, mut lived) = (0, 0);
    for path in own_payloads(&base)? {
        let file = std::fs::read(&path)?;
        let mut fresh = engine(&image);
        // Some are meant to be refused.
        let applies =
            fresh.upload("payload", &file).is_ok() && act("payload", Action::Apply)(&mut fresh);
        if !applies {
            continue;
        }
        lived += 1;
        let name = path.display().to_string();
        let mut engine = engine(&image);
        let before = everything(&engine);
        failures += exhaust(&mut engine, &format!("{name}: upload"), |e| {
            e.upload("payload", &file).is_ok()
        });
        for action in [Action::Apply, Action::Revert, Action::Unload] {
            let what = format!("{name}: {action:?}");
            failures += exhaust(&mut engine, &what, act("payload", action));
        }
        let mut after = everything(&engine);
        after
            .memory
            .retain(|at, bytes| !engine.host().is_as_in_image(*at, bytes));
        assert_eq!(after, before, "{name}");
    }
    // A stack of two, replaced.
    let mut engine = engine(&image);
    for name in ["xen_hello_world", "xen_bye_world", "xen_replace_world"] {
        let path = base
            .test_payloads
            .join(Path::new(name).with_extension("livepatch"));
        let file = std::fs::read(path)?;
        let what = format!("{name}: stacked");
        failures += exhaust(&mut engine, &what, |e| e.upload(name, &file).is_ok());
        let action = match name {
            "xen_replace_world" => Action::Replace,
            _ => Action::Apply,
        };
        failures += exhaust(&mut engine, &what, act(name, action));
    }
    let applied: Vec<&str> = engine.stack().applied().map(|p| p.name()).collect();
    assert_eq!(applied, ["xen_replace_world"]);
    eprintln!("Xen's own payloads: {lived} lived through {failures} failures");
    anyhow::ensure!(lived >= 10 && failures >= 100, "{lived}, {failures}");
    Ok(())
}
