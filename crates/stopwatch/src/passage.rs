// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a stopwatch writes.

use std::fmt;
use std::str::FromStr;

/// A CPU went from the begin of a stretch to an end of it. As text, a line:
/// both numbers, with a blank between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// Which stretch of the request.
    pub stretch: usize,
    /// Ticks of the host's time-stamp counter, or instructions.
    pub length: u64,
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.stretch, self.length)
    }
}

/// A line that no stopwatch wrote.
#[derive(Debug, thiserror::Error)]
#[error("not the number of a stretch and a length: {0:?}")]
pub struct NoPassage(String);

impl FromStr for Passage {
    type Err = NoPassage;

    fn from_str(line: &str) -> Result<Self, NoPassage> {
        let numbers = line.split_once(' ').and_then(|(stretch, length)| {
            let (stretch, length) = (stretch.parse().ok()?, length.parse().ok()?);
            Some(Self { stretch, length })
        });
        numbers.ok_or_else(|| NoPassage(line.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let passage = Passage {
            stretch: 1,
            length: u64::MAX,
        };
        let read: Passage = passage.to_string().parse().expect("it was written so");
        assert_eq!(read, passage);
    }

    #[test]
    fn half_a_line_is_no_passage() {
        for line in ["", "1", "1 ", " 1", "1 x", "-1 1", "1 1 1"] {
            let read = line.parse::<Passage>();
            let error = read.expect_err("it is no passage").to_string();
            assert!(error.ends_with(&format!("{line:?}")), "{error}");
        }
    }
}
