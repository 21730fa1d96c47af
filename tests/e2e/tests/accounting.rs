// SPDX-License-Identifier: MIT OR Apache-2.0
//! A payload says which patches are in it, and which were only given.

use anyhow::{Context, ensure};
use std::path::Path;
use xsplice_e2e::{base, local};

/// Runs `xsplice` and expects it to succeed; gives what it prints.
fn run(arguments: &[&str]) -> anyhow::Result<String> {
    let output = local(arguments)?;
    ensure!(output.status.success(), "{arguments:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn a_patch_of_which_nothing_is_in_the_payload_is_not_recorded_as_being_in_it() -> anyhow::Result<()>
{
    let base = base()?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |path: &Path| path.display().to_string();
    let patch = |name: &str| text(&here.join("patches").join(name));
    let (comment, header) = (patch("header-comment.patch"), patch("new-header.patch"));
    let directory = tempfile::tempdir()?;
    let output = |name: &str| text(&directory.path().join(name));
    let (below, top) = (output("below.livepatch"), output("top.livepatch"));
    let (tree, xen_syms) = (text(&base.tree), text(&base.xen_syms));
    let common = ["build", "-s", &tree, "--xen-syms", &xen_syms];
    let told = run(&[&common[..], &["-p", &comment, "-p", &header, "-o", &below]].concat())?;
    ensure!(
        told.contains("note: header-comment.patch: nothing of this patch is in the payload"),
        "{told}"
    );
    let inspected: serde_json::Value = serde_json::from_str(&run(&["inspect", "--json", &below])?)?;
    let metadata = inspected["metadata"].as_array().context("metadata")?;
    let keys: Vec<&str> = metadata
        .iter()
        .filter_map(|entry| entry.as_str()?.split_once('='))
        .filter(|(_, value)| value.contains(".patch "))
        .map(|(key, _)| key)
        .collect();
    ensure!(keys == ["unused-patch", "patch"], "{metadata:?}");

    // What goes on top of it is still about the lines of both.
    let on_top = here.join("stack/on-new-header.patch");
    let stack = [
        "--on",
        &below,
        "--on-patch",
        &comment,
        "--on-patch",
        &header,
    ];
    run(&[&common[..], &stack, &["-p", &text(&on_top), "-o", &top]].concat())?;
    Ok(())
}

#[test]
fn what_is_left_out_is_not_said_to_go_nowhere() -> anyhow::Result<()> {
    let base = base()?;
    let patch = Path::new(env!("CARGO_MANIFEST_DIR")).join("patches/shifted-lines.patch");
    let text = |path: &Path| path.display().to_string();
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("x.livepatch");
    let refused = local(&[
        "build",
        "-s",
        &text(&base.tree),
        "-p",
        &text(&patch),
        "--xen-syms",
        &text(&base.xen_syms),
        "-o",
        &text(&output),
        "--leave-out",
        "xen/common/tasklet.c",
    ])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(1) && said.contains("everything that it changes is left out"),
        "{refused:?}"
    );
    Ok(())
}
