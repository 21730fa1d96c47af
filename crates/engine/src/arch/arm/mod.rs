// SPDX-License-Identifier: MIT OR Apache-2.0

//! What ARM64 and ARM32 have in common: instructions of four bytes, and the forms of the
//! hypervisor's tables.

pub(super) mod alternatives;
pub(super) mod pairs;

use super::{Entries, Frame};
use xsplice_abi::special::{BugKind, arm};

/// Size in bytes of every instruction.
pub(super) const SIZE: usize = 4;

/// Size of the window that all payloads together are loaded into:
/// `LIVEPATCH_VMAP_SIZE`.
pub(super) const WINDOW: u64 = 2 << 20;

/// The form of bug frames.
pub(super) const BUG_FRAMES: Entries = Entries {
    size: arm::BUG_FRAME_SIZE,
    expected: "a multiple of 16 (bug frames)",
};

/// The form of alternatives.
pub(super) const ALTERNATIVES: Entries = Entries {
    size: arm::ALTERNATIVE_SIZE,
    expected: "a multiple of 12 (alternatives)",
};

/// A branch with a distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Branch {
    /// The distance in the instruction, in bytes.
    pub(super) distance: i64,
    /// What distances of its kind are below.
    pub(super) limit: i64,
    /// From the instruction to the place that the distance counts from.
    pub(super) ahead: i64,
}

impl Branch {
    /// Its target if it is at `at`.
    pub(super) fn target(self, at: u64) -> u64 {
        self.counted(at).wrapping_add_signed(self.ahead)
    }

    /// Its distance, counted from the instruction itself, as relocations and Xen's code
    /// for alternatives count.
    pub(super) fn counted(self, at: u64) -> u64 {
        at.wrapping_add_signed(self.distance)
    }

    /// Whether one of its kind at `from` can lead to `to`.
    pub(super) fn reaches(self, from: u64, to: u64) -> bool {
        let distance = to.wrapping_sub(from).cast_signed() - self.ahead;
        (-self.limit..self.limit).contains(&distance)
    }
}

/// The start and end of the instruction that spans `at`; see
/// [`Instructions::across`](super::Instructions::across).
pub(super) fn across(code: &[u8], at: usize) -> Result<Option<(usize, usize)>, usize> {
    if at > code.len() {
        return Err(code.len());
    }
    let begin = at / SIZE * SIZE;
    Ok((begin != at).then_some((begin, begin + SIZE)))
}

/// Fills `code` with `nop`.
pub(super) fn fill(code: &mut [u8], nop: [u8; SIZE]) {
    for place in code.chunks_exact_mut(SIZE) {
        place.copy_from_slice(&nop);
    }
}

/// The bug frame at the start of `rest`, whose address is `at`.
pub(super) fn bug_frame(kind: BugKind, rest: &[u8], at: u64) -> Option<Frame> {
    let frame = arm::bug_frame(rest, at)?;
    let message = arm::message(rest, at);
    Some(Frame {
        place: frame.place,
        // It is in a register.
        function: None,
        file: (kind != BugKind::Call).then_some(frame.pointer),
        message: message.filter(|_| kind == BugKind::Assert),
    })
}

#[cfg(test)]
mod tests {
    use super::across;

    #[test]
    fn instructions_start_at_multiples_of_four() {
        let code = [0; 12];
        for (at, expected) in [(0, None), (2, Some((0, 4))), (4, None), (7, Some((4, 8)))] {
            assert_eq!(across(&code, at), Ok(expected));
        }
        assert_eq!(across(&code, 12), Ok(None));
        assert_eq!(across(&code, 13), Err(12));
    }
}
