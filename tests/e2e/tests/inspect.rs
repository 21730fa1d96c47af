//! `xsplice inspect` on payloads of both makers, and on what is none.

use anyhow::ensure;
use xsplice_e2e::{base, build, local, repository};

#[test]
fn payloads_are_shown_and_damaged_ones_are_errors() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let ours = directory.path().join("two-files.livepatch");
    build(
        &base,
        &repository().join("examples/xen-4.17/two-files.patch"),
        &ours,
    )?;
    let (ours, syms) = (
        ours.display().to_string(),
        base.xen_syms.display().to_string(),
    );
    let shown = |arguments: &[&str]| -> anyhow::Result<String> {
        let output = local(&[&["inspect"], arguments].concat())?;
        ensure!(output.status.success(), "{arguments:?}: {output:?}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let text = shown(&[&ours, "--xen-syms", &syms])?;
    for words in [
        "xen_changeset",
        "lea \"withheld\"(%rip),%rax",
        "metadata     patch=two-files",
    ] {
        ensure!(text.contains(words), "no {words} in {text}");
    }
    let value: serde_json::Value = serde_json::from_str(&shown(&[&ours, "--json"])?)?;
    ensure!(
        value["functions"].as_array().is_some_and(|f| f.len() == 3),
        "{value:#}"
    );
    for (name, words) in [
        ("xen_action_hooks", "hook         apply: apply_hook"),
        ("xen_hello_world", "needs        xen_extra_version"),
        ("xen_nop", "no-ops"),
    ] {
        let path = base.test_payloads.join(format!("{name}.livepatch"));
        let text = shown(&[&path.display().to_string(), "--xen-syms", &syms])?;
        ensure!(text.contains(words), "{name}: no {words} in {text}");
    }
    let whole = std::fs::read(&ours)?;
    let damaged = directory.path().join("damaged");
    for length in (0..whole.len()).step_by(97) {
        std::fs::write(&damaged, &whole[..length])?;
        let output = local(&["inspect", &damaged.display().to_string()])?;
        ensure!(
            output.status.code() == Some(1),
            "{length} bytes: {output:?}"
        );
    }
    Ok(())
}
