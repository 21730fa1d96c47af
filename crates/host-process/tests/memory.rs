// SPDX-License-Identifier: MIT OR Apache-2.0

//! Makes every allocation of the engine fail once, in every action, on payloads of
//! all kinds: the action is refused with `ENOMEM`, nothing leaks, and payloads and
//! machine are unchanged. Nothing is allocated in the window or to write a log line.

use object::SectionKind;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::{self, Debug, Write as _};
use std::io::Write as _;
use std::ops::Range;
use xsplice_abi::payload::section;
use xsplice_abi::preimage::{self, Preimage};
use xsplice_engine::{
    Absent, Action, Description, Engine, Errno, Guard, Hook, Host, Limits, Options, Policy,
    Protection, Region, Resident, Status, WriteAccess,
};
use xsplice_host_process::{Machine, image, payloads};
use xsplice_test_host::payloads::{everything, hooks, small};
use xsplice_test_host::{Hypervisor, Payload, TARGET, XEN_ID, func};

/// The system's allocator, with counts per thread and failures on demand.
struct Failing;

#[global_allocator]
static HEAP: Failing = Failing;

/// How allocations are treated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// They belong to the test or to the host.
    Spared,
    /// They belong to the engine; this many succeed before one fails.
    Until(usize),
    /// None may occur.
    Forbidden,
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Spared) };
    static FAILED: Cell<bool> = const { Cell::new(false) };
    static VIOLATED: Cell<bool> = const { Cell::new(false) };
    /// Bytes in use.
    static LIVE: Cell<usize> = const { Cell::new(0) };
}

/// Whether this allocation fails.
fn fails() -> bool {
    match MODE.get() {
        Mode::Spared => false,
        Mode::Until(0) => {
            FAILED.set(true);
            // Only one fails: the rest of the action may allocate.
            MODE.set(Mode::Until(usize::MAX));
            true
        }
        Mode::Until(left) => {
            MODE.set(Mode::Until(left - 1));
            false
        }
        Mode::Forbidden => {
            VIOLATED.set(true);
            false
        }
    }
}

// SAFETY: all memory comes from the system's allocator and goes back to it.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if fails() {
            return std::ptr::null_mut();
        }
        LIVE.set(LIVE.get().wrapping_add(layout.size()));
        // SAFETY: the caller passes a nonzero size.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, data: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get().wrapping_sub(layout.size()));
        // SAFETY: the system's allocator returned it for this layout.
        unsafe { System.dealloc(data, layout) }
    }
}

/// Runs code whose allocations are not the engine's, or are forbidden.
fn within<T>(mode: Mode, then: impl FnOnce() -> T) -> T {
    let before = MODE.replace(mode);
    let result = then();
    MODE.set(before);
    result
}

fn spared<T>(then: impl FnOnce() -> T) -> T {
    within(Mode::Spared, then)
}

/// A host whose own allocations do not fail.
struct Spared<H>(H);

impl<H: Host> Host for Spared<H> {
    type Architecture = H::Architecture;

    fn architecture(&self) -> H::Architecture {
        self.0.architecture()
    }

    fn build_id(&self) -> &[u8] {
        self.0.build_id()
    }

    fn lookup_symbol(&self, name: &[u8]) -> Option<u64> {
        spared(|| self.0.lookup_symbol(name))
    }

    fn limits(&self) -> Limits {
        spared(|| self.0.limits())
    }

    fn region(&self, addr: u64) -> Region {
        spared(|| self.0.region(addr))
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        spared(|| self.0.read(addr, buf))
    }

    fn allocate(&self, size: u64) -> Option<Box<dyn Resident>> {
        spared(|| Some(Box::new(SparedMemory(self.0.allocate(size)?)) as Box<dyn Resident>))
    }

    fn rendezvous(&self, timeout: u64, window: &mut dyn FnMut()) -> Result<(), Absent> {
        let mut window = || within(Mode::Forbidden, &mut *window);
        spared(|| self.0.rendezvous(timeout, &mut window))
    }

    fn open_text(&self, range: Range<u64>, access: WriteAccess) -> Result<(), Errno> {
        spared(|| self.0.open_text(range, access))
    }

    fn begin_writing(&self) -> Result<(), Errno> {
        spared(|| self.0.begin_writing())
    }

    fn write_text(&self, addr: u64, bytes: &[u8]) {
        spared(|| self.0.write_text(addr, bytes));
    }

    fn end_writing(&self) {
        spared(|| self.0.end_writing());
    }

    fn close_text(&self) {
        spared(|| self.0.close_text());
    }

    fn now(&self) -> u64 {
        spared(|| self.0.now())
    }

    fn log(&self, line: fmt::Arguments<'_>) {
        struct Nowhere;
        impl fmt::Write for Nowhere {
            fn write_str(&mut self, _: &str) -> fmt::Result {
                Ok(())
            }
        }
        within(Mode::Forbidden, || Nowhere.write_fmt(line)).expect("there is always room");
    }

    fn fatal(&self, what: fmt::Arguments<'_>) -> ! {
        MODE.set(Mode::Spared);
        self.0.fatal(what)
    }

