// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that the build makes and that are no objects.

use std::collections::BTreeSet;

/// A generated file other than an object: a header, a preprocessed linker script.
#[derive(Debug, Clone)]
pub struct GeneratedFile {
    /// Path of the file, relative to the `xen` directory.
    pub path: String,
    /// The recorded command, to run in the `xen` directory.
    pub command: String,
    /// Every file of the tree that the command is known to read.
    pub inputs: BTreeSet<String>,
}
