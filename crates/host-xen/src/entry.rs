// SPDX-License-Identifier: MIT OR Apache-2.0

//! The entry points for the shim.
#![expect(unsafe_code, reason = "everything here is called from C")]

use crate::ffi::{self, Cursor, Entry, Event, Text};
use crate::host::{Cpus, Xen, log};
use crate::keys::{Invalid, Keys};
use crate::symbols::Symbols;
use core::cell::{Cell, OnceCell, UnsafeCell};
use xsplice_abi::errno::Errno;
use xsplice_abi::sysctl;
use xsplice_engine::{Action, Engine, Host, Loaded, Options, Policy, Progress, hex};
use xsplice_rendezvous::Rendezvous;

/// Set once, before the other CPUs start.
struct Once(OnceCell<Rendezvous>);

// SAFETY: `xsplice_init` writes it while there is one CPU, and nothing later.
unsafe impl Sync for Once {}

static RENDEZVOUS: Once = Once(OnceCell::new());

/// Used by one CPU at a time.
struct Locked(UnsafeCell<Option<Engine<Xen>>>);

// SAFETY: only `with_engine` accesses it; its caller holds the shim's lock.
unsafe impl Sync for Locked {}

static ENGINE: Locked = Locked(UnsafeCell::new(None));

/// Runs `then` on the engine; `ENODEV` if there is none.
///
/// # Safety
/// The caller holds the shim's lock, and `then` does not call this again.
unsafe fn with_engine<T>(then: impl FnOnce(&mut Engine<Xen>) -> T) -> Result<T, Errno> {
    // SAFETY: no one else holds the lock, so this is the only reference.
    let engine = unsafe { &mut *ENGINE.0.get() };
    engine.as_mut().map(then).ok_or(Errno::ENODEV)
}

fn code<T>(result: Result<T, Errno>) -> i32 {
    result.map_or_else(|errno| -errno.0, |_| 0)
}

/// A name from the hypercall. The engine only accepts UTF-8, so no payload has any
/// other name.
fn name(text: Text<'_>) -> Result<&str, Errno> {
    str::from_utf8(text.into()).map_err(|_| Errno::ENOENT)
}

fn entry(payload: &Loaded) -> Entry {
    Entry {
        base: payload.memory().base(),
        state: payload.state().number(),
        result: payload.result(),
    }
}

/// Initialises the engine; called on the boot CPU before SMP bring-up.
#[unsafe(no_mangle)]
extern "C" fn xsplice_init(cpus: u32) {
    let image = ffi::image();
    let no_memory = || ffi::print(b"there is no memory for live patching");
    let (Ok(rendezvous), Ok(symbols)) = (Rendezvous::new(cpus), Symbols::new(&image)) else {
        return no_memory();
    };
    let invalid = |key: Invalid| log(format_args!("the key {} is invalid: {}", key.name, key.why));
    let Ok(keys) = Keys::read(invalid) else {
        return no_memory();
    };
    if keys.matter() {
        log(format_args!("{keys}"));
    }
    let rendezvous = RENDEZVOUS.0.get_or_init(|| rendezvous);
    let host = Xen {
        rendezvous,
        image,
        symbols,
        keys,
        text_distance: Cell::new(0),
    };
    let engine = Engine::new(host, Policy::Engine);
    // SAFETY: there is one CPU, and nothing has been called before.
    unsafe { ENGINE.0.get().write(Some(engine)) };
}

/// `cpu` starts.
#[unsafe(no_mangle)]
extern "C" fn xsplice_cpu_online(cpu: u32) {
    if let Some(rendezvous) = RENDEZVOUS.0.get() {
        rendezvous.online(cpu, &Cpus);
    }
}

/// `cpu` stops.
#[unsafe(no_mangle)]
extern "C" fn xsplice_cpu_offline(cpu: u32) {
    if let Some(rendezvous) = RENDEZVOUS.0.get() {
        rendezvous.offline(cpu);
    }
}

/// `cpu` is about to return to a guest.
#[unsafe(no_mangle)]
extern "C" fn xsplice_check(cpu: u32) {
    if let Some(rendezvous) = RENDEZVOUS.0.get() {
        rendezvous.check(cpu, &Cpus);
    }
}

/// An unmaskable event arrived on `cpu`.
#[unsafe(no_mangle)]
extern "C" fn xsplice_hold(cpu: u32, event: Event) -> bool {
    let rendezvous = RENDEZVOUS.0.get();
    rendezvous.is_some_and(|rendezvous| rendezvous.hold(cpu, event.into(), &Cpus))
}

/// The machine-check handler on `cpu` has finished.
#[unsafe(no_mangle)]
extern "C" fn xsplice_handled(cpu: u32) {
    if let Some(rendezvous) = RENDEZVOUS.0.get() {
        rendezvous.handled(cpu);
    }
}

/// Loads a payload.
///
/// # Safety
/// The caller holds the lock.
#[unsafe(no_mangle)]
unsafe extern "C" fn xsplice_upload(name_text: Text<'_>, file: Text<'_>) -> i32 {
    let upload = |engine: &mut Engine<Xen>| {
        let Ok(name) = name(name_text) else {
            ffi::print(b"a payload was not loaded (EINVAL)");
            ffi::print(b"  its name is not UTF-8");
            return Err(Errno::EINVAL);
        };
        let loaded = engine.upload(name, file.into());
        loaded.map(|_| ()).map_err(|refusal| refusal.errno())
    };
    // SAFETY: the caller holds the lock.
    code(unsafe { with_engine(upload) }.flatten())
}

