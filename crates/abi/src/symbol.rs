// SPDX-License-Identifier: MIT OR Apache-2.0
//! The name of a symbol in the hypervisor's own symbol table.

use core::fmt;

/// The separator between file and name of a local symbol.
const SEPARATOR: char = '#';

/// The name of a global symbol, or `FILE#NAME` of a local one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuntimeName<'a> {
    /// The source file, as its object names it.
    pub file: Option<&'a str>,
    /// Its name in the object.
    pub name: &'a str,
}

impl<'a> RuntimeName<'a> {
    /// The name of a global symbol.
    #[must_use]
    pub const fn global(name: &'a str) -> Self {
        Self { file: None, name }
    }

    /// The name of a local symbol of `file`.
    #[must_use]
    pub const fn local(file: &'a str, name: &'a str) -> Self {
        Self {
            file: Some(file),
            name,
        }
    }

    /// Parses the output of [`fmt::Display`]. Symbol names themselves contain no `#`.
    #[must_use]
    pub fn parse(text: &'a str) -> Self {
        match text.rsplit_once(SEPARATOR) {
            Some((file, name)) => Self::local(file, name),
            None => Self::global(text),
        }
    }
}

impl fmt::Display for RuntimeName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = self.file {
            write!(f, "{file}{SEPARATOR}")?;
        }
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::RuntimeName;
    use std::string::ToString;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in [
            RuntimeName::global("do_xen_version"),
            RuntimeName::local("arch/x86/mm/p2m.c", "count.0"),
            RuntimeName::local("a#b.c", "f"),
        ] {
            assert_eq!(RuntimeName::parse(&name.to_string()), name);
        }
    }
}
