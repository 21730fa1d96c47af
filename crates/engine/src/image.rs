//! A payload laid out at the addresses it will have.

use alloc::vec::Vec;

/// Size of a page: sections of different protection never share one.
pub(crate) const PAGE: u64 = 4096;

/// Consecutive bytes of one protection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Span {
    pub(crate) base: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Span {
    /// Offset of `len` bytes at `addr`, when all of them are in here.
    fn offset(&self, addr: u64, len: usize) -> Option<usize> {
        let start = usize::try_from(addr.checked_sub(self.base)?).ok()?;
        (start.checked_add(len)? <= self.bytes.len()).then_some(start)
    }

    pub(crate) fn contains(&self, addr: u64, len: usize) -> bool {
        self.offset(addr, len).is_some()
    }

    pub(crate) fn get(&self, addr: u64, len: usize) -> Option<&[u8]> {
        self.bytes.get(self.offset(addr, len)?..)?.get(..len)
    }

    pub(crate) fn get_mut(&mut self, addr: u64, len: usize) -> Option<&mut [u8]> {
        let start = self.offset(addr, len)?;
        self.bytes.get_mut(start..)?.get_mut(..len)
    }
}

/// Text, writable data and read-only data of a payload, in this order in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub(crate) spans: [Span; 3],
}

impl Image {
    pub(crate) fn text(&self) -> &Span {
        let [text, ..] = &self.spans;
        text
    }

    pub(crate) fn get(&self, addr: u64, len: usize) -> Option<&[u8]> {
        self.spans.iter().find_map(|span| span.get(addr, len))
    }

    pub(crate) fn get_mut(&mut self, addr: u64, len: usize) -> Option<&mut [u8]> {
        self.spans
            .iter_mut()
            .find_map(|span| span.get_mut(addr, len))
    }

    /// The address after the last page.
    pub(crate) fn end(&self) -> u64 {
        let [.., last] = &self.spans;
        last.base
            .saturating_add(last.bytes.len() as u64)
            .next_multiple_of(PAGE)
    }
}
