// SPDX-License-Identifier: MIT OR Apache-2.0

//! The part of an action that is done while the hypervisor runs.

use super::{Cause, Guard, Revert, Reverts};
use crate::host::Hook;
use crate::patch::{Patch, Write};
use crate::problem::{FunctionFault, Problem, Problems, bytes, same, text};
use crate::sort::sort;
use crate::stack::{Id, Loaded};
use crate::{Errno, Host, Stack};
use alloc::vec::Vec;
use sha2::{Digest as _, Sha256};
use xsplice_abi::payload::OPAQUE_SIZE;
use xsplice_abi::preimage;
use xsplice_fallible::{self as fallible, NoMemory};

/// Checks that no applied payload needs this one.
pub(super) fn unload(stack: &Stack, id: Id) -> Result<(), Cause> {
    match stack
        .applied()
        .find(|other| other.uses.binary_search(&id).is_ok())
    {
        Some(other) => Err(Cause::InUse {
            by: same(&other.name),
        }),
        None => Ok(()),
    }
}

/// Checks that the payload is on top of the stack.
pub(super) fn revert(stack: &Stack, id: Id) -> Result<(), Cause> {
    match stack.top() {
        Some(top) if top.id != id => Err(Cause::NotOnTop {
            top: same(&top.name),
        }),
        _ => Ok(()),
    }
}

/// A request to apply a payload.
#[derive(Clone, Copy)]
pub(super) struct Request {
    pub(super) payload: Id,
    /// Whether all applied payloads are reverted first.
    pub(super) replace: bool,
    pub(super) nodeps: bool,
    pub(super) guard: Guard,
}

/// Checks that the payload can be applied, and prepares its writes. For a replace,
/// adds the payloads to revert to `reverts`.
pub(super) fn apply(
    host: &impl Host,
    stack: &Stack,
    request: Request,
    reverts: &mut Reverts,
) -> Result<Vec<Patch>, Cause> {
    let Request {
        payload: id,
        replace,
        nodeps,
        guard,
    } = request;
    let payload = stack.get(id).ok_or(Cause::NoSuchPayload)?;
    if !payload.pristine() {
        return Err(Cause::NeedsReload);
    }
    if payload.uses.iter().any(|used| stack.get(*used).is_none()) {
        return Err(Cause::Dangling);
    }
    let mut problems = Problems::default();
    if guard != Guard::OldCode && (replace || !nodeps) {
        let below = stack.top().filter(|_| !replace);
        depends(host, payload, below, &mut problems);
    }
    let vetoing = match replace {
        true => take_out(stack, reverts)?,
        false => None,
    };
    let after = AsIfReverted::new(host, &reverts.writes)?;
    unexpected(&after, payload, &mut problems);
    if guard != Guard::Stack {
        changed(&after, payload, &mut problems)?;
    }
    if guard == Guard::OldCode {
        unproved(host, payload, &mut problems)?;
    }
    if !replace {
        overlaps(host, stack, payload, &mut problems);
        taken_symbols(stack, payload, &mut problems);
    }
    if problems.no_memory {
        return Err(NoMemory.into());
    }
    if !problems.list.is_empty() {
        return Err(Cause::Unmet {
            problems: problems.list,
        });
    }
    if replace {
        let own = payload.hooks.vetoing().map(|hook| (payload, hook));
        if let Some((owner, hook)) = vetoing.or(own) {
            let owner = same(&owner.name);
            return Err(Cause::Vetoing { owner, hook });
        }
    }
    patches(&after, payload)
}

/// The new and the current bytes of each function.
#[inline(never)]
fn patches<H: Host>(text: &AsIfReverted<'_, H>, payload: &Loaded) -> Result<Vec<Patch>, Cause> {
    let mut patches = fallible::with_room(payload.functions.len())?;
    for function in &payload.functions {
        let patch = Patch::new(text.host.architecture(), function, |addr, buf| {
            text.read(addr, buf)
        });
        let errno = Errno::EFAULT;
        fallible::push(&mut patches, patch.ok_or(Cause::Closed { errno })?)?;
    }
    Ok(patches)
}

/// Adds all applied payloads to `reverts`. Returns the first applied one with a hook
/// that runs outside the window, and the hook.
#[inline(never)]
fn take_out<'s>(
    stack: &'s Stack,
    reverts: &mut Reverts,
) -> Result<Option<(&'s Loaded, Hook)>, NoMemory> {
    let mut vetoing = None;
    for payload in stack.applied().rev() {
        for patch in &payload.patches {
            fallible::push(&mut reverts.writes, patch.undo())?;
        }
        let revert = Revert {
            payload: payload.id,
            written: reverts.writes.len(),
            hooked: payload.hooks.in_window(),
        };
        fallible::push(&mut reverts.payloads, revert)?;
        reverts.look_again |= payload.hooks.single(Hook::Revert).is_some();
        vetoing = payload
            .hooks
            .vetoing()
            .map(|hook| (payload, hook))
            .or(vetoing);
    }
    Ok(vetoing)
}

/// Whether the payload depends on `below`, or on the hypervisor itself.
#[inline(never)]
fn depends(host: &impl Host, payload: &Loaded, below: Option<&Loaded>, problems: &mut Problems) {
    let (top, top_name) = match below {
        Some(below) => (below.build_id.as_slice(), below.name.as_str()),
        None => (host.build_id(), "the hypervisor"),
    };
    if payload.depends != top {
        problems.push(Problem::Depends {
            wants: bytes(&payload.depends),
            top: bytes(top),
            top_name: same(top_name),
            replaces: below.is_some() && payload.depends == host.build_id(),
        });
    }
}

