// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian's Xen for any machine that has live patching on our side.

use crate::arm32::ARM32;
use crate::arm64::ARM64;
use crate::base::{self, Base};
use crate::debian_build::DebianBuild;
use std::path::Path;
use xsplice_abi::machine::Machine;

/// The hypervisor with Xen's own core, from the cache if it is there.
///
/// # Errors
/// If it cannot be made.
pub fn base(machine: Machine) -> anyhow::Result<Base> {
    match machine {
        Machine::X86_64 => base::get(),
        Machine::Arm64 => ARM64.base(),
        Machine::Arm32 => ARM32.base(),
    }
}

/// Builds a configured copy of its tree with make.
///
/// # Errors
/// If that fails.
pub fn build(machine: Machine, tree: &Path) -> anyhow::Result<()> {
    match machine {
        Machine::X86_64 => DebianBuild::new(tree)?.build(),
        Machine::Arm64 => ARM64.build_configured(tree),
        Machine::Arm32 => ARM32.build_configured(tree),
    }
}
