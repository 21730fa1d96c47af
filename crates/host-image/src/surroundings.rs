// SPDX-License-Identifier: MIT OR Apache-2.0

//! What no loader can see, because it is not in the payload: how the hypervisor
//! itself uses the patched functions.

use crate::Image;
use crate::special;
use std::collections::BTreeMap;
use std::ops::Range;
use xsplice_abi::special::Table;
use xsplice_engine::Region;

/// References to functions, and code that changes at boot.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// Code that the hypervisor patches at boot, start to end.
    patched: BTreeMap<u64, u64>,
    /// The places that take the addresses of functions.
    taken: BTreeMap<u64, Vec<u64>>,
}

impl Surroundings {
    /// Scans `image` for all of its functions.
    pub(crate) fn of(image: &Image) -> Self {
        Self {
            patched: patched(image),
            taken: taken(image),
        }
    }

    /// The code in `range` that the hypervisor patches at boot.
    pub(crate) fn boot_time_sites(&self, range: &Range<u64>) -> Vec<u64> {
        // A length is at most the sum of two bytes.
        let near = range.start.saturating_sub(2 * u64::from(u8::MAX))..range.end;
        let over = self.patched.range(near);
        over.filter(|(_, end)| **end > range.start)
            .map(|(start, _)| *start)
            .collect()
    }

    /// The places that take the address of the function at `addr`.
    pub(crate) fn address_taken(&self, addr: u64) -> &[u64] {
        self.taken.get(&addr).map_or(&[], Vec::as_slice)
    }
}

/// The end of each piece of code that the hypervisor patches at boot, by its start.
fn patched(image: &Image) -> BTreeMap<u64, u64> {
    let mut sites = BTreeMap::new();
    for table in Table::ALL {
        for entry in special::entries(image, table) {
            let Some(size) = entry.patched_len() else {
                continue;
            };
            let end = sites.entry(entry.place()).or_insert(entry.place());
            *end = entry.place().saturating_add(size.into()).max(*end);
        }
    }
    sites
}

/// Pointers in data, and instructions that compute addresses.
fn taken(image: &Image) -> BTreeMap<u64, Vec<u64>> {
    let mut taken = BTreeMap::<u64, Vec<u64>>::new();
    let mut note = |target: u64, at: u64| {
        if image.is_function(target) {
            taken.entry(target).or_default().push(at);
        }
    };
    for part in image.sections() {
        let start = part.range.start;
        match part.region {
            Region::Data => {
                let (width, step) = (image.width(), image.width().bytes());
                for (pointer, at) in part.data.chunks_exact(step).zip((start..).step_by(step)) {
                    if let Some(target) = width.read(pointer) {
                        note(target, at);
                    }
                }
            }
            Region::Text => {
                image.reader().each_address(start, part.data, &mut note);
            }
            Region::Init | Region::Outside => {}
        }
    }
    taken
}
