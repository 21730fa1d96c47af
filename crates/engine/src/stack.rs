//! The payloads that are loaded already.

use crate::image::{Image, PAGE, Span};
use crate::stage::Verified;
use crate::{Host, Region};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

/// A payload on the stack.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub(crate) name: String,
    pub(crate) build_id: Vec<u8>,
    pub(crate) image: Image,
    /// New symbols, by name.
    pub(crate) symbols: BTreeMap<Vec<u8>, u64>,
    /// What applying it writes over the hypervisor.
    pub(crate) writes: Vec<Span>,
    pub(crate) applied: bool,
}

impl Loaded {
    /// The name it was loaded under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is applied.
    #[must_use]
    pub fn applied(&self) -> bool {
        self.applied
    }
}

/// The payloads that are loaded, in the order in which they were.
#[derive(Clone, Debug, Default)]
pub struct Stack {
    loaded: Vec<Loaded>,
}

impl Stack {
    /// No payloads.
    #[must_use]
    pub const fn new() -> Self {
        Self { loaded: Vec::new() }
    }

    /// The payloads, oldest first.
    #[must_use]
    pub fn loaded(&self) -> &[Loaded] {
        &self.loaded
    }

    /// Puts a verified payload on the stack, applied if it can be.
    pub fn push(&mut self, payload: Verified) {
        self.loaded.push(payload.into_loaded());
    }

    /// The payload whose dependency the next one has to match.
    pub(crate) fn top(&self) -> Option<&Loaded> {
        self.loaded.iter().rev().find(|payload| payload.applied)
    }

    /// A new symbol of a loaded payload; the oldest payload comes first.
    pub(crate) fn symbol(&self, name: &[u8]) -> Option<(&Loaded, u64)> {
        self.loaded
            .iter()
            .find_map(|payload| Some((payload, *payload.symbols.get(name)?)))
    }

    /// Where the next payload is placed: behind the last one and a guard page.
    pub(crate) fn next_base(&self, host: &impl Host) -> u64 {
        let start = host.payload_area().start;
        let end = self
            .loaded
            .iter()
            .map(|payload| payload.image.end() + PAGE)
            .max();
        end.map_or(start, |end| end.max(start))
    }

    /// What an address belongs to, payloads included.
    pub(crate) fn region(&self, host: &impl Host, addr: u64) -> Region {
        let in_payload = |payload: &Loaded| payload.image.text().contains(addr, 1);
        if self.loaded.iter().any(in_payload) {
            Region::Text
        } else {
            host.region(addr)
        }
    }

    /// The bytes at `addr` as they are with all applied payloads.
    pub(crate) fn read(&self, host: &impl Host, addr: u64, buf: &mut [u8]) -> bool {
        let in_payload = |payload: &Loaded| payload.image.get(addr, buf.len()).map(<[u8]>::to_vec);
        let found = match self.loaded.iter().find_map(in_payload) {
            Some(bytes) => {
                buf.copy_from_slice(&bytes);
                true
            }
            None => host.read(addr, buf),
        };
        for write in self
            .loaded
            .iter()
            .filter(|loaded| loaded.applied)
            .flat_map(|p| &p.writes)
        {
            for (offset, byte) in (0..).zip(buf.iter_mut()) {
                let at = addr.wrapping_add(offset);
                if let Some([written]) = write.get(at, 1) {
                    *byte = *written;
                }
            }
        }
        found
    }
}
