// SPDX-License-Identifier: MIT OR Apache-2.0
//! Room for new per-CPU variables.
//!
//! Every CPU except the first has its area in separate pages; the first one's is in
//! the image, followed by other variables. The free space that all areas share is the
//! padding between variables: it is zero from the start, also in the areas of CPUs
//! that come online later. A bitmap in that padding records which of it payloads use.

use crate::below::{Below, Level};
use crate::payload::Align;
use std::collections::BTreeSet;
use std::ops::Range;
use xsplice_abi::hooks::GRANULE;
use xsplice_abi::record::PerCpuVariable;
use xsplice_xen_image::Image;

/// Number of pieces per word of the bitmap.
const WORD: usize = 64;

/// The padding of the per-CPU areas of a hypervisor.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// Addresses of its pieces in the first area, ascending.
    pieces: Vec<u64>,
    /// Indices of used ones.
    used: BTreeSet<usize>,
    /// Address of the bitmap.
    claims: u64,
}

impl Room {
    /// The padding in `image`; none if it cannot be determined.
    fn new(image: &Image) -> Self {
        let area = image.address_of("__per_cpu_start");
        let area = area.zip(image.address_of("__per_cpu_data_end"));
        let Some(area) = area.map(|(start, end)| start..end) else {
            return Self::default();
        };
        let symbols = image.starting_in(area.clone());
        let symbols = symbols.map(|symbol| (symbol.address, symbol.size));
        Self::between(symbols, &area)
    }

    /// The padding in `image`, without what the payloads `below` use.
    pub(crate) fn beside(image: &Image, below: &Below) -> Self {
        let mut room = Self::new(image);
        for variable in below.levels.iter().flat_map(Level::per_cpu) {
            room.reserve(variable.address..variable.address + variable.size);
        }
        room
    }

    /// The gaps between variables, given by address and size, in `area`.
    fn between(variables: impl Iterator<Item = (u64, u64)>, area: &Range<u64>) -> Self {
        // The symbol for the start of the area is not a variable.
        let mut variables: Vec<_> = variables
            .filter(|&variable| variable != (area.start, 0))
            .collect();
        let mut pieces = Vec::new();
        let mut free = area.start;
        variables.sort_unstable();
        for (at, size) in variables.into_iter().chain([(area.end, 1)]) {
            pieces.extend(granules(free, at));
            free = match size {
                // Its end is unknown.
                0 => area.end,
                size => free.max(at + size),
            };
        }
        let words = pieces.len().div_ceil(WORD);
        let map = pieces.windows(words.max(1)).rposition(is_run);
        let Some(map) = map else {
            return Self::default();
        };
        let claims = pieces[map];
        pieces.drain(map..map + words);
        Self {
            pieces,
            used: BTreeSet::new(),
            claims,
        }
    }

    /// Address of the bitmap of all payloads' claims.
    pub(crate) fn claims(&self) -> u64 {
        self.claims
    }

    /// Excludes `place` from allocation.
    fn reserve(&mut self, place: Range<u64>) {
        let pieces = self.pieces.iter().enumerate();
        let inside = pieces.filter(|&(_, at)| at + GRANULE > place.start && *at < place.end);
        self.used.extend(inside.map(|(index, _)| index));
    }

    /// Allocates `size` bytes in the shortest run of padding that fits.
    ///
    /// # Errors
    /// The size of the longest run, in bytes.
    pub(crate) fn take(&mut self, size: u64, align: Align) -> Result<u64, u64> {
        let runs = self.runs();
        let fits = runs.iter().filter_map(|run| {
            let at = align.next(run.start);
            (at + size <= run.end).then_some((run.end - run.start, at))
        });
        let longest = || runs.iter().map(|run| run.end - run.start).max();
        let (_, at) = fits.min().ok_or_else(|| longest().unwrap_or(0))?;
        self.reserve(at..at + size);
        Ok(at)
    }

    /// Runs of unused padding, as addresses.
    fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let free = self.pieces.iter().enumerate();
        for (_, &at) in free.filter(|(index, _)| !self.used.contains(index)) {
            match runs.last_mut() {
                Some(run) if run.end == at => run.end += GRANULE,
                _ => runs.push(at..at + GRANULE),
            }
        }
        runs
    }

    /// The words of the bitmap with the places of `variables`.
    pub(crate) fn bits(&self, variables: &[PerCpuVariable]) -> Vec<u64> {
        let mut words = vec![0; self.pieces.len().div_ceil(WORD)];
        for (index, at) in self.pieces.iter().enumerate() {
            let inside = |v: &PerCpuVariable| at + GRANULE > v.address && *at < v.address + v.size;
            if variables.iter().any(inside) {
                words[index / WORD] |= 1 << (index % WORD);
            }
        }
        words
    }
}

/// Addresses of the whole pieces from `start` to `end`.
fn granules(start: u64, end: u64) -> impl Iterator<Item = u64> {
    let pieces = start.div_ceil(GRANULE)..end / GRANULE;
    pieces.map(|piece| piece * GRANULE)
}

fn is_run(pieces: &[u64]) -> bool {
    pieces.windows(2).all(|pair| pair[1] - pair[0] == GRANULE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two gaps: 0x1010 to 0x1040, and 0x1044 to the end.
    fn room() -> Room {
        let variables = [(0x1000, 0), (0x1000, 0x10), (0x1008, 4), (0x1040, 4)];
        Room::between(variables.into_iter(), &(0x1000..0x1080))
    }

    fn variable(address: u64, size: u64) -> PerCpuVariable {
        PerCpuVariable {
            name: "v".to_owned(),
            file: "f.c".to_owned(),
            address,
            size,
        }
    }

    #[test]
    fn variables_are_between_others_and_never_twice() {
        let mut room = room();
        assert_eq!(room.claims(), 0x1078);
        let align = Align::to(8);
        assert_eq!(room.take(0x28, align), Ok(0x1010));
        assert_eq!(room.take(4, align), Ok(0x1038));
        assert_eq!(room.take(4, Align::to(16)), Ok(0x1050));
        assert_eq!(room.take(0x21, align), Err(0x20));
        assert_eq!(room.take(0x20, align), Ok(0x1058));
        assert_eq!(room.take(1, align), Ok(0x1048));
        assert_eq!(room.take(1, align), Err(0));
    }

    #[test]
    fn what_payloads_below_have_is_not_given_out() {
        let mut room = room();
        room.reserve(0x1010..0x1040);
        assert_eq!(room.take(8, Align::to(8)), Ok(0x1048));
    }

    #[test]
    fn bits_are_those_of_the_pieces() {
        let room = room();
        assert_eq!(room.bits(&[variable(0x1010, 9)]), [0b11]);
        assert_eq!(room.bits(&[variable(0x1048, 1)]), [1 << 6]);
    }

    #[test]
    fn nothing_is_known_to_be_free_behind_what_has_no_size() {
        let room = Room::between([(0x1000, 8), (0x1018, 0)].into_iter(), &(0x1000..0x1080));
        assert_eq!(room.pieces.len(), 1);
    }
}
