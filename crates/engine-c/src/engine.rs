// SPDX-License-Identifier: MIT OR Apache-2.0

//! The functions that the hypervisor calls.
#![expect(unsafe_code, reason = "everything here is called from C")]

use crate::host::{Table, xsplice_bytes, xsplice_host};
use ::xsplice_engine::{Action, Engine, Errno, Failure, Guard, Options, Policy, Progress};
use alloc::boxed::Box;
use xsplice_abi::sysctl;
use xsplice_fallible as fallible;

/// Live patching of one hypervisor.
#[derive(Debug)]
pub struct xsplice_engine(Engine<Table>);

/// A payload is checked against the build-id of what it depends on.
pub const XSPLICE_GUARD_STACK: u32 = 0;
/// A payload is checked against the hash of each function that it patches.
pub const XSPLICE_GUARD_OLD_CODE: u32 = 1;
/// A payload is checked against both.
pub const XSPLICE_GUARD_BOTH: u32 = 2;

/// Unload a payload.
pub const XSPLICE_ACTION_UNLOAD: u32 = 1;
/// Restore the functions that it patches.
pub const XSPLICE_ACTION_REVERT: u32 = 2;
/// Patch the functions.
pub const XSPLICE_ACTION_APPLY: u32 = 3;
/// Revert all applied payloads, and apply it.
pub const XSPLICE_ACTION_REPLACE: u32 = 4;

/// Loaded.
pub const XSPLICE_STATE_CHECKED: u32 = 1;
/// Loaded and applied.
pub const XSPLICE_STATE_APPLIED: u32 = 2;

// The numbers are those of Xen's interface; cbindgen needs them as literals.
const _: () = {
    assert!(XSPLICE_ACTION_UNLOAD == sysctl::ACTION_UNLOAD);
    assert!(XSPLICE_ACTION_REVERT == sysctl::ACTION_REVERT);
    assert!(XSPLICE_ACTION_APPLY == sysctl::ACTION_APPLY);
    assert!(XSPLICE_ACTION_REPLACE == sysctl::ACTION_REPLACE);
    assert!(XSPLICE_STATE_CHECKED == sysctl::STATE_CHECKED);
    assert!(XSPLICE_STATE_APPLIED == sysctl::STATE_APPLIED);
};

/// A loaded payload. The texts are valid until it is unloaded.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct xsplice_payload {
    /// Its name.
    pub name: xsplice_bytes,
    /// Its build-id.
    pub build_id: xsplice_bytes,
    /// The address of its memory.
    pub base: u64,
    /// `XSPLICE_STATE_CHECKED` or `XSPLICE_STATE_APPLIED`.
    pub state: u32,
    /// Result of the last action: 0, a negative error number, or -EAGAIN while an action
    /// is in progress.
    pub result: i32,
}

fn code<T>(result: Result<T, Errno>) -> i32 {
    result.map_or_else(|errno| -errno.0, |_| 0)
}

/// Creates an engine for a hypervisor on which no payload is loaded: `guard` is
/// `XSPLICE_GUARD_...`. Null if a required function of `host` is missing, if there is no
/// such guard, or without memory.
///
/// # Safety
/// `host` is null, or points to an `xsplice_host` whose functions do what this header
/// says, with its context, in any call of the engine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsplice_engine_new(
    host: *const xsplice_host,
    guard: u32,
) -> *mut xsplice_engine {
    // SAFETY: guaranteed by the caller.
    let table = unsafe { host.as_ref() }.and_then(Table::new);
    let guard = match guard {
        XSPLICE_GUARD_STACK => Guard::Stack,
        XSPLICE_GUARD_OLD_CODE => Guard::OldCode,
        XSPLICE_GUARD_BOTH => Guard::Both,
        _ => return core::ptr::null_mut(),
    };
    let (Some(table), Ok(place)) = (table, fallible::place()) else {
        return core::ptr::null_mut();
    };
    let engine = Engine::new(table, Policy::Engine).with_guard(guard);
    Box::into_raw(Box::write(place, xsplice_engine(engine)))
}

/// Drops an engine. It frees the memory of its payloads, applied or not: revert and
/// unload them first.
///
/// # Safety
/// `engine` is null, or from `xsplice_engine_new()` and no longer used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsplice_engine_free(engine: *mut xsplice_engine) {
    if !engine.is_null() {
        // SAFETY: `xsplice_engine_new` made it from a box.
        drop(unsafe { Box::from_raw(engine) });
    }
}