/// Reports the status of a payload.
///
/// # Safety
/// The caller holds the lock.
#[unsafe(no_mangle)]
unsafe extern "C" fn xsplice_get(name_text: Text<'_>, to: &mut Entry) -> i32 {
    let get = |engine: &mut Engine<Xen>| {
        let payload = engine.stack().find(name(name_text)?);
        *to = entry(payload.ok_or(Errno::ENOENT)?);
        Ok(())
    };
    // SAFETY: the caller holds the lock.
    code(unsafe { with_engine(get) }.flatten())
}

/// How many payloads are loaded.
///
/// # Safety
/// The caller holds the lock.
#[unsafe(no_mangle)]
unsafe extern "C" fn xsplice_count() -> u32 {
    let count = |engine: &mut Engine<Xen>| engine.stack().loaded().len();
    // SAFETY: the caller holds the lock.
    let count = unsafe { with_engine(count) }.unwrap_or(0);
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Fills `entries` with the payloads from `index` on; returns their number.
///
/// # Safety
/// The caller holds the lock, and `entries` has room for `nr` entries.
#[unsafe(no_mangle)]
unsafe extern "C" fn xsplice_list(index: u32, entries: *mut Entry, nr: u32) -> u32 {
    let list = |engine: &mut Engine<Xen>| {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let payloads = engine.stack().loaded().skip(index);
        let mut filled = 0;
        for (at, payload) in (0..nr).zip(payloads) {
            // SAFETY: the caller has room for it.
            unsafe { entries.wrapping_add(at as usize).write(entry(payload)) };
            filled = at + 1;
        }
        filled
    };
    // SAFETY: the caller holds the lock.
    unsafe { with_engine(list) }.unwrap_or(0)
}

/// Starts an action; sets `pending` if `xsplice_run` must finish it.
///
/// # Safety
/// The caller holds the lock.
#[unsafe(no_mangle)]
unsafe extern "C" fn xsplice_action(
    name_text: Text<'_>,
    action: u32,
    nodeps: bool,
    timeout: u32,
    pending: &mut bool,
) -> i32 {
    let start = |engine: &mut Engine<Xen>| {
        let name = name(name_text)?;
        let action = match action {
            sysctl::ACTION_UNLOAD => Action::Unload,
            sysctl::ACTION_REVERT => Action::Revert,
            sysctl::ACTION_APPLY => Action::Apply,
            sysctl::ACTION_REPLACE => Action::Replace,
            _ => {
                let payload = engine.stack().find(name);
                payload.ok_or(Errno::ENOENT)?;
                return Err(Errno::EOPNOTSUPP);
            }
        };
        match engine.start(name, action, Options { nodeps, timeout }) {
            Ok(progress) => {
                *pending = progress == Progress::Pending;
                Ok(())
            }
            Err(failure) if failure.only_in_result() => Ok(()),
            Err(failure) => Err(failure.errno()),
        }
    };
    // SAFETY: the caller holds the lock.
    code(unsafe { with_engine(start) }.flatten())
}

/// Runs the prepared action.
///
/// # Safety
/// The caller holds the lock.
#[unsafe(no_mangle)]
unsafe extern "C" fn xsplice_run() {
    // Errors are reported through the payload's result and the log.
    let run = |engine: &mut Engine<Xen>| drop(engine.run());
    // SAFETY: the caller holds the lock.
    let _: Result<(), Errno> = unsafe { with_engine(run) };
}

/// Loads microcode.
#[cfg(feature = "microcode")]
#[unsafe(no_mangle)]
extern "C" fn xsplice_microcode() -> i32 {
    let rendezvous = RENDEZVOUS.0.get().ok_or(Errno::ENODEV);
    code(rendezvous.and_then(crate::microcode::load))
}

/// Number of functions shown while holding the lock.
const FUNCTIONS_AT_ONCE: u32 = 16;

/// Prints part of the loaded payloads to the console, from `cursor` on, and advances
/// it; returns whether there is more.
///
/// # Safety
/// The caller holds the lock.
#[unsafe(no_mangle)]
unsafe extern "C" fn xsplice_show(cursor: &mut Cursor) -> bool {
    let show = |engine: &mut Engine<Xen>| {
        let payload = engine.stack().loaded().nth(cursor.payload as usize);
        payload.is_some_and(|payload| {
            show_payload(engine.host(), payload, cursor);
            true
        })
    };
    // SAFETY: the caller holds the lock.
    unsafe { with_engine(show) }.unwrap_or(false)
}

fn show_payload(host: &Xen, payload: &Loaded, cursor: &mut Cursor) {
    if cursor.function == 0 {
        let times = payload.times();
        host.log(format_args!(
            "{}: {:?}, result {}, at {:#x}, waited {} ns, stopped for {} ns",
            payload.name().as_bytes().escape_ascii(),
            payload.state(),
            payload.result(),
            payload.memory().base(),
            times.waiting,
            times.window
        ));
        host.log(format_args!("  build-id {}", hex(payload.build_id())));
        if let Some(signer) = payload.signer() {
            host.log(format_args!("  signed by {signer}"));
        }
        host.log(format_args!("  depends on {}", hex(payload.depends())));
        for line in payload.metadata() {
            host.log(format_args!("  {line}"));
        }
    }
    let functions = payload.functions().iter().skip(cursor.function as usize);
    let mut shown = 0;
    for function in functions.take(FUNCTIONS_AT_ONCE as usize) {
        host.log(format_args!(
            "  {} at {:#x}, {} -> {} bytes at {:#x}",
            function.name(host),
            function.old_addr,
            function.old_size,
            function.new_size,
            function.new_addr
        ));
        shown += 1;
    }
    if shown == FUNCTIONS_AT_ONCE {
        cursor.function = cursor.function.saturating_add(shown);
    } else {
        *cursor = Cursor {
            payload: cursor.payload.saturating_add(1),
            function: 0,
        };
    }
}
