// SPDX-License-Identifier: MIT OR Apache-2.0

//! A payload laid out at its final addresses.

use crate::host::{Protection, Resident};
use alloc::boxed::Box;
use core::ops::Range;
use xsplice_abi::errno::Errno;

/// Size of a page: sections of different protection never share one.
pub(crate) const PAGE: u64 = 4096;

/// Consecutive bytes with the same protection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    pub(crate) base: u64,
    /// Its start in the memory.
    pub(crate) start: usize,
    pub(crate) len: usize,
}

impl Span {
    /// The range in the memory of `len` bytes at `addr`, if this span has all of
    /// them.
    fn place(&self, addr: u64, len: usize) -> Option<Range<usize>> {
        let offset = usize::try_from(addr.checked_sub(self.base)?).ok()?;
        let inside = offset.checked_add(len)? <= self.len;
        inside.then_some(self.start + offset..self.start + offset + len)
    }

    pub(crate) fn range(&self) -> Range<u64> {
        self.base..self.base.saturating_add(self.len as u64)
    }

    pub(crate) fn contains(&self, addr: u64, len: usize) -> bool {
        self.place(addr, len).is_some()
    }
}

/// Text, writable data and read-only data of a payload, in this order, in its memory.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) spans: [Span; 3],
    pub(crate) memory: Box<dyn Resident>,
}

impl Image {
    pub(crate) fn text(&self) -> &Span {
        let [text, ..] = &self.spans;
        text
    }

    fn place(&self, addr: u64, len: usize) -> Option<Range<usize>> {
        self.spans.iter().find_map(|span| span.place(addr, len))
    }

    pub(crate) fn get(&self, addr: u64, len: usize) -> Option<&[u8]> {
        self.memory.bytes().get(self.place(addr, len)?)
    }

    pub(crate) fn get_mut(&mut self, addr: u64, len: usize) -> Option<&mut [u8]> {
        let place = self.place(addr, len)?;
        self.memory.bytes_mut().get_mut(place)
    }

    /// The bytes from `addr` to the end of its span.
    pub(crate) fn tail(&self, addr: u64) -> Option<&[u8]> {
        let span = self.spans.iter().find(|span| span.contains(addr, 1))?;
        let start = span.place(addr, 0)?.start;
        self.memory.bytes().get(start..span.start + span.len)
    }

    /// Protects the pages that are no longer written.
    pub(crate) fn protect(&mut self) -> Result<(), Errno> {
        let [text, _data, read_only] = self.spans;
        for (span, protection) in [(text, Protection::Text), (read_only, Protection::ReadOnly)] {
            let Range { start, end } = span.range();
            if start != end {
                let end = end.next_multiple_of(PAGE);
                self.memory.protect(start..end, protection)?;
            }
        }
        Ok(())
    }
}
