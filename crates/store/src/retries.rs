// SPDX-License-Identifier: MIT OR Apache-2.0
//! When to try again what the hypervisor was too busy to do.

use std::time::Duration;

/// The pause before the first retry; each is twice as long as the one before.
const FIRST: Duration = Duration::from_millis(40);
/// No pause is longer.
const LONGEST: Duration = Duration::from_millis(640);

/// The retries of one operation.
#[derive(Debug, Clone)]
pub struct Retries {
    most: u32,
    taken: u32,
    pause: Duration,
}

impl Retries {
    /// How many there are, unless somebody asks for another number.
    pub const DEFAULT: u32 = 5;

    /// At most `most` retries.
    #[must_use]
    pub fn new(most: u32) -> Self {
        Self {
            most,
            taken: 0,
            pause: FIRST,
        }
    }

    /// How many were taken.
    #[must_use]
    pub fn taken(&self) -> u32 {
        self.taken
    }
}

impl Default for Retries {
    fn default() -> Self {
        Self::new(Self::DEFAULT)
    }
}

/// How long to wait before each.
impl Iterator for Retries {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.pause;
        (self.taken < self.most).then(|| {
            self.taken += 1;
            self.pause = (2 * pause).min(LONGEST);
            pause
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut retries = Retries::new(7);
        let pauses: Vec<u128> = retries.by_ref().map(|pause| pause.as_millis()).collect();
        assert_eq!(pauses, [40, 80, 160, 320, 640, 640, 640]);
        assert_eq!(retries.taken(), 7);
    }
}
