// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Debian package on a Debian dom0, as an administrator has it: installed, it gives the
//! host its live patch after a boot; it keeps no host from booting; and it leaves what it
//! should when it is upgraded, removed and purged.

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use std::path::Path;
use xsplice_e2e::levels::sign;
use xsplice_e2e::{
    debian_config, exhaustive, later, named_by, package, repository, rust_base, told,
};
use xsplice_lab::DebianHost;

/// One of Xen's own test payloads: it changes what `xen_extra_version` returns.
const PAYLOAD: &str = "xen_hello_world.livepatch";
/// Where the host has it.
const STORED: &str = "/var/lib/xsplice/store/*/fixes-1.livepatch";

/// Gives the unit more time for a rendezvous.
const PATIENT: &str = "mkdir -p /etc/systemd/system/xsplice-sync.service.d && printf '%s\\n' \
     '[Service]' 'ExecStart=' 'ExecStart=xsplice sync --unattended --wait 30 --timeout 300' \
     >/etc/systemd/system/xsplice-sync.service.d/patient.conf && systemctl daemon-reload";

#[test]
fn a_debian_dom0_keeps_its_live_patch_over_boots() -> anyhow::Result<()> {
    // It boots a Debian system five times, on an emulated machine.
    if !exhaustive() {
        println!("only with `cargo xtask test --all`");
        return Ok(());
    }
    let deb = package(&repository())?;
    let mut host = DebianHost::boot(&debian_config(&rust_base()?)?)?;
    install(&mut host, &deb)?;
    as_xl_says(&mut host)?;
    reach_level(&mut host)?;
    with_xl(&mut host)?;
    upgrade(&mut host, &deb)?;

    host.reboot("")?;
    expect(&mut host, "current", 1)?;
    let said = ok(&mut host, "systemctl is-active xsplice-sync xsplice-settle")?;
    ensure!(said == "active\nactive\n", "{said}");
    off_by_command_line(&mut host)?;
    without_store(&mut host)?;
    with_a_damaged_payload(&mut host)?;
    remove(&mut host)?;
    Ok(())
}

/// The package is installed: nothing in the hypervisor changes, and Xen's own tool stays.
fn install(host: &mut DebianHost, deb: &Path) -> anyhow::Result<()> {
    let tool = "readlink /usr/sbin/xen-livepatch || true";
    let before = ok(host, tool)?;
    host.put("/root/xsplice.deb", deb)?;
    ok(host, "dpkg -i /root/xsplice.deb")?;
    ensure!(ok(host, tool)? == before, "Xen's own tool was replaced");
    let units = "xsplice-sync.service xsplice-settle.service xsplice-keep.timer";
    ok(host, &format!("systemctl is-enabled {units}"))?;
    let synced = run(host, "systemctl is-active xsplice-sync")?;
    ensure!(synced.0 == "inactive\n", "{synced:?}");
    let list = ok(host, "/usr/bin/xen-livepatch list")?;
    ensure!(list == "Nothing to list\n", "{list}");
    // A CPU of an emulated machine can be late for the rendezvous.
    ok(host, PATIENT)?;
    expect(host, "hypervisor-unknown", 0)
}

/// What is said of the hypervisor is what `xl info` says, but for its scheduler.
fn as_xl_says(host: &mut DebianHost) -> anyhow::Result<()> {
    let about = |line: &&str| {
        let keys = ["xen_", "cc_", "build_id", "platform_params"];
        keys.iter().any(|key| line.starts_with(key)) && !line.starts_with("xen_scheduler")
    };
    let theirs = ok(host, "xl info")?;
    let theirs: Vec<&str> = theirs.lines().filter(about).map(str::trim_end).collect();
    let ours = ok(host, "xsplice info --format xl")?;
    let ours: Vec<&str> = ours.lines().map(str::trim_end).collect();
    ensure!(ours == theirs && ours.len() > 10, "{ours:#?}\n{theirs:#?}");
    Ok(())
}

/// A signed payload is installed and applied.
fn reach_level(host: &mut DebianHost) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let payload = directory.path().join("fixes-1.livepatch");
    std::fs::copy(rust_base()?.test_payloads.join(PAYLOAD), &payload)?;
    sign(&payload, 1)?;
    for end in ["", ".json", ".json.sig"] {
        let name = format!("fixes-1.livepatch{end}");
        host.put(&format!("/root/{name}"), &directory.path().join(&name))?;
    }
    ok(host, "mkdir -p /etc/xsplice/keys.d")?;
    let key = repository().join("tests/keys/trusted/vendor.pem");
    host.put("/etc/xsplice/keys.d/vendor.pem", &key)?;
    ok(host, "xsplice install /root/fixes-1.livepatch")?;
    expect(host, "behind", 0)?;
    sync(host)?;
    expect(host, "current", 1)
}

