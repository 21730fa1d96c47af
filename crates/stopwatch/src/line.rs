// SPDX-License-Identifier: MIT OR Apache-2.0
//! The output of a stopwatch.

use std::fmt;
use std::str::FromStr;

/// A line of a stopwatch's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// A CPU went from the begin of a stretch to one of its ends. As text: both
    /// numbers, separated by a blank.
    Passage {
        /// Index of the stretch in the request.
        stretch: usize,
        /// Ticks of the host's time-stamp counter, or instructions.
        length: u64,
    },
    /// Code of the page at this address was translated because a CPU was about to run
    /// it. As text: `page` and the address in hexadecimal.
    Page(u64),
}

/// The keyword before the address of a page.
const PAGE: &str = "page";

/// Size of a page.
const PAGE_SIZE: u64 = 4096;

/// The page that contains `address`, as in a [`Line::Page`].
#[must_use]
pub const fn page(address: u64) -> u64 {
    address / PAGE_SIZE * PAGE_SIZE
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passage { stretch, length } => write!(f, "{stretch} {length}"),
            Self::Page(address) => write!(f, "{PAGE} {address:x}"),
        }
    }
}

/// Not a line of a stopwatch.
#[derive(Debug, thiserror::Error)]
#[error("neither the number of a stretch and a length, nor a page and its address: {0:?}")]
pub struct NoLine(String);

impl FromStr for Line {
    type Err = NoLine;

    fn from_str(line: &str) -> Result<Self, NoLine> {
        let read = line.split_once(' ').and_then(|words| match words {
            (PAGE, address) => u64::from_str_radix(address, 16).ok().map(Self::Page),
            (stretch, length) => Some(Self::Passage {
                stretch: stretch.parse().ok()?,
                length: length.parse().ok()?,
            }),
        });
        read.ok_or_else(|| NoLine(line.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_can_be_parsed() {
        let passage = Line::Passage {
            stretch: 1,
            length: u64::MAX,
        };
        for line in [passage, Line::Page(0), Line::Page(0xffff_82d0_4020_0000)] {
            let read: Line = line.to_string().parse().expect("it was written so");
            assert_eq!(read, line);
        }
    }

    #[test]
    fn half_a_line_is_none() {
        for line in [
            "", "1", "1 ", " 1", "1 x", "-1 1", "1 1 1", "page", "page ", "page x", "page 1 1",
        ] {
            let read = line.parse::<Line>();
            let error = read.expect_err("it is no line").to_string();
            assert!(error.ends_with(&format!("{line:?}")), "{error}");
        }
    }
}