    fn function_at(&self, addr: u64) -> Option<u64> {
        spared(|| self.0.function_at(addr))
    }

    fn denied(&self, function: Range<u64>) -> Option<&'static str> {
        spared(|| self.0.denied(function))
    }
}

#[derive(Debug)]
struct SparedMemory(Box<dyn Resident>);

impl Resident for SparedMemory {
    fn base(&self) -> u64 {
        self.0.base()
    }

    fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }

    fn register(&mut self, payload: &Description<'_>) -> Result<(), Errno> {
        spared(|| self.0.register(payload))
    }

    fn protect(&mut self, range: Range<u64>, protection: Protection) -> Result<(), Errno> {
        spared(|| self.0.protect(range, protection))
    }

    fn call(&mut self, hook: Hook, addr: u64, status: &mut Status<'_>) -> Result<(), Errno> {
        spared(|| self.0.call(hook, addr, status))
    }
}

/// A host with a comparable snapshot of everything that an action could change.
trait Observed: Host {
    type Machine: PartialEq + Debug;
    fn machine(&self) -> Self::Machine;
}

impl Observed for Hypervisor {
    type Machine = xsplice_test_host::Machine;
    fn machine(&self) -> xsplice_test_host::Machine {
        self.machine()
    }
}

impl Observed for Machine {
    type Machine = (Vec<u8>, bool);
    fn machine(&self) -> (Vec<u8>, bool) {
        (self.text(), self.is_free_of_payloads())
    }
}

/// An engine, and its number of failed allocations.
struct Trial<H> {
    engine: Engine<Spared<H>>,
    failures: usize,
}

impl<H: Observed> Trial<H> {
    /// Loads and unloads `payload` first, so that memory that the host keeps is
    /// already allocated.
    fn new(host: H, payload: &[u8]) -> Self {
        let mut engine = Engine::new(Spared(host), Policy::Engine);
        let loaded = engine.upload("first", payload);
        loaded.unwrap_or_else(|refusal| panic!("{refusal}"));
        let unloaded = engine.act("first", Unload, Options::default());
        unloaded.unwrap_or_else(|failure| panic!("{failure}"));
        Self {
            engine,
            failures: 0,
        }
    }

    /// Repeats a step, each time with one more successful allocation, until none
    /// fails; then the result must be `expected`.
    fn step(
        &mut self,
        what: &str,
        expected: Result<(), Errno>,
        step: impl Fn(&mut Engine<Spared<H>>) -> Result<(), Errno>,
    ) {
        for count in 0.. {
            let machine = self.engine.host().0.machine();
            let payloads = format!("{:?}", self.engine.stack());
            let live = LIVE.get();
            FAILED.set(false);
            MODE.set(Mode::Until(count));
            let result = step(&mut self.engine);
            MODE.set(Mode::Spared);
            assert!(
                !VIOLATED.get(),
                "{what} allocates in the window or for the log"
            );
            if !FAILED.get() {
                assert_eq!(result, expected, "{what}");
                break;
            }
            // A payload that is refused anyway may be refused for its own reason.
            let known = result == Err(Errno::ENOMEM) || result.is_err() && result == expected;
            assert!(known, "{what}, allocation {count}: {result:?}");
            assert_eq!(LIVE.get(), live, "{what}, allocation {count}: bytes in use");
            assert_eq!(
                self.engine.host().0.machine(),
                machine,
                "{what}, allocation {count}"
            );
            let after = format!("{:?}", self.engine.stack());
            assert_eq!(after, payloads, "{what}, allocation {count}");
            self.failures += 1;
        }
    }

    fn upload(&mut self, name: &str, file: &[u8], expected: Result<(), Errno>) {
        self.step(&format!("upload {name}"), expected, |engine| {
            let result = engine.upload(name, file);
            result.map(|_| ()).map_err(|refusal| refusal.errno())
        });
    }

    fn load(&mut self, name: &str, file: &[u8]) {
        self.upload(name, file, Ok(()));
    }

    fn try_to(&mut self, action: Action, name: &str, expected: Result<(), Errno>) {
        let patient = Options {
            nodeps: false,
            timeout: 4_000_000_000,
        };
        let failures = self.failures;
        self.step(&format!("{action} {name}"), expected, |engine| {
            let result = engine.act(name, action, patient);
            result.map_err(|failure| failure.errno())
        });
        let takes_out = matches!(action, Revert | Unload) && expected.is_ok();
        assert_eq!(
            takes_out,
            self.failures == failures,
            "{action} {name} and memory"
        );
    }

    fn act(&mut self, name: &str, actions: &[Action]) {
        for action in actions {
            self.try_to(*action, name, Ok(()));
        }
    }

    /// Write past the harness, so that it is shown for passing tests too.
    fn report(self, what: &str) {
        let line = format!(
            "{what}: {} allocations failed, each undone\n",
            self.failures
        );
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        assert!(self.failures > 100, "{what}: {}", self.failures);
    }
}

use Action::{Apply, Replace, Revert, Unload};

