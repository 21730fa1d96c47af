// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host reaches and keeps a level, on stock Xen and on our core: a signed payload is
//! installed and applied, replaced by a higher level, and restored when the next one turns
//! out to be bad; what others apply is noticed; the level falls only on demand; and every
//! change, under both names of the tool, waits for others and is recorded.

use anyhow::{Context as _, ensure};
use xsplice_e2e::levels::{host_with_levels, install, sync};
use xsplice_e2e::{Base, base, result, rust_base, settled, told};
use xsplice_lab::Host;

/// Xen's own test payloads, as three levels. The third expects other code than is there.
const LEVELS: [&str; 3] = [
    "xen_hello_world.livepatch",
    "xen_replace_world.livepatch",
    "xen_expectations_fail.livepatch",
];

#[test]
fn a_host_reaches_and_keeps_a_level_on_stock_xen() -> anyhow::Result<()> {
    // Its replace reverts what is applied before it looks at the new payload.
    levels(&base()?, true)
}

#[test]
fn a_host_reaches_and_keeps_a_level_on_our_core() -> anyhow::Result<()> {
    levels(&rust_base()?, false)
}

fn levels(base: &Base, reverts_first: bool) -> anyhow::Result<()> {
    let mut host = host_with_levels(base, &LEVELS, env!("CARGO_BIN_EXE_in-dom0").as_ref())?;

    expect(&mut host, "hypervisor-unknown", 0, 0)?;
    install(&mut host, 1)?;
    expect(&mut host, "behind", 0, 1)?;
    let plan = host.run(&["xsplice", "plan", "--json"])?;
    ensure!(plan.code == Some(3), "{plan:?}");
    let steps = &result("plan", &plan.stdout)?["steps"];
    ensure!(
        steps[0]["step"] == "upload" && steps[1]["step"] == "apply",
        "{steps}"
    );
    sync(&mut host, &[], 0)?;
    expect(&mut host, "current", 1, 1)?;

    install(&mut host, 2)?;
    sync(&mut host, &[], 0)?;
    expect(&mut host, "current", 2, 2)?;
    let info = host.run(&["xsplice", "info"])?;
    ensure!(info.stdout.contains("Hello Again Wor"), "{info:?}");
    let list = result("list", host.run(&["xsplice", "list", "--json"])?.stdout)?;
    let listed = list["payloads"].as_array().context("no payloads")?;
    ensure!(
        listed.len() == 1 && listed[0]["level"] == 2 && listed[0]["signer"]["name"] == "vendor",
        "{list:#}"
    );
    let shown = host.run(&["xsplice", "list"])?.stdout;
    for key in [
        "level", "signer", "build-id", "sha256", "depends", "position",
    ] {
        let line = format!("  {key} ");
        ensure!(shown.lines().any(|l| l.starts_with(&line)), "{shown}");
    }
    let status = ["xsplice", "status", "--functions", "--json"];
    let status = result("status", host.run(&status)?.stdout)?;
    ensure!(
        status["payloads"][0]["signer"]["name"] == "vendor",
        "{status:#}"
    );
    ensure!(
        status["functions"][0]["functions"][0] == "xen_extra_version",
        "{status:#}"
    );

    install(&mut host, 3)?;
    let failed = sync(&mut host, &[], 1)?;
    let restored = &failed["result"]["restored"];
    ensure!(
        restored.as_bool() == reverts_first.then_some(true),
        "{failed:#}"
    );
    ensure!(
        failed["result"]["quarantined"][0]["payload"]["level"] == 3,
        "{failed:#}"
    );
    expect(&mut host, "apply-failed", 2, 2)?;
    let info = host.run(&["xsplice", "info"])?;
    ensure!(info.stdout.contains("Hello Again Wor"), "{info:?}");
    // It is not tried again.
    let again = sync(&mut host, &[], 0)?;
    ensure!(again["changed"] == false, "{again:#}");

    sync(&mut host, &["--level", "1"], 1)?;
    sync(&mut host, &["--level", "1", "--allow-downgrade"], 0)?;
    let info = host.run(&["xsplice", "info"])?;
    ensure!(info.stdout.contains("Hello World"), "{info:?}");

    // Somebody else replaces it, and is not overruled.
    let load = [
        "xsplice",
        "load",
        "--replace",
        "/new/fixes-2.livepatch",
        "--name",
        "mine",
    ];
    let load = settled(&mut host, &load)?;
    ensure!(load.code == Some(0), "{load:?}");
    expect(&mut host, "diverged", 0, 0)?;
    sync(&mut host, &[], 1)?;
    loaded_once(&mut host)?;

    one_at_a_time(&mut host)?;
    recorded_or_refused(&mut host)?;
    let history = host.run(&["xsplice", "history", "--json"])?;
    ensure!(history.code == Some(0), "{history:?}");
    let lines = result("history", &history.stdout)?["lines"].take();
    let done = lines.as_array().into_iter().flatten();
    let done = done.filter(|line| line["action"] == "sync" && line["outcome"] == "done");
    ensure!(done.count() == 3, "{lines:#}");
    for (action, outcome, name) in [
        ("load", "done", "mine"),
        ("upload", "done", "other"),
        ("unload", "done", "other"),
        ("apply", "failed", "missing"),
    ] {
        let all = lines.as_array().into_iter().flatten();
        let mut found = all.filter(|line| line["action"] == action && line["name"] == name);
        ensure!(
            found.any(|line| line["outcome"] == outcome),
            "{action} {name}: {lines:#}"
        );
    }
    let metrics = host.run(&["xsplice", "metrics"])?;
    let line = "xsplice_actions_total{action=\"sync\",result=\"failed\"} 1";
    ensure!(
        metrics.stdout.lines().any(|other| other == line),
        "{metrics:?}"
    );
    a_bad_package(&mut host)?;
    host.shut_down()?;
    Ok(())
}

