// SPDX-License-Identifier: MIT OR Apache-2.0

//! The hypervisor's own tables about its code.

use crate::Image;
use xsplice_abi::special::{Alternative, Entry, Table};

/// The entries of `table`; none if the image has no such table that can be read.
pub(crate) fn entries(image: &Image, table: Table) -> Vec<Entry> {
    let Some((start, bytes)) = read(image, table) else {
        return Vec::new();
    };
    let reader = image.reader();
    let Ok(size) = usize::try_from(reader.entry_size(table)) else {
        return Vec::new();
    };
    let entries = bytes.chunks_exact(size).zip((start..).step_by(size));
    entries
        .filter_map(|(entry, at)| reader.entry(table, entry, at))
        .collect()
}

/// The entries of the table of alternatives.
pub(crate) fn alternatives(image: &Image) -> impl Iterator<Item = Alternative> {
    let entries = entries(image, Table::Alternatives).into_iter();
    entries.filter_map(|entry| match entry {
        Entry::Alternative(alternative) => Some(alternative),
        Entry::BugFrame { .. } | Entry::Exception(_) | Entry::CallSite(_) => None,
    })
}

/// The address of `table`, if the hypervisor has one.
pub(crate) fn start(image: &Image, table: Table) -> Option<u64> {
    let mut starts = table.starts().iter();
    starts.find_map(|start| image.lookup_symbol(start.as_bytes()))
}

fn read(image: &Image, table: Table) -> Option<(u64, Vec<u8>)> {
    let start = start(image, table)?;
    let end = image.lookup_symbol(table.end().as_bytes())?;
    let mut bytes = vec![0; usize::try_from(end.checked_sub(start)?).ok()?];
    image.read(start, &mut bytes).then_some((start, bytes))
}
