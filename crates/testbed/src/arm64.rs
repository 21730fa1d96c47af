// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen on ARM64.

use crate::arm::Arm;
use crate::packages;

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
