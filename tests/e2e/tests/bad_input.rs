// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bad input is refused with a reason, and nothing is written.

use anyhow::{Context as _, ensure};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use std::path::Path;
use xsplice_e2e::{
    arm32_base, arm64_base, arm64_config, base, build, config, local, result, settled,
};
use xsplice_lab::Host;

/// A patch that changes the line `old` of a file, with the context that `diff -u` gives.
fn diff(tree: &Path, path: &str, old: &str, new: &str) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(tree.join(path))?;
    let changed = text.replacen(&format!("\n{old}\n"), &format!("\n{new}\n"), 1);
    assert_ne!(
        text, changed,
        "{path} has no line {old:?}: the test needs another one"
    );
    Ok(similar::TextDiff::from_lines(&text, &changed)
        .unified_diff()
        .header(&format!("a/{path}"), &format!("b/{path}"))
        .to_string())
}

/// A patch that is refused: a name, the file, the line that it changes, the new one, and
/// what the refusal says.
type Refused = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

const REFUSED: [Refused; 7] = [
    (
        "comment",
        VERSION,
        EXTRA,
        "    return XEN_EXTRAVERSION; /* why */",
        "changes no code",
    ),
    (
        "no-compile",
        VERSION,
        EXTRA,
        "    return nothing_at_all;",
        "does not compile",
    ),
    (
        "init",
        "xen/common/tasklet.c",
        "    open_softirq(TASKLET_SOFTIRQ, tasklet_softirq_action);",
        "    open_softirq(SCHEDULE_SOFTIRQ, tasklet_softirq_action);",
        "tasklet_subsys_init is only used while booting",
    ),
    (
        "data",
        "xen/drivers/char/console.c",
        "static unsigned char __read_mostly opt_conswitch[3] = \"a\";",
        "static unsigned char __read_mostly opt_conswitch[3] = \"b\";",
        "the initial value of the variable opt_conswitch changed",
    ),
    (
        "resized",
        "xen/drivers/char/console.c",
        "static unsigned char __read_mostly opt_conswitch[3] = \"a\";",
        "static unsigned char __read_mostly opt_conswitch[4] = \"a\";",
        "the variable opt_conswitch goes from 3 to 4 bytes",
    ),
    (
        "assembly",
        "xen/arch/x86/x86_64/entry.S",
        "        mov   %rsp, %rdi",
        "        mov   %rsp, %rax",
        "hand-written assembly at ",
    ),
    (
        "makefile",
        "xen/common/Makefile",
        "obj-y += domctl.o",
        "CFLAGS-y += -O3",
        "`CFLAGS-y += -O3` changes how the hypervisor is built",
    ),
];

const VERSION: &str = "xen/common/version.c";
const EXTRA: &str = "    return XEN_EXTRAVERSION;";

#[test]
fn patches_that_cannot_be_live_patched() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let refused = |name: &str, patch: String, words: &str| -> anyhow::Result<()> {
        let (file, output) = (
            directory.path().join(name),
            directory.path().join("out.livepatch"),
        );
        std::fs::write(&file, patch)?;
        let error = build(&base, &file, &output).expect_err(name).to_string();
        assert!(error.contains(words), "{name}: {error}");
        assert!(!output.exists(), "{name}: something was written");
        Ok(())
    };
    for (name, path, old, new, words) in REFUSED {
        refused(name, diff(&base.tree, path, old, new)?, words)?;
    }
    let patch = diff(&base.tree, VERSION, EXTRA, "    return NULL;")?;
    let patch = patch.replace(EXTRA, "    return no_such_line;");
    refused("does-not-apply", patch, "does not apply")
}

#[test]
fn the_named_hypervisor_must_be_the_given_one() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let (file, output) = (
        directory.path().join("x.patch"),
        directory.path().join("x.livepatch"),
    );
    let old = "    return XEN_EXTRAVERSION;";
    let text = diff(&base.tree, "xen/common/version.c", old, "    return NULL;")?;
    std::fs::write(&file, text)?;
    let text = |path: &Path| path.display().to_string();
    let build = |id: &str| {
        local(&[
            "build",
            "--json",
            "-s",
            &text(&base.tree),
            "-p",
            &text(&file),
            "--xen-syms",
            &text(&base.xen_syms),
            "--xen-depends",
            id,
            "-o",
            &text(&output),
        ])
    };
    let other = "00112233445566778899aabbccddeeff00112233";
    let refused = build(other)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("it names the hypervisor {other}, but ")),
        "{said}"
    );
    assert!(!output.exists(), "something was written");
    let own = said.split("is that of ").nth(1).unwrap_or_default();
    let own = own.split(':').next().unwrap_or_default();
    let built = build(own)?;
    assert_eq!(built.status.code(), Some(0), "{own}: {built:?}");
    let report = result("build", &built.stdout)?;
    assert_eq!(report["hypervisor"].as_str(), Some(own));
    Ok(())
}

