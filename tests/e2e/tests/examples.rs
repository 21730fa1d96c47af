// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each example patch is built, loaded, applied, observed and reverted, on the
//! hypervisor that Debian ships, on the one with our core, and on a debug build of
//! that, where a failed assertion stops it; and with our core on ARM, where a payload has a
//! `WARN` and an assertion of its own.

use anyhow::{Context as _, ensure};
use std::path::Path;
use xsplice_abi::machine::Machine;
use xsplice_e2e::{
    Base, arm32_config, arm32_rust_base, arm64_config, arm64_rust_base, base, build, build_with,
    config, debug_base, machine, minor, repository, result, rust_base, settled, told,
    unsigned_config,
};
use xsplice_lab::{Host, HostConfig};

/// An example, and its visible effect.
struct Example {
    name: &'static str,
    /// Functions that the payload must replace, and no others.
    functions: &'static [&'static str],
    /// Checks that the patch works.
    works: fn(&mut Host) -> anyhow::Result<bool>,
}

const EXAMPLES: [Example; 3] = [
    Example {
        name: "extra-version",
        functions: &["xen_extra_version"],
        works: |host| Ok(asked(host, "extra")? == "-live-patched"),
    },
    Example {
        name: "two-files",
        functions: &["compat_xen_version", "do_xen_version", "xen_changeset"],
        works: |host| {
            // It has state: the count rises with every query.
            let (first, second) = (asked(host, "changeset")?, asked(host, "changeset")?);
            let count = |text: &str| {
                text.strip_prefix("withheld, query ")
                    .and_then(|n| n.parse::<u32>().ok())
            };
            Ok(matches!((count(&first), count(&second)), (Some(a), Some(b)) if b == a + 1))
        },
    },
    Example {
        name: "bug-and-alternative",
        functions: &["do_tasklet_work"],
        works: |host| {
            // Queries schedule a tasklet sooner or later.
            for _ in 0..20 {
                if host.console().contains("tasklet: done by patched code") {
                    return Ok(true);
                }
                host.run(&["xsplice", "info"])?;
            }
            Ok(false)
        },
    },
];

