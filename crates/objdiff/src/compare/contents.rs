// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compares the bytes and references of two places.

use super::{Comparer, Seen};
use crate::object::{
    Class, Merge, Object, Reference, Relocation, Section, Span, SymbolIx, Target, significant,
    slice,
};
use crate::special;
use std::ops::Range;

impl Comparer<'_> {
    /// How the bytes and references of two symbols differ.
    pub(super) fn contents_difference(
        &self,
        original: SymbolIx,
        patched: SymbolIx,
    ) -> Option<String> {
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
        self.range_difference(old.first(sizes.0), new.first(sizes.1), &mut seen)
            .or_else(|| self.entries_difference(Some(original), Some(patched), &mut seen))
    }

    /// Compares the bytes and references of two spans of one size.
    pub(super) fn range_difference(&self, old: Span, new: Span, seen: &mut Seen) -> Option<String> {
        let section = &self.patched.sections[new.section];
        let (was, is) = (
            Contents::of(self.original, old),
            Contents::of(self.patched, new),
        );
        if was.bytes.len() != is.bytes.len() {
            // Zeroes may be omitted from the file.
            let equal = was.are_zero() && is.are_zero();
            return (!equal).then(|| "it has contents in one build only".to_owned());
        }
        let mut at = 0;
        for pair in 0..was.fields.len().max(is.fields.len()) {
            let (old_at, new_at) = (was.start_of(pair), is.start_of(pair));
            let here = old_at.min(new_at);
            if let Some(why) = bytes_differ(was.bytes, is.bytes, at..here) {
                return Some(why);
            }
            let (Some(old), Some(new)) = (was.fields.get(pair), is.fields.get(pair)) else {
                return Some(format!("at +{here:#x} it refers to another symbol"));
            };
            let width = self.patched.width(new.r_type);
            if old_at != new_at || self.original.width(old.r_type) != width {
                return Some(first_difference(here));
            }
            if was.around(old) != is.around(new) {
                return Some(first_difference(here));
            }
            if let Some(why) = self.field_difference(section, old, new, seen) {
                return Some(format!("at +{here:#x} it refers to {why}"));
            }
            at = here + width as u64;
        }
        bytes_differ(was.bytes, is.bytes, at..new.size)
    }

    /// What a field of `section` refers to, if that differs from the original.
    fn field_difference(
        &self,
        section: &Section,
        old: &Relocation,
        new: &Relocation,
        seen: &mut Seen,
    ) -> Option<String> {
        let same = special::same_bias(
            self.patched.arch,
            &section.name,
            (old.reference.bias, new.reference.bias),
        ) && (self.same_reference(&old.reference, &new.reference, seen)
            || section.class == Class::Init && self.left_boot_only(old, new, seen));
        if same {
            return None;
        }
        let was = describe(self.original, &old.reference);
        let is = describe(self.patched, &new.reference);
        Some(match was == is {
            true => format!("{is}, which changed"),
            false => format!("{is} instead of {was}"),
        })
    }
}

/// What a span consists of.
struct Contents<'a> {
    object: &'a Object,
    span: Span,
    bytes: &'a [u8],
    fields: &'a [Relocation],
}

impl<'a> Contents<'a> {
    fn of(object: &'a Object, span: Span) -> Self {
        Self {
            object,
            span,
            bytes: object.bytes(span),
            fields: object.relocations(span),
        }
    }

    /// The bits of the place of `field` that it does not fill.
    fn around(&self, field: &Relocation) -> Vec<u8> {
        let span = Span {
            offset: field.offset,
            size: self.object.width(field.r_type) as u64,
            ..self.span
        };
        let mut place = self.object.bytes(span).to_vec();
        self.object.clear_fields(span, &mut place);
        place
    }

    fn are_zero(&self) -> bool {
        self.fields.is_empty() && self.bytes.iter().all(|&byte| byte == 0)
    }

    /// Where a field starts, or where the span ends if there is no such field.
    fn start_of(&self, field: usize) -> u64 {
        let field = self.fields.get(field);
        field.map_or(self.span.size, |field| {
            field.offset.wrapping_sub(self.span.offset)
        })
    }
}

/// How the bytes in `range` differ.
fn bytes_differ(old: &[u8], new: &[u8], range: Range<u64>) -> Option<String> {
    let part = |bytes| slice(bytes, range.start, range.end.saturating_sub(range.start));
    let (old, new) = (part(old), part(new));
    (old != new).then(|| {
        let found = old.iter().zip(new).position(|(old, new)| old != new);
        let found = found.unwrap_or(old.len().min(new.len()));
        first_difference(range.start + found as u64)
    })
}

fn first_difference(at: u64) -> String {
    format!("first difference at +{at:#x}")
}

/// The target of a reference, in words.
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
