// SPDX-License-Identifier: MIT OR Apache-2.0
//! A disposable Xen host in QEMU, for trying payloads.
//!
//! *What it is*: [`Host`] boots a Xen hypervisor and a dom0 kernel with an
//! [`initramfs`] of its own making, whose first process is [`init`]; commands
//! run in dom0 through a serial line that nothing else uses. [`scenario`] runs
//! a text file of commands and expectations.
//!
//! *What it trusts*: QEMU, and the hypervisor not to break out of it.
//!
//! *What it guarantees*: every run is bounded in time and in console output;
//! a crash of the hypervisor ends it with the first lines of the crash; no
//! process and no file is left behind.
#![forbid(unsafe_code)]

pub mod host;
pub mod init;
pub mod initramfs;
mod monitor;
mod protocol;
pub mod scenario;

pub use host::{Error, Host, HostConfig};
pub use monitor::Monitor;
pub use protocol::Output;
