// SPDX-License-Identifier: MIT OR Apache-2.0

//! What code refers to.

use super::instruction::{address, branch, offset};
use crate::Host;
use core::ops::Range;

/// Calls `found` with each address that the code in `range` may refer to: targets of
/// branches, and what `adr`, `adrp` and the instructions after them compute. The pages
/// are followed in the order of addresses, and stay until their register has another.
pub(super) fn each(host: &impl Host, range: Range<u64>, mut found: impl FnMut(u64)) {
    let mut pages = [None; 32];
    let mut bytes = [0; 4];
    let mut at = range.start;
    while range.end.saturating_sub(at) >= 4 && host.read(at, &mut bytes) {
        let word = u32::from_le_bytes(bytes);
        if let Some(branch) = branch(word) {
            found(branch.target(at));
        } else if let Some((register, value)) = address(word, at) {
            found(value);
            if let Some(page) = pages.get_mut(register) {
                *page = Some(value);
            }
        } else if let Some((base, offset)) = offset(word)
            && let Some(Some(page)) = pages.get(base)
        {
            found(page.wrapping_add(offset));
        }
        at = at.saturating_add(4);
    }
}
