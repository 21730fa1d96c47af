// SPDX-License-Identifier: MIT OR Apache-2.0

//! ARM64 and ARM32.

/// Writes code, in the window; `addr` is where it can be written. The shim also cleans
/// it from the data cache.
pub(crate) use crate::ffi::text_write;
