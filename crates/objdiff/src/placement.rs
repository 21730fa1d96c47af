// SPDX-License-Identifier: MIT OR Apache-2.0
//! The placement of a symbol, which is part of its identity: the protection and
//! lifetime of its memory, the list it belongs to, its alignment.

use crate::name::SymbolName;
use crate::object::{Class, Object, Section, SymbolIx, significant};
use std::collections::BTreeSet;

/// The section of variables that the hypervisor write-protects after boot.
pub const LOCKED: &str = ".data.ro_after_init";
/// The section of variables that are rarely written.
const READ_MOSTLY: &str = ".data.read_mostly";

/// What happens to a symbol whose section differs in the patched object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The same symbol, in the same kind of place.
    Same,
    /// The same symbol, and its existing place is as good.
    Stays,
    /// The same symbol, but its place matters.
    Misplaced,
    /// A new symbol: the old one cannot replace it.
    New,
}

/// The fate of a symbol that was in `old` and is in `new`.
pub fn fate(old: &Section, new: &Section) -> Fate {
    let plain = |section: &Section| matches!(&*section.home, ".data" | READ_MOSTLY);
    match (storage(old), storage(new)) {
        // Boot-only code has already run.
        (before, Storage::Boot) if before != Storage::Boot => Fate::Misplaced,
        (before, now) if before != now => Fate::New,
        _ if old.home == new.home => Fate::Same,
        (Storage::Constant | Storage::PerCpu, _) => Fate::Stays,
        (Storage::Variable, _) if plain(old) && (plain(new) || new.home == LOCKED) => Fate::Stays,
        _ => Fate::Misplaced,
    }
}

/// Describes the contents of `section`, to follow "in".
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

/// The protection and lifetime of a section's memory.
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
/// without suffixes that only depend on the compiler's view of the contents. `names`
/// are those of the symbols in it.
pub(crate) fn home<'a>(section: &str, mut names: impl Iterator<Item = &'a SymbolName>) -> String {
    let own = names.find_map(|name| {
        let parent = name.parent().unwrap_or(name);
        let forms = [&**name, name.base(), parent, name.in_source()];
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

/// Describes how the alignment of code in `new` differs from `old`.
pub(crate) fn code_moves(
    (old, old_index): (&Object, SymbolIx),
    (new, new_index): (&Object, SymbolIx),
) -> Option<String> {
    let place = |object: &Object, index: SymbolIx| {
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
    /// It needs this much, as padding before it shows.
    pub least: u64,
    /// It may need this much, since it has it.
    pub most: u64,
}

/// The alignment that the symbol at `index` needs, as far as its place shows it. The
/// alignment of a section with several symbols only shows the largest one that any of
/// them needs.
pub fn alignment(object: &Object, index: SymbolIx) -> Alignment {
    let symbol = &object.symbols[index];
    let align = object.sections[symbol.section].align;
    let others = object.symbols_in(symbol.section);
    let others: Vec<SymbolIx> = others
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
        // Only a damaged object has more padding than any alignment needs.
        least: padding
            .checked_add(1)
            .and_then(u64::checked_next_power_of_two)
            .map_or(most, |least| least.min(most)),
        most,
    }
}

/// The variables of `new` that need more alignment than in `old`, among the pairs in
/// `original`.
pub(crate) fn needier(
    old: &Object,
    new: &Object,
    original: impl Fn(SymbolIx) -> Option<SymbolIx>,
) -> BTreeSet<SymbolIx> {
    let mut found = BTreeSet::new();
    let sections = new.sections.iter_enumerated();
    for (index, section) in sections.filter(|(_, section)| !section.is_code()) {
        let align = section.align;
        let all: Vec<SymbolIx> = new.symbols_in(index).collect();
        let had = |index| original(index).map(|index| alignment(old, index).most);
        let certain: Vec<SymbolIx> = all
            .iter()
            .copied()
            .filter(|&index| had(index).is_none_or(|had| alignment(new, index).least > had))
            .collect();
        let explained = certain
            .iter()
            .any(|&index| alignment(new, index).most >= align);
        found.extend(certain.iter().filter(|&&index| had(index).is_some()));
        // Some symbol must be the reason that the section needs more.
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
        let of = |section: &str, name: &str| home(section, std::iter::once(&name.into()));
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
