// SPDX-License-Identifier: MIT OR Apache-2.0
//! Texts of a payload, shown to people and to programs that read lines.
//!
//! Metadata and names come from whoever built the payload. A line break in one of
//! them can forge a line of a list, and marks of text direction make a terminal or
//! browser show another order than the bytes have.

use core::fmt::{self, Write as _};

/// Whether `c` changes what is around it instead of being seen: a control
/// character, a line or paragraph separator, or a mark of text direction (Unicode's
/// `Bidi_Control`).
#[must_use]
pub fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{2028}' | '\u{2029}' | '\u{61c}' | '\u{200e}' | '\u{200f}'
        )
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text in which deceptive characters are escaped as in Rust's literals.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(&'a str);

/// Shows `text` with its deceptive characters escaped.
///
/// ```
/// let shown = xsplice_abi::text::escaped("author=me\nfake | APPLIED").to_string();
/// assert_eq!(shown, r"author=me\nfake | APPLIED");
/// ```
#[must_use]
pub fn escaped(text: &str) -> Escaped<'_> {
    Escaped(text)
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if is_deceptive(c) {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;
    use alloc::string::ToString as _;

    #[test]
    fn only_what_deceives_is_escaped() {
        for plain in ["", "a b=c", "größer \u{1f600}", "back\\slash \"quoted\""] {
            assert_eq!(escaped(plain).to_string(), plain);
        }
        assert_eq!(
            escaped("a\tb\r\u{1b}[0m\u{202e}x").to_string(),
            r"a\tb\r\u{1b}[0m\u{202e}x"
        );
        for c in [
            '\0', '\n', '\u{85}', '\u{200e}', '\u{2028}', '\u{2066}', '\u{61c}',
        ] {
            assert!(is_deceptive(c), "{c:?}");
        }
    }
}
