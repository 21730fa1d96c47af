// SPDX-License-Identifier: MIT OR Apache-2.0
//! A payload records which patches are in it, and which were only given.

use anyhow::{Context, ensure};
use object::{Object as _, ObjectSymbol as _};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use xsplice_e2e::{base, local, result};

/// Runs `xsplice`, expects success, and returns its output.
fn run(arguments: &[&str]) -> anyhow::Result<String> {
    let output = local(arguments)?;
    ensure!(output.status.success(), "{arguments:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn a_patch_without_effect_is_not_recorded_as_part_of_the_payload() -> anyhow::Result<()> {
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
    let inspected = result("inspect", run(&["inspect", "--json", &below])?)?;
    let metadata = inspected["metadata"].as_array().context("metadata")?;
    let keys: Vec<&str> = metadata
        .iter()
        .filter_map(|entry| entry.as_str()?.split_once('='))
        .filter(|(_, value)| value.contains(".patch "))
        .map(|(key, _)| key)
        .collect();
    ensure!(keys == ["unused-patch", "patch"], "{metadata:?}");

    // A payload on top of it is still about the lines of both.
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
fn left_out_changes_are_not_reported_as_without_effect() -> anyhow::Result<()> {
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

/// Without some hunks, the rest of a patch does not compile, or later patches do not
/// apply: such hunks are listed with the functions that need them.
#[test]
fn a_hunk_that_others_need_is_listed_with_their_functions() -> anyhow::Result<()> {
    let base = base()?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("patches");
    let text = |path: &Path| path.display().to_string();
    let directory = tempfile::tempdir()?;
    let output = text(&directory.path().join("x.livepatch"));
    let declared = directory.path().join("declared.patch");
    std::fs::write(&declared, DECLARED)?;
    for (patch, names) in [
        (here.join("new-header.patch"), ["xen_extra_version"; 2]),
        (declared, ["xen_deny"; 2]),
    ] {
        let (tree, xen_syms) = (text(&base.tree), text(&base.xen_syms));
        let to_build = ["build", "--json", "-s", &tree, "--xen-syms", &xen_syms];
        let report = run(&[&to_build[..], &["-p", &text(&patch), "-o", &output]].concat())?;
        let report = result("build", report)?;
        let hunks = report["hunks"].as_array().context("hunks")?;
        let found: Vec<_> = hunks.iter().map(|hunk| &hunk["names"]).collect();
        ensure!(
            found
                == names
                    .map(|name| serde_json::json!([name]))
                    .iter()
                    .collect::<Vec<_>>(),
            "{}: {found:?}",
            patch.display()
        );
    }
    Ok(())
}

/// The first hunk declares what the second one uses.
const DECLARED: &str = "\
--- a/xen/common/version.c
+++ b/xen/common/version.c
@@ -58,6 +58,8 @@
 const char *xen_extra_version(void)
 {
     return XEN_EXTRAVERSION;
 }
 
+#define DENIED \"<not for you>\"
+
 const char *xen_changeset(void)
@@ -68,5 +70,5 @@
 const char *xen_deny(void)
 {
-    return \"<denied>\";
+    return DENIED;
 }
 
";

/// All names in the symbol table of a payload.
fn names(payload: &[u8]) -> anyhow::Result<BTreeSet<String>> {
    let file = object::File::parse(payload)?;
    let symbols = file.symbols().filter(|symbol| symbol.is_definition());
    let names = symbols.map(|symbol| Ok(symbol.name()?.to_owned()));
    names.collect()
}

/// The hypervisor does not allow two loaded payloads to define the same name.
#[test]
fn different_payloads_of_one_patch_share_no_new_name() -> anyhow::Result<()> {
    let base = base()?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |path: &Path| path.display().to_string();
    let patch = text(&here.join("patches/init-lost-value-allowed.patch"));
    let hooks = text(&here.join("hooks/rate-limit.c"));
    let directory = tempfile::tempdir()?;
    let build = |options: &[&str]| -> anyhow::Result<Vec<u8>> {
        let output = directory.path().join("x.livepatch");
        let (tree, xen_syms) = (text(&base.tree), text(&base.xen_syms));
        let (to, always) = (text(&output), "core_parking_controller");
        let mut arguments = vec!["build", "-s", &tree, "--xen-syms", &xen_syms];
        arguments.extend(["-p", &patch, "-o", &to, "--allow", always]);
        run(&[&arguments, options].concat())?;
        Ok(std::fs::read(output)?)
    };
    let mut known = BTreeMap::new();
    for options in [
        &[][..],
        &["--leave-out-init"],
        &["--prelink"],
        &["--hooks", &hooks],
        &["--meta", "ticket=1"],
        &["--depends", "00112233445566778899aabbccddeeff00112233"],
    ] {
        let payload = build(options)?;
        ensure!(payload == build(options)?, "{options:?}: built once more");
        let new = names(&payload)?;
        let new: Vec<String> = new.into_iter().filter(|name| name.contains('@')).collect();
        ensure!(!new.is_empty(), "{options:?}: nothing new is in it");
        for name in new {
            if let Some(other) = known.insert(name.clone(), options) {
                anyhow::bail!("{name} is in the payloads of {other:?} and {options:?}");
            }
        }
    }
    Ok(())
}