/// `load` of what is loaded already is done; what is loaded is known by the history.
fn loaded_once(host: &mut Host) -> anyhow::Result<()> {
    let load = |file| ["xsplice", "--json", "load", file, "--name", "mine"];
    let applied = "/new/fixes-2.livepatch";
    let replace = [&load(applied)[..], &["--replace"]].concat();
    for again in [&load(applied)[..], &replace] {
        let output = host.run(again)?;
        let done = told("load", &output.stdout)?;
        ensure!(
            output.code == Some(0) && done["changed"] == false && done["state"] == "applied",
            "{output:?}"
        );
    }
    let refused = host.run(&load("/new/fixes-1.livepatch"))?;
    let said = told("load", &refused.stdout)?;
    let words = said["error"]["message"].as_str().unwrap_or_default();
    ensure!(
        refused.code == Some(1)
            && words.contains("another payload of this name")
            && said["changed"] == false,
        "{refused:?}"
    );
    // One that was uploaded is applied.
    let reverted = settled(host, &["xsplice", "revert", "mine"])?;
    ensure!(reverted.code == Some(0), "{reverted:?}");
    let applied = settled(host, &load(applied))?;
    let done = told("load", &applied.stdout)?;
    ensure!(
        done["changed"] == true && done["state"] == "applied",
        "{applied:?}"
    );
    // If that fails, it stays: this one is not for what is applied.
    let upload = ["xsplice", "upload", "other", "/new/fixes-1.livepatch"];
    ensure!(host.run(&upload)?.code == Some(0), "{upload:?}");
    let load = ["xsplice", "--json", "load", upload[3], "--name", "other"];
    let failed = settled(host, &load)?;
    let said = told("load", &failed.stdout)?;
    ensure!(
        failed.code == Some(1) && said["state"] == "checked" && said["changed"] == false,
        "{failed:?}"
    );
    let unloaded = host.run(&["xsplice", "unload", "other"])?;
    ensure!(unloaded.code == Some(0), "{unloaded:?}");
    Ok(())
}

