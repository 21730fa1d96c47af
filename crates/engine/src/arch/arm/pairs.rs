// SPDX-License-Identifier: MIT OR Apache-2.0

//! Addresses that are computed in two steps: one instruction puts a part into a register,
//! and its partner completes it, or accesses memory there.

use super::SIZE;
use crate::Host;

/// How far from the first instruction its partner is looked for, in bytes. Compilers put
/// few instructions between the two.
const REACH: u64 = 64;

/// What an instruction is for an address in two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::arch) enum Step {
    /// It puts the first part into this register.
    First(usize),
    /// It completes what is in this register.
    Second(usize),
    /// It puts something else into this register.
    Overwrites(usize),
    /// It returns, and other code begins behind it.
    Leaves,
    /// Nothing.
    Other,
}

/// The first instruction before `at` and its partner at or behind `at`, if there are such.
/// Nothing before `start` counts. The partner is the next instruction, in the order of
/// addresses, that uses the register.
pub(in crate::arch) fn across(
    host: &impl Host,
    start: u64,
    at: u64,
    step: fn(u32) -> Step,
) -> Option<(u64, u64)> {
    let mut firsts = [None; 32];
    let mut bytes = [0; SIZE];
    let mut place = start.max(at.saturating_sub(REACH));
    while place < at.saturating_add(REACH) && host.read(place, &mut bytes) {
        match step(u32::from_le_bytes(bytes)) {
            Step::First(register) => {
                if let Some(first) = firsts.get_mut(register) {
                    *first = (place < at).then_some(place);
                }
            }
            Step::Second(register) => {
                if let Some(first) = firsts.get_mut(register).and_then(Option::take)
                    && place >= at
                {
                    return Some((first, place));
                }
            }
            Step::Overwrites(register) => {
                if let Some(first) = firsts.get_mut(register) {
                    *first = None;
                }
            }
            Step::Leaves => firsts = [None; 32],
            Step::Other => {}
        }
        place = place.saturating_add(SIZE as u64);
    }
    None
}
