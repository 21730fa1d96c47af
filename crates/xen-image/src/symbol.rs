// SPDX-License-Identifier: MIT OR Apache-2.0
//! A symbol.

use std::borrow::Cow;
use std::sync::Arc;
use xsplice_abi::symbol::RuntimeName;

/// The kind of a symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A function.
    Function,
    /// A variable or constant.
    Data,
    /// An address without a type, as in assembly and in the linker script.
    Untyped,
    /// A number, not an address.
    Absolute,
}

/// The binding of a symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Binding {
    /// Visible in the whole hypervisor; its name is unique.
    Global,
    /// Like global, but a strong definition would have replaced it.
    Weak,
    /// Visible in one source file.
    Local,
}

/// A symbol of the hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbol {
    /// Its name in the source.
    pub name: String,
    /// Where it begins.
    pub address: u64,
    /// Size in bytes; 0 if the source gives none.
    pub size: u64,
    /// Its kind.
    pub kind: Kind,
    /// Its binding.
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

    /// Whether it is local to its file.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        matches!(self.binding, Binding::Local)
    }

    /// The name that the running hypervisor has for it: `FILE#NAME` for a local
    /// symbol, as Xen's `tools/symbols.c` writes it.
    #[must_use]
    pub fn full_name(&self) -> Cow<'_, str> {
        match &self.file {
            Some(file) => RuntimeName::local(file, &self.name).to_string().into(),
            None => self.name.as_str().into(),
        }
    }
}