/// `xl` with our patch does what the tool does.
fn with_xl(host: &mut DebianHost) -> anyhow::Result<()> {
    host.put("/root/xl", named_by("XSPLICE_XL")?.as_ref())?;
    let help = ok(host, "/root/xl help")?;
    ensure!(
        help.lines()
            .any(|line| line.trim_start().starts_with("livepatch ")),
        "{help}"
    );
    let list = ok(host, "/root/xl livepatch list")?;
    ensure!(
        list.contains("fixes-1 ") && list.contains("| APPLIED"),
        "{list}"
    );
    ensure!(list == ok(host, "xen-livepatch list")?, "{list}");
    // Xen's own tool comes first in the path, if there is one.
    let refused = "PATH=/usr/lib/xsplice:$PATH /root/xl livepatch unload fixes-1";
    let refused = host.run(refused)?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("is in the wrong state"),
        "{refused:?}"
    );
    // That was recorded.
    let history = ok(host, "xsplice history")?;
    let recorded = |line: &str| {
        ["unload", "failed", "fixes-1"]
            .iter()
            .all(|w| line.contains(w))
    };
    ensure!(history.lines().any(recorded), "{history}");
    Ok(())
}

/// A later version is installed over it: the payload stays applied, and no unit is
/// restarted, which would accept the payload before its time.
fn upgrade(host: &mut DebianHost, deb: &Path) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    host.put("/root/later.deb", &later(deb, directory.path())?)?;
    let runs = "systemctl show --property=InvocationID xsplice-settle.service";
    let before = ok(host, runs)?;
    ok(host, "dpkg -i /root/later.deb")?;
    ensure!(ok(host, runs)? == before, "the upgrade restarted it");
    expect(host, "current", 1)
}

fn off_by_command_line(host: &mut DebianHost) -> anyhow::Result<()> {
    host.reboot("xsplice.sync=0")?;
    expect(host, "behind", 0)?;
    let synced = run(host, "systemctl is-active xsplice-sync")?;
    ensure!(synced.0 == "inactive\n", "{synced:?}");
    sync(host)
}

fn without_store(host: &mut DebianHost) -> anyhow::Result<()> {
    ok(host, "mv /var/lib/xsplice /var/lib/gone")?;
    host.reboot("")?;
    expect(host, "hypervisor-unknown", 0)?;
    ok(
        host,
        "rm -rf /var/lib/xsplice && mv /var/lib/gone /var/lib/xsplice",
    )?;
    sync(host)
}

/// The payload is damaged on the disk: the host comes up without it, and says so.
fn with_a_damaged_payload(host: &mut DebianHost) -> anyhow::Result<()> {
    ok(
        host,
        &format!("for file in {STORED}; do truncate -s 1000 $file; done"),
    )?;
    host.reboot("")?;
    expect(host, "store-damaged", 0)?;
    let reason = status(host)?["result"]["reason"].take();
    let named = reason
        .as_str()
        .is_some_and(|r| r.contains("/fixes-1.livepatch"));
    ensure!(named, "{reason}");
    let reached = ok(host, "systemctl is-active multi-user.target")?;
    ensure!(reached == "active\n", "{reached}");
    Ok(())
}

/// Removed, it leaves what is the administrator's; purged, nothing.
fn remove(host: &mut DebianHost) -> anyhow::Result<()> {
    ok(host, "rm -r /etc/systemd/system/xsplice-sync.service.d")?;
    let data = "ls -d /var/lib/xsplice/history.jsonl /etc/xsplice/keys.d";
    ok(host, "dpkg --remove xsplice")?;
    ok(host, data)?;
    for gone in ["/usr/bin/xsplice", "/usr/bin/xen-livepatch"] {
        let test = run(host, &format!("test -e {gone}"))?;
        ensure!(test.1 == Some(1), "{gone} is still there");
    }
    ok(host, "dpkg --purge xsplice")?;
    let left = ok(
        host,
        "find / -xdev -name '*xsplice*' -not -path '/root/*' -not -path '/var/log/*'",
    )?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

/// The state of the host, and its level.
fn expect(host: &mut DebianHost, state: &str, level: u32) -> anyhow::Result<()> {
    let status = status(host)?;
    let fits = status["state"] == state && status["result"]["level"] == level;
    ensure!(fits, "it is not {state} at level {level}: {status:#}");
    Ok(())
}

fn status(host: &mut DebianHost) -> anyhow::Result<Value> {
    let said = ok(host, "xsplice status --json")?;
    told("status", said)
}

/// A sync; the rendezvous can time out on an emulated machine.
fn sync(host: &mut DebianHost) -> anyhow::Result<()> {
    const TRIES: usize = 10;
    let command = "xsplice sync --timeout 300";
    for _ in 0..TRIES {
        let output = host.run(command)?;
        match output.code {
            Some(0) => return Ok(()),
            Some(2) => {}
            _ => bail!("{output:?}\n{}", host.console()),
        }
    }
    bail!("the rendezvous timed out {TRIES} times")
}

/// What a command prints, and its exit code.
fn run(host: &mut DebianHost, command: &str) -> anyhow::Result<(String, Option<i32>)> {
    let output = host.run(command)?;
    Ok((output.stdout, output.code))
}

/// What a command prints that succeeds.
fn ok(host: &mut DebianHost, command: &str) -> anyhow::Result<String> {
    let output = host.run(command).with_context(|| command.to_owned())?;
    ensure!(output.code == Some(0), "{command}: {output:?}");
    Ok(output.stdout)
}
