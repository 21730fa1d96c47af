// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a symbol lies, which is part of what it is: what may be done with its
//! memory and until when, which list it is an element of, how it is aligned.

use crate::names::{base_name, parent_of_cold, source_name};
use crate::object::{Class, Object, Section, significant};
use std::collections::BTreeSet;

/// The section of variables that the hypervisor write-protects after boot.
pub const LOCKED: &str = ".data.ro_after_init";
/// The section of variables that are rarely written.
const READ_MOSTLY: &str = ".data.read_mostly";

/// What becomes of a symbol whose section is another in the patched object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is the one that there was, in the same kind of place.
    Same,
    /// It is the one that there was, and the place that it has is as good.
    Stays,
    /// It is the one that there was, and its place makes a difference.
    Misplaced,
    /// What there was cannot stand for it: it is new.
    New,
}

/// What becomes of a symbol that was in `old` and is in `new`.
pub fn fate(old: &Section, new: &Section) -> Fate {
    let plain = |section: &Section| matches!(&*section.home, ".data" | READ_MOSTLY);
    match (storage(old), storage(new)) {
        // What is only used while booting had its time.
        (before, Storage::Boot) if before != Storage::Boot => Fate::Misplaced,
        (before, now) if before != now => Fate::New,
        _ if old.home == new.home => Fate::Same,
        (Storage::Constant | Storage::PerCpu, _) => Fate::Stays,
        (Storage::Variable, _) if plain(old) && (plain(new) || new.home == LOCKED) => Fate::Stays,
        _ => Fate::Misplaced,
    }
}

/// What `section` holds, in words that fit behind "in".
pub fn describe(section: &Section) -> String {
    let what = match (section.class, &*section.home) {
        (Class::Init, ".init.text") => "boot-only code",
        (Class::Init, ".init.data") => "boot-only data",
        (Class::Init, ".init.rodata") => "boot-only read-only data",
        (Class::Text, ".text") => "code",
        (Class::ReadOnly, _) => "read-only data",
        (Class::Data | Class::Bss, ".data") => "writable data",
        (Class::Data, READ_MOSTLY) => "read-mostly data",
        (Class::Data, LOCKED) => "data that is read-only after boot",
        (Class::PerCpu, _) => "per-CPU data",
        _ => return format!("the section {}", section.home),
    };
    what.to_owned()
}

/// What may be done with a section's memory, and until when.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Storage {
    Code,
    Constant,
    Variable,
    PerCpu,
    Boot,
    /// Not in memory, or of no meaning on its own.
    None,
}

fn storage(section: &Section) -> Storage {
    match section.class {
        // Tables of hand-written assembly may be among code.
        Class::Text => Storage::Code,
        Class::ReadOnly => Storage::Constant,
        Class::Data | Class::Bss => Storage::Variable,
        Class::PerCpu => Storage::PerCpu,
        Class::Init => Storage::Boot,
        Class::Special | Class::Ignored => Storage::None,
    }
}

/// The name of a section without the symbol that the compiler made it for, and
/// without what only the compiler's view of the contents decides. `names` are
/// those of the symbols in it.
pub(crate) fn home<'a>(section: &str, mut names: impl Iterator<Item = &'a str>) -> String {
    let own = names.find_map(|name| {
        let parent = parent_of_cold(name).unwrap_or(name);
        let forms = [name, base_name(name), parent, source_name(name)];
        forms
            .into_iter()
            .find_map(|form| section.strip_suffix(form)?.strip_suffix('.'))
    });
    let home = own.filter(|rest| !rest.is_empty()).unwrap_or(section);
    let constant = home.starts_with(".rodata.cst") || home.starts_with(".rodata.str");
    match home {
        ".text.unlikely" | ".text.hot" | ".text.cold" => ".text",
        ".data.rel" | ".data.rel.local" | ".bss" => ".data",
        ".data.rel.ro" | ".data.rel.ro.local" => ".rodata",
        _ if constant => ".rodata",
        _ => home,
    }
    .to_owned()
}

