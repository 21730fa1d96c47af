// SPDX-License-Identifier: MIT OR Apache-2.0

//! A payload laid out at the addresses it will have.

use crate::host::{Protection, Resident};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;
use xsplice_abi::errno::Errno;

/// Size of a page: sections of different protection never share one.
pub(crate) const PAGE: u64 = 4096;

/// Consecutive bytes of one protection.
#[derive(Debug, Default)]
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

    pub(crate) fn range(&self) -> Range<u64> {
        self.base..self.base.saturating_add(self.bytes.len() as u64)
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

/// Text, writable data and read-only data of a payload, in this order in
/// memory, and the memory that they are for.
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

    pub(crate) fn get(&self, addr: u64, len: usize) -> Option<&[u8]> {
        self.spans.iter().find_map(|span| span.get(addr, len))
    }

    pub(crate) fn get_mut(&mut self, addr: u64, len: usize) -> Option<&mut [u8]> {
        self.spans
            .iter_mut()
            .find_map(|span| span.get_mut(addr, len))
    }

    /// Copies everything to where it will be.
    pub(crate) fn copy(&mut self) {
        for span in &self.spans {
            self.memory.write(span.base, &span.bytes);
        }
    }

    /// Gives each span its protection.
    pub(crate) fn protect(&mut self) -> Result<(), Errno> {
        const PROTECTIONS: [Protection; 3] =
            [Protection::Text, Protection::Data, Protection::ReadOnly];
        for (span, protection) in self.spans.iter().zip(PROTECTIONS) {
            let Range { start, end } = span.range();
            if start != end {
                let end = end.next_multiple_of(PAGE);
                self.memory.protect(start..end, protection)?;
            }
        }
        Ok(())
    }
}
