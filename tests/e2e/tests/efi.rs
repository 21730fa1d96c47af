// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor with our core as a UEFI program, `xen.efi`. It has a different
//! build-id and different data addresses, so payloads for `xen.gz` do not fit, and it
//! needs its own.

use anyhow::ensure;
use xsplice_e2e::{Base, build, config, local, repository, result, rust_base, settled};
use xsplice_lab::Host;

const EXAMPLES: [&str; 3] = ["extra-version", "two-files", "bug-and-alternative"];

fn info(host: &mut Host) -> anyhow::Result<serde_json::Value> {
    let output = host.run(&["xsplice", "info", "--json"])?;
    Ok(result("info", output.stdout)?["hypervisor"].take())
}

/// Makes the `xen-syms` of `efi`, from that of `gz`.
fn make_symbols(gz: &Base, efi: &Base) -> anyhow::Result<()> {
    let paths = [&gz.xen_syms, &efi.xen, &efi.xen_syms].map(|path| path.display().to_string());
    let [syms, program, made] = &paths;
    let argv = [
        "efi-syms",
        "--json",
        "--xen-syms",
        syms,
        "--xen-efi",
        program,
        "-o",
        made,
    ];
    let output = local(&argv)?;
    ensure!(output.status.success(), "{output:?}");
    result("efi-syms", output.stdout)?;
    Ok(())
}

#[test]
fn xen_efi_rejects_payloads_built_for_xen_gz() -> anyhow::Result<()> {
    let gz = rust_base()?;
    let directory = tempfile::tempdir()?;
    let efi = Base {
        xen: gz.tree.join("xen/xen.efi"),
        xen_syms: directory.path().join("xen-efi-syms"),
        ..rust_base()?
    };
    make_symbols(&gz, &efi)?;
    let mut config = config(&efi)?;
    for name in EXAMPLES {
        let patch = repository().join(format!("examples/xen-4.17/{name}.patch"));
        for (base, kind) in [(&gz, "gz"), (&efi, "efi")] {
            let payload = directory.path().join(format!("{name}.{kind}"));
            build(base, &patch, &payload)?;
            config.files.push((format!("lab/{name}.{kind}"), payload));
        }
    }
    let mut host = Host::boot(&config)?;
    let console = host.console();
    ensure!(console.contains("Bootloader: EFI"), "{console}");
    let original = info(&mut host)?;
    for name in EXAMPLES {
        let (ours, theirs) = (format!("/lab/{name}.efi"), format!("/lab/{name}.gz"));
        let output = host.run(&["xsplice", "load", &theirs])?;
        ensure!(output.code == Some(1), "{output:?}");
        let reason = "the payload is for the hypervisor with build-id";
        ensure!(output.stderr.contains(reason), "{output:?}");
        for (argv, patched) in [
            (["load", &ours], true),
            (["revert", name], false),
            (["unload", name], false),
        ] {
            let argv = [&["xsplice"], argv.as_slice()].concat();
            let output = settled(&mut host, &argv)?;
            ensure!(output.code == Some(0), "{argv:?}: {output:?}");
            let now = info(&mut host)?;
            // Its effect is visible only on the console.
            let silent = name == "bug-and-alternative";
            ensure!((now != original) == (patched && !silent), "{argv:?}: {now}");
        }
    }
    let console = host.console();
    let said = "tasklet: done by patched code";
    ensure!(console.contains(said), "{console}");
    host.shut_down()?;
    Ok(())
}
