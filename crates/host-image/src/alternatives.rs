// SPDX-License-Identifier: MIT OR Apache-2.0

//! The hypervisor's own table of alternatives.

use crate::Image;

/// Size of an entry of `.altinstructions`: two displacements, a feature, the
/// lengths of the code, of its replacement and of its padding, and a byte that
/// the hypervisor uses.
const SIZE: usize = 14;

/// Code that the hypervisor patches at boot.
pub(crate) struct Alternative {
    pub(crate) orig: u64,
    pub(crate) repl: u64,
    /// In the highest bit, whether the feature must be absent.
    pub(crate) feature: u16,
    /// Including the padding.
    pub(crate) orig_len: u8,
    pub(crate) repl_len: u8,
    pub(crate) pad_len: u8,
}

/// The table; empty if the image has none that can be read.
pub(crate) fn of(image: &Image) -> Vec<Alternative> {
    let Some((start, table)) = table(image) else {
        return Vec::new();
    };
    let places = (start..).step_by(SIZE);
    let entries = table.chunks_exact(SIZE).zip(places);
    entries.filter_map(|(entry, at)| read(entry, at)).collect()
}

fn table(image: &Image) -> Option<(u64, Vec<u8>)> {
    let start = image.lookup_symbol(b"__alt_instructions")?;
    let end = image.lookup_symbol(b"__alt_instructions_end")?;
    let mut table = vec![0; usize::try_from(end.checked_sub(start)?).ok()?];
    image.read(start, &mut table).then_some((start, table))
}

fn read(entry: &[u8], at: u64) -> Option<Alternative> {
    let (orig, rest) = entry.split_first_chunk()?;
    let (repl, rest) = rest.split_first_chunk()?;
    let (feature, rest) = rest.split_first_chunk()?;
    let leads = |at: u64, offset| at.wrapping_add_signed(i32::from_le_bytes(offset).into());
    Some(Alternative {
        orig: leads(at, *orig),
        repl: leads(at.wrapping_add(4), *repl),
        feature: u16::from_le_bytes(*feature),
        orig_len: *rest.first()?,
        repl_len: *rest.get(1)?,
        pad_len: *rest.get(2)?,
    })
}
