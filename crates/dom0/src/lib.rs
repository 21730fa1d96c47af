// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen's hypercalls from dom0, through the kernel's privcmd driver.
//!
//! *What it is*: the live-patch operations of the sysctl hypercall, the queries of the
//! version hypercall, and the loading of microcode, without Xen's libraries. The sysctl interface version is
//! negotiated with the running hypervisor, so that one binary serves Xen 4.13 to
//! 4.22.
//!
//! *What it trusts*: that the kernel's driver locks the pages of its buffers.
//!
//! *What it guarantees*: every buffer that the hypervisor writes to outlives the call
//! and has the size stated in the call; results are read with bounds checks. `unsafe`
//! is only in `privcmd`.
#![deny(unsafe_code)]

mod console;
mod livepatch;
mod microcode;
mod privcmd;
mod sysctl;
mod version;

pub use console::Place;
pub use livepatch::{Action, Livepatch, Payload, State, Status};
pub use microcode::load_microcode;
pub use privcmd::{OpenError, Privcmd};
pub use version::{
    Details, FORCE_SINCE, VersionInfo, build_id, details, machine, version, version_info,
};
pub use xsplice_abi::errno::Errno;
