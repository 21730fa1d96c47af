// SPDX-License-Identifier: MIT OR Apache-2.0
//! The first process of a domain that may not patch the hypervisor: tries to,
//! says on its console what came of it, and turns the domain off.
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
    // Of itself, the driver asks xenstore what such a domain may do, and waits.
    finit_module(File::open("/xen-privcmd.ko")?, c"unrestricted=1", 0)?;
    let hypervisor = Privcmd::open()?;
    // What everybody may ask.
    let version = version_info(&hypervisor).map(|version| version.extra);
    println!("domu: version {version:?}");
    let livepatch = Livepatch::negotiate(&hypervisor).map(drop);
    println!(
        "domu: live patching {:?}",
        livepatch.map_err(|Errno(number)| number)
    );
    Ok(())
}
