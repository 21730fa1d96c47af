// SPDX-License-Identifier: MIT OR Apache-2.0
//! The options of a build.

use std::collections::BTreeSet;
use std::path::PathBuf;
use xsplice_system::file;

/// The inputs of a payload.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The built source tree.
    pub source: PathBuf,
    /// Source patches, in the order in which they apply.
    pub patches: Vec<PathBuf>,
    /// The hypervisor's `xen-syms`.
    pub xen_syms: PathBuf,
    /// Path of the payload.
    pub output: PathBuf,
    /// The configuration that the tree must have been built with.
    pub config: Option<PathBuf>,
    /// Payloads that this one depends on, the lowest first.
    pub below: Vec<PathBuf>,
    /// The source patches of those payloads, in the order in which they apply.
    pub below_patches: Vec<PathBuf>,
    /// Build-id that the payload depends on, if not that of the last of `below` or of
    /// the hypervisor.
    pub depends: Option<Vec<u8>>,
    /// Build-id that `xen_syms` must have.
    pub xen_depends: Option<Vec<u8>>,
    /// Resolve all hypervisor symbols to addresses.
    pub prelink: bool,
    /// Number of parallel compilers; 0 is one per CPU.
    pub jobs: usize,
    /// C source of hooks, compiled into the payload.
    pub hooks: Vec<PathBuf>,
    /// Changed variables, boot-only code and files to leave out.
    pub leave_out: BTreeSet<String>,
    /// Leave out all changes to boot-only code.
    pub leave_out_init: bool,
    /// Variables and constants to change in place.
    pub patch_data: BTreeSet<String>,
    /// Structures whose layout may change, and variables that may start from their
    /// initial value.
    pub allow: BTreeSet<String>,
    /// Additional `key=value` pairs for the payload's metadata.
    pub metadata: Vec<(String, String)>,
    /// Directory of the object cache, if any.
    pub cache: Option<PathBuf>,
}

impl Options {
    /// Checks, before the work begins, that the payload can be written and does not
    /// overwrite an input.
    ///
    /// # Errors
    /// If it would overwrite an input, or cannot be written.
    pub fn check_output(&self) -> std::io::Result<()> {
        let lists = [&self.patches, &self.below, &self.below_patches, &self.hooks];
        let inputs = lists.into_iter().flatten().chain(&self.config);
        file::check_output(&self.output, inputs.chain([&self.xen_syms]))
    }
}
