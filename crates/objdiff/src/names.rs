// SPDX-License-Identifier: MIT OR Apache-2.0
//! What compilers append to names from the source.

/// Suffixes the compiler adds to the names of clones of a function: specialised
/// for its callers, or an alias of it.
const CLONES: [&str; 4] = ["isra", "constprop", "localalias", "llvm"];

/// Suffixes of pieces that were split off a function.
const PARTS: [&str; 2] = ["part", "cold"];

/// `name` without the number that the compiler appended to a static local variable or
/// a clone: `rover.0` is `rover`.
pub fn base_name(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((base, number)) if !base.is_empty() && is_number(number) => base,
        _ => name,
    }
}

/// The name in the source: `f` for `f.isra.0`, `f.part.0.cold` and `f`.
pub fn source_name(name: &str) -> &str {
    let mut rest = base_name(name);
    while let Some((base, word)) = rest.rsplit_once('.') {
        if base.is_empty() || !(CLONES.contains(&word) || PARTS.contains(&word) || is_number(word))
        {
            break;
        }
        rest = base;
    }
    rest
}

/// `name` without the suffixes of specialised functions, but with those of split-off
/// parts: `f.part.cold` for `f.part.0.isra.1.cold`.
pub fn role(name: &str) -> String {
    let source = source_name(name);
    let words = name[source.len()..].split('.');
    let parts = words.filter(|word| PARTS.contains(word));
    parts.fold(source.to_owned(), |role, part| role + "." + part)
}

/// Whether `name` is a clone made by the compiler that takes different arguments than
/// in the source, to suit its callers.
pub fn takes_own_arguments(name: &str) -> bool {
    const SPECIALISED: [&str; 3] = ["isra", "constprop", "part"];
    let mut words = name[source_name(name).len()..].split('.');
    words.any(|word| SPECIALISED.contains(&word))
}

/// The name of the function that the cold part `name` was split off.
pub fn parent_of_cold(name: &str) -> Option<&str> {
    base_name(name).strip_suffix(".cold")
}

/// Whether the compiler uses symbols of this name for its own constants, which only
/// their contents distinguish.
pub fn is_compilers_own(name: &str) -> bool {
    const OWN: [&str; 5] = [
        "__func__",
        "__FUNCTION__",
        "__PRETTY_FUNCTION__",
        "CSWTCH",
        "switch.table",
    ];
    let name = base_name(name);
    OWN.iter().any(|own| {
        name == *own || name.ends_with(&format!(".{own}")) || name.starts_with(&format!("{own}."))
    })
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_of_compilers_are_told_from_names() {
        assert_eq!(base_name("rover.12"), "rover");
        assert_eq!(base_name(".12"), ".12");
        for name in [
            "f",
            "f.isra.0",
            "f.constprop.0.isra.3",
            "f.part.0.cold",
            "f.cold.7",
        ] {
            assert_eq!(source_name(name), "f", "{name}");
        }
        assert_eq!(source_name("f.count"), "f.count");
        assert_eq!(source_name(".text.part"), ".text");
        assert_eq!(role("f.part.0.isra.1.cold"), "f.part.cold");
        assert_eq!(role("f.isra.0"), "f");
        for (name, own) in [
            ("f", false),
            ("f.cold", false),
            ("f.localalias", false),
            ("part.isra", true),
            ("f.constprop.0.cold", true),
        ] {
            assert_eq!(takes_own_arguments(name), own, "{name}");
        }
        assert_eq!(parent_of_cold("f.isra.0.cold"), Some("f.isra.0"));
        assert_eq!(parent_of_cold("f.cold.3"), Some("f"));
        assert_eq!(parent_of_cold("f"), None);
        assert!(is_compilers_own("__func__.3"));
        assert!(is_compilers_own("f.__func__"));
        assert!(is_compilers_own("CSWTCH.18"));
        assert!(is_compilers_own("switch.table.f"));
        assert!(!is_compilers_own("func"));
    }
}
