// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changes across structures, which no change to a single field can make: a record or
//! section gets the fields of another. Records of a table become equal, overlap, are
//! reordered or point into other tables; relocations are applied to note headers, to
//! strings and to themselves; two tables share their bytes.

use super::{Field, Layout, Payload, TRUSTED};
use object::elf;

impl Layout {
    /// The symbol of a relocation, and its addend if it has one.
    fn target(&self) -> Field {
        let (_, place, _) = self.symbol_of_relocation();
        ("target", place, self.relocation_size - place)
    }

    /// Offset and size of a section.
    fn place(&self) -> Field {
        let [_, _, _, (_, offset, width), ..] = self.section;
        ("place", offset, 2 * width)
    }
}

impl Payload<'_> {
    /// Copies fields of other sections to a section. Its header is at `header`, the
    /// first section's at `headers`.
    pub(super) fn cross(&mut self, index: usize, header: usize, headers: usize) {
        let section = &self.sections[index];
        let name = section.name.clone();
        let layout = self.layout;
        if section.kind == layout.relocations {
            for other in 0..self.sections.len() {
                let how = format!("is {}", self.sections[other].name);
                let structure = self.structure("crossed section", index);
                self.set(
                    &structure,
                    &name,
                    layout.section[6],
                    header,
                    &how,
                    other as u64,
                );
            }
            self.cross_relocations(index);
        }
        if TRUSTED.contains(&name.as_str()) {
            for other in 0..self.sections.len() {
                let from = headers + other * layout.section_size;
                let how = format!("is that of {}", self.sections[other].name);
                let structure = self.structure("crossed section", index);
                self.copy(&structure, &name, layout.place(), (header, from), &how, 0);
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
        let layout = self.layout;
        let count = section.size / layout.relocation_size;
        let at = |number: usize| offset + number * layout.relocation_size;
        let symbols = self.sections.iter();
        let symbols = symbols.filter(|section| section.kind == elf::SHT_SYMTAB);
        let symbols: usize = symbols
            .map(|section| section.size / layout.symbol_size)
            .sum();
        for number in 0..count {
            let which = format!("{name} {number}");
            let near = [1, 2, 3, 4].map(|more| (number + more) % count);
            for other in [&[0, count - 1], &near[..]].concat() {
                let from = at(other);
                for more in [0, 1, u64::MAX, 2, 5] {
                    let how = format!("is that of {other} and {}", more.cast_signed());
                    self.copy(
                        &structure,
                        &which,
                        layout.target(),
                        (at(number), from),
                        &how,
                        more,
                    );
                }
                let how = format!("is that of {other}");
                self.copy(
                    &structure,
                    &which,
                    layout.relocation[0],
                    (at(number), from),
                    &how,
                    0,
                );
            }
            for symbol in 0..symbols as u64 {
                let how = format!("is {symbol}");
                let field = layout.symbol_of_relocation();
                self.set(&structure, &which, field, at(number), &how, symbol);
            }
        }
    }

    /// Copies a field from another structure, and adds `more` to its last 8 bytes if it has
    /// as many.
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
        match bytes.last_chunk_mut::<8>() {
            Some(last) => *last = u64::from_le_bytes(*last).wrapping_add(more).to_le_bytes(),
            // Its addend is elsewhere.
            None if more != 0 => return,
            None => {}
        }
        if self.data.get(range(to)).is_some_and(|there| there != bytes) {
            let what = format!("{which} {name} {how}");
            let mut mutant = self.mutant((structure.0, structure.1.clone(), name), what);
            mutant.edits.push((to + place, bytes));
            self.mutants.push(mutant);
        }
    }
}
