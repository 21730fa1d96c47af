// SPDX-License-Identifier: MIT OR Apache-2.0
//! The required Debian packages.

use crate::command;
use anyhow::{Context, bail};
use std::process::Command;

/// For the tests that need no Xen: linkers, compilers, and another signer.
pub const TESTS: &[&str] = &[
    "binutils",
    "binutils-aarch64-linux-gnu",
    "clang",
    "gcc",
    "gcc-arm-linux-gnueabihf",
    "openssl",
];

/// For building and booting Xen.
pub const XEN: &[&str] = &[
    "bison",
    "cpio",
    "dpkg-dev",
    "flex",
    "gcc",
    "libelf-dev",
    "make",
    "ovmf",
    "patch",
    "python3",
    "qemu-system-x86",
    "xz-utils",
];

/// For building and booting Xen on ARM64.
pub const ARM64: &[&str] = &[
    "bison",
    "dpkg-dev",
    "flex",
    "gcc-aarch64-linux-gnu",
    "libc6-dev-arm64-cross",
    "make",
    "qemu-system-arm",
    "qemu-user",
];

/// For building and booting Xen on ARM32.
pub const ARM32: &[&str] = &[
    "bison",
    "dpkg-dev",
    "flex",
    "gcc-arm-linux-gnueabihf",
    "libc6-dev-armhf-cross",
    "make",
    "qemu-system-arm",
];

/// For Rust in the hypervisor: a compiler with the source of its own `core` and
/// `alloc`.
pub const RUST: &[&str] = &["binutils", "cargo-web", "rust-web-src", "rustc-web"];

/// For the report page in a real browser, and on paper.
pub const BROWSER: &[&str] = &["chromium", "poppler-utils", "python3-pip"];

/// For `cargo xtask sanitize`.
pub const SANITIZERS: &[&str] = &["binutils", "gcc", "valgrind"];

/// For the collection for Ansible.
pub const ANSIBLE: &[&str] = &["ansible-core"];

/// For checking it.
pub const ANSIBLE_LINT: &[&str] = &["git", "python3-venv"];

/// For `cargo xtask package`.
pub const PACKAGING: &[&str] = &["binutils", "debhelper", "dpkg-dev", "gcc", "lintian"];

/// For a Debian system as dom0.
pub const DOM0: &[&str] = &[
    "cpio",
    "e2fsprogs",
    "mmdebstrap",
    "openssh-client",
    "qemu-system-x86",
    "qemu-utils",
];

/// For `xl`.
pub const XL: &[&str] = &["gcc", "patch"];

/// For RPM packages.
pub const RPM: &[&str] = &["rpm"];

/// Installs missing packages if this user may; otherwise prints the command.
pub fn ensure(needed: &[&'static str]) -> anyhow::Result<()> {
    let missing: Vec<&str> = needed.iter().copied().filter(|p| !installed(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let uid = command::output(Command::new("id").arg("-u"))?;
    if uid.trim() != "0" {
        bail!("packages are missing; run: sudo apt-get install --no-install-recommends {list}");
    }
    println!("installing {list}");
    let apt = |arguments: &[&str]| {
        command::output(
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(arguments),
        )
    };
    apt(&["update"])?;
    let install = ["install", "-y", "--no-install-recommends"];
    apt(&[&install[..], &missing[..]].concat()).context("cannot install the required packages")?;
    Ok(())
}

fn installed(package: &str) -> bool {
    let query = ["-W", "-f", "${db:Status-Status}", package];
    command::output(Command::new("dpkg-query").args(query)).is_ok_and(|s| s.trim() == "installed")
}
