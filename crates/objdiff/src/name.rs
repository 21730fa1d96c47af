// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of symbols: what compilers append to those of the source.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// Suffixes the compiler adds to the names of clones of a function: specialised
/// for its callers, or an alias of it.
const CLONES: [&str; 4] = ["isra", "constprop", "localalias", "llvm"];

/// Suffixes of pieces that were split off a function.
const PARTS: [&str; 2] = ["part", "cold"];

/// Suffixes of clones that take other arguments than the function in the source.
const SPECIALISED: [&str; 3] = ["isra", "constprop", "part"];

/// The suffix of the part of a function that rarely runs.
const COLD: &str = ".cold";

/// The name of a symbol in its object: the name in the source, with what compilers
/// append.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SymbolName(Arc<str>);

impl SymbolName {
    /// The name as it is.
    pub fn as_str(&self) -> &str {
        self
    }

    /// Without the number that the compiler appended to a static local variable or a
    /// clone: `rover.0` is `rover`.
    pub fn base(&self) -> &str {
        base(self)
    }

    /// Whether the compiler appended a number.
    pub fn is_numbered(&self) -> bool {
        self.base() != &**self
    }

    /// The name in the source: `f` for `f.isra.0`, `f.part.0.cold` and `f`.
    pub fn in_source(&self) -> &str {
        let mut rest = self.base();
        while let Some((before, word)) = rest.rsplit_once('.') {
            let suffix = CLONES.contains(&word) || PARTS.contains(&word) || is_number(word);
            if before.is_empty() || !suffix {
                break;
            }
            rest = before;
        }
        rest
    }

    /// The words that the compiler appended to the name in the source.
    fn suffixes(&self) -> impl Iterator<Item = &str> {
        self[self.in_source().len()..].split('.')
    }

    /// Without the suffixes of specialised functions, but with those of split-off
    /// parts: `f.part.cold` for `f.part.0.isra.1.cold`.
    pub fn role(&self) -> String {
        let parts = self.suffixes().filter(|word| PARTS.contains(word));
        parts.fold(self.in_source().to_owned(), |role, part| role + "." + part)
    }

    /// Whether it is a clone made by the compiler that takes other arguments than in
    /// the source, to suit its callers.
    pub fn takes_own_arguments(&self) -> bool {
        self.suffixes().any(|word| SPECIALISED.contains(&word))
    }

    /// Whether it is the cold part of a function.
    pub fn is_cold(&self) -> bool {
        self.parent().is_some()
    }

    /// The name of the function that this cold part was split off.
    pub fn parent(&self) -> Option<&str> {
        self.base().strip_suffix(COLD)
    }

    /// Whether the compiler uses symbols of this name for its own constants, which
    /// only their contents distinguish.
    pub fn is_compilers_own(&self) -> bool {
        const OWN: [&str; 5] = [
            "__func__",
            "__FUNCTION__",
            "__PRETTY_FUNCTION__",
            "CSWTCH",
            "switch.table",
        ];
        let name = self.base();
        OWN.iter().any(|own| {
            name == *own
                || name.ends_with(&format!(".{own}"))
                || name.starts_with(&format!("{own}."))
        })
    }
}

impl<T: Into<Arc<str>>> From<T> for SymbolName {
    fn from(name: T) -> Self {
        Self(name.into())
    }
}

impl PartialEq<str> for SymbolName {
    fn eq(&self, other: &str) -> bool {
        **self == *other
    }
}

impl PartialEq<&str> for SymbolName {
    fn eq(&self, other: &&str) -> bool {
        **self == **other
    }
}

impl PartialEq<String> for SymbolName {
    fn eq(&self, other: &String) -> bool {
        **self == **other
    }
}

impl PartialEq<SymbolName> for String {
    fn eq(&self, other: &SymbolName) -> bool {
        **self == **other
    }
}

impl Borrow<str> for SymbolName {
    fn borrow(&self) -> &str {
        self
    }
}

impl Deref for SymbolName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SymbolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl fmt::Debug for SymbolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// `name` without a number at its end.
pub(crate) fn base(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((base, number)) if !base.is_empty() && is_number(number) => base,
        _ => name,
    }
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> SymbolName {
        name.into()
    }

    #[test]
    fn suffixes_of_compilers_are_told_from_names() {
        assert_eq!(name("rover.12").base(), "rover");
        assert_eq!(name(".12").base(), ".12");
        for clone in [
            "f",
            "f.isra.0",
            "f.constprop.0.isra.3",
            "f.part.0.cold",
            "f.cold.7",
        ] {
            assert_eq!(name(clone).in_source(), "f", "{clone}");
        }
        assert_eq!(name("f.count").in_source(), "f.count");
        assert_eq!(name(".text.part").in_source(), ".text");
        assert_eq!(name("f.part.0.isra.1.cold").role(), "f.part.cold");
        assert_eq!(name("f.isra.0").role(), "f");
        for (clone, own) in [
            ("f", false),
            ("f.cold", false),
            ("f.localalias", false),
            ("part.isra", true),
            ("f.constprop.0.cold", true),
        ] {
            assert_eq!(name(clone).takes_own_arguments(), own, "{clone}");
        }
        assert_eq!(name("f.isra.0.cold").parent(), Some("f.isra.0"));
        assert_eq!(name("f.cold.3").parent(), Some("f"));
        assert_eq!(name("f").parent(), None);
        assert!(name("__func__.3").is_compilers_own());
        assert!(name("f.__func__").is_compilers_own());
        assert!(name("CSWTCH.18").is_compilers_own());
        assert!(name("switch.table.f").is_compilers_own());
        assert!(!name("func").is_compilers_own());
    }
}
