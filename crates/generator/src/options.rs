// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a build is told.

use std::collections::BTreeSet;
use std::path::PathBuf;
use xsplice_system::file;

/// What a payload is to be built from.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The built source tree.
    pub source: PathBuf,
    /// Source patches, in the order in which they apply.
    pub patches: Vec<PathBuf>,
    /// The hypervisor's `xen-syms`.
    pub xen_syms: PathBuf,
    /// Where the payload goes.
    pub output: PathBuf,
    /// The configuration that the tree must have been built with.
    pub config: Option<PathBuf>,
    /// Payloads that this one depends on, the lowest first.
    pub below: Vec<PathBuf>,
    /// The source patches of those payloads, in the order in which they apply.
    pub below_patches: Vec<PathBuf>,
    /// Build-id of what the payload is applied on top of, if not that of the
    /// last of `below` or the hypervisor's own.
    pub depends: Option<Vec<u8>>,
    /// Build-id that `xen_syms` must have.
    pub xen_depends: Option<Vec<u8>>,
    /// Put addresses instead of names for all of the hypervisor's symbols.
    pub prelink: bool,
    /// How many compilers run at once; 0 for one for each CPU.
    pub jobs: usize,
    /// C source of hooks, compiled into the payload.
    pub hooks: Vec<PathBuf>,
    /// Changed variables, boot-only code and files that the payload does
    /// without.
    pub leave_out: BTreeSet<String>,
    /// Do without all changes of boot-only code.
    pub leave_out_init: bool,
    /// Variables and constants whose new contents hooks write over the old ones.
    pub patch_data: BTreeSet<String>,
    /// Structures whose layout may change, and variables that may begin with their
    /// initial value.
    pub allow: BTreeSet<String>,
    /// Further `key=value` pairs for the payload's metadata.
    pub metadata: Vec<(String, String)>,
    /// Where compiled objects are kept for the next run, if anywhere.
    pub cache: Option<PathBuf>,
}

impl Options {
    /// Finds out before the work whether the payload can be written where it is to
    /// go, and none of the inputs is there.
    ///
    /// # Errors
    /// If one is, or nothing can be written there.
    pub fn check_output(&self) -> std::io::Result<()> {
        let lists = [&self.patches, &self.below, &self.below_patches, &self.hooks];
        let inputs = lists.into_iter().flatten().chain(&self.config);
        file::check_output(&self.output, inputs.chain([&self.xen_syms]))
    }
}
