// SPDX-License-Identifier: MIT OR Apache-2.0

//! An address range allocator.

use alloc::vec::Vec;
use core::ops::Range;
use xsplice_fallible as fallible;

/// A first-fit allocator of addresses for payloads, for hosts that have none, with a
/// free guard page after each piece.
///
/// ```
/// use xsplice_engine::Area;
///
/// let mut area = Area::new(0x10_0000..0x10_4000);
/// assert_eq!(area.allocate(0x1000), Some(0x10_0000));
/// assert_eq!(area.allocate(0x1000), Some(0x10_2000));
/// assert_eq!(area.allocate(0x1000), None);
/// area.free(0x10_0000);
/// assert_eq!(area.allocate(0x1000), Some(0x10_0000));
/// ```
#[derive(Debug)]
pub struct Area {
    range: Range<u64>,
    /// Starts and ends of the pieces in use, including guard pages, sorted.
    used: Vec<(u64, u64)>,
}

impl Area {
    const GUARD: u64 = 4096;

    /// Allocates from `range`, whose start is page-aligned.
    #[must_use]
    pub const fn new(range: Range<u64>) -> Self {
        Self {
            range,
            used: Vec::new(),
        }
    }

    /// Allocates `size` bytes and returns their start; `None` if there is no such
    /// gap, or no memory to record it.
    pub fn allocate(&mut self, size: u64) -> Option<u64> {
        let size = size.checked_next_multiple_of(Self::GUARD)?;
        let size = size.checked_add(Self::GUARD)?;
        let mut start = self.range.start;
        let mut before = 0;
        for (used, end) in &self.used {
            if used - start >= size {
                break;
            }
            start = *end;
            before += 1;
        }
        let end = start.checked_add(size)?;
        if end > self.range.end {
            return None;
        }
        fallible::push(&mut self.used, (start, end)).ok()?;
        self.used.get_mut(before..)?.rotate_right(1);
        Some(start)
    }

    /// Frees a piece from [`allocate`](Self::allocate).
    pub fn free(&mut self, start: u64) {
        self.used.retain(|(used, _)| *used != start);
    }

    /// Whether nothing is in use.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.used.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::Area;

    #[test]
    fn gaps_are_used_again() {
        let mut area = Area::new(0x10000..0x16000);
        let pieces = [
            area.allocate(1),
            area.allocate(0x1000),
            area.allocate(0x1000),
        ];
        assert_eq!(pieces, [Some(0x10000), Some(0x12000), Some(0x14000)]);
        assert_eq!(area.allocate(1), None);
        area.free(0x12000);
        assert!(!area.is_unused());
        assert_eq!(
            (area.allocate(0x1001), area.allocate(0x1000)),
            (None, Some(0x12000))
        );
        for piece in pieces.into_iter().flatten() {
            area.free(piece);
        }
        assert!(area.is_unused());
        assert_eq!(area.allocate(0x5000), Some(0x10000));
        assert_eq!(area.allocate(u64::MAX), None);
    }
}
