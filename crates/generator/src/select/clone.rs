// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether a function can replace one with different arguments.
//!
//! A compiler that knows all callers of a function may drop or change its arguments
//! (`.isra`, `.constprop`), and split off parts that take what they need (`.part`).
//! The name does not show the arguments of such a function, but its callers do: a
//! caller that is unchanged byte for byte works with both; a changed one is replaced
//! by one that works with the new function. Holders of the old function's address,
//! and callers that are gone from the patched source but may still run, only work
//! with the old one.

use crate::unit::Unit;
use std::collections::BTreeSet;
use xsplice_objdiff::compare::Kind;
use xsplice_objdiff::object::{Class, SymbolIx};

/// A caller of the function at `original` of `unit` that would pass other arguments
/// than the one at `patched` takes.
pub(super) fn wrong_caller(unit: &Unit, original: SymbolIx, patched: SymbolIx) -> Option<String> {
    let names = (
        &unit.original.symbols[original].name,
        &unit.patched.symbols[patched].name,
    );
    let specialised = names.0.takes_own_arguments() || names.1.takes_own_arguments();
    let mut seen = BTreeSet::new();
    specialised
        .then(|| remaining_caller(unit, original, &mut seen))
        .flatten()
}

/// A user of the function at `original` that only works with the old function.
fn remaining_caller(
    unit: &Unit,
    original: SymbolIx,
    seen: &mut BTreeSet<SymbolIx>,
) -> Option<String> {
    let object = &unit.original;
    object.uses(original).find_map(|(section, relocation)| {
        let user = object.symbol_at(section, relocation.offset);
        let name = object.name_at(section, relocation.offset);
        if !relocation.branch {
            return Some(format!("{name} takes its address, which may be stored"));
        }
        let index = user?;
        let remains = user != Some(original)
            && seen.insert(index)
            && object.sections[section].class != Class::Init
            && is_removed(unit, index);
        if !remains {
            return None;
        }
        let removed = format!("{name} calls it, which is no longer in the patched source");
        if object.symbols[index].global {
            return Some(format!("{removed}, but code in other files may"));
        }
        remaining_caller(unit, index, seen).map(|why| format!("{removed}, and of that one, {why}"))
    })
}

fn is_removed(unit: &Unit, original: SymbolIx) -> bool {
    let mut changes = unit.comparison.changes.iter();
    changes.any(|change| change.original == Some(original) && change.kind == Kind::Removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "int work(int); void keep(int (*)(int, int, int *));\n";
    /// A function whose arguments gcc changes if it can.
    const SUM: &str = "static __attribute__((noinline)) int sum(int a, int b, int *p)\n\
        { int x = *p; return work(a) + x BODY; }\n";
    const CALLERS: &str = "int f(int *p) { return sum(1, 7, p) + 1; }\n\
        int g(int *p) { return sum(2, 7, p); }\n";

    /// The old caller of `sum` that cannot call the new one; the outer option is
    /// empty if `sum` does not change.
    fn wrong(original: &str, patched: &str) -> Option<Option<String>> {
        let unit = Unit::of_sources(&format!("{HEAD}{original}"), &format!("{HEAD}{patched}"));
        let change = unit.comparison.changes.iter().find(|change| {
            let (Some(_), Some(_)) = (change.original, change.patched) else {
                return false;
            };
            change.name.in_source() == "sum" && change.kind == Kind::Function
        })?;
        let patched = change.patched.expect("it is there");
        Some(wrong_caller(
            &unit,
            change.original.expect("it is there"),
            patched,
        ))
    }

    fn sum(body: &str) -> String {
        SUM.replace("BODY", body)
    }

    #[test]
    fn unchanged_and_replaced_callers_work_with_the_new_function() {
        let (old, new) = (sum(""), sum("+ 5"));
        let same = wrong(&format!("{old}{CALLERS}"), &format!("{new}{CALLERS}"));
        assert_eq!(same, Some(None));
        let uses_all = sum("+ b * 3");
        let changed = wrong(&format!("{old}{CALLERS}"), &format!("{uses_all}{CALLERS}"));
        assert_eq!(changed, Some(None));
    }

    #[test]
    fn holders_of_the_address_work_with_the_old_function_only() {
        let plain = format!("{}{CALLERS}", sum(""));
        let holders = [
            "void h(void) { keep(sum); }",
            "int (*const h)(int, int, int *) = sum;",
            "struct { int x; void *f; } h = { 1, sum };",
        ];
        for holder in holders {
            let found = wrong(&format!("{plain}{holder}"), &plain);
            let why = found.expect("it changes").expect("a holder");
            assert_eq!(why, "h takes its address, which may be stored", "{holder}");
            // In the reverse direction, there are no holders yet.
            let found = wrong(&plain, &format!("{plain}{holder}"));
            assert_eq!(found, Some(None), "{holder}");
        }
    }

    #[test]
    fn a_removed_caller_that_may_still_run_works_with_the_old_function_only() {
        let (old, new) = (sum(""), sum("+ b * 3"));
        let removed = "__attribute__((noinline)) int old(int *p) { return sum(3, 7, p); }\n";
        let original = format!("{old}{CALLERS}{removed}");
        let why = wrong(&original, &format!("{new}{CALLERS}")).expect("it changes");
        let why = why.expect("another file may call it");
        assert!(
            why.starts_with("old calls it, which is no longer in the patched source"),
            "{why}"
        );
        let private = format!("static {removed}");
        let stored = "void *h(void) { return old; }\n";
        let why = wrong(
            &format!("{old}{CALLERS}{private}{stored}"),
            &format!("{new}{CALLERS}"),
        );
        let why = why.expect("it changes").expect("its address is stored");
        assert!(
            why.ends_with("h takes its address, which may be stored"),
            "{why}"
        );
        let caller = "int h(int *p) { return p ? old(p) : 0; }\n";
        let gone = caller.replace("old(p)", "sum(3, 8, p)");
        let why = wrong(
            &format!("{old}{CALLERS}{private}{caller}"),
            &format!("{new}{CALLERS}{gone}"),
        );
        assert_eq!(why, Some(None));
    }
}
