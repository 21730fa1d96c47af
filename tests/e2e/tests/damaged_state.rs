// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host has a level; then each file that its tool keeps or reads is damaged in each way,
//! and its clock is wrong. Whatever a command then says has the published form, `status`
//! says that all is as wanted only where nothing is damaged that the host needs, and the
//! hypervisor keeps what it has. The seed chooses half of the ways, and one file with which
//! all commands run; `cargo xtask test --all` tries all.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use xsplice_e2e::levels::{host_with_levels, install, sync};
use xsplice_e2e::{base, exhaustive, seed, settled, told};
use xsplice_lab::{Host, Output};

const WAYS: [&str; 4] = ["empty", "half", "binary", "directory"];

/// A file, and what `status` tells when it is damaged in each of the [`WAYS`]: the state, or
/// the code of the error.
type Case<'a> = (&'a str, [&'a str; 4]);

/// Files, but for those of the payload.
const FILES: [Case<'_>; 4] = [
    ("/etc/xsplice/keys.d/vendor.pem", ["unverified"; 4]),
    // Without a line, it has the defaults.
    (
        "/etc/xsplice/host.toml",
        ["current", "damaged", "damaged", "file-error"],
    ),
    (
        "/var/lib/xsplice/progress.json",
        ["damaged", "damaged", "damaged", "file-error"],
    ),
    // It is for people.
    (
        "/var/lib/xsplice/history.jsonl",
        ["current", "current", "current", "current"],
    ),
];

fn run(host: &mut Host, first: &[&str], command: &[&str]) -> anyhow::Result<Output> {
    settled(host, &[first, command].concat())
}

/// What a command tells programs, and its exit code.
fn answer(host: &mut Host, first: &[&str], command: &[&str]) -> anyhow::Result<(i32, Value)> {
    let command = [&["xsplice"], command, &["--json"]].concat();
    let output = run(host, first, &command)?;
    let code = output.code.with_context(|| format!("{output:?}"))?;
    let value = told(command[1], &output.stdout);
    Ok((code, value.with_context(|| format!("{output:?}"))?))
}

/// It is `damaged`, and the host says so.
fn damaged(host: &mut Host, damaged: &[&str], expected: &str) -> anyhow::Result<()> {
    let (code, status) = answer(host, damaged, &["status", "--check"])?;
    let (state, error) = (status["state"].as_str(), status["error"]["code"].as_str());
    ensure!(state.or(error) == Some(expected), "{status:#}");
    let expected_code = match (expected, state) {
        ("current", _) => 0,
        (_, Some(_)) => 3,
        (_, None) => 1,
    };
    ensure!(code == expected_code, "{code}: {status:#}");
    Ok(())
}

/// A sync fails, if the host needs what is damaged, and changes nothing.
fn nothing_changes(host: &mut Host, damaged: &[&str], fails: bool) -> anyhow::Result<()> {
    let (code, synced) = answer(host, damaged, &["sync"])?;
    ensure!(
        code == i32::from(fails) && synced["changed"] == false,
        "{code}: {synced:#}"
    );
    Ok(())
}

/// The commands that only look end by themselves.
fn seen(host: &mut Host, damaged: &[&str], is_current: bool) -> anyhow::Result<()> {
    for command in [&["list"][..], &["plan"], &["history"]] {
        let (code, told) = answer(host, damaged, command)?;
        ensure!([0, 1].contains(&code), "{command:?} {code}: {told:#}");
    }
    let metrics = run(host, damaged, &["xsplice", "metrics"])?;
    let state = "xsplice_state{state=\"current\"} 1";
    let current = metrics.stdout.lines().any(|line| line == state);
    let fails = metrics.code == Some(1);
    ensure!(
        current == is_current && metrics.code == Some(0) || fails && !current,
        "{metrics:?}"
    );
    let list = run(host, damaged, &["xen-livepatch", "list"])?;
    ensure!(
        list.code == Some(0) && list.stdout.contains("APPLIED"),
        "{list:?}"
    );
    Ok(())
}

fn info_says(host: &mut Host, words: &str) -> anyhow::Result<()> {
    let info = host.run(&["xsplice", "info"])?;
    ensure!(info.stdout.contains(words), "{info:?}");
    Ok(())
}

fn is_current(host: &mut Host) -> anyhow::Result<Value> {
    let (code, status) = answer(host, &[], &["status", "--check"])?;
    ensure!(code == 0 && status["state"] == "current", "{status:#}");
    Ok(status)
}

#[test]
fn damaged_files_and_wrong_clocks_are_told_and_cost_nothing() -> anyhow::Result<()> {
    let base = base()?;
    let names = ["xen_hello_world.livepatch", "xen_replace_world.livepatch"];
    let mut host = host_with_levels(&base, &names, env!("CARGO_BIN_EXE_in-dom0").as_ref())?;
    install(&mut host, 1)?;
    sync(&mut host, &[], 0)?;
    host.put("/etc/xsplice/host.toml", b"want = \"latest\"\n")?;
    let status = is_current(&mut host)?;
    let id = status["result"]["base"].as_str().context("no base")?;
    let payload = format!("/var/lib/xsplice/store/{id}/fixes-1.livepatch");
    let (manifest, signature) = (format!("{payload}.json"), format!("{payload}.json.sig"));
    let of_payload: [Case<'_>; 3] = [
        (&payload, ["store-damaged"; 4]),
        (&manifest, ["store-damaged"; 4]),
        (
            &signature,
            ["unverified", "unverified", "unverified", "store-damaged"],
        ),
    ];
    let seed = usize::try_from(seed()?)?;
    let files: Vec<Case<'_>> = of_payload.into_iter().chain(FILES).collect();
    for (number, (file, expected)) in files.iter().enumerate() {
        let ways = WAYS.iter().zip(expected).enumerate();
        let ways = ways.filter(|(way, _)| exhaustive() || (way + number + seed).is_multiple_of(2));
        for (first, (_, (way, expected))) in ways.enumerate() {
            let damage = ["in-dom0", "damaged", way, file];
            let context = || format!("{way} {file}");
            damaged(&mut host, &damage, expected).with_context(context)?;
            if exhaustive() || first == 0 {
                let fails = *expected != "current";
                nothing_changes(&mut host, &damage, fails).with_context(context)?;
            }
            if exhaustive() || first == 0 && number == seed % files.len() {
                seen(&mut host, &damage, *expected == "current").with_context(context)?;
            }
        }
        is_current(&mut host).with_context(|| format!("after {file}"))?;
    }
    info_says(&mut host, "Hello World")?;
    // In 1970 and in 2100.
    for seconds in ["1000000", "4102444800"] {
        at_another_time(&mut host, seconds).with_context(|| seconds.to_owned())?;
    }
    let verified = host.run(&["xsplice", "history", "--verify"])?;
    let whole = verified.stdout.contains("the chain is whole");
    ensure!(verified.code == Some(0) && whole, "{verified:?}");
    host.shut_down()?;
    Ok(())
}

/// The host goes to level 2 and back.
fn at_another_time(host: &mut Host, seconds: &str) -> anyhow::Result<()> {
    let first = ["in-dom0", "at", seconds];
    for (command, state) in [
        (&["status", "--check"][..], "current"),
        (&["install", "/new/fixes-2.livepatch"], ""),
        (&["sync", "--timeout", "300"], "current"),
        (&["status", "--check"], "current"),
        (
            &[
                "sync",
                "--timeout",
                "300",
                "--level",
                "1",
                "--allow-downgrade",
            ],
            "behind",
        ),
        (&["remove", "fixes-2"], ""),
    ] {
        let (code, told) = answer(host, &first, command)?;
        ensure!(
            code == 0 && told["state"].as_str().unwrap_or_default() == state,
            "{command:?}: {told:#}"
        );
    }
    info_says(host, "Hello World")
}
