// SPDX-License-Identifier: MIT OR Apache-2.0

//! `xsplice report`: the page for a reviewer.

use anyhow::{bail, ensure};
use std::path::Path;
use xsplice_abi::text::is_deceptive;
use xsplice_e2e::{base, build, forged, local, repository};

struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn report(payload: &Path, page: &Path, more: &[&str]) -> anyhow::Result<Outcome> {
    let syms = base()?.xen_syms.display().to_string();
    let (payload, page) = (payload.display().to_string(), page.display().to_string());
    let arguments = ["report", &payload, "--xen-syms", &syms, "-o", &page];
    let output = local(&[&arguments[..], more].concat())?;
    Ok(Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Signs that a page is not self-contained, or runs scripts.
const FOREIGN: [&str; 6] = ["http:", "https:", "<script", "<link", "<img", "url("];

fn whole(page: &str) -> anyhow::Result<()> {
    ensure!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"));
    for words in FOREIGN {
        ensure!(!page.contains(words), "{words} in the page");
    }
    Ok(())
}

#[test]
fn the_page_has_what_a_reviewer_needs() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let payload = directory.path().join("two-files.livepatch");
    let page = directory.path().join("page.html");
    let patch = repository().join("examples/xen-4.17/two-files.patch");
    build(&base, &patch, &payload)?;
    let given = patch.display().to_string();
    let outcome = report(&payload, &page, &["-p", &given])?;
    ensure!(outcome.code == Some(0), "{}", outcome.stderr);
    ensure!(outcome.stdout.contains("would load and apply"));
    let text = std::fs::read_to_string(&page)?;
    whole(&text)?;
    for words in [
        "records this file's SHA-256",
        "+++ b/xen/common/version.c",
        "lea &quot;withheld&quot;(%rip),%rax",
        // do_xen_version is called for a PV guest, which enters through lstar_enter.
        "pv_hypercall+0x",
        "lstar_enter",
        "It would apply",
        "No refusal was overridden",
        "Hunks in it",
        "<td>in the payload</td>",
        "Reviewed by",
        ".livepatch.funcs",
    ] {
        ensure!(text.contains(words), "no {words} in the page");
    }
    ensure!(report(&payload, &page, &["-p", &given])?.code == Some(0));
    ensure!(
        std::fs::read_to_string(&page)? == text,
        "two runs give two pages"
    );
    let outcome = report(&payload, &page, &[])?;
    ensure!(outcome.code == Some(0), "{}", outcome.stderr);
    ensure!(std::fs::read_to_string(&page)?.contains("not shown"));
    Ok(())
}

#[test]
fn a_patch_of_another_payload_is_refused() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let payload = directory.path().join("ours.livepatch");
    let page = directory.path().join("page.html");
    let examples = repository().join("examples/xen-4.17");
    build(&base, &examples.join("extra-version.patch"), &payload)?;
    let other = examples.join("two-files.patch").display().to_string();
    let outcome = report(&payload, &page, &["-p", &other])?;
    ensure!(outcome.code == Some(1));
    for words in ["was not built from", "built from extra-version.patch"] {
        ensure!(outcome.stderr.contains(words), "{}", outcome.stderr);
    }
    ensure!(!page.exists(), "a page was written");
    Ok(())
}

#[test]
fn every_payload_of_xen_gets_a_page() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let mut pages = 0;
    for entry in std::fs::read_dir(&base.test_payloads)? {
        let payload = entry?.path();
        if payload.extension().is_none_or(|e| e != "livepatch") {
            continue;
        }
        let page = directory.path().join("page.html");
        // Some depend on others, and would not load alone: the page says so.
        let outcome = report(&payload, &page, &[])?;
        let code = i32::from(outcome.stdout.contains("NOT"));
        let name = payload.display();
        ensure!(outcome.code == Some(code), "{name}: {}", outcome.stderr);
        whole(&std::fs::read_to_string(&page)?)?;
        pages += 1;
    }
    ensure!(pages > 10, "only {pages} payloads");

    let on = base.test_payloads.join("xen_hello_world.livepatch");
    let on = on.display().to_string();
    let page = directory.path().join("bye.html");
    let bye = base.test_payloads.join("xen_bye_world.livepatch");
    let alone = report(&bye, &page, &[])?.stdout;
    ensure!(alone.contains("NOT"), "{alone}");
    ensure!(std::fs::read_to_string(&page)?.contains("class=\"badge bad\""));
    let stacked = report(&bye, &page, &["--on", &on])?;
    ensure!(!stacked.stdout.contains("NOT"), "{}", stacked.stdout);
    Ok(())
}

