// SPDX-License-Identifier: MIT OR Apache-2.0
//! What compilers append to the names of functions and variables in the source.

/// Suffixes of clones of a function: specialised for its callers, or an alias of it.
const CLONES: [&str; 4] = ["isra", "constprop", "localalias", "llvm"];

/// Suffixes of pieces that were split off a function.
const PARTS: [&str; 2] = ["part", "cold"];

/// Suffixes of clones that take other arguments than the function in the source.
const SPECIALISED: [&str; 3] = ["isra", "constprop", "part"];

/// The suffix of the part of a function that rarely runs.
const COLD: &str = ".cold";

/// `name` without the number of a static local variable or a clone: `rover` for
/// `rover.0`.
#[must_use]
pub fn unnumbered(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((base, number)) if !base.is_empty() && is_number(number) => base,
        _ => name,
    }
}

/// The name in the source: `f` for `f.isra.0`, `f.part.0.cold` and `f`.
///
/// ```
/// use xsplice_abi::suffix::in_source;
///
/// assert_eq!(in_source("do_domctl.constprop.0.cold"), "do_domctl");
/// ```
#[must_use]
pub fn in_source(name: &str) -> &str {
    let mut rest = unnumbered(name);
    while let Some((before, word)) = rest.rsplit_once('.') {
        let suffix = CLONES.contains(&word) || PARTS.contains(&word) || is_number(word);
        if before.is_empty() || !suffix {
            break;
        }
        rest = before;
    }
    rest
}

/// The words that were appended to the name in the source.
fn appended(name: &str) -> impl Iterator<Item = &str> {
    name[in_source(name).len()..].split('.')
}

/// Those of pieces that were split off: `part` and `cold` for `f.part.0.isra.1.cold`.
pub fn parts(name: &str) -> impl Iterator<Item = &str> {
    appended(name).filter(|word| PARTS.contains(word))
}

/// Whether it is a clone that takes other arguments than in the source, to suit its
/// callers.
#[must_use]
pub fn takes_own_arguments(name: &str) -> bool {
    appended(name).any(|word| SPECIALISED.contains(&word))
}

/// The name of the function that this cold part was split off, if it is one.
#[must_use]
pub fn parent_of_cold(name: &str) -> Option<&str> {
    unnumbered(name).strip_suffix(COLD)
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    #[test]
    fn suffixes_of_compilers_are_told_from_names() {
        assert_eq!(unnumbered("rover.12"), "rover");
        assert_eq!(unnumbered(".12"), ".12");
        assert_eq!(unnumbered("rover."), "rover.");
        for clone in [
            "f",
            "f.isra.0",
            "f.constprop.0.isra.3",
            "f.part.0.cold",
            "f.cold.7",
        ] {
            assert_eq!(in_source(clone), "f", "{clone}");
        }
        assert_eq!(in_source("f.count"), "f.count");
        assert_eq!(in_source(".text.part"), ".text");
        let found: Vec<&str> = parts("f.part.0.isra.1.cold").collect();
        assert_eq!(found, ["part", "cold"]);
        for (clone, own) in [
            ("f", false),
            ("f.cold", false),
            ("f.localalias", false),
            ("part.isra", true),
            ("f.constprop.0.cold", true),
        ] {
            assert_eq!(takes_own_arguments(clone), own, "{clone}");
        }
        assert_eq!(parent_of_cold("f.isra.0.cold"), Some("f.isra.0"));
        assert_eq!(parent_of_cold("f.cold.3"), Some("f"));
        assert_eq!(parent_of_cold("f"), None);
    }
}
