// SPDX-License-Identifier: MIT OR Apache-2.0
//! A disposable Xen host in QEMU, for trying payloads.
//!
//! *What it is*: [`Host`] boots a Xen hypervisor and a dom0 kernel with a generated
//! [`initramfs`], whose first process is [`init`]; commands reach dom0 through a
//! dedicated serial port. [`DebianHost`] has a Debian system as dom0, on a disk that
//! outlives its boots, and takes commands over SSH. [`scenario`] runs a text file of
//! commands and expectations.
//!
//! *What it trusts*: QEMU, and that the hypervisor does not break out of it.
//!
//! *What it guarantees*: every run is bounded in time and in console output; a
//! hypervisor crash ends it with the first lines of the crash; no process or file is
//! left behind.
#![forbid(unsafe_code)]

mod boot;
mod console;
mod debian;
mod debugger;
pub mod host;
pub mod init;
pub mod initramfs;
pub mod microcode;
mod monitor;
mod protocol;
pub mod scenario;

pub use debian::{DebianConfig, DebianHost};
pub use debugger::Debugger;
pub use host::{Error, Host, HostConfig};
pub use monitor::Monitor;
pub use protocol::Output;
