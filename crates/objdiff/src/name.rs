// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of symbols, which compilers make of those of the source.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use xsplice_abi::suffix;

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
        suffix::unnumbered(self)
    }

    /// Whether the compiler appended a number.
    pub fn is_numbered(&self) -> bool {
        self.base() != &**self
    }

    /// The name in the source: `f` for `f.isra.0`, `f.part.0.cold` and `f`.
    pub fn in_source(&self) -> &str {
        suffix::in_source(self)
    }

    /// Without the suffixes of specialised functions, but with those of split-off
    /// parts: `f.part.cold` for `f.part.0.isra.1.cold`.
    pub fn role(&self) -> String {
        suffix::parts(self).fold(self.in_source().to_owned(), |role, part| role + "." + part)
    }

    /// Whether it is a clone made by the compiler that takes other arguments than in
    /// the source, to suit its callers.
    pub fn takes_own_arguments(&self) -> bool {
        suffix::takes_own_arguments(self)
    }

    /// Whether it is the cold part of a function.
    pub fn is_cold(&self) -> bool {
        self.parent().is_some()
    }

    /// The name of the function that this cold part was split off.
    pub fn parent(&self) -> Option<&str> {
        suffix::parent_of_cold(self)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> SymbolName {
        name.into()
    }

    #[test]
    fn roles_and_constants_of_compilers_are_told_from_names() {
        assert_eq!(name("f.part.0.isra.1.cold").role(), "f.part.cold");
        assert_eq!(name("f.isra.0").role(), "f");
        assert!(name("__func__.3").is_compilers_own());
        assert!(name("f.__func__").is_compilers_own());
        assert!(name("CSWTCH.18").is_compilers_own());
        assert!(name("switch.table.f").is_compilers_own());
        assert!(!name("func").is_compilers_own());
    }
}