/// While another xsplice is at work, nothing is changed, under no name of the tool.
fn one_at_a_time(host: &mut Host) -> anyhow::Result<()> {
    let payload = "/new/fixes-1.livepatch";
    let busy = host.run(&[
        "in-dom0", "locked", "xsplice", "--json", "upload", "other", payload,
    ])?;
    let busy_told = told("upload", &busy.stdout)?;
    ensure!(
        busy.code == Some(2) && busy_told["error"]["kind"] == "busy",
        "{busy:?}"
    );
    let waits = [
        "in-dom0",
        "locked-first",
        "xsplice",
        "upload",
        "other",
        payload,
    ];
    let waits = host.run(&[&waits[..], &["--wait", "60"]].concat())?;
    ensure!(waits.code == Some(0), "{waits:?}");
    let waits = host.run(&[
        "in-dom0",
        "locked-first",
        "xen-livepatch",
        "unload",
        "other",
    ])?;
    ensure!(waits.code == Some(0), "{waits:?}");
    let failed = host.run(&["xsplice", "apply", "missing"])?;
    ensure!(failed.code == Some(1), "{failed:?}");
    Ok(())
}

/// If the history cannot be written, the policy says whether something is changed, under
/// every name of the tool.
fn recorded_or_refused(host: &mut Host) -> anyhow::Result<()> {
    let payload = "/new/fixes-1.livepatch";
    let enforce = ["in-dom0", "unrecorded", "audit = \"enforce\""];
    for command in [
        &["xsplice", "upload", "other", payload][..],
        &["xen-livepatch", "upload", "other", payload],
    ] {
        let refused = host.run(&[&enforce[..], command].concat())?;
        ensure!(refused.code == Some(1), "{refused:?}");
        let list = host.run(&["xsplice", "list"])?;
        ensure!(!list.stdout.contains("other"), "{list:?}");
    }
    let warn = ["in-dom0", "unrecorded", "audit = \"warn\""];
    for command in [
        &["xsplice", "upload", "other", payload][..],
        &["xen-livepatch", "unload", "other"],
    ] {
        let warned = host.run(&[&warn[..], command].concat())?;
        let said = warned.stderr.contains("warning: not recorded");
        ensure!(warned.code == Some(0) && said, "{warned:?}");
    }
    let verified = host.run(&["xsplice", "history", "--verify"])?;
    let whole = verified.stdout.contains("the chain is whole");
    ensure!(verified.code == Some(0) && whole, "{verified:?}");
    Ok(())
}

/// A package whose manifest cannot be read is named, and the others are used.
fn a_bad_package(host: &mut Host) -> anyhow::Result<()> {
    let reverted = settled(host, &["xsplice", "revert", "--all", "--json"])?;
    let others = &result("revert", &reverted.stdout)?["others"];
    ensure!(*others == serde_json::json!(["mine"]), "{reverted:?}");
    let unloaded = host.run(&["xsplice", "unload", "mine"])?;
    ensure!(unloaded.code == Some(0), "{unloaded:?}");
    // Level 3 is in quarantine still.
    let status = told("status", host.run(&["xsplice", "status", "--json"])?.stdout)?;
    ensure!(status["state"] == "quarantined", "{status:#}");
    let base = status["result"]["base"].as_str().context("no base")?;
    let bad = format!("/usr/lib/xen-livepatch/{base}/fixes-9.livepatch");
    host.put(&bad, b"not a payload")?;
    host.put(&format!("{bad}.json"), b"{")?;
    let failed = sync(host, &[], 1)?;
    ensure!(
        failed["error"]["message"]
            .as_str()
            .is_some_and(|m| m.contains(&bad)),
        "{failed:#}"
    );
    let status = told("status", host.run(&["xsplice", "status", "--json"])?.stdout)?;
    ensure!(status["result"]["damaged"][0]["path"] == *bad, "{status:#}");
    ensure!(status["result"]["level"] == 2, "{status:#}");
    Ok(())
}

/// The state of the host, its level, and, unless it cannot be known, the wanted one.
fn expect(host: &mut Host, state: &str, level: u32, wanted: u32) -> anyhow::Result<()> {
    let output = host.run(&["xsplice", "status", "--check", "--json"])?;
    let code = if state == "current" { 0 } else { 3 };
    let status = told("status", &output.stdout).context(output.stderr)?;
    let report = &status["result"];
    ensure!(
        output.code == Some(code) && status["state"] == state,
        "{status:#}"
    );
    ensure!(report["level"] == level, "{status:#}");
    ensure!(
        state == "diverged" || report["wanted"] == wanted,
        "{status:#}"
    );
    Ok(())
}
