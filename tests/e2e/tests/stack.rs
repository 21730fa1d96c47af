// SPDX-License-Identifier: MIT OR Apache-2.0
//! A payload on top of another one replaces its function again, and goes on
//! with its variables; or it patches a function that the other one added.

use anyhow::ensure;
use std::path::Path;
use xsplice_e2e::{Base, base, build, config, local, rust_base, settled};
use xsplice_lab::Host;

/// A source patch and the payload of it.
type Built<'a> = (&'a Path, &'a Path);

/// What builds `top` on top of `below`.
fn on_top(base: &Base, top: Built<'_>, below: Built<'_>) -> Vec<String> {
    let text = |path: &Path| path.display().to_string();
    let (tree, xen_syms) = (text(&base.tree), text(&base.xen_syms));
    let mut words: Vec<String> = ["build", "-s", &tree, "--xen-syms", &xen_syms]
        .map(str::to_owned)
        .to_vec();
    for (option, path) in [
        ("-p", top.0),
        ("-o", top.1),
        ("--depends", below.1),
        ("--depends-patch", below.0),
    ] {
        words.extend([option.to_owned(), text(path)]);
    }
    words
}

#[test]
fn a_payload_uses_what_the_one_below_added() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (below_patch, top_patch) = (
        here.join("patches/new-variables.patch"),
        here.join("stack/on-top.patch"),
    );
    let (below, top) = (
        directory.path().join("below.livepatch"),
        directory.path().join("top.livepatch"),
    );
    build(&base, &below_patch, &below)?;
    let words = on_top(&base, (&top_patch, &top), (&below_patch, &below));
    let arguments: Vec<&str> = words.iter().map(String::as_str).collect();
    let without_source = arguments.len() - 2;
    let alone = local(&arguments[..without_source])?;
    let said = String::from_utf8_lossy(&alone.stderr).into_owned();
    ensure!(said.contains("needs both"), "without its source: {said}");
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

/// The function is in the memory of a payload, which our core writes in another
/// way than the hypervisor's own text.
#[test]
fn a_payload_patches_a_function_that_the_one_below_added() -> anyhow::Result<()> {
    let base = rust_base()?;
    let directory = tempfile::tempdir()?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("stack");
    let (below_patch, top_patch) = (
        here.join("adds-function.patch"),
        here.join("on-added.patch"),
    );
    let (below, top) = (
        directory.path().join("below.livepatch"),
        directory.path().join("top.livepatch"),
    );
    build(&base, &below_patch, &below)?;
    let words = on_top(&base, (&top_patch, &top), (&below_patch, &below));
    let built = local(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
    ensure!(built.status.success(), "{built:?}");

    let mut host = Host::boot(&config(&base)?)?;
    host.put("/lab/below.livepatch", &std::fs::read(&below)?)?;
    host.put("/lab/top.livepatch", &std::fs::read(&top)?)?;
    let mut tool = |arguments: &[&str]| {
        let done = settled(&mut host, &[&["xsplice"], arguments].concat())?;
        ensure!(done.code == Some(0), "{arguments:?}: {done:?}");
        Ok(done.stdout)
    };
    let before = tool(&["info"])?;
    for (arguments, extra) in [
        (&["load", "/lab/below.livepatch"][..], "-greeting"),
        (&["load", "/lab/top.livepatch"], "-changed"),
        (&["revert", "top"], "-greeting"),
        (&["apply", "top"], "-changed"),
        (&["revert", "top"], "-greeting"),
    ] {
        tool(arguments)?;
        let info = tool(&["info"])?;
        ensure!(info.contains(extra), "{arguments:?}: {info}");
    }
    for arguments in [["unload", "top"], ["revert", "below"], ["unload", "below"]] {
        tool(&arguments)?;
    }
    let after = tool(&["info"])?;
    ensure!(after == before, "{before}\n{after}");
    host.shut_down()?;
    Ok(())
}

/// The payload below has one of its structures in memory: that the tree has no
/// such structure says nothing.
#[test]
fn a_structure_of_the_payload_below_keeps_its_layout() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("stack");
    let (below_patch, top_patch) = (
        here.join("allocates.patch"),
        here.join("grows-allocated.patch"),
    );
    let (below, top) = (
        directory.path().join("below.livepatch"),
        directory.path().join("top.livepatch"),
    );
    build(&base, &below_patch, &below)?;
    let words = on_top(&base, (&top_patch, &top), (&below_patch, &below));
    let refused = local(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(1) && said.contains("live_s goes from 8 to 528 bytes"),
        "{refused:?}"
    );
    ensure!(!top.exists(), "something was written");
    Ok(())
}
