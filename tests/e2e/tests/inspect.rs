// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice inspect` on payloads of both generators, and on other files.

use anyhow::ensure;
use xsplice_abi::text::is_deceptive;
use xsplice_e2e::{base, build, forged, local, repository, result};

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
        "metadata        patch=two-files",
    ] {
        ensure!(text.contains(words), "no {words} in {text}");
    }
    let value = result("inspect", shown(&[&ours, "--json"])?)?;
    ensure!(
        value["functions"].as_array().is_some_and(|f| f.len() == 3),
        "{value:#}"
    );
    let sections = value["sections"].as_array().map_or(&[][..], Vec::as_slice);
    let all = sections.iter().filter_map(|s| s["relocations"].as_array());
    ensure!(all.flatten().count() > 3, "no relocations: {value:#}");
    for (name, words) in [
        ("xen_action_hooks", "  apply        apply_hook"),
        ("xen_hello_world", "12 bytes at 0x"),
        (
            "xen_hello_world",
            "BUG at test/livepatch/xen_hello_world_func.c:30",
        ),
        ("xen_hello_world", "a fault here continues at .fixup"),
        ("xen_nop", "xen_minor_version"),
        ("xen_nop", "bytes of no-ops"),
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

/// Text from a payload can neither start a line nor hide in one: there are as many
/// lines as for a payload with plain names, without invisible characters.
#[test]
fn nothing_in_a_payload_forges_a_line() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let syms = base.xen_syms.display().to_string();
    let mut texts = Vec::new();
    for plain in [true, false] {
        let path = directory.path().join("forged.livepatch");
        std::fs::write(&path, forged::payload(&base, plain)?)?;
        let path = path.display().to_string();
        for command in [
            &["inspect", &path][..],
            &["inspect", &path, "--relocations", "--xen-syms", &syms],
            &["check", &path, "--xen-syms", &syms],
        ] {
            let output = local(command)?;
            ensure!(output.status.success(), "{command:?}: {output:?}");
            ensure!(output.stderr.is_empty(), "{command:?}: {output:?}");
            texts.push(String::from_utf8(output.stdout)?);
        }
    }
    let (plain, forged) = texts.split_at(3);
    for (plain, forged) in plain.iter().zip(forged) {
        let hidden = |c| is_deceptive(c) && c != '\n';
        ensure!(!forged.contains(hidden), "{forged:?}");
        let (expected, lines) = (plain.lines().count(), forged.lines().count());
        ensure!(
            lines == expected,
            "{lines} lines, not {expected}:\n{forged}"
        );
        // It is shown escaped.
        ensure!(forged.contains("\\nlp_1-1_1-2  | APPLIED"), "{forged}");
    }
    let shown = &forged[0];
    for words in [
        r"metadata        author=\nlp_1-1",
        r"metadata        \nlp_1-1",
        r"built with      --allow \nlp_1-1",
        r"built with      --leave-out \nlp_1-1",
        r"built with      --leave-out-init",
        r"built with      --config \nlp_1-1",
        r"built with      --depends \nlp_1-1",
        r"built with      --hooks \nlp_1-1",
        r"built with      --xen-depends \nlp_1-1",
        r"warning         \nlp_1-1",
        r"note            \nlp_1-1",
        r"BUG at \nlp_1-1",
        r"unload       \nlp_1-1",
    ] {
        ensure!(shown.contains(words), "no {words} in {shown}");
    }
    Ok(())
}

/// Damage by a bad disk or an attacker: every truncation, and every byte changed in
/// two ways.
fn damaged(whole: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let shorter = (0..whole.len()).map(|length| whole[..length].to_vec());
    let flipped = (0..whole.len()).flat_map(|at| {
        [0xff, 1 << (at % 8)].map(|flip| {
            let mut data = whole.to_vec();
            data[at] ^= flip;
            data
        })
    });
    shorter.chain(flipped)
}

/// A panic in either would end this test.
#[test]
fn no_damage_makes_inspect_or_check_panic() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let ours = directory.path().join("ours.livepatch");
    let patch = repository().join("examples/xen-4.17/bug-and-alternative.patch");
    build(&base, &patch, &ours)?;
    let syms = std::fs::read(&base.xen_syms)?;
    let shown_on = xsplice_review::Image::parse(&syms)?;
    let checked_on = xsplice_host_image::Image::parse(&syms)?;
    for path in [ours, base.test_payloads.join("xen_hello_world.livepatch")] {
        let whole = std::fs::read(&path)?;
        ensure!(xsplice_review::compare(&whole, &shown_on)?.len() == 1);
        let (mut tried, mut shown, mut loaded) = (0, 0, 0);
        for data in damaged(&whole) {
            tried += 1;
            if xsplice_review::Payload::read(&data, Some(&shown_on)).is_ok() {
                shown += 1;
                xsplice_review::compare(&data, &shown_on)?;
            }
            let verdicts = xsplice_host_image::check(&checked_on, &[("damaged", &data)]);
            loaded += usize::from(verdicts.iter().any(|verdict| verdict.loads));
        }
        println!(
            "{}: {tried} damaged files, {shown} shown, {loaded} would load",
            path.display()
        );
        // Damage to a name or to code does not make the file malformed.
        ensure!(tried == 3 * whole.len() && 0 < loaded && loaded < tried && shown < tried);
    }
    Ok(())
}
