// SPDX-License-Identifier: MIT OR Apache-2.0
//! The result of a comparison.

use serde::{Deserialize, Serialize};

/// Why the hypervisor with the payload is not the patched one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A function differs from the patched one and is not replaced.
    NotReplaced,
    /// The payload's code differs from the patched hypervisor's.
    Code,
    /// An operand, pointer or entry leads to a different place, or a variable has another
    /// place than its own.
    Reference,
    /// An entry of a table about code is missing, extra or different.
    Table,
    /// A constant differs.
    Constant,
    /// The initial value of a variable changed; the running one has the old value.
    InitialValue,
    /// A variable starts from its initial value although it exists with state, or has the
    /// place of one with another name.
    State,
    /// Memory has a different class or alignment.
    Class,
    /// A reference leads to a trap or to freed memory.
    Freed,
    /// Boot-only code or data differs.
    BootOnly,
    /// A hook is missing, extra or different.
    Hook,
    /// Something is new, and nothing that was compared leads to it.
    Unreached,
    /// A type of data in memory has a different layout.
    Layout,
    /// The payload has something that the patched hypervisor lacks.
    LeftOver,
}

/// One difference.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
pub struct Difference {
    /// Its kind.
    pub kind: Kind,
    /// What differs, by its name in the patched hypervisor.
    pub name: String,
    /// How.
    pub message: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.message)
    }
}

/// The result of a comparison.
#[derive(Debug, Default, Serialize, schemars::JsonSchema)]
pub struct Verdict {
    /// Whether the hypervisor with the payloads is the patched one, apart from
    /// what was left out on request.
    pub proved: bool,
    /// How many functions are the same in both.
    pub functions: usize,
    /// How many of these are the payloads'.
    pub from_payload: usize,
    /// How many objects are the same in both.
    pub objects: usize,
    /// How many types of what is in memory were compared and are the same.
    pub types: usize,
    /// What is not.
    pub differences: Vec<Difference>,
    /// What is not, and was left out on request.
    pub left_out: Vec<Difference>,
    /// What a reader should know.
    pub notes: Vec<String>,
}
