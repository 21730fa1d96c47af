// SPDX-License-Identifier: MIT OR Apache-2.0

//! The engine against a hypervisor image on disk.
//!
//! [`Image`] has the contents of `xen-syms`: the symbols under the names that the
//! running hypervisor uses, its build-id, its text. [`check`] loads and applies
//! payloads on it, in the order given, with the same code as a hypervisor, and
//! reports for each whether that would succeed.
//!
//! * **Trusts** that the image is the hypervisor in question; the build-id in
//!   every payload is compared with that of the image.
//! * **Guarantees** no side effect, and no panic on any payload or image.
//!
//! It cannot see changes that the hypervisor made to its own code at boot
//! (alternatives), the effect of hooks, or timing.
#![forbid(unsafe_code)]

mod arch;
mod efi;
mod image;
mod machine;
mod memory;
mod report;
mod special;
mod surroundings;
mod window;

pub use efi::{EfiError, efi_symbols};
pub use image::{Image, Part};
pub use machine::Machine;
pub use memory::Memory;
pub use report::{Checker, Function, Problem, Report, Severity, check};
pub use xsplice_engine::Guard;
pub use xsplice_xen_image::Error;
