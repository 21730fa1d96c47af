// SPDX-License-Identifier: MIT OR Apache-2.0

//! What code refers to.

use super::instruction::{branch, value};
use crate::Host;
use core::ops::Range;

/// Calls `found` with each address that the code in `range` may refer to: targets of
/// branches, also as relocations count them; what `movw` and `movt` compute, in the order
/// of addresses; and each word, for there are tables between the instructions.
pub(super) fn each(host: &impl Host, range: Range<u64>, mut found: impl FnMut(u64)) {
    let mut values = [None; 16];
    let mut bytes = [0; 4];
    let mut at = range.start;
    while range.end.saturating_sub(at) >= 4 && host.read(at, &mut bytes) {
        let word = u32::from_le_bytes(bytes);
        found(word.into());
        if let Some(branch) = branch(word) {
            found(branch.target(at));
            found(branch.counted(at));
        }
        let before = |register: usize| values.get(register).copied().flatten();
        if let Some((register, computed)) = value(word, before) {
            found(computed.into());
            if let Some(value) = values.get_mut(register) {
                *value = Some(computed);
            }
        }
        at = at.saturating_add(4);
    }
}
