// SPDX-License-Identifier: MIT OR Apache-2.0

//! Code that the hypervisor changes: replacements with branches, and calls through
//! pointers that become direct.

use super::branch::Branch;
use super::displacement;
use crate::arch::Wrong;
use crate::stage::Code;
use crate::{Host, Region};
use core::ops::Range;
use xsplice_abi::special::{Alternative, CALL_SITE_SIZE};

/// Whether the entry fits and the hypervisor can use it.
pub(super) fn check<H: Host>(
    code: &Code<'_, '_, H>,
    replacements: &Range<u64>,
    entry: &Alternative,
) -> Result<(), Wrong> {
    let total_len = entry.total_len();
    let repl_len = u64::from(entry.replacement_len);
    let repl_end = entry.replacement.checked_add(repl_len);
    if entry.replacement < replacements.start || repl_end.is_none_or(|end| end > replacements.end) {
        let what = "its replacement is outside .altinstr_replacement";
        return Err((what, entry.replacement));
    }
    if repl_len > total_len.into() {
        return Err(("its replacement is longer than its code", repl_len));
    }
    if total_len > u8::MAX.into() {
        return Err(("its code has more than 255 bytes", total_len.into()));
    }
    let feature = entry.feature();
    if feature >= code.limits().features {
        let what = "it is for a processor feature that this hypervisor does not know";
        return Err((what, feature.into()));
    }
    if entry.used != 0 {
        return Err(("it is marked as applied already", entry.place));
    }
    check_branch(code, entry)
}

/// If the replacement is a branch, the hypervisor relocates it, or redirects it
/// to the target of the original call's pointer. Checks that this is code.
#[inline(never)]
fn check_branch<H: Host>(code: &Code<'_, '_, H>, entry: &Alternative) -> Result<(), Wrong> {
    let replacement = code.get(entry.replacement, usize::from(entry.replacement_len));
    let Some(branch) = replacement.and_then(Branch::direct) else {
        return Ok(());
    };
    let target = branch.target(entry.replacement);
    if target == entry.replacement {
        let always = code.limits().always;
        let becomes_direct = u32::from(entry.original_len) >= CALL_SITE_SIZE
            && always.is_some_and(|always| always == entry.condition);
        return if becomes_direct {
            check_pointer(code, entry.place, branch.is_jump)
        } else {
            Err(("its replacement is a branch to itself", target))
        };
    }
    if !code.is_code(target) {
        return Err(("its replacement branches to what is no code", target));
    }
    let reached = displacement(entry.place, target);
    let far = ("its replacement branches out of reach", target);
    reached.map(|_| ()).ok_or(far)
}

/// Whether the call (or jump) at `at` goes through a pointer to code. A null
/// pointer becomes a trap.
#[inline(never)]
pub(super) fn check_pointer<H: Host>(
    code: &Code<'_, '_, H>,
    at: u64,
    is_jump: bool,
) -> Result<(), Wrong> {
    let call = code.get(at, CALL_SITE_SIZE as usize);
    let Some(branch) = call.and_then(|call| Branch::indirect(call, is_jump)) else {
        return Err(("it is for a call through a pointer, and there is none", at));
    };
    let slot = branch.target(at);
    if code.host().region(slot) == Region::Init {
        return Err((
            "the pointer that it calls through is freed after boot",
            slot,
        ));
    }
    let mut pointer = [0; 8];
    match code.get(slot, pointer.len()) {
        Some(bytes) => pointer.copy_from_slice(bytes),
        None if code.host().read(slot, &mut pointer) => {}
        None => return Err(("the pointer that it calls through cannot be read", slot)),
    }
    let target = u64::from_le_bytes(pointer);
    if target == 0 || code.is_code(target) && displacement(at, target).is_some() {
        Ok(())
    } else {
        Err(("the pointer that it calls through leads to no code", target))
    }
}
