// SPDX-License-Identifier: MIT OR Apache-2.0
//! The generator: from a source patch to a live-patch payload.
//!
//! *What it is*: [`generate`] takes a built Xen source tree, source patches and the
//! `xen-syms` of the hypervisor to patch, and builds a payload in Xen's live-patch
//! format. Each stage is a module: [`patch`] is applied to files of the [`tree`], the
//! affected objects are compiled from both, `xsplice-objdiff` compares them,
//! [`proof`] ties the originals to the hypervisor, [`select`] collects the changes
//! and everything they need, and [`payload`] writes it as ELF.
//!
//! *What it trusts*: the compiler and the recorded compile commands of the
//! tree, which it runs; nothing about the tree's relation to the hypervisor.
//!
//! *What it guarantees*: the user's tree is not touched; a payload is written only if
//! every function that it replaces was proved, byte by byte, to be the one in the
//! hypervisor; changes that cannot be patched are refused by name.
#![forbid(unsafe_code)]

pub mod account;
mod arch;
mod archive;
pub mod below;
mod cache;
pub mod choice;
mod climb;
mod code;
mod compile;
mod constants;
mod diagnostics;
mod dwarf;
mod forgotten;
mod generated;
mod generated_file;
mod generated_hooks;
mod given;
pub mod hunk;
mod image;
mod layout;
mod locals;
pub mod makefile;
mod metadata;
mod name;
pub mod numbering;
mod options;
mod pair;
pub mod patch;
mod patched_data;
pub mod payload;
mod per_cpu;
mod place;
mod preflight;
mod preprocessed;
mod problem;
mod progress;
pub mod proof;
mod rebuild;
mod record;
mod renamed;
mod report;
pub mod select;
mod shadow;
pub mod source;
mod stage;
mod stored;
pub mod tree;
pub mod unit;
mod unrecorded;
mod uses;
mod variant;
pub mod warning;
mod witness;

pub use code::Code;
pub use options::Options;
pub use problem::{Problem, Refused};
pub use progress::Progress;
pub use report::{PatchedFunction, Report};

use stage::Inputs;

/// Maximum number of parallel compilers: more only slow each other down.
const MOST_JOBS: usize = 256;

/// Builds a payload.
///
/// # Errors
/// Every problem that was found; then nothing is written.
pub fn generate(options: &Options, progress: &dyn Progress) -> Result<Report, Refused> {
    options
        .check_output()
        .map_err(|e| Refused::io(&options.output, &e))?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.jobs.min(MOST_JOBS))
        .build()
        .map_err(|e| Refused::one(Code::WorkDirectory, "compiler", e.to_string()))?;
    let built = pool.install(|| {
        let inputs = Inputs::read(options)?;
        let sources = inputs.patch(progress)?;
        let compiled = sources.compile()?;
        let compared = compiled.compare()?;
        let proved = compared.prove()?;
        let selected = proved.select()?;
        selected.account().write()
    });
    built.map_err(diagnostics::bounded)
}