/// Xen's makefile for ARM can make a list of symbols that is not that of the last link.
#[test]
fn an_arm32_hypervisor_that_lists_other_addresses() -> anyhow::Result<()> {
    let mut syms = std::fs::read(arm32_base()?.xen_syms)?;
    let file = object::File::parse(syms.as_slice())?;
    let symbol = |name: &str| file.symbol_by_name(name).context(name.to_owned());
    let (list, xsm) = (symbol("symbols_addresses")?, symbol("xsm_ops")?.address());
    let section = list.section_index().context("its section")?;
    let section = file.section_by_index(section)?;
    let (start, _) = section.file_range().context("its contents")?;
    let start = usize::try_from(start + list.address() - section.address())?;
    let word = u32::try_from(xsm)?.to_le_bytes();
    let words = syms[start..].chunks(word.len());
    let entry = words.clone().position(|listed| listed == word);
    let at = start + entry.context("it is listed")? * word.len();
    syms[at + 1] ^= 0x10;
    let Err(error) = xsplice_host_image::Image::parse(&syms) else {
        panic!("it is read");
    };
    let expected = format!("has xsm_ops at {:#x}, and it is at {xsm:#x}", xsm ^ 0x1000);
    ensure!(error.to_string().contains(&expected), "{error}");
    Ok(())
}

#[test]
fn a_payload_for_x86_64_on_an_arm64_host() -> anyhow::Result<()> {
    let mut config = arm64_config(&arm64_base()?)?;
    let hello = base()?.test_payloads.join("xen_hello_world.livepatch");
    config.files.push(("lab/x86-64".to_owned(), hello));
    let mut host = Host::boot(&config)?;
    let refused = host.run(&["xsplice", "upload", "hello", "/lab/x86-64"])?;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let words = "the payload is for x86-64; this host runs on ARM64";
    assert!(refused.stderr.contains(words), "{refused:?}");
    host.shut_down()?;
    Ok(())
}

#[test]
fn files_that_are_not_payloads() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let hello = std::fs::read(base.test_payloads.join("xen_hello_world.livepatch"))?;
    let mut foreign = hello.clone();
    foreign[18] = 8;
    let cases: [(&str, &[u8], &str); 4] = [
        ("text", b"not a payload", "not an ELF file"),
        ("short", &hello[..hello.len() / 2], "truncated"),
        ("foreign", &foreign, "ELF machine number 8"),
        ("empty", b"", "not an ELF file"),
    ];
    for (name, data, words) in cases {
        let path = directory.path().join(name);
        std::fs::write(&path, data)?;
        let output = local(&["upload", "x", &path.display().to_string()])?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{name}: {stderr}");
        assert!(stderr.contains(words), "{name}: {stderr}");
    }
    let output = local(&["list"])?;
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("does not run on Xen"), "{stderr}");
    let long = "n".repeat(128);
    let output = local(&["apply", &long])?;
    assert!(String::from_utf8_lossy(&output.stderr).contains("at most 127 bytes"));
    Ok(())
}

#[test]
fn readers_may_close_the_pipe_early() -> anyhow::Result<()> {
    let base = base()?;
    let mut child = std::process::Command::new(xsplice_e2e::xsplice()?)
        .arg("check")
        .arg(base.test_payloads.join("xen_hello_world.livepatch"))
        .arg("--xen-syms")
        .arg(&base.xen_syms)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    drop(child.stdout.take());
    let output = child.wait_with_output()?;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    Ok(())
}

#[test]
fn a_payload_for_another_hypervisor_names_both() -> anyhow::Result<()> {
    let base = base()?;
    let mut host = Host::boot(&config(&base)?)?;
    let running = {
        let output = host.run(&["xsplice", "info", "--json"])?;
        result("info", output.stdout)?["hypervisor"]["build_id"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(running.len(), 40);
    // The last byte of the build-id that the payload depends on.
    let id: Vec<u8> = (0..20)
        .map(|i| u8::from_str_radix(&running[2 * i..2 * i + 2], 16))
        .collect::<Result<_, _>>()?;
    let mut data = std::fs::read(base.test_payloads.join("xen_hello_world.livepatch"))?;
    let mut changed = 0;
    for at in 0..data.len() - id.len() {
        if data[at..at + id.len()] == id {
            data[at + id.len() - 1] ^= 1;
            changed += 1;
        }
    }
    assert!(changed > 0, "the payload does not name the hypervisor");
    host.put("/lab/foreign.livepatch", &data)?;
    let output = settled(
        &mut host,
        &["xsplice", "upload", "foreign", "/lab/foreign.livepatch"],
    )?;
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains(&running), "{output:?}");
    assert!(
        output
            .stderr
            .contains("the payload is for the hypervisor with build-id"),
        "{output:?}"
    );
    let output = host.run(&["xsplice", "list"])?;
    assert!(
        output.stdout.contains("no payloads are loaded"),
        "{output:?}"
    );
    host.shut_down()?;
    Ok(())
}
