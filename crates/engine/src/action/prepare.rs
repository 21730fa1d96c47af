// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is done about an action while the hypervisor runs.

use super::{Action, Cause, Guard, Options};
use crate::patch::Patch;
use crate::problem::{Problem, text};
use crate::stack::{Id, Loaded};
use crate::{Errno, Host, Stack};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use sha2::{Digest as _, Sha256};
use xsplice_abi::preimage::Preimage;

/// Whether nothing that is applied needs the payload.
pub(super) fn unload(stack: &Stack, id: Id) -> Result<(), Cause> {
    match stack.applied().find(|other| other.uses.contains(&id)) {
        Some(other) => Err(Cause::InUse {
            by: other.name.clone(),
        }),
        None => Ok(()),
    }
}

/// Whether the payload is the one on top.
pub(super) fn revert(stack: &Stack, id: Id) -> Result<(), Cause> {
    match stack.top() {
        Some(top) if top.id != id => Err(Cause::NotOnTop {
            top: top.name.clone(),
        }),
        _ => Ok(()),
    }
}

/// Whether the payload can be applied, and what that writes.
pub(super) fn apply(
    host: &impl Host,
    stack: &Stack,
    id: Id,
    action: Action,
    options: Options,
    guard: Guard,
) -> Result<Vec<Patch>, Cause> {
    let payload = stack.get(id).ok_or(Cause::NoSuchPayload)?;
    if !payload.pristine() {
        return Err(Cause::NeedsReload);
    }
    if payload.uses.iter().any(|used| stack.get(*used).is_none()) {
        return Err(Cause::Dangling);
    }
    let replace = action == Action::Replace;
    let mut problems = Vec::new();
    if guard != Guard::OldCode && (replace || !options.nodeps) {
        let below = stack.top().filter(|_| !replace);
        problems.extend(depends(host, payload, below));
    }
    let after = if replace {
        AsIfReverted::new(host, stack.applied().rev())
    } else {
        AsIfReverted::new(host, [])
    };
    problems.extend(unexpected(&after, payload));
    if guard != Guard::Stack {
        problems.extend(changed(&after, payload));
    }
    if guard == Guard::OldCode {
        problems.extend(unproved(payload));
    }
    if !replace {
        problems.extend(overlaps(stack, payload));
        problems.extend(taken_symbols(stack, payload));
    }
    if !problems.is_empty() {
        return Err(Cause::Unmet { problems });
    }
    if replace {
        for other in stack.applied().chain([payload]) {
            if let Some(hook) = other.hooks.vetoing() {
                let owner = other.name.clone();
                return Err(Cause::Vetoing { owner, hook });
            }
        }
    }
    let patches = payload.functions.iter().map(|function| {
        Patch::new(function, |addr, buf| after.read(addr, buf)).ok_or(Cause::Closed {
            errno: Errno::EFAULT,
        })
    });
    patches.collect()
}

/// Whether the payload goes on top of `below`, or of the hypervisor itself.
fn depends(host: &impl Host, payload: &Loaded, below: Option<&Loaded>) -> Option<Problem> {
    let (top, top_name) = match below {
        Some(below) => (below.build_id.as_slice(), below.name.as_str()),
        None => (host.build_id(), "the hypervisor"),
    };
    (payload.depends != top).then(|| Problem::Depends {
        wants: payload.depends.clone(),
        top: top.into(),
        top_name: top_name.into(),
        replaces: below.is_some() && payload.depends == host.build_id(),
    })
}

