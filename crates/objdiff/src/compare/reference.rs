// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether fields of the two builds have the same target.

use super::{Comparer, Seen, is_once_flag};
use crate::object::{Class, Object, Reference, Relocation, SectionIx, Symbol, SymbolIx, Target};
use crate::special;
use xsplice_abi::special::REPLACEMENTS;

impl Comparer<'_> {
    pub(super) fn same_reference(&self, old: &Reference, new: &Reference, seen: &mut Seen) -> bool {
        match (&old.target, &new.target) {
            (Target::Anonymous(old_section), Target::Anonymous(new_section)) => {
                self.same_anonymous((*old_section, old.offset), (*new_section, new.offset), seen)
            }
            (Target::Symbol(old_symbol), Target::Symbol(new_symbol)) => {
                old.offset == new.offset && self.same_symbol(*old_symbol, *new_symbol, seen)
            }
            (Target::External(old_name), Target::External(new_name)) => {
                old.offset == new.offset && old_name == new_name
            }
            // The definition moved to or from another object.
            (Target::Symbol(symbol), Target::External(name)) => {
                let symbol = &self.original.symbols[*symbol];
                old.offset == new.offset && symbol.global && symbol.name == *name
            }
            (Target::External(name), Target::Symbol(symbol)) => {
                let symbol = &self.patched.symbols[*symbol];
                old.offset == new.offset && symbol.global && symbol.name == *name
            }
            _ => false,
        }
    }

    /// Whether a field of boot-only code refers to something that was boot-only and
    /// is now the same in permanent memory: it was called, or read, at boot. If its
    /// address was taken, something may still have the old one.
    pub(super) fn left_boot_only(
        &self,
        old: &Relocation,
        new: &Relocation,
        seen: &mut Seen,
    ) -> bool {
        let (&Target::Symbol(a), &Target::Symbol(b)) =
            (&old.reference.target, &new.reference.target)
        else {
            return false;
        };
        let (was, is) = (&self.original.symbols[a], &self.patched.symbols[b]);
        let left = self.correlation.renewed(b) == Some(a)
            && self.original.sections[was.section].class == Class::Init
            && old.reference.offset == new.reference.offset;
        left && match is.function {
            true => new.branch,
            false => {
                was.size == is.size
                    && self
                        .range_difference(was.first(was.size), is.first(is.size), seen)
                        .is_none()
            }
        }
    }

    fn same_symbol(&self, old: SymbolIx, new: SymbolIx, seen: &mut Seen) -> bool {
        let (a, b) = (&self.original.symbols[old], &self.patched.symbols[new]);
        let same = match self.correlation.original(new) {
            Some(original) => {
                let other = &self.original.symbols[original];
                // A place may have several names.
                original == old || a.function && other.is_at(a)
            }
            // An unmatched symbol may be one of several of the same name.
            None => a.name.base() == b.name.base() && !self.kept.contains(&old),
        };
        let constant = |object: &Object, symbol: &Symbol| {
            object.sections[symbol.section].class == Class::ReadOnly && !symbol.global
                || is_once_flag(object, symbol)
        };
        if !same || !constant(self.original, a) || !constant(self.patched, b) {
            return same && self.correlation.original(new).is_some();
        }
        // Private constants are identified by their contents. So are message flags.
        a.extent() == b.extent()
            && (!seen.insert(((Target::Symbol(old), 0), (Target::Symbol(new), 0)))
                || self.range_difference(a.span(), b.span(), seen).is_none())
    }

    fn same_anonymous(
        &self,
        old: (SectionIx, i64),
        new: (SectionIx, i64),
        seen: &mut Seen,
    ) -> bool {
        let (a, b) = (
            &self.original.sections[old.0],
            &self.patched.sections[new.0],
        );
        match (a.merge, b.merge) {
            (Some(_), Some(_)) => {
                let content = self.original.merged(old.0, old.1);
                a.merge == b.merge
                    && content.is_some()
                    && content == self.patched.merged(new.0, new.1)
            }
            (None, None) => {
                let (Ok(old_at), Ok(new_at)) = (u64::try_from(old.1), u64::try_from(new.1)) else {
                    return false;
                };
                if old_at >= a.size && new_at >= b.size {
                    // An address computed from another address space.
                    return a.name == b.name && old_at == new_at;
                }
                if a.name == REPLACEMENTS && b.name == a.name {
                    // Its length is compared with its entry.
                    return true;
                }
                let pair = (
                    (Target::Anonymous(old.0), old.1),
                    (Target::Anonymous(new.0), new.1),
                );
                if !seen.insert(pair) {
                    return true;
                }
                let was = special::piece(self.original, old.0, old_at);
                let is = special::piece(self.patched, new.0, new_at);
                old_at - was.offset == new_at - is.offset
                    && was.size == is.size
                    && is.end() >= new_at
                    && self.range_difference(was, is, seen).is_none()
            }
            _ => false,
        }
    }
}
