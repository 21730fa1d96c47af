// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a comparison found.

use serde::{Deserialize, Serialize};

/// Why the hypervisor with the payload is not the patched one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A function differs from the patched one, and nothing replaces it.
    NotReplaced,
    /// The code of the payload is not that of the patched hypervisor.
    Code,
    /// An operand, a pointer or an entry leads to another place.
    Reference,
    /// An entry of a table about code is missing, left over or different.
    Table,
    /// A constant differs.
    Constant,
    /// The initial value of a variable changed; the running one has the old.
    InitialValue,
    /// A variable starts from its initial value although there is one with a
    /// state, or shares its place with another.
    State,
    /// Memory is of another class or alignment.
    Class,
    /// It leads to a trap or to memory that was freed.
    Freed,
    /// What runs only while booting differs.
    BootOnly,
    /// A hook is missing, left over or another.
    Hook,
    /// It is new, and nothing that was compared leads to it.
    Unreached,
    /// A type of what stays in memory has another layout.
    Layout,
    /// The payload has what the patched hypervisor has not.
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
