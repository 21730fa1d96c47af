// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor with our core as a UEFI program, `xen.efi`. Its linker gives
//! it a build-id of its own, so that payloads for `xen.gz` are not for it.

use anyhow::ensure;
use xsplice_e2e::{build, config, repository, rust_base};
use xsplice_lab::Host;

#[test]
fn xen_efi_takes_no_payloads_for_xen_gz() -> anyhow::Result<()> {
    let base = rust_base()?;
    let directory = tempfile::tempdir()?;
    let payload = directory.path().join("extra-version.livepatch");
    let patch = repository().join("examples/xen-4.17/extra-version.patch");
    build(&base, &patch, &payload)?;
    let mut config = config(&base)?;
    config.xen = base.tree.join("xen/xen.efi");
    let place = "lab/extra-version.livepatch".to_owned();
    config.files.push((place, payload));
    let mut host = Host::boot(&config)?;
    let console = host.console();
    ensure!(console.contains("Bootloader: EFI"), "{console}");
    let output = host.run(&["xsplice", "load", "/lab/extra-version.livepatch"])?;
    ensure!(output.code == Some(1), "{output:?}");
    let reason = "the payload is for the hypervisor with build-id";
    ensure!(output.stderr.contains(reason), "{output:?}");
    host.shut_down()?;
    Ok(())
}
