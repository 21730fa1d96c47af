// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changes across structures, which no change to a single field can make: a record or
//! section gets the fields of another. Records of a table become equal, overlap, are
//! reordered or point into other tables; relocations are applied to note headers, to
//! strings and to themselves; two tables share their bytes.

use super::{Field, Payload, RELOCATION, RELOCATION_SIZE, SECTION, SYMBOL_SIZE, TRUSTED};
use object::elf;

/// Symbol and addend.
const TARGET: Field = ("target", 12, 12);
/// Offset and size of a section.
const PLACE: Field = ("place", 24, 16);
const OFFSET: Field = RELOCATION[0];
const INFO: Field = SECTION[6];

impl Payload<'_> {
    /// Copies fields of other sections to a section. Its header is at `header`, the
    /// first section's at `headers`.
    pub(super) fn cross(&mut self, index: usize, header: usize, headers: usize) {
        let section = &self.sections[index];
        let name = section.name.clone();
        if section.kind == elf::SHT_RELA {
            for other in 0..self.sections.len() {
                let how = format!("is {}", self.sections[other].name);
                let structure = self.structure("crossed section", index);
                self.set(&structure, &name, INFO, header, &how, other as u64);
            }
            self.cross_relocations(index);
        }
        if TRUSTED.contains(&name.as_str()) {
            for other in 0..self.sections.len() {
                let from = headers + other * super::SECTION_SIZE;
                let how = format!("is that of {}", self.sections[other].name);
                let structure = self.structure("crossed section", index);
                self.copy(&structure, &name, PLACE, (header, from), &how, 0);
            }
        }
    }

    /// The relocations of sections that the hypervisor trusts.
    fn cross_relocations(&mut self, index: usize) {
        let section = &self.sections[index];
        let about = self.sections.get(section.info);
        if about.is_none_or(|about| !TRUSTED.contains(&about.name.as_str())) {
            return;
        }
        let (name, offset) = (section.name.clone(), section.offset);
        let structure = self.structure("crossed relocation", index);
        let count = section.size / RELOCATION_SIZE;
        let at = |number: usize| offset + number * RELOCATION_SIZE;
        let symbols = self.sections.iter();
        let symbols = symbols.filter(|section| section.kind == elf::SHT_SYMTAB);
        let symbols: usize = symbols.map(|section| section.size / SYMBOL_SIZE).sum();
        for number in 0..count {
            let which = format!("{name} {number}");
            let near = [1, 2, 3, 4].map(|more| (number + more) % count);
            for other in [&[0, count - 1], &near[..]].concat() {
                let from = at(other);
                for more in [0, 1, u64::MAX, 2, 5] {
                    let how = format!("is that of {other} and {}", more.cast_signed());
                    self.copy(&structure, &which, TARGET, (at(number), from), &how, more);
                }
                let how = format!("is that of {other}");
                self.copy(&structure, &which, OFFSET, (at(number), from), &how, 0);
            }
            for symbol in 0..symbols as u64 {
                let how = format!("is {symbol}");
                self.set(&structure, &which, RELOCATION[2], at(number), &how, symbol);
            }
        }
    }

    /// Copies a field from another structure, and adds `more` to its last 8 bytes.
    fn copy(
        &mut self,
        structure: &(&'static str, String),
        which: &str,
        field: Field,
        (to, from): (usize, usize),
        how: &str,
        more: u64,
    ) {
        let (name, place, size) = field;
        let range = |at: usize| at + place..at + place + size;
        let Some(mut bytes) = self.data.get(range(from)).map(<[u8]>::to_vec) else {
            return;
        };
        if let Some(last) = bytes.last_chunk_mut::<8>() {
            *last = u64::from_le_bytes(*last).wrapping_add(more).to_le_bytes();
        }
        if self.data.get(range(to)).is_some_and(|there| there != bytes) {
            let what = format!("{which} {name} {how}");
            let mut mutant = self.mutant((structure.0, structure.1.clone(), name), what);
            mutant.edits.push((to + place, bytes));
            self.mutants.push(mutant);
        }
    }
}
