// SPDX-License-Identifier: MIT OR Apache-2.0
//! Our tool under its classic name behaves exactly like the C tool, on the same
//! running host, in xapi's hands, too.

use anyhow::{Context as _, ensure};
use xsplice_e2e::{arm64_base, arm64_config, base, config, settled, told, xapi};
use xsplice_lab::{Host, HostConfig, Output};

/// The Xen project's own regression steps with payloads that do not depend on the
/// hypervisor's compiler: arguments of the tool, and the exit code.
const STEPS: &[(&[&str], i32)] = &[
    (&[], 0),
    (&["help"], 0),
    (&["list"], 0),
    (&["nonsense"], 1),
    (&["--force", "list"], 1),
    (&["revert"], 1),
    (&["list", "more"], 1),
    (&["revert", "xen_hello_world"], 1),
    (&["load", "/lab/missing.livepatch"], 1),
    (&["upload", "a_directory", "/lab"], 1),
    (&["apply", ""], 1),
    (&["upload", "", "/lab/xen_hello_world.livepatch"], 0),
    (&["list"], 0),
    (&["unload", ""], 0),
    (&["load", "/lab/xen_hello_world.livepatch"], 0),
    (&["load", "/lab/xen_hello_world.livepatch"], 1),
    (&["list"], 0),
    (&["apply", "xen_hello_world", "--wrong"], 1),
    (&["apply", "xen_hello_world"], 0),
    (&["unload", "xen_hello_world"], 1),
    (&["revert", "xen_hello_world"], 0),
    (&["unload", "xen_hello_world"], 0),
    (&["unload", "xen_hello_world"], 1),
    (&["load", "/lab/xen_no_xen_buildid.livepatch"], 1),
    (&["load", "/lab/xen_hello_world.livepatch"], 0),
    (&["load", "/lab/xen_bye_world.livepatch"], 0),
    (
        &[
            "upload",
            "xen_replace_world",
            "/lab/xen_replace_world.livepatch",
        ],
        0,
    ),
    (&["list"], 0),
    (&["replace", "xen_replace_world"], 0),
    (&["list"], 0),
    (&["apply", "xen_hello_world"], 1),
    (&["apply", "xen_bye_world"], 1),
    (&["apply", "xen_replace_world"], 0),
    (&["revert", "xen_replace_world"], 0),
    (&["unl", "xen_replace_world"], 0),
    (&["unload", "xen_hello_world"], 0),
    (&["unload", "xen_bye_world"], 0),
    (&["list"], 0),
];

/// Runs every step with the tool at `tool`.
fn run(host: &mut Host, tool: &str) -> anyhow::Result<Vec<Output>> {
    let mut outputs = Vec::new();
    for (arguments, code) in STEPS {
        let argv: Vec<&str> = [tool].iter().chain(*arguments).copied().collect();
        let mut output = settled(host, &argv)?;
        assert_eq!(output.code, Some(*code), "{argv:?}: {output:?}");
        output.stderr = without_library_words(&output.stderr);
        outputs.push(output);
    }
    Ok(outputs)
}

/// libxenctrl logs failures in separate lines before the tool's.
fn without_library_words(text: &str) -> String {
    text.lines()
        .filter(|l| !l.starts_with("xc: "))
        .map(|l| format!("{l}\n"))
        .collect()
}

#[test]
fn both_tools_behave_the_same() -> anyhow::Result<()> {
    let mut host = compare(&config(&base()?)?)?;
    in_the_hands_of_xapi(&mut host)?;
    host.shut_down()?;
    Ok(())
}

#[test]
fn both_tools_behave_the_same_on_arm64() -> anyhow::Result<()> {
    compare(&arm64_config(&arm64_base()?)?)?.shut_down()?;
    Ok(())
}

/// Boots a host, on which they behave the same.
fn compare(config: &HostConfig) -> anyhow::Result<Host> {
    let mut host = Host::boot(config)?;
    let theirs = run(&mut host, "/c/xen-livepatch")?;
    let ours = run(&mut host, "/bin/xen-livepatch")?;
    for (((arguments, _), theirs), ours) in STEPS.iter().zip(theirs).zip(ours) {
        assert_eq!(ours, theirs, "xen-livepatch {arguments:?}");
    }
    Ok(host)
}

/// xapi finds the hypervisor, and brings the host from one payload to the next, with either
/// tool; on a host that xapi manages, xsplice only looks.
fn in_the_hands_of_xapi(host: &mut Host) -> anyhow::Result<()> {
    let info = host.run(&["xsplice", "info", "--format", "xl"])?.stdout;
    let json = told("info", host.run(&["xsplice", "info", "--json"])?.stdout)?;
    let id = json["result"]["hypervisor"]["build_id"].as_str();
    ensure!(xapi::value(&info, "build_id") == id, "{info}{json:#}");
    let first = "/lab/xen_hello_world.livepatch";
    let second = "/lab/xen_replace_world.livepatch";
    for tool in ["/c/xen-livepatch", "/bin/xen-livepatch"] {
        xapi::bring(host, tool, "lp_4.17.5-1_4.17.5-2", first)?;
        xapi::bring(host, tool, "lp_4.17.5-1_4.17.5-3", second)?;
        // One that was uploaded and not applied is in the way.
        let upload = [tool, "upload", "lp_4.17.5-1_4.17.5-2", first];
        ensure!(host.run(&upload)?.code == Some(0), "{upload:?}");
        xapi::bring(host, tool, "lp_4.17.5-1_4.17.5-2", first)?;
        let reverted = settled(host, &[tool, "revert", "lp_4.17.5-1_4.17.5-2"])?;
        ensure!(reverted.code == Some(0), "{reverted:?}");
        let unloaded = host.run(&[tool, "unload", "lp_4.17.5-1_4.17.5-2"])?;
        ensure!(unloaded.code == Some(0), "{unloaded:?}");
    }
    host.put("/etc/xsplice/host.toml", b"managed-by = \"xapi\"\n")?;
    xapi::bring(host, "/bin/xen-livepatch", "lp_4.17.5-1_4.17.5-2", first)?;
    let status = host.run(&["xsplice", "status", "--json"])?;
    let payloads = told("status", &status.stdout)?["result"]["payloads"].take();
    let payloads = payloads.as_array().context("no payloads")?;
    ensure!(
        payloads.len() == 1 && payloads[0]["state"] == "applied",
        "{status:?}"
    );
    let sync = host.run(&["xsplice", "sync", "--json"])?;
    let sync_told = told("sync", &sync.stdout)?;
    ensure!(
        sync.code == Some(1) && sync_told["changed"] == false,
        "{sync:?}"
    );
    ensure!(sync.stderr.contains("xapi manages this host"), "{sync:?}");
    Ok(())
}
