// SPDX-License-Identifier: MIT OR Apache-2.0
//! The generator: from a source patch to a live-patch payload.
//!
//! *What it is*: [`generate`] takes a built Xen source tree, source patches
//! and the `xen-syms` of the hypervisor to be patched, and makes a payload in
//! Xen's live-patch format. The way of a patch, one module a step: [`patch`]
//! is applied to files of the [`tree`], the objects that it reaches are
//! compiled from both, `xsplice-objdiff` compares them, [`proof`] ties the
//! originals to the [`image`], [`select`] collects what changed and all that
//! it needs, and [`payload`] writes it as ELF.
//!
//! *What it trusts*: the compiler and the recorded compile commands of the
//! tree, which it runs; nothing about the tree's relation to the hypervisor.
//!
//! *What it guarantees*: the user's tree is not touched; a payload is written
//! only if every function that it replaces was proved, byte by byte, to be the
//! one in the hypervisor; what cannot be patched is refused by name.
#![forbid(unsafe_code)]

pub mod account;
mod archive;
pub mod below;
mod cache;
pub mod choice;
mod climb;
mod code;
mod compile;
mod constants;
mod dwarf;
mod forgotten;
mod generate;
mod generated;
mod generated_file;
mod generated_hooks;
mod given;
pub mod hunk;
mod image;
mod layout;
mod locals;
pub mod makefile;
mod name;
pub mod numbering;
mod options;
mod pair;
pub mod patch;
mod patched_data;
pub mod payload;
mod per_cpu;
mod place;
mod preprocessed;
mod problem;
mod progress;
pub mod proof;
mod rebuild;
mod record;
mod renamed;
pub mod select;
mod shadow;
pub mod source;
pub mod tree;
pub mod unit;
mod unrecorded;
mod uses;
mod variant;
pub mod warning;
mod witness;

pub use code::Code;
pub use generate::{PatchedFunction, Report, generate};
pub use options::Options;
pub use problem::{Problem, Refused};
pub use progress::Progress;
