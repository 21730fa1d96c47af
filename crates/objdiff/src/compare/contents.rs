// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compares the bytes and references of two places.

use super::{Comparer, Seen};
use crate::object::{Class, Merge, Object, Reference, Target, significant, slice, width};
use crate::special;

impl Comparer<'_> {
    /// How the bytes and references of two symbols differ.
    pub(super) fn contents_difference(&self, original: usize, patched: usize) -> Option<String> {
        let (old, new) = (
            &self.original.symbols[original],
            &self.patched.symbols[patched],
        );
        let sizes = (
            significant(self.original, old),
            significant(self.patched, new),
        );
        if sizes.0 != sizes.1 || old.size != new.size {
            return Some(format!(
                "its size goes from {} to {} bytes",
                sizes.0, sizes.1
            ));
        }
        let mut seen = Seen::from([((Target::Symbol(original), 0), (Target::Symbol(patched), 0))]);
        self.range_difference(
            (old.section, old.offset),
            (new.section, new.offset),
            sizes.1,
            &mut seen,
        )
        .or_else(|| self.entries_difference(Some(original), Some(patched), &mut seen))
    }

    /// Compares the bytes and references of two places.
    pub(super) fn range_difference(
        &self,
        (old_section, old_offset): (usize, u64),
        (new_section, new_offset): (usize, u64),
        size: u64,
        seen: &mut Seen,
    ) -> Option<String> {
        let old_fields = self.original.relocations(old_section, old_offset, size);
        let new_fields = self.patched.relocations(new_section, new_offset, size);
        let old_bytes = slice(&self.original.sections[old_section].data, old_offset, size);
        let new_bytes = slice(&self.patched.sections[new_section].data, new_offset, size);
        let table = &self.patched.sections[new_section].name;
        let boot = self.patched.sections[new_section].class == Class::Init;
        let mut at = 0;
        let bytes_differ = |from: u64, to: u64| {
            let part = |bytes| slice(bytes, from, to.saturating_sub(from));
            let found = first_difference(part(old_bytes), part(new_bytes))?;
            Some(format!("first difference at +{:#x}", from + found as u64))
        };
        let zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
        if old_bytes.len() != new_bytes.len() {
            // Zeroes may be omitted from the file.
            if zero(old_bytes) && zero(new_bytes) && old_fields.is_empty() && new_fields.is_empty()
            {
                return None;
            }
            return Some("it has contents in one build only".to_owned());
        }
        for pair in 0..old_fields.len().max(new_fields.len()) {
            let (old, new) = (old_fields.get(pair), new_fields.get(pair));
            let place = |field: Option<&crate::object::Relocation>, start| {
                field.map_or(size, |field| field.offset.wrapping_sub(start))
            };
            let (old_at, new_at) = (place(old, old_offset), place(new, new_offset));
            let here = old_at.min(new_at);
            if let Some(why) = bytes_differ(at, here) {
                return Some(why);
            }
            let (Some(old), Some(new)) = (old, new) else {
                return Some(format!("at +{here:#x} it refers to another symbol"));
            };
            if old_at != new_at || width(old.r_type) != width(new.r_type) {
                return Some(format!("first difference at +{here:#x}"));
            }
            let mut leads_to_the_same = || {
                self.same_reference(&old.reference, &new.reference, seen)
                    || boot && self.left_boot_only(old, new, seen)
            };
            if !special::same_bias(table, old.reference.bias, new.reference.bias)
                || !leads_to_the_same()
            {
                let was = describe(self.original, &old.reference);
                let is = describe(self.patched, &new.reference);
                return Some(match was == is {
                    true => format!("at +{here:#x} it refers to {is}, which changed"),
                    false => format!("at +{here:#x} it refers to {is} instead of {was}"),
                });
            }
            at = here + width(new.r_type) as u64;
        }
        bytes_differ(at, size)
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    (a != b).then(|| {
        a.iter()
            .zip(b)
            .position(|(a, b)| a != b)
            .unwrap_or(a.len().min(b.len()))
    })
}

pub(crate) fn describe(object: &Object, reference: &Reference) -> String {
    if let Target::Anonymous(section) = reference.target
        && let Some(Merge::Strings(1)) = object.sections[section].merge
        && let Some((text, _)) = object.merged(section, reference.offset)
    {
        return format!(
            "\"{}\"",
            String::from_utf8_lossy(text)
                .trim_end_matches('\0')
                .escape_debug()
        );
    }
    let label = object.label(&reference.target);
    match reference.offset {
        0 => label,
        offset => format!("{label}{offset:+#x}"),
    }
}