#[test]
fn text_from_files_is_never_markup() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let page = directory.path().join("page.html");
    let mut data = std::fs::read(base.test_payloads.join("xen_hello_world.livepatch"))?;
    for (old, new) in [
        (&b"LIVEPATCH_RULEZ"[..], &b"<script>x</scri"[..]),
        (b"xen_hello_world.c", b"<img src=\"x\">&'<b>"),
    ] {
        let at = data.windows(old.len()).position(|bytes| bytes == old);
        let at = at.expect("the payload has the text");
        data[at..at + old.len()].copy_from_slice(&new[..old.len()]);
    }
    let payload = directory.path().join("<b>.livepatch");
    std::fs::write(&payload, data)?;
    let patch = directory.path().join("<i>.patch");
    std::fs::write(&patch, "+<script>alert(1)</script>\n")?;
    let patch = patch.display().to_string();
    let outcome = report(&payload, &page, &["-p", &patch])?;
    ensure!(outcome.code == Some(0), "{}", outcome.stderr);
    let text = std::fs::read_to_string(&page)?;
    whole(&text)?;
    for words in [
        "&lt;script&gt;alert(1)",
        "&lt;script&gt;x",
        "&lt;b&gt;.livepatch",
        "&lt;i&gt;.patch",
        "not verified",
    ] {
        ensure!(text.contains(words), "no {words} in the page");
    }
    ensure!(!text.contains("<b>") && !text.contains("<i>"));
    Ok(())
}

/// The build options, warnings and notes are in the payload: both `report` and
/// `inspect` show them.
#[test]
fn how_a_payload_was_built_is_shown() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let (payload, page) = (directory.path().join("p"), directory.path().join("page"));
    for (name, in_page, in_text) in [
        (
            "layout-allowed",
            &[
                "<dt>Refusals overridden (--allow)</dt><dd>arch/x86/pv/emul-priv-op.c:priv_op_ctxt</dd>",
                "<h3>Notes</h3>",
                "struct priv_op_ctxt has cs.base at byte",
                "<h4>Hunks in it</h4><ul><li>xen/arch/x86/pv/emul-priv-op.c:",
            ][..],
            &[
                "built with      --allow arch/x86/pv/emul-priv-op.c:priv_op_ctxt",
                "note            ",
                "emul-priv-op.c:",
            ][..],
        ),
        (
            "init-left-out",
            &[
                "<dt>Left out (--leave-out)</dt><dd>tasklet_subsys_init</dd>",
                "<h3>Left out</h3><ul><li><code>tasklet_subsys_init</code> of common/tasklet.c",
                "<td>left out on request</td>",
            ],
            &[
                "built with      --leave-out tasklet_subsys_init",
                "left out on request: tasklet_subsys_init",
            ],
        ),
        (
            "registered-table",
            &[
                "<span class=\"badge warning\">warning</span> arch/x86/hvm/hpet.c: ",
                "<h3>Notes</h3>",
            ],
            &["warning         arch/x86/hvm/hpet.c: ", "note            "],
        ),
    ] {
        let patch = repository().join(format!("tests/e2e/patches/{name}.patch"));
        build(&base, &patch, &payload)?;
        ensure!(report(&payload, &page, &[])?.code == Some(0), "{name}");
        let page = std::fs::read_to_string(&page)?;
        for words in in_page {
            ensure!(page.contains(words), "{name}: no {words} in {page}");
        }
        let output = local(&["inspect", &payload.display().to_string()])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for words in in_text {
            ensure!(text.contains(words), "{name}: no {words} in {text}");
        }
    }
    Ok(())
}

/// Text from a payload stays in its place: the page has the same elements as for a
/// payload with plain names, and no invisible characters.
#[test]
fn nothing_in_a_payload_changes_the_page() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let mut pages = Vec::new();
    for plain in [true, false] {
        let payload = directory.path().join("forged.livepatch");
        let page = directory.path().join("page.html");
        std::fs::write(&payload, forged::payload(&base, plain)?)?;
        let outcome = report(&payload, &page, &[])?;
        ensure!(outcome.code == Some(0), "{}", outcome.stderr);
        pages.push(std::fs::read_to_string(&page)?);
    }
    let [plain, forged] = pages.as_slice() else {
        bail!("two pages");
    };
    whole(forged)?;
    let hidden = |c| is_deceptive(c) && c != '\n';
    ensure!(!forged.contains(hidden), "{forged:?}");
    let elements = |page: &str| {
        let tags = page.split('<').skip(1);
        let name = |tag: &str| tag.split([' ', '>']).next().unwrap_or_default().to_owned();
        tags.map(name).collect::<Vec<_>>()
    };
    ensure!(elements(plain) == elements(forged), "{forged}");
    let text = r"\nlp_1-1_1-2  | APPLIED  | applied\u{202e}\u{1b}[31m\r\u{2028}";
    for (before, behind) in [
        ("<dt>author</dt><dd>", "</dd>"),
        ("<dt>metadata</dt><dd>", "</dd>"),
        ("(--allow)</dt><dd>", "</dd>"),
        ("(--leave-out)</dt><dd>", "</dd>"),
        ("<span class=\"badge warning\">warning</span> ", "</li>"),
        ("<h3>Notes</h3><ul><li>", "</li>"),
        ("<td>", ":1</td>"),
        ("<h3>", "</h3>"),
        ("<h4>Hunks in it</h4><ul><li>", ":2 of "),
    ] {
        let words = format!("{before}{text}{behind}");
        ensure!(forged.contains(&words), "no {words} in {forged}");
    }
    Ok(())
}
