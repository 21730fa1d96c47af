// SPDX-License-Identifier: MIT OR Apache-2.0

//! What differs between the machines that this is compiled for: how code is written.

#[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
mod arm;
#[cfg(target_arch = "arm")]
mod arm32;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
pub(crate) use arm::text_write;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::text_write;