fn asked(host: &mut Host, field: &str) -> anyhow::Result<String> {
    let output = host.run(&["xsplice", "info", "--json"])?;
    Ok(result("info", output.stdout)?["hypervisor"][field]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

/// A command that succeeds, and whether it changes something; the payload is in
/// `state` then.
fn does(
    host: &mut Host,
    command: &[&str],
    changed: bool,
    state: Option<&str>,
) -> anyhow::Result<()> {
    let output = settled(host, &[&["xsplice", "--json"], command].concat())?;
    ensure!(output.code == Some(0), "{command:?}: {output:?}");
    let said = told(command[0], &output.stdout)?;
    ensure!(
        said["changed"] == changed && said["state"].as_str() == state,
        "{command:?}: {said:#}"
    );
    Ok(())
}

/// A command that fails and changes nothing; returns its error.
fn fails(host: &mut Host, command: &[&str]) -> anyhow::Result<serde_json::Value> {
    let output = settled(host, &[&["xsplice", "--json"], command].concat())?;
    let said = told(command[0], &output.stdout)?;
    ensure!(
        output.code == Some(1) && said["changed"] == false && said["error"].is_object(),
        "{command:?}: {said:#}"
    );
    Ok(said["error"].clone())
}

/// What the hypervisor says about a refusal comes with the error, with Xen's own
/// payloads, of which one depends on the other.
fn reasons_are_told(host: &mut Host) -> anyhow::Result<()> {
    let (below, above) = ("xen_hello_world", "xen_bye_world");
    let place = |name: &str| format!("/lab/{name}.livepatch");
    let error = fails(host, &["load", &place(above)])?;
    ensure!(error["errno"] == "EINVAL", "{error:#}");
    ensure!(says(&error, &[above, "build-id"]), "{error:#}");
    does(host, &["load", &place(below)], true, Some("applied"))?;
    does(host, &["load", &place(above)], true, Some("applied"))?;
    let error = fails(host, &["revert", below])?;
    let message = error["message"].as_str().unwrap_or_default();
    ensure!(message.contains("not the topmost payload"), "{error:#}");
    ensure!(says(&error, &[below, above]), "{error:#}");
    // All of a stack at once, in two ways.
    does(host, &["revert", "--all"], true, None)?;
    does(host, &["revert", "--all"], false, None)?;
    ensure!(names(host)? == [below, above], "{:?}", names(host)?);
    for name in [above, below] {
        does(host, &["unload", name], true, None)?;
    }
    for name in [below, above] {
        does(host, &["load", &place(name)], true, Some("applied"))?;
    }
    let cumulative = "xen_replace_world";
    let replace = ["load", &place(cumulative), "--replace"];
    does(host, &replace, true, Some("applied"))?;
    ensure!(names(host)? == [cumulative], "{:?}", names(host)?);
    does(host, &["revert", cumulative], true, Some("checked"))?;
    does(host, &["unload", cumulative], true, None)
}

/// The names of the payloads that the hypervisor has.
fn names(host: &mut Host) -> anyhow::Result<Vec<String>> {
    let listed = settled(host, &["xsplice", "list", "--json"])?;
    let listed = result("list", listed.stdout)?;
    let payloads = listed["payloads"].as_array().into_iter().flatten();
    let names = payloads.filter_map(|payload| payload["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Whether the hypervisor printed a line with all of these words.
fn says(error: &serde_json::Value, words: &[&str]) -> bool {
    let lines = error["console"].as_array().into_iter().flatten();
    let mut lines = lines.filter_map(|line| line.as_str());
    lines.any(|line| words.iter().all(|word| line.contains(word)))
}

#[test]
fn examples_apply_and_revert() -> anyhow::Result<()> {
    every_example(config(&base()?)?, &base()?)?.shut_down()?;
    Ok(())
}

#[test]
fn examples_apply_and_revert_with_our_core() -> anyhow::Result<()> {
    every_example(config(&rust_base()?)?, &rust_base()?)?.shut_down()?;
    Ok(())
}

#[test]
fn examples_apply_and_revert_on_debug_xen() -> anyhow::Result<()> {
    let host = every_example(unsigned_config(&debug_base()?)?, &debug_base()?)?;
    let console = host.console();
    ensure!(console.contains("debug=y"), "{console}");
    host.shut_down()?;
    Ok(())
}

#[test]
fn examples_apply_and_revert_and_a_payload_warns_and_asserts_on_arm64() -> anyhow::Result<()> {
    let base = arm64_rust_base()?;
    on_arm(arm64_config(&base)?, &base)
}

#[test]
fn and_on_arm32() -> anyhow::Result<()> {
    let base = arm32_rust_base()?;
    on_arm(arm32_config(&base)?, &base)
}

fn on_arm(config: HostConfig, base: &Base) -> anyhow::Result<()> {
    let mut host = every_example(config, base)?;
    put_arm_patch(&mut host, base, "warn")?;
    does(&mut host, &["load", "/lab/warn"], true, Some("applied"))?;
    // The hypervisor goes on behind it.
    let changeset = asked(&mut host, "changeset")?;
    ensure!(changeset == "warned", "{changeset}");
    let console = host.console();
    ensure!(
        console.contains("Xen WARN at common/version.c:65"),
        "{console}"
    );
    does(&mut host, &["revert", "warn"], true, Some("checked"))?;

    put_arm_patch(&mut host, base, "assertion")?;
    does(
        &mut host,
        &["load", "/lab/assertion"],
        true,
        Some("applied"),
    )?;
    let lost = asked(&mut host, "changeset");
    let console = host.console();
    ensure!(lost.is_err(), "the hypervisor goes on: {console}");
    let line = "Assertion 'a payload can have it' failed at common/version.c:65";
    ensure!(console.contains(line), "{console}");
    Ok(())
}

/// Builds a payload from a patch that only ARM has, and puts it into dom0.
fn put_arm_patch(host: &mut Host, base: &Base, name: &str) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let payload = directory.path().join(name);
    let patch = repository().join(format!("tests/e2e/patches-arm64/{name}.patch"));
    build(base, &patch, &payload).with_context(|| name.to_owned())?;
    host.put(&format!("/lab/{name}"), &std::fs::read(&payload)?)?;
    Ok(())
}

/// Builds a payload a second time; with a proof on the versions of Xen that are not
/// proved elsewhere.
fn build_again(base: &Base, patch: &Path, output: &Path) -> anyhow::Result<()> {
    if minor(base)? < 18 {
        build(base, patch, output)?;
        return Ok(());
    }
    let report = build_with(base, patch, output, &["--verify".to_owned()])?;
    ensure!(report.contains("\nproved: "), "{report}");
    Ok(())
}

/// Returns the host.
fn every_example(config: HostConfig, base: &Base) -> anyhow::Result<Host> {
    let directory = tempfile::tempdir()?;
    let mut host = Host::boot(&config)?;
    let before = (asked(&mut host, "extra")?, asked(&mut host, "changeset")?);
    for example in EXAMPLES {
        let name = example.name;
        let patch = xsplice_e2e::example(base, name)?;
        let payload = directory.path().join(format!("{name}.livepatch"));
        let report = build(base, &patch, &payload)?;
        let listed: Vec<&str> = report
            .lines()
            .skip_while(|l| *l != "Replaced functions:")
            .skip(1)
            .take_while(|l| l.starts_with("  "))
            .filter_map(|l| l.split_whitespace().next())
            .collect();
        let mut expected = example.functions.to_vec();
        if minor(base)? >= 18 || machine(base)? != Machine::X86_64 {
            // It is not, or no longer, compiled a second time for 32-bit callers.
            expected.retain(|function| *function != "compat_xen_version");
        }
        if minor(base)? >= 21 && name != "bug-and-alternative" {
            // It has the two functions inlined.
            expected.push("print_version");
        }
        assert_eq!(listed, expected, "{name}: {report}");
        // The same inputs give the same bytes.
        let again = directory.path().join("again.livepatch");
        build_again(base, &patch, &again)?;
        assert_eq!(std::fs::read(&payload)?, std::fs::read(&again)?, "{name}");

        let place = format!("/lab/{name}.livepatch");
        host.put(&place, &std::fs::read(&payload)?)?;
        let place = place.as_str();
        does(&mut host, &["load", place], true, Some("applied"))?;
        fails(&mut host, &["load", place, "--name", "other"])?;
        let listed = settled(&mut host, &["xsplice", "list", "--json"])?;
        let listed = result("list", listed.stdout)?;
        assert_eq!(listed["payloads"][0]["state"], "applied", "{listed}");
        assert!((example.works)(&mut host)?, "{name}: no effect seen");
        does(&mut host, &["revert", name], true, Some("checked"))?;
        does(&mut host, &["revert", name], false, Some("checked"))?;
        does(&mut host, &["unload", name], true, None)?;
        does(&mut host, &["upload", name, place], true, Some("checked"))?;
        does(&mut host, &["apply", name], true, Some("applied"))?;
        does(&mut host, &["replace", name], false, Some("applied"))?;
        fails(&mut host, &["unload", name])?;
        does(&mut host, &["revert", name], true, Some("checked"))?;
        does(&mut host, &["unload", name], true, None)?;
        let after = (asked(&mut host, "extra")?, asked(&mut host, "changeset")?);
        assert_eq!(after, before, "{name} left something behind");
    }
    reasons_are_told(&mut host)?;
    Ok(host)
}
