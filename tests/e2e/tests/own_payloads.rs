// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen's own test payloads against Debian's Xen, with the engine on its image.

use std::path::Path;
use xsplice_e2e::{Base, arm64_base, base, build, local, repository};
use xsplice_host_image::{Image, Report, check};

fn report(base: &Base, image: &Image, below: Option<&str>, name: &str) -> anyhow::Result<Report> {
    let read = |name: &str| {
        let path = base.test_payloads.join(Path::new(name));
        anyhow::Ok((
            name.to_owned(),
            std::fs::read(path.with_extension("livepatch"))?,
        ))
    };
    let payloads = below
        .into_iter()
        .chain([name])
        .map(read)
        .collect::<anyhow::Result<Vec<_>>>()?;
    let report = check(image, &payloads).pop();
    report.ok_or_else(|| anyhow::anyhow!("no report on {name}"))
}

/// Those that load and apply on every machine.
fn good(base: &Base) -> anyhow::Result<()> {
    let image = Image::parse(&std::fs::read(&base.xen_syms)?)?;
    for name in [
        "xen_action_hooks",
        "xen_action_hooks_marker",
        "xen_action_hooks_noapply",
        "xen_action_hooks_nofunc",
        "xen_action_hooks_norevert",
        "xen_expectations",
        "xen_hello_world",
        "xen_prepost_hooks",
        "xen_prepost_hooks_fail",
        "xen_replace_world",
    ] {
        let report = report(base, &image, None, name)?;
        assert!(report.loads && report.applies, "{report:#?}");
    }
    let report = report(base, &image, Some("xen_hello_world"), "xen_bye_world")?;
    assert!(report.loads && report.applies, "{report:#?}");
    Ok(())
}

#[test]
fn xen_s_own_payloads() -> anyhow::Result<()> {
    good(&base()?)
}

/// Where the last four bytes of a function are its return, `xen_nop` works too.
#[test]
fn xen_s_own_payloads_for_arm64() -> anyhow::Result<()> {
    let base = arm64_base()?;
    good(&base)?;
    let image = Image::parse(&std::fs::read(&base.xen_syms)?)?;
    let report = report(&base, &image, None, "xen_nop")?;
    assert!(report.loads && report.applies, "{report:#?}");
    bad(&base, &BAD)
}

#[test]
fn payloads_of_x86_64_and_arm64_are_told_apart() -> anyhow::Result<()> {
    let (x86, arm) = (base()?, arm64_base()?);
    for (of, on, words) in [
        (&x86, &arm, "for x86-64, and this hypervisor is for ARM64"),
        (&arm, &x86, "for ARM64, and this hypervisor is for x86-64"),
    ] {
        let image = Image::parse(&std::fs::read(&on.xen_syms)?)?;
        let report = report(of, &image, None, "xen_hello_world")?;
        assert!(!report.loads);
        let first = &report.problems[0].message;
        assert!(first.contains(words), "{first}");
    }
    Ok(())
}

/// Those that do not load or apply on any machine: name, whether it loads, and a part of
/// the reason.
const BAD: [(&str, bool, &str); 3] = [
    (
        "xen_no_xen_buildid",
        false,
        ".livepatch.xen_depends is missing",
    ),
    ("xen_bye_world", true, "the payload applies on top of"),
    ("xen_expectations_fail", true, "should hold deadc0debabe"),
];

fn bad(base: &Base, payloads: &[(&str, bool, &str)]) -> anyhow::Result<()> {
    let image = Image::parse(&std::fs::read(&base.xen_syms)?)?;
    for (name, loads, words) in payloads {
        let report = report(base, &image, None, name)?;
        assert_eq!((report.loads, report.applies), (*loads, false), "{name}");
        // Warnings may come first.
        let mut problems = report.problems.iter();
        assert!(
            problems.any(|problem| problem.message.contains(words)),
            "{name}: {:#?}",
            report.problems
        );
    }
    Ok(())
}

/// It overwrites all but the last byte of a function with no-ops, assuming that this
/// byte is a return: on a hypervisor with return thunks, it is the end of a jump.
#[test]
fn half_an_instruction_is_not_left_behind() -> anyhow::Result<()> {
    let base = base()?;
    let nop = ("xen_nop", false, "end inside of the instruction at");
    bad(&base, &[nop])?;
    bad(&base, &BAD)
}

/// Values of variables do not survive a replace: `check` names the payloads that lose
/// some.
#[test]
fn a_replace_that_loses_variables_is_reported() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let patch = repository().join("tests/e2e/patches/new-variables.patch");
    let counts = directory.path().join("counts.livepatch");
    build(&base, &patch, &counts)?;
    let own = |name: &str| base.test_payloads.join(format!("{name}.livepatch"));
    let text = |path: &Path| path.display().to_string();
    let syms = text(&base.xen_syms);
    let lost = "the variables of counts are lost, those of xen_replace_world start with their";
    for (below, loses) in [(counts, true), (own("xen_expectations"), false)] {
        let (all, below) = (text(&own("xen_replace_world")), text(&below));
        let output = local(&["check", &all, "--on", &below, "--xen-syms", &syms])?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        assert!(said.contains("replace"), "{said}");
        assert_eq!(said.contains(lost), loses, "{said}");
        assert_eq!(said.contains("are lost"), loses, "{said}");
    }
    Ok(())
}
