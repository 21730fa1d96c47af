// SPDX-License-Identifier: MIT OR Apache-2.0
//! Variables whose values are lost because the patch removes the last write.
//!
//! If nothing writes a private variable, compilers replace it by its initial value. A
//! patch that removes the last write causes this for the remaining reads, but the
//! running hypervisor may have a different value.

use crate::patch::Edits;
use crate::source::PatchedSource;
use crate::unit::{Unit, Units};
use xsplice_objdiff::compare::Kind;
use xsplice_objdiff::object::Class;

/// Notes about variables that the patched source has but the patched objects lack.
pub(crate) fn notes(units: &Units, source: &PatchedSource, edits: &Edits) -> Vec<String> {
    let texts = source.texts().filter_map(|(path, text)| {
        let path = path.strip_prefix("xen/")?;
        let unit = units.iter().find(|unit| unit.file.source == path)?;
        Some((unit, text?))
    });
    let all = texts.flat_map(|(unit, text)| {
        let names = forgotten(unit, &text).into_iter();
        let names = names.filter(|name| !is_anywhere(units, name));
        names.map(|name| note(&unit.file.source, name, edits))
    });
    all.collect()
}

fn note(file: &str, name: &str, edits: &Edits) -> String {
    if edits.end_static(name) {
        return format!(
            "{file}: {name} is no longer static: the patched code does not use the running \
             hypervisor's variable, nor its value"
        );
    }
    format!(
        "{file}: {name} is not in the patched object, although the source names it: if nothing \
         writes it any longer, the patched code uses its initial value, not the running \
         hypervisor's"
    )
}

/// Whether a patched object has, or refers to, a variable of this name: one that
/// moved is in another file, and an unmatched one may have a different number.
fn is_anywhere(units: &Units, name: &str) -> bool {
    units.iter().any(|unit| {
        let mut symbols = unit.patched.symbols.iter();
        symbols.any(|symbol| symbol.name.base() == name)
    })
}

/// Private variables that only the original object has, but that `text` mentions.
fn forgotten<'a>(unit: &'a Unit, text: &str) -> Vec<&'a str> {
    let removed = unit.comparison.changes.iter().filter_map(|change| {
        let symbol = &unit.original.symbols[change.original?];
        let class = unit.original.sections[symbol.section].class;
        let private = !symbol.global && matches!(class, Class::Data | Class::Bss | Class::PerCpu);
        (change.kind == Kind::Removed && private).then(|| symbol.name.base())
    });
    let named = |name: &str| {
        let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        words.any(|word| word == name)
    };
    removed.filter(|name| named(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_nothing_writes_any_more_is_told() {
        const READER: &str = "static int limit = 3, gone; int f(void) { return limit; }";
        let writer = "void g(int x) { limit = x; }";
        let both = "int h(void) { static int count; return gone++ + count++; }";
        let (old, new) = (
            format!("{READER}{writer}{both}"),
            READER.replace(", gone", ""),
        );
        let unit = Unit::of_sources(&old, &new);
        assert_eq!(forgotten(&unit, &new), ["limit"]);
        assert!(!is_anywhere(
            Units::new(std::slice::from_ref(&unit)),
            "limit"
        ));
        assert_eq!(forgotten(&unit, "int other; /* count */"), ["count"]);
    }

    #[test]
    fn a_flag_that_cannot_be_matched_is_not_told() {
        const WARN: &str = "#define WARN(x) ({ static int warned; if (!warned) { warned = 1; \\\n\
            print(x); } })\nvoid print(int);\n";
        let old = format!("{WARN}void f(int x) {{ WARN(x); WARN(x + 1); }}");
        let new = format!("{WARN}void f(int x) {{ WARN(x); x *= 3; WARN(x + 2); print(x); }}");
        let unit = Unit::of_sources(&old, &new);
        let mut changes = unit.comparison.changes.iter();
        assert!(
            changes.any(|c| c.kind == Kind::Removed),
            "it is to be unmatched"
        );
        assert!(is_anywhere(Units::new(&[unit]), "warned"));
    }
}
