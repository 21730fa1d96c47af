// SPDX-License-Identifier: MIT OR Apache-2.0
//! A name and what it stands for.

use std::borrow::Cow;
use std::sync::Arc;

/// What a symbol stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A function.
    Function,
    /// A variable or constant.
    Data,
    /// A place without a type, as in assembly and in the linker script.
    Untyped,
    /// A number that is no place in memory.
    Absolute,
}

/// Who sees a symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Binding {
    /// The whole hypervisor; there is one of its name.
    Global,
    /// The same; a strong definition would have taken its place.
    Weak,
    /// One source file.
    Local,
}

/// A symbol of the hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbol {
    /// Its name in the source.
    pub name: String,
    /// Where it begins.
    pub address: u64,
    /// Size in bytes; 0 where the source gives none.
    pub size: u64,
    /// What it stands for.
    pub kind: Kind,
    /// Who sees it.
    pub binding: Binding,
    /// For a local symbol, the source file of its FILE symbol.
    pub file: Option<Arc<str>>,
}

impl Symbol {
    /// Whether it is a function.
    #[must_use]
    pub const fn is_function(&self) -> bool {
        matches!(self.kind, Kind::Function)
    }

    /// Whether only its file sees it.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        matches!(self.binding, Binding::Local)
    }

    /// The name that the running hypervisor has for it: `FILE#NAME` for a local
    /// symbol, as Xen's `tools/symbols.c` writes it.
    #[must_use]
    pub fn full_name(&self) -> Cow<'_, str> {
        match &self.file {
            Some(file) => format!("{file}#{}", self.name).into(),
            None => self.name.as_str().into(),
        }
    }
}