#[test]
fn one_payload_at_a_time() {
    let mut trial = Trial::new(Hypervisor::new(), &small());
    for (name, file, again) in [
        ("everything", everything(), false),
        ("hooks", hooks(), true),
        ("small", small(), true),
    ] {
        trial.load(name, &file);
        trial.upload(name, &file, Err(Errno::EEXIST));
        trial.upload("other", &file, Err(Errno::EEXIST));
        trial.act(name, &[Apply, Revert]);
        if again {
            trial.act(name, &[Apply, Revert]);
        }
        trial.act(name, &[Unload]);
    }
    trial.report("one payload at a time");
}

/// A payload with a preimage note.
fn noted(depends: &[u8], own: u8, name: &'static str, code: &[u8]) -> Payload {
    use sha2::{Digest as _, Sha256};
    let mut payload = Payload::on(depends, &[own; 20], &[func(name)]);
    let mut note = Vec::new();
    Preimage {
        address: TARGET,
        size: 32,
        hash: Sha256::digest(code).into(),
        masked: vec![(0, 5)],
    }
    .append_to(&mut note);
    payload.section(preimage::SECTION, SectionKind::Note, &note, 4);
    payload
}

#[test]
fn payloads_on_payloads() {
    for guard in [Guard::Both, Guard::OldCode] {
        let mut trial = Trial::new(Hypervisor::new(), &small());
        trial.engine = trial.engine.with_guard(guard);
        let mut code = [0xcc; 32];
        code[..5].fill(0);
        let mut below = noted(&XEN_ID, 1, "target", &code);
        below.symbol("helper", Some((below.text, 4)));
        let mut above = noted(&[1; 20], 2, "target", &code).hooks(section::HOOKS_UNLOAD, 2);
        let used = above.symbol("helper", None);
        above.relocation(above.text, 4, 2, used, -4);
        let above = above.hooks(section::HOOKS_LOAD, 1);
        let all = noted(&XEN_ID, 3, "target", &code);
        trial.load("below", &below.bytes());
        trial.act("below", &[Apply]);
        trial.load("above", &above.bytes());
        trial.act("above", &[Apply]);
        trial.try_to(Unload, "below", Err(Errno::EINVAL));
        trial.try_to(Revert, "below", Err(Errno::EBUSY));
        trial.load("all", &all.bytes());
        if guard == Guard::Both {
            trial.try_to(Apply, "all", Err(Errno::EINVAL));
        }
        trial.act("all", &[Replace, Revert, Unload]);
        trial.act("above", &[Unload]);
        trial.act("below", &[Unload]);
        trial.load("below", &below.bytes());
        trial.act("below", &[Apply, Revert, Unload]);
        trial.report("payloads on payloads");
    }
}

#[test]
fn payloads_that_are_refused() {
    let mut trial = Trial::new(Hypervisor::new(), &small());
    let mut unknown = Payload::new(&[func("target"), func("nobody")]);
    let symbol = unknown.symbol("nothing", None);
    unknown.relocation(unknown.text, 0, 2, symbol, -4);
    let init = unknown.absolute("in_init", xsplice_test_host::INIT);
    unknown.relocation(unknown.text, 8, 1, init, 0);
    trial.upload("unknown", &unknown.bytes(), Err(Errno::ENOENT));
    let denied = func("").with(|f| f.old_addr.set(xsplice_test_host::DENIED));
    trial.upload(
        "denied",
        &Payload::new(&[denied]).bytes(),
        Err(Errno::EPERM),
    );
    let twice = Payload::new(&[func("target"), func("target")]);
    trial.upload("twice", &twice.bytes(), Err(Errno::EINVAL));
    trial.upload("nothing", &Payload::new(&[]).bytes(), Err(Errno::EINVAL));
    trial.upload("short", &small()[..600], Err(Errno::EINVAL));
    let unexpected = Payload::new(&[func("target").expecting(&[1, 2, 3])]);
    trial.load("unexpected", &unexpected.bytes());
    trial.upload("other", &unexpected.bytes(), Err(Errno::EEXIST));
    trial.try_to(Apply, "unexpected", Err(Errno::EINVAL));
    trial.try_to(Replace, "unexpected", Err(Errno::EINVAL));
    trial.try_to(Apply, "missing", Err(Errno::ENOENT));
    trial.report("payloads that are refused");
}

#[test]
fn payloads_of_real_code() {
    let machine = Machine::new(image(), 1).unwrap_or_else(|error| panic!("{error}"));
    let mut trial = Trial::new(machine, payloads::GRANT);
    trial.load("grant", payloads::GRANT);
    trial.act("grant", &[Apply]);
    trial.load("version", payloads::VERSION);
    trial.act("version", &[Apply]);
    trial.load("cumulative", payloads::CUMULATIVE);
    trial.act("cumulative", &[Replace, Revert, Unload]);
    trial.act("version", &[Unload]);
    trial.act("grant", &[Unload]);
    trial.load("hooked", payloads::HOOKED);
    trial.act("hooked", &[Apply, Revert, Unload]);
    assert!(trial.engine.host().0.is_free_of_payloads());
    trial.report("payloads of real code");
}
