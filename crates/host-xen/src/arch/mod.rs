// SPDX-License-Identifier: MIT OR Apache-2.0

//! Writing code on the machine that this is compiled for.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::text_write;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::text_write;