/// Loads the payload `file` under `name`. The log shows everything that is wrong with it.
///
/// # Safety
/// `engine` is from `xsplice_engine_new()`, and no other call uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsplice_upload(
    engine: *mut xsplice_engine,
    name: xsplice_bytes,
    file: xsplice_bytes,
) -> i32 {
    // SAFETY: guaranteed by the caller; the bytes are valid for this call.
    let (engine, name, file) = unsafe { (&mut *engine, name.get(), file.get()) };
    let Ok(name) = str::from_utf8(name) else {
        return -Errno::EINVAL.0;
    };
    let loaded = engine.0.upload(name, file);
    code(loaded.map_err(|refusal| refusal.errno()))
}

/// Prepares an action, `XSPLICE_ACTION_...`, on the payload `name`; `*pending` is set if
/// `xsplice_run()` must finish it, in a context in which all CPUs can be stopped. With
/// `nodeps`, the payload need not depend on what is applied. `timeout` is the limit for
/// the rendezvous in nanoseconds; 0 for 30 ms.
///
/// # Safety
/// `engine` is from `xsplice_engine_new()`, and no other call uses it; `pending` points
/// to a `bool`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsplice_start(
    engine: *mut xsplice_engine,
    name: xsplice_bytes,
    action: u32,
    nodeps: bool,
    timeout: u32,
    pending: *mut bool,
) -> i32 {
    // SAFETY: guaranteed by the caller; the name is valid for this call.
    let (engine, name, pending) = unsafe { (&mut *engine, name.get(), &mut *pending) };
    *pending = false;
    let action = match action {
        XSPLICE_ACTION_UNLOAD => Action::Unload,
        XSPLICE_ACTION_REVERT => Action::Revert,
        XSPLICE_ACTION_APPLY => Action::Apply,
        XSPLICE_ACTION_REPLACE => Action::Replace,
        _ => return -Errno::EOPNOTSUPP.0,
    };
    // The engine only accepts UTF-8, so no payload has any other name.
    let Ok(name) = str::from_utf8(name) else {
        return -Errno::ENOENT.0;
    };
    let started = engine.0.start(name, action, Options { nodeps, timeout });
    *pending = matches!(started, Ok(Progress::Pending));
    code(started.map_err(|failure: Failure| failure.errno()))
}

/// Stops all CPUs and runs the action that `xsplice_start()` prepared. The log shows why
/// it failed, and the payload's result has the error number.
///
/// # Safety
/// `engine` is from `xsplice_engine_new()`, and no other call uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsplice_run(engine: *mut xsplice_engine) -> i32 {
    // SAFETY: guaranteed by the caller.
    let engine = unsafe { &mut *engine };
    code(engine.0.run().map_err(|failure| failure.errno()))
}

/// `xsplice_start()` and, if `*pending`, `xsplice_run()`.
///
/// # Safety
/// As for these.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsplice_act(
    engine: *mut xsplice_engine,
    name: xsplice_bytes,
    action: u32,
    nodeps: bool,
    timeout: u32,
) -> i32 {
    let mut pending = false;
    // SAFETY: guaranteed by the caller.
    let started = unsafe { xsplice_start(engine, name, action, nodeps, timeout, &raw mut pending) };
    match pending {
        // SAFETY: see above.
        true => unsafe { xsplice_run(engine) },
        false => started,
    }
}

/// Describes the loaded payload at `index`, oldest first; false if there is none.
///
/// # Safety
/// `engine` is from `xsplice_engine_new()`, and no other call uses it; `payload` can be
/// written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xsplice_loaded(
    engine: *const xsplice_engine,
    index: usize,
    payload: *mut xsplice_payload,
) -> bool {
    // SAFETY: guaranteed by the caller.
    let engine = unsafe { &*engine };
    let Some(loaded) = engine.0.stack().loaded().nth(index) else {
        return false;
    };
    let description = xsplice_payload {
        name: loaded.name().as_bytes().into(),
        build_id: loaded.build_id().into(),
        base: loaded.memory().base(),
        state: loaded.state().number(),
        result: loaded.result(),
    };
    // SAFETY: the caller guarantees that it can be written.
    unsafe { payload.write(description) };
    true
}
