// SPDX-License-Identifier: MIT OR Apache-2.0

//! Addresses that are computed in two steps: `adrp` puts a page into a register, and a
//! partner adds the rest to it, or accesses memory there.

use super::SIZE;
use super::instruction::{address, offset};
use crate::Host;

/// How far from `adrp` its partner is looked for, in bytes. Compilers put few instructions
/// between the two.
const REACH: u64 = 64;

/// The `adrp` before `at` and its partner at or behind `at`, if there are such. Nothing
/// before `start` counts. The partner is the next instruction, in the order of addresses,
/// that uses the register.
pub(super) fn across(host: &impl Host, start: u64, at: u64) -> Option<(u64, u64)> {
    let mut pages = [None; 32];
    let mut bytes = [0; SIZE];
    let mut place = start.max(at.saturating_sub(REACH));
    while place < at.saturating_add(REACH) && host.read(place, &mut bytes) {
        let word = u32::from_le_bytes(bytes);
        if let Some((base, _)) = offset(word)
            && let Some(first) = pages.get_mut(base).and_then(Option::take)
            && place >= at
        {
            return Some((first, place));
        }
        if let Some((register, _)) = address(word, place)
            && let Some(page) = pages.get_mut(register)
        {
            *page = (is_page(word) && place < at).then_some(place);
        } else if leaves(word) {
            pages = [None; 32];
        }
        place = place.saturating_add(SIZE as u64);
    }
    None
}

/// Whether it is `adrp`, and not `adr`.
fn is_page(word: u32) -> bool {
    word >> 31 == 1
}

/// Whether it is `ret` or `br`, behind which other code begins.
fn leaves(word: u32) -> bool {
    matches!(word & 0xffff_fc1f, 0xd65f_0000 | 0xd61f_0000)
}