/// How much code in `new` is to be aligned other than in `old`, in words.
pub(crate) fn code_moves(
    (old, old_index): (&Object, usize),
    (new, new_index): (&Object, usize),
) -> Option<String> {
    let place = |object: &Object, index: usize| {
        let symbol = &object.symbols[index];
        let align = object.sections[symbol.section].align;
        (align, symbol.offset % align)
    };
    let ((was, from), (is, to)) = (place(old, old_index), place(new, new_index));
    if was != is {
        Some(format!("its alignment goes from {was} to {is}"))
    } else if from != to {
        Some(format!(
            "it starts {to:#x} behind a multiple of {is}, not {from:#x}"
        ))
    } else {
        None
    }
}

/// Bounds of the alignment that a variable needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// It needs this much, because padding in front of it shows that.
    pub least: u64,
    /// It may need this much: it has it.
    pub most: u64,
}

/// What the place of the symbol at `index` tells of the alignment it needs. A
/// section of several symbols says only what the neediest of them needs.
pub fn alignment(object: &Object, index: usize) -> Alignment {
    let symbol = &object.symbols[index];
    let align = object.sections[symbol.section].align;
    let others = object.symbols_in(symbol.section);
    let others: Vec<usize> = others
        .filter(|&other| !object.symbols[other].is_at(symbol))
        .collect();
    if others.is_empty() {
        return Alignment {
            least: align,
            most: align,
        };
    }
    let before = others.iter().map(|&other| &object.symbols[other]);
    let end = before
        .filter(|other| other.offset < symbol.offset)
        .map(|other| other.offset.saturating_add(significant(object, other)))
        .max();
    let padding = symbol.offset.saturating_sub(end.unwrap_or(0));
    let multiple = match symbol.offset {
        0 => align,
        offset => 1 << offset.trailing_zeros().min(62),
    };
    let most = multiple.min(align);
    Alignment {
        // More padding than any alignment makes is in a damaged object only.
        least: padding
            .checked_add(1)
            .and_then(u64::checked_next_power_of_two)
            .map_or(most, |least| least.min(most)),
        most,
    }
}

/// The variables of `new` that need more alignment than they had in `old`, of
/// the pairs that `original` knows.
pub(crate) fn needier(
    old: &Object,
    new: &Object,
    original: impl Fn(usize) -> Option<usize>,
) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let data = (0..new.sections.len()).filter(|&section| !new.sections[section].is_code());
    for section in data {
        let align = new.sections[section].align;
        let all: Vec<usize> = new.symbols_in(section).collect();
        let had = |index| original(index).map(|index| alignment(old, index).most);
        let certain: Vec<usize> = all
            .iter()
            .copied()
            .filter(|&index| had(index).is_none_or(|had| alignment(new, index).least > had))
            .collect();
        let explained = certain
            .iter()
            .any(|&index| alignment(new, index).most >= align);
        found.extend(certain.iter().filter(|&&index| had(index).is_some()));
        // Some symbol is the reason why the section as a whole needs more.
        let before = all.iter().filter_map(|&index| original(index));
        let before = before
            .map(|index| old.sections[old.symbols[index].section].align)
            .max();
        if before.is_some_and(|before| before < align) && !explained {
            found.extend(
                all.iter()
                    .filter(|&&index| alignment(new, index).most >= align),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_the_section_without_the_symbol() {
        let of = |section: &str, name: &str| home(section, std::iter::once(name));
        assert_eq!(of(".text.f", "f"), ".text");
        assert_eq!(of(".text.f.isra.0", "f.isra.0"), ".text");
        assert_eq!(of(".text.unlikely.f", "f.cold"), ".text");
        assert_eq!(of(".text.entry", "f"), ".text.entry");
        assert_eq!(of(".bss.count.3", "count.3"), ".data");
        assert_eq!(of(".data.rel.local.ops", "ops"), ".data");
        assert_eq!(of(".data.rel.ro.local.ops", "ops"), ".rodata");
        assert_eq!(of(".rodata.cst16", "x"), ".rodata");
        assert_eq!(of(".data.read_mostly", "x"), ".data.read_mostly");
        assert_eq!(of(".data.vpci.9", "init_msi_entry"), ".data.vpci.9");
        assert_eq!(of(".initcall1.init", "__initcall_f"), ".initcall1.init");
    }
}
