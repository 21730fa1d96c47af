// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen on ARM64.

use crate::arm::Arm;
use crate::base::Base;
use crate::packages;
use std::path::Path;

/// How everything for ARM64 is made.
pub const ARM64: Arm = Arm {
    debian: "arm64",
    xen: "arm64",
    triple: "aarch64-linux-gnu",
    target: "aarch64-unknown-linux-gnu",
    kernel: "linux-image-arm64",
    packages: packages::ARM64,
    recipe: concat!(include_str!("arm.rs"), include_str!("arm64.rs")),
};

/// The base; it is made if it is not in the cache.
///
/// # Errors
/// If it cannot be made.
pub fn base() -> anyhow::Result<Base> {
    ARM64.base()
}

/// Builds the hypervisor that `.config` describes, and its test payloads.
pub(crate) fn build_configured(tree: &Path) -> anyhow::Result<()> {
    ARM64.build_configured(tree)
}
