// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random decisions, taken from numbers that the property test makes smaller
//! and fewer when one fails.

use std::vec::IntoIter;

/// Zero is the simplest of what there is to choose from, and all that is left
/// when the numbers are used up.
pub(crate) struct Choices(IntoIter<u32>);

impl Choices {
    pub(crate) fn new(numbers: Vec<u32>) -> Self {
        Self(numbers.into_iter())
    }

    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        self.0.next().unwrap_or(0) % limit
    }

    pub(crate) fn between(&mut self, least: u32, most: u32) -> u32 {
        least + self.below(most - least + 1)
    }

    pub(crate) fn index(&mut self, length: usize) -> usize {
        self.below(u32::try_from(length).expect("few")) as usize
    }

    pub(crate) fn one_in(&mut self, times: u32) -> bool {
        self.below(times) == times - 1
    }
}
