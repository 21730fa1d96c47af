// SPDX-License-Identifier: MIT OR Apache-2.0

//! A message where nothing can be allocated.

use core::fmt;

/// A message of at most 256 bytes; the rest of a longer one is dropped.
#[derive(Debug)]
pub struct Message {
    bytes: [u8; 256],
    len: usize,
}

impl Message {
    /// The start of `text` that fits, in complete characters.
    #[must_use]
    pub fn new(text: fmt::Arguments<'_>) -> Self {
        let mut message = Self {
            bytes: [0; 256],
            len: 0,
        };
        // It never fails.
        let _ = fmt::write(&mut message, text);
        message
    }

    /// Its text, in UTF-8.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl fmt::Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let free = self.bytes.len().saturating_sub(self.len);
        let mut ends = (0..=free.min(text.len())).rev();
        let fits = ends.find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        let text = text.get(..fits).unwrap_or("");
        let end = self.len.saturating_add(text.len());
        if let Some(place) = self.bytes.get_mut(self.len..end) {
            place.copy_from_slice(text.as_bytes());
            self.len = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Message;
    use alloc::format;

    #[test]
    fn what_fits_is_kept_in_whole_characters() {
        let short = Message::new(format_args!("{}, {}", "one", 2));
        assert_eq!(short.bytes(), b"one, 2");
        let long = Message::new(format_args!("a{}", "ä".repeat(200)));
        assert_eq!(long.bytes(), format!("a{}", "ä".repeat(127)).as_bytes());
    }
}
