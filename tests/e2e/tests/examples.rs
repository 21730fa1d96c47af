// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each example patch is built, loaded, applied, observed and reverted, on the
//! hypervisor that Debian ships, on the one with our core, and on a debug build of
//! that, where a failed assertion stops it.

use anyhow::ensure;
use xsplice_e2e::{
    Base, base, build, config, debug_base, minor, result, rust_base, settled, told, unsigned_config,
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
    every_example(config(&base()?)?, &base()?).map(drop)
}

#[test]
fn examples_apply_and_revert_with_our_core() -> anyhow::Result<()> {
    every_example(config(&rust_base()?)?, &rust_base()?).map(drop)
}

#[test]
fn examples_apply_and_revert_on_debug_xen() -> anyhow::Result<()> {
    let console = every_example(unsigned_config(&debug_base()?)?, &debug_base()?)?;
    anyhow::ensure!(console.contains("debug=y"), "{console}");
    Ok(())
}

/// Returns what the console printed meanwhile.
fn every_example(config: HostConfig, base: &Base) -> anyhow::Result<String> {
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
        if minor(base)? >= 18 {
            // It is no longer compiled a second time for 32-bit callers.
            expected.retain(|function| *function != "compat_xen_version");
        }
        if minor(base)? >= 21 && name != "bug-and-alternative" {
            // It has the two functions inlined.
            expected.push("print_version");
        }
        assert_eq!(listed, expected, "{name}: {report}");
        // The same inputs give the same bytes.
        let again = directory.path().join("again.livepatch");
        build(base, &patch, &again)?;
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
    let console = host.console();
    host.shut_down()?;
    Ok(console)
}
