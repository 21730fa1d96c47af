// SPDX-License-Identifier: MIT OR Apache-2.0

//! The engine against a hypervisor image on disk.
//!
//! [`Image`] is what `xen-syms` tells: the symbols under the names that the
//! running hypervisor has for them, its build-id, its text. [`check`] loads and
//! applies payloads on it, in the order given, with the code that a hypervisor
//! does it with, and says for each whether that would succeed.
//!
//! * **Trusts** that the image is the hypervisor in question; the build-id in
//!   every payload is compared with that of the image.
//! * **Guarantees** no side effect, and no panic on any payload or image.
//!
//! It cannot see what the hypervisor changed in its own code while booting
//! (alternatives), what hooks do, nor how long anything takes.
#![forbid(unsafe_code)]

mod alternatives;
mod code;
mod efi;
mod entry;
mod image;
mod limits;
mod machine;
mod report;
mod surroundings;
mod window;

pub use efi::{EfiError, efi_symbols};
pub use image::{Image, Part};
pub use machine::Machine;
pub use report::{Checker, Function, Problem, Report, Severity, check};
pub use xsplice_engine::Guard;
pub use xsplice_xen_image::Error;