/// The functions that do not hold the bytes that the payload expects.
#[inline(never)]
fn unexpected<H: Host>(text: &AsIfReverted<'_, H>, payload: &Loaded, problems: &mut Problems) {
    let expectations = payload.functions.iter().zip(&payload.expectations);
    for (index, (function, expect)) in expectations.enumerate() {
        if !expect.enabled() {
            continue;
        }
        let mut invalid = |what, errno| {
            problems.push(Problem::Function {
                index,
                name: function.name(text.host),
                fault: FunctionFault::ExpectationInvalid { what, errno },
            });
        };
        if expect.reserved() != 0 {
            invalid("reserved bits set", Errno::EINVAL);
            continue;
        }
        if expect.len() as u64 > u64::from(function.old_size) {
            invalid("more bytes than the function has", Errno::ERANGE);
            continue;
        }
        let expected = expect.bytes();
        let mut buffer = [0; OPAQUE_SIZE];
        let actual = buffer.get_mut(..expected.len()).unwrap_or_default();
        if !(text.read(function.old_addr, actual) && actual == expected) {
            problems.push(Problem::Function {
                index,
                name: function.name(text.host),
                fault: FunctionFault::Expectation {
                    addr: function.old_addr,
                    expected: bytes(expected),
                    actual: bytes(actual),
                },
            });
        }
    }
}

/// The functions whose hash differs from their preimage notes.
#[inline(never)]
fn changed<H: Host>(
    text: &AsIfReverted<'_, H>,
    payload: &Loaded,
    problems: &mut Problems,
) -> Result<(), NoMemory> {
    for note in preimage::notes(&payload.preimages) {
        // Payloads with unreadable ones were refused. (`flatten` would use more
        // stack, which is deepest here.)
        let Some(note) = note else {
            continue;
        };
        if differs(text, &note)? {
            let (addr, size) = (note.address, note.size);
            problems.push(Problem::Preimage { addr, size });
        }
    }
    Ok(())
}

/// Whether the function of a preimage note has a different hash.
#[inline(never)]
fn differs<H: Host>(
    text: &AsIfReverted<'_, H>,
    note: &preimage::Note<'_>,
) -> Result<bool, NoMemory> {
    let mut code = fallible::filled(0, usize::try_from(note.size).unwrap_or(0))?;
    let found = text.read(note.address, &mut code);
    note.mask(&mut code);
    Ok(!found || Sha256::digest(&code)[..] != note.hash)
}

/// The functions without a preimage note.
#[inline(never)]
fn unproved(host: &impl Host, payload: &Loaded, problems: &mut Problems) -> Result<(), NoMemory> {
    let notes = preimage::notes(&payload.preimages).flatten();
    let mut proved = fallible::collect(notes.map(|note| note.address))?;
    sort(&mut proved, |a, b| a < b);
    for (index, function) in payload.functions.iter().enumerate() {
        if proved.binary_search(&function.old_addr).is_err() {
            problems.push(Problem::Function {
                index,
                name: function.name(host),
                fault: FunctionFault::NoPreimage,
            });
        }
    }
    Ok(())
}

/// The functions that overlap an already patched one. A function may be patched
/// again, but only as the same function.
#[inline(never)]
fn overlaps(host: &impl Host, stack: &Stack, payload: &Loaded, problems: &mut Problems) {
    for (index, function) in payload.functions.iter().enumerate() {
        if let Some((other, theirs)) = stack.overlapping(function) {
            problems.push(Problem::Function {
                index,
                name: function.name(host),
                fault: FunctionFault::AppliedOverlap {
                    addr: theirs.old_addr.max(function.old_addr),
                    other: same(&other.name),
                    theirs: theirs.name(host),
                },
            });
        }
    }
}

/// The new symbols that an applied payload also has: loading allows them if only a
/// replace can follow, but that can be circumvented.
#[inline(never)]
fn taken_symbols(stack: &Stack, payload: &Loaded, problems: &mut Problems) {
    for symbol in payload.symbols.names() {
        if let Some(other) = stack.applied_symbol(symbol, payload.id) {
            problems.push(Problem::AppliedSymbol {
                symbol: text(symbol),
                other: same(&other.name),
            });
        }
    }
}

/// The hypervisor's text as it will be after the reverts.
struct AsIfReverted<'h, H> {
    host: &'h H,
    /// Restored bytes, by address, each with the number of its write.
    old: Vec<(u64, usize, u8)>,
}

impl<'h, H: Host> AsIfReverted<'h, H> {
    /// The text after `writes`, in their order.
    #[inline(never)]
    fn new(host: &'h H, writes: &[Write]) -> Result<Self, NoMemory> {
        let mut sorted = fallible::collect(writes.iter().enumerate())?;
        sort(&mut sorted, |(a, x), (b, y)| (x.addr, b) < (y.addr, a));
        let count = writes.iter().map(|write| write.bytes().len()).sum();
        let mut old = fallible::with_room(count)?;
        for (order, write) in sorted {
            for (addr, byte) in (write.addr..).zip(write.bytes()) {
                fallible::push(&mut old, (addr, order, *byte))?;
            }
        }
        // Writes that do not overlap are already sorted. The last one counts.
        sort(&mut old, |(x, a, _), (y, b, _)| (x, b) < (y, a));
        old.dedup_by_key(|(addr, ..)| *addr);
        Ok(Self { host, old })
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        let found = self.host.read(addr, buf);
        let first = self.old.partition_point(|(at, ..)| *at < addr);
        for (at, _, byte) in self.old.iter().skip(first) {
            let offset = usize::try_from(at - addr).ok();
            match offset.and_then(|offset| buf.get_mut(offset)) {
                Some(place) => *place = *byte,
                None => break,
            }
        }
        found
    }
}
