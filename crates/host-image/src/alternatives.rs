// SPDX-License-Identifier: MIT OR Apache-2.0

//! The hypervisor's own table of alternatives.

use crate::Image;
use xsplice_abi::special::{Alternative, Table};

/// The table; empty if the image has none that can be read.
pub(crate) fn of(image: &Image) -> Vec<Alternative> {
    let Some((start, table)) = table(image) else {
        return Vec::new();
    };
    let Ok(size) = usize::try_from(Table::Alternatives.entry_size()) else {
        return Vec::new();
    };
    let entries = table.chunks_exact(size).zip((start..).step_by(size));
    entries
        .filter_map(|(entry, at)| Alternative::read(entry, at))
        .collect()
}

fn table(image: &Image) -> Option<(u64, Vec<u8>)> {
    let [start, end] = Table::Alternatives.edges();
    let (start, end) = (
        image.lookup_symbol(start.as_bytes())?,
        image.lookup_symbol(end.as_bytes())?,
    );
    let mut table = vec![0; usize::try_from(end.checked_sub(start)?).ok()?];
    image.read(start, &mut table).then_some((start, table))
}
