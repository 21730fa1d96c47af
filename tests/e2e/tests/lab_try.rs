// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice lab try`: a good payload passes, a hypervisor crash is reported.

use xsplice_e2e::{base, local, told};

/// QEMU reports why it cannot start a hypervisor; a payload is not one.
#[test]
fn a_file_that_does_not_boot_is_reported() -> anyhow::Result<()> {
    let base = base()?;
    let payload = base.test_payloads.join("xen_hello_world.livepatch");
    let (payload, kernel) = (payload.display().to_string(), base.kernel.display());
    let kernel = format!("--kernel={kernel}");
    for (xen, reason) in [
        ("/dev/null", "/dev/null: not a hypervisor"),
        (payload.as_str(), "the machine powered off during"),
        (payload.as_str(), "rror while loading elf kernel"),
    ] {
        let output = local(&["lab", "try", &payload, "--xen", xen, &kernel])?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains(reason), "{xen}: {words}");
    }
    Ok(())
}

#[test]
fn a_good_payload_passes_and_a_crash_is_reported() -> anyhow::Result<()> {
    let base = base()?;
    let machine = [
        format!("--xen={}", base.xen.display()),
        format!("--kernel={}", base.kernel.display()),
        format!("--privcmd={}", base.privcmd.display()),
    ];
    let run = |name: &str| {
        let payload = base.test_payloads.join(name).display().to_string();
        let arguments: Vec<&str> = ["lab", "try", &payload, "--json", "-v"]
            .into_iter()
            .chain(machine.iter().map(String::as_str))
            .collect();
        local(&arguments)
    };
    let good = run("xen_hello_world.livepatch")?;
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    told("lab-try", &good.stdout)?;
    // The console as it comes, with `-v`.
    let console = String::from_utf8_lossy(&good.stderr);
    assert!(console.contains("(XEN) Brought up"), "{console}");
    // Xen's own payload cuts an instruction in half on a hypervisor that was built
    // with return thunks.
    let crash = run("xen_nop.livepatch")?;
    let words = String::from_utf8_lossy(&crash.stderr).into_owned();
    assert_eq!(crash.status.code(), Some(1), "{words}");
    assert!(words.contains("the hypervisor crashed"), "{words}");
    assert_eq!(told("lab-try", &crash.stdout)?["error"]["kind"], "failed");
    Ok(())
}
