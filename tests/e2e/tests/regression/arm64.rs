// SPDX-License-Identifier: MIT OR Apache-2.0

//! The same steps on ARM64 with our core and both tools; and payloads that our core
//! refuses there.

use crate::denied::{self, functions_on_the_deny_list_are_refused};
use crate::{changed, make_all};
use xsplice_e2e::{arm64_config, arm64_rust_base};
use xsplice_lab::Host;

#[test]
fn our_core_behaves_as_expected_with_both_tools_on_arm64() -> anyhow::Result<()> {
    let base = arm64_rust_base()?;
    let mut host = Host::boot(&arm64_config(&base)?)?;
    // Its compiler makes two instructions of the function, and the payload keeps the
    // second one.
    let nop = std::fs::read(base.test_payloads.join("xen_nop.livepatch"))?;
    make_all(&mut host, &base, &nop)?;
    changed::are_refused(&mut host, &base, &changed::ARM64)?;
    functions_on_the_deny_list_are_refused(&mut host, &base, denied::ON_ARM64)?;
    host.shut_down()?;
    Ok(())
}
