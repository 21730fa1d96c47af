// SPDX-License-Identifier: MIT OR Apache-2.0
//! Text from a payload, shown to people and to programs that parse lines.
//!
//! Metadata and names come from the payload's author. A line break in one of them can
//! forge a line of a list, and text direction marks make a terminal or browser
//! reorder the characters.

use core::fmt::{self, Write as _};

/// Whether `c` is invisible, or affects the characters around it: a control
/// character, a line or paragraph separator, a text direction mark, or a zero-width
/// character (Unicode's `Bidi_Control` and `Default_Ignorable_Code_Point`).
#[must_use]
pub fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// Text with deceptive characters escaped as in Rust literals.
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
            '\0',
            '\n',
            '\u{85}',
            '\u{ad}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{2028}',
            '\u{2060}',
            '\u{2066}',
            '\u{61c}',
            '\u{feff}',
            '\u{e0041}',
        ] {
            assert!(is_deceptive(c), "{c:?}");
        }
        for c in [
            ' ',
            '\u{a0}',
            '\u{2027}',
            '\u{202f}',
            '\u{fffd}',
            '\u{1f468}',
        ] {
            assert!(!is_deceptive(c), "{c:?}");
        }
    }
}
