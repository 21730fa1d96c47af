// SPDX-License-Identifier: MIT OR Apache-2.0

//! Alternatives: the hypervisor copies a replacement instruction by instruction, and
//! changes the displacements of its branches. Where its own code would stop at a BUG,
//! or call what is no function, the payload is refused here.

use super::{Branch, SIZE};
use crate::arch::Wrong;
use crate::format::Bytes;
use crate::stage::Code;
use crate::{Host, Region};
use core::ops::Range;
use xsplice_abi::special::Alternative;

/// How an architecture encodes what matters in a replacement.
pub(in crate::arch) trait Encoding: Copy {
    /// The branch of this encoding.
    fn branch(self, word: u32) -> Option<Branch>;

    /// Whether the instruction, which is no branch, means something else at another
    /// place.
    fn depends_on_place(self, word: u32) -> bool;
}

/// Whether the entry fits and the hypervisor can use it.
pub(in crate::arch) fn check<H: Host>(
    encoding: impl Encoding,
    code: &Code<'_, '_, H>,
    replacements: &Range<u64>,
    entry: &Alternative,
) -> Result<(), Wrong> {
    let length = usize::from(entry.original_len);
    if !entry.place.is_multiple_of(SIZE as u64) || !length.is_multiple_of(SIZE) {
        return Err(("its code is not whole instructions", entry.place));
    }
    let limits = code.limits();
    if entry.condition >= limits.features {
        // The number after the last feature: a function writes the code.
        if limits.all_features && entry.condition == limits.features {
            return check_callback(code, entry);
        }
        let what = match limits.all_features {
            true => "it is for a processor feature that this hypervisor does not know",
            false => "it is for a processor feature that this hypervisor may not know",
        };
        return Err((what, entry.condition.into()));
    }
    if entry.replacement_len != entry.original_len {
        let what = "its replacement has another length than its code";
        return Err((what, entry.replacement_len.into()));
    }
    let end = entry.replacement.checked_add(length as u64);
    if entry.replacement < replacements.start
        || end.is_none_or(|end| end > replacements.end)
        || !entry.replacement.is_multiple_of(SIZE as u64)
    {
        let what = "its replacement is outside .altinstr_replacement";
        return Err((what, entry.replacement));
    }
    let words = code.get(entry.replacement, length).unwrap_or_default();
    for (index, word) in words.chunks_exact(SIZE).enumerate() {
        let word = Bytes(word).u32(0).unwrap_or_default();
        check_instruction(encoding, code, entry, word, (index * SIZE) as u64)?;
    }
    Ok(())
}

/// The function is called when the payload is loaded.
fn check_callback<H: Host>(code: &Code<'_, '_, H>, entry: &Alternative) -> Result<(), Wrong> {
    if entry.replacement_len != 0 {
        let what = "it has a replacement, and a function that writes one";
        return Err((what, entry.replacement_len.into()));
    }
    match code.not_function(entry.replacement) {
        Some(_) => Err((
            "what should write its code is no function",
            entry.replacement,
        )),
        None => Ok(()),
    }
}

/// Whether the instruction means the same in the code, `offset` bytes after its start.
fn check_instruction<H: Host>(
    encoding: impl Encoding,
    code: &Code<'_, '_, H>,
    entry: &Alternative,
    word: u32,
    offset: u64,
) -> Result<(), Wrong> {
    let (from, at) = (entry.replacement + offset, entry.place + offset);
    let Some(branch) = encoding.branch(word) else {
        return if encoding.depends_on_place(word) {
            let what = "its replacement has an address that depends on where it is";
            Err((what, from))
        } else {
            Ok(())
        };
    };
    let target = branch.target(from);
    // What the hypervisor decides by, and what the processor does.
    let both = [branch.counted(from), target];
    let end = entry.replacement + u64::from(entry.replacement_len);
    if both.iter().all(|to| (entry.replacement..=end).contains(to)) {
        return Ok(());
    }
    let host = code.host();
    if let Some(outside) = both.iter().find(|to| host.region(**to) != Region::Text) {
        let what = "its replacement branches to what is no code of the hypervisor";
        return Err((what, *outside));
    }
    if branch.reaches(at, target) {
        Ok(())
    } else {
        Err(("its replacement branches out of reach", target))
    }
}
