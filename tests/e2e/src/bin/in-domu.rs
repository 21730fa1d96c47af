// SPDX-License-Identifier: MIT OR Apache-2.0
//! The first process of an unprivileged domain: tries to patch the hypervisor, prints
//! the result on its console, and powers the domain off.
#![forbid(unsafe_code)]

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};
use std::fs::File;
use xsplice_dom0::{Errno, Livepatch, Privcmd, version_info};

fn main() -> anyhow::Result<()> {
    let tried = try_to_patch();
    println!("domu: {tried:?}");
    Ok(reboot(RebootCommand::PowerOff)?)
}

fn try_to_patch() -> anyhow::Result<()> {
    mount("devtmpfs", "/dev", "devtmpfs", MountFlags::empty(), None)?;
    // By default, the driver waits for xenstore to say what such a domain may do.
    finit_module(File::open("/xen-privcmd.ko")?, c"unrestricted=1", 0)?;
    let hypervisor = Privcmd::open()?;
    // A query that is open to everyone.
    let version = version_info(&hypervisor).map(|version| version.extra);
    println!("domu: version {version:?}");
    let livepatch = Livepatch::negotiate(&hypervisor).map(drop);
    println!(
        "domu: live patching {:?}",
        livepatch.map_err(|Errno(number)| number)
    );
    Ok(())
}
