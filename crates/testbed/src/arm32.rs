// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen on ARM32.

use crate::arm::Arm;
use crate::packages;

/// How everything for ARM32 is made.
pub const ARM32: Arm = Arm {
    debian: "armhf",
    xen: "arm32",
    triple: "arm-linux-gnueabihf",
    target: "armv7-unknown-linux-gnueabihf",
    kernel: "linux-image-armmp-lpae",
    packages: packages::ARM32,
    recipe: concat!(include_str!("arm.rs"), include_str!("arm32.rs")),
};
