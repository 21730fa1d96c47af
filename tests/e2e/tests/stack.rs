// SPDX-License-Identifier: MIT OR Apache-2.0
//! A payload on top of another one replaces its function again, and goes on
//! with its variables.

use anyhow::ensure;
use std::path::Path;
use xsplice_e2e::{base, build, config, local, settled};
use xsplice_lab::Host;

#[test]
fn a_payload_uses_what_the_one_below_added() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |path: &Path| path.display().to_string();
    let (below_patch, top_patch) = (
        here.join("patches/new-variables.patch"),
        here.join("stack/on-top.patch"),
    );
    let (below, top) = (
        directory.path().join("below.livepatch"),
        directory.path().join("top.livepatch"),
    );
    build(&base, &below_patch, &below)?;
    let (tree, xen_syms) = (text(&base.tree), text(&base.xen_syms));
    let (patch, depends, depends_patch, output) = (
        text(&top_patch),
        text(&below),
        text(&below_patch),
        text(&top),
    );
    let mut arguments = vec!["build", "-s", &tree, "--xen-syms", &xen_syms];
    arguments.extend(["-p", &patch, "-o", &output, "--depends", &depends]);
    let alone = local(&arguments)?;
    let words = String::from_utf8_lossy(&alone.stderr).into_owned();
    ensure!(words.contains("needs both"), "without its source: {words}");
    arguments.extend(["--depends-patch", &depends_patch]);
    let built = local(&arguments)?;
    ensure!(built.status.success(), "{built:?}");

    let mut host = Host::boot(&config(&base)?)?;
    host.put("/lab/below.livepatch", &std::fs::read(&below)?)?;
    host.put("/lab/top.livepatch", &std::fs::read(&top)?)?;
    let mut tool = |arguments: &[&str]| settled(&mut host, &[&["xsplice"], arguments].concat());
    let refused = tool(&["load", "/lab/top.livepatch"])?;
    ensure!(
        refused.code == Some(1),
        "without the one below: {refused:?}"
    );
    for (arguments, changeset) in [
        (&["load", "/lab/below.livepatch"][..], "calls 6, 3, 4"),
        // The variable goes on from the value that it has; loading asks once too.
        (&["load", "/lab/top.livepatch"], "on top: calls 8, 3, 4"),
        (&["revert", "top"], "calls 9, 3, 4"),
    ] {
        let done = tool(arguments)?;
        ensure!(done.code == Some(0), "{arguments:?}: {done:?}");
        let info = tool(&["info"])?.stdout;
        ensure!(
            info.contains(&format!(" {changeset}\n")),
            "{arguments:?}: {info}"
        );
    }
    for arguments in [["unload", "top"], ["revert", "below"], ["unload", "below"]] {
        let done = tool(&arguments)?;
        ensure!(done.code == Some(0), "{arguments:?}: {done:?}");
    }
    host.shut_down()?;
    Ok(())
}