/// The functions that do not hold what the payload was made for.
#[inline(never)]
fn unexpected<H: Host>(text: &AsIfReverted<'_, H>, payload: &Loaded) -> Vec<Problem> {
    let mut problems = Vec::new();
    let expectations = payload.functions.iter().zip(&payload.expectations);
    for (index, (function, expect)) in expectations.enumerate() {
        if !expect.enabled() {
            continue;
        }
        let mut invalid = |what, errno| {
            problems.push(Problem::ExpectationInvalid {
                index,
                function: function.name.clone(),
                what,
                errno,
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
        let mut actual = vec![0; expected.len()];
        if !(text.read(function.old_addr, &mut actual) && actual == expected) {
            problems.push(Problem::Expectation {
                index,
                function: function.name.clone(),
                addr: function.old_addr,
                expected: expected.to_vec(),
                actual,
            });
        }
    }
    problems
}

/// The functions of which the preimage notes say something else.
#[inline(never)]
fn changed<H: Host>(text: &AsIfReverted<'_, H>, payload: &Loaded) -> Vec<Problem> {
    let differs = |note: &&Preimage| {
        let mut code = vec![0; usize::try_from(note.size).unwrap_or(0)];
        let found = text.read(note.address, &mut code);
        note.mask(&mut code);
        !found || Sha256::digest(&code)[..] != note.hash
    };
    let changed = payload.preimages.iter().filter(differs);
    changed
        .map(|note| Problem::Preimage {
            addr: note.address,
            size: note.size,
        })
        .collect()
}

/// The functions of which no preimage note says anything.
#[inline(never)]
fn unproved(payload: &Loaded) -> Vec<Problem> {
    let mut proved = BTreeSet::new();
    proved.extend(payload.preimages.iter().map(|note| note.address));
    let functions = payload.functions.iter().enumerate();
    functions
        .filter(|(_, function)| !proved.contains(&function.old_addr))
        .map(|(index, function)| Problem::NoPreimage {
            index,
            function: function.name.clone(),
        })
        .collect()
}

/// The functions that share bytes with one that is patched already. A function
/// may be patched again, but only as the same function.
#[inline(never)]
fn overlaps(stack: &Stack, payload: &Loaded) -> Vec<Problem> {
    let mut patched = BTreeMap::new();
    for other in stack.applied() {
        for function in &other.functions {
            patched.insert(function.old_addr, (other, function));
        }
    }
    let mut problems = Vec::new();
    for (index, function) in payload.functions.iter().enumerate() {
        let (start, end) = (function.old_addr, function.end());
        let below = patched.range(..start).next_back();
        let inside = patched.range(start..end).find(|(addr, _)| **addr != start);
        let below = below.filter(|(_, (_, below))| below.end() > start);
        if let Some((_, (other, theirs))) = below.or(inside) {
            problems.push(Problem::AppliedOverlap {
                index,
                function: function.name.clone(),
                other: other.name.clone(),
                theirs: theirs.name.clone(),
                addr: theirs.old_addr.max(start),
            });
        }
    }
    problems
}

/// The new symbols that an applied payload has as well: loading lets them pass
/// where only a replace can follow, but there are ways around that.
#[inline(never)]
fn taken_symbols(stack: &Stack, payload: &Loaded) -> Vec<Problem> {
    let mut problems = Vec::new();
    for symbol in &payload.symbols {
        if let Some(other) = stack.applied_symbol(symbol, payload.id) {
            problems.push(Problem::AppliedSymbol {
                symbol: text(symbol),
                other: other.name.clone(),
            });
        }
    }
    problems
}

/// The hypervisor's text as it will be when payloads are reverted.
struct AsIfReverted<'h, H> {
    host: &'h H,
    /// Bytes that are put back.
    old: BTreeMap<u64, u8>,
}

impl<'h, H: Host> AsIfReverted<'h, H> {
    /// Without `reverted`, of which the one on top comes first.
    fn new<'p>(host: &'h H, reverted: impl IntoIterator<Item = &'p Loaded>) -> Self {
        let mut old = BTreeMap::new();
        for patch in reverted.into_iter().flat_map(|payload| &payload.patches) {
            old.extend((patch.addr..).zip(patch.old().iter().copied()));
        }
        Self { host, old }
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        let found = self.host.read(addr, buf);
        let end = addr.saturating_add(buf.len() as u64);
        for (at, byte) in self.old.range(addr..end) {
            let offset = usize::try_from(at - addr).ok();
            if let Some(place) = offset.and_then(|offset| buf.get_mut(offset)) {
                *place = *byte;
            }
        }
        found
    }
}
