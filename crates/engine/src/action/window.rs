// SPDX-License-Identifier: MIT OR Apache-2.0

//! The part of an action that runs in the window: writes, and the hooks that must run
//! there. Nothing here allocates, prints or waits.

use super::{Pending, Revert};
use crate::host::{Hook, State};
use crate::stack::{Id, Loaded};
use crate::{Errno, Host, Stack};
use xsplice_abi::payload::OPAQUE_SIZE;

/// Why an action was not done, or was undone.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stopped {
    /// The hypervisor cannot be patched now.
    Closed(Errno),
    /// A hook of this payload failed.
    Hook(Id, Hook, Errno),
    /// This function of the payload does not hold the expected bytes.
    Unexpected(usize),
}

impl Stopped {
    fn errno(self) -> Errno {
        match self {
            Self::Closed(errno) | Self::Hook(_, _, errno) => errno,
            Self::Unexpected(_) => Errno::EINVAL,
        }
    }
}

/// Does the action, or leaves everything unchanged. Actions without hooks are
/// recorded later, since they cannot fail any more.
pub(super) fn run<H: Host>(host: &H, stack: &mut Stack, pending: &Pending) -> Result<(), Stopped> {
    host.begin_writing().map_err(Stopped::Closed)?;
    let done = act(host, stack, pending);
    host.end_writing();
    done
}

fn act<H: Host>(host: &H, stack: &mut Stack, pending: &Pending) -> Result<(), Stopped> {
    let id = pending.payload;
    let Some(applying) = &pending.applying else {
        return revert(host, stack, id);
    };
    let mut written = 0;
    let reverts = &applying.reverts;
    for (done, other) in reverts.payloads.iter().enumerate() {
        let writes = reverts.writes.get(written..other.written);
        written = other.written;
        if other.hooked {
            revert(host, stack, other.payload)
                .inspect_err(|_| put_back(host, stack, reverts.payloads.get(..done)))?;
        } else {
            for write in writes.unwrap_or_default() {
                write.write(host);
            }
        }
    }
    let looked = if reverts.look_again {
        look_again(host, stack, id)
    } else {
        Ok(())
    };
    looked
        .and_then(|()| apply(host, stack, id))
        .inspect_err(|_| put_back(host, stack, Some(&reverts.payloads)))
}

fn apply<H: Host>(host: &H, stack: &mut Stack, id: Id) -> Result<(), Stopped> {
    let Some(payload) = stack.get_mut(id) else {
        return Ok(());
    };
    if payload.hooks.is_empty() {
        for patch in &payload.patches {
            patch.apply(host);
        }
        return Ok(());
    }
    if !run_in_place(host, payload, Hook::Apply)? {
        run_all(payload, Hook::Load);
        for (patch, patched) in payload.patches.iter().zip(&mut payload.patched) {
            if !*patched {
                patch.apply(host);
                *patched = true;
            }
        }
    }
    payload.state = State::Applied;
    Ok(())
}

fn revert<H: Host>(host: &H, stack: &mut Stack, id: Id) -> Result<(), Stopped> {
    let Some(payload) = stack.get_mut(id) else {
        return Ok(());
    };
    if payload.hooks.is_empty() {
        for patch in &payload.patches {
            patch.revert(host);
        }
        return Ok(());
    }
    if !run_in_place(host, payload, Hook::Revert)? {
        for (patch, patched) in payload.patches.iter().zip(&mut payload.patched) {
            if *patched {
                patch.revert(host);
                *patched = false;
            }
        }
        run_all(payload, Hook::Unload);
    }
    payload.state = State::Checked;
    Ok(())
}

/// Runs the hook that replaces an action, if there is one. On success it must leave
/// all functions patched (or reverted), on failure all unchanged.
fn run_in_place<H: Host>(host: &H, payload: &mut Loaded, hook: Hook) -> Result<bool, Stopped> {
    if payload.hooks.single(hook).is_none() {
        return Ok(false);
    }
    let result = payload.call(hook).unwrap_or(Ok(()));
    let expected = (hook == Hook::Apply) == result.is_ok();
    if payload.patched.iter().any(|patched| *patched != expected) {
        host.fatal(format_args!(
            "{}: its {hook} hook patched some functions and not others",
            payload.name
        ));
    }
    match result {
        Ok(()) => Ok(true),
        Err(errno) => Err(Stopped::Hook(payload.id, hook, errno)),
    }
}

/// Runs all hooks of a repeatable kind.
fn run_all(payload: &mut Loaded, hook: Hook) {
    let mut index = 0;
    loop {
        let hooks = match hook {
            Hook::Load => &payload.hooks.load,
            _ => &payload.hooks.unload,
        };
        let Some(addr) = hooks.get(index).copied() else {
            return;
        };
        // These hooks return nothing.
        let _: Result<(), Errno> = payload.call_at(hook, addr);
        index += 1;
    }
}

/// Re-applies the reverted payloads; `reverted` is in the order of the reverts.
fn put_back<H: Host>(host: &H, stack: &mut Stack, reverted: Option<&[Revert]>) {
    for revert in reverted.unwrap_or_default().iter().rev() {
        if let Err(stopped) = apply(host, stack, revert.payload) {
            let name = stack.get(revert.payload).map_or("", Loaded::name);
            host.fatal(format_args!(
                "{name}: it was reverted and cannot be applied again (error {})",
                stopped.errno().0
            ));
        }
    }
}

/// Compares the payload's expectations with memory, and saves the bytes that a revert
/// must restore.
fn look_again<H: Host>(host: &H, stack: &mut Stack, id: Id) -> Result<(), Stopped> {
    let Some(payload) = stack.get_mut(id) else {
        return Ok(());
    };
    let functions = payload.functions.iter().zip(&payload.expectations);
    for (index, ((function, expect), patch)) in functions.zip(&mut payload.patches).enumerate() {
        let mut buffer = [0; OPAQUE_SIZE];
        let expected = expect.bytes();
        let actual = buffer.get_mut(..expected.len()).unwrap_or_default();
        let known = host.read(function.old_addr, actual) && actual == expected;
        if expect.enabled() && !known || !patch.read_old(host) {
            return Err(Stopped::Unexpected(index));
        }
    }
    Ok(())
}
