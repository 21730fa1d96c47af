// SPDX-License-Identifier: MIT OR Apache-2.0
//! Data that payloads change in place (`xsplice build --patch-data`), on the stock
//! core and on ours, as the hypervisor shows it before, during and after the payload
//! is applied; new per-CPU variables; and the example of shadow data.

use anyhow::{Context as _, ensure};
use std::collections::BTreeMap;
use std::path::Path;
use xsplice_e2e::{Base, base, build, config, local, memory, repository, rust_base, settled};
use xsplice_lab::Host;

/// A patch, and how to see its effect.
struct Case {
    name: &'static str,
    /// The debug key whose output shows the data, and its last line.
    key: (char, &'static str),
    old: &'static str,
    new: &'static str,
}

/// Part of the last line in the list of keys: there are no keys after `z`.
const LAST_KEY: &str = "(ascii '7a')";

const CASES: [Case; 3] = [
    Case {
        name: "constants",
        key: ('h', LAST_KEY),
        old: "key '*' (ascii '2a')",
        new: "key ' ' (ascii '2a')",
    },
    Case {
        name: "handlers",
        key: ('h', LAST_KEY),
        old: "=> show this message\n",
        new: "patched handlers:\n",
    },
    Case {
        name: "integer",
        key: ('r', "sched_smt_power_savings: "),
        old: "sched_smt_power_savings: disabled",
        new: "sched_smt_power_savings: enabled",
    },
];

impl Case {
    fn expect(&self, host: &mut Host, patched: bool) -> anyhow::Result<()> {
        let (key, last) = self.key;
        // The line may still be incomplete when its start is there.
        let answer = match (last.ends_with(": "), patched) {
            (false, _) => last,
            (true, false) => self.old,
            (true, true) => self.new,
        };
        let printed = host.press(key, answer)?;
        let (is, is_not) = match patched {
            false => (self.old, self.new),
            true => (self.new, self.old),
        };
        ensure!(
            printed.contains(is) && !printed.contains(is_not),
            "{}, patched {patched}: {printed}",
            self.name
        );
        Ok(())
    }
}

fn done(host: &mut Host, arguments: &[&str]) -> anyhow::Result<()> {
    let output = settled(host, &[&["xsplice"], arguments].concat())?;
    ensure!(output.code == Some(0), "xsplice {arguments:?}: {output:?}");
    Ok(())
}

/// Builds the payload of the patch `name`, with `key` in its metadata so that two
/// payloads of one patch differ.
fn payload(base: &Base, name: &str, number: &str, directory: &Path) -> anyhow::Result<()> {
    let patch = repository().join(format!("tests/e2e/data/{name}.patch"));
    let text = std::fs::read_to_string(&patch)?;
    let text = match text.split_once("# options: ") {
        Some((first, rest)) => format!("{first}# options: --meta number=n{number} {rest}"),
        None => format!("# options: --meta number=n{number}\n{text}"),
    };
    let copy = directory.join(format!("{name}.patch"));
    std::fs::write(&copy, text)?;
    build(
        base,
        &copy,
        &directory.join(format!("{name}{number}.livepatch")),
    )?;
    Ok(())
}

fn on(base: &Base) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let mut config = config(base)?;
    let cases = CASES
        .iter()
        .flat_map(|case| [(case.name, ""), (case.name, "2")]);
    for (name, number) in cases.chain([(PER_CPU, "")]) {
        payload(base, name, number, directory.path())?;
        let file = format!("{name}{number}.livepatch");
        let from = directory.path().join(&file);
        config.files.push((format!("lab/{file}"), from));
    }
    let other = directory.path().join("other.livepatch");
    let patch = repository().join("tests/e2e/data/per-cpu-other.patch");
    build(base, &patch, &other)?;
    config.files.push(("lab/other.livepatch".to_owned(), other));
    let hptool = base.c_tool.with_file_name("xen-hptool");
    config.programs.push(("c/xen-hptool".to_owned(), hptool));
    let shadow = directory.path().join(SHADOW);
    build_shadow(base, &shadow)?;
    config.files.push((format!("lab/{SHADOW}"), shadow));
    let mut host = Host::boot(&config)?;
    for case in &CASES {
        let file = format!("/lab/{}.livepatch", case.name);
        // A second time, to see that the revert restored everything.
        for _ in 0..2 {
            case.expect(&mut host, false)?;
            done(&mut host, &["load", &file])?;
            case.expect(&mut host, true)?;
            done(&mut host, &["revert", case.name])?;
            case.expect(&mut host, false)?;
            // It has no writable data: it can be applied again.
            done(&mut host, &["apply", case.name])?;
            case.expect(&mut host, true)?;
            done(&mut host, &["revert", case.name])?;
            done(&mut host, &["unload", case.name])?;
        }
    }
    refused_if_the_value_differs(&mut host)?;
    replaced(&mut host)?;
    shadow_data(&mut host)?;
    per_cpu(&mut host)?;
    Ok(host.shut_down()?)
}

/// Two payloads that expect the same initial value cannot both be applied.
fn refused_if_the_value_differs(host: &mut Host) -> anyhow::Result<()> {
    let [_, _, integer] = &CASES;
    done(host, &["load", "/lab/integer.livepatch"])?;
    done(host, &["upload", "integer2", "/lab/integer2.livepatch"])?;
    let printed = host.console().len();
    let output = settled(host, &["xsplice", "apply", "integer2", "--nodeps"])?;
    ensure!(output.code == Some(1), "{output:?}");
    let console = host.console();
    let line = "livepatch: integer2: sched_smt_power_savings no longer has its initial value";
    ensure!(console[printed..].contains(line), "{}", &console[printed..]);
    integer.expect(host, true)?;
    done(host, &["revert", "integer"])?;
    integer.expect(host, false)?;
    done(host, &["apply", "integer2"])?;
    integer.expect(host, true)?;
    done(host, &["revert", "integer2"])?;
    for name in ["integer", "integer2"] {
        done(host, &["unload", name])?;
    }
    integer.expect(host, false)
}

/// A payload that changes only constants replaces another one: no hook of it may
/// refuse.
fn replaced(host: &mut Host) -> anyhow::Result<()> {
    let [constants, ..] = &CASES;
    done(host, &["load", "/lab/constants.livepatch"])?;
    done(host, &["upload", "constants2", "/lab/constants2.livepatch"])?;
    done(host, &["replace", "constants2"])?;
    constants.expect(host, true)?;
    done(host, &["revert", "constants2"])?;
    constants.expect(host, false)
}

/// The payload of the example of shadow data.
const SHADOW: &str = "shadow.livepatch";

fn build_shadow(base: &Base, output: &Path) -> anyhow::Result<()> {
    let example = |file: &str| {
        let path = repository().join("examples/shadow-data").join(file);
        path.display().to_string()
    };
    let result = local(&[
        "build",
        "-s",
        &base.tree.display().to_string(),
        "--xen-syms",
        &base.xen_syms.display().to_string(),
        "-p",
        &example("shadow-data.patch"),
        "-p",
        &example("version-asked.patch"),
        "--hooks",
        &example("shadow-data.c"),
        "-o",
        &output.display().to_string(),
    ])?;
    ensure!(result.status.success(), "{result:?}");
    Ok(())
}

/// A per-domain counter, which the structure has no room for, is created on first
/// use, counts, and is freed when the payload is reverted.
fn shadow_data(host: &mut Host) -> anyhow::Result<()> {
    fn version(host: &mut Host) -> anyhow::Result<String> {
        let output = host.run(&["xsplice", "info"])?;
        let mut lines = output.stdout.lines();
        let version = lines.find(|line| line.starts_with("version "));
        Ok(version.context("no version")?.to_owned())
    }
    let plain = version(host)?;
    let mut left = Vec::new();
    for _ in 0..2 {
        done(host, &["load", "/lab/shadow.livepatch"])?;
        let first = version(host)?;
        let count = first
            .rsplit_once("-asked-")
            .map(|(_, count)| count.parse::<u32>());
        let Some(Ok(count)) = count else {
            anyhow::bail!("{first}");
        };
        ensure!(count < 5, "the counter does not begin at zero: {first}");
        let second = version(host)?;
        ensure!(
            second.ends_with(&format!("-asked-{}", count + 1)),
            "{second}"
        );
        done(host, &["revert", "shadow"])?;
        done(host, &["unload", "shadow"])?;
        ensure!(version(host)? == plain, "{plain}");
        left.push(memory(host)?);
    }
    let [before, after] = &left[..] else {
        anyhow::bail!("two rounds");
    };
    ensure!(before == after, "{before:?}, {after:?}");
    Ok(())
}

/// The patch with per-CPU variables.
const PER_CPU: &str = "per-cpu";

/// Number of queries on each online CPU; each of them reports its own number.
fn counts(host: &mut Host) -> anyhow::Result<BTreeMap<u32, u64>> {
    let printed = host.press('h', LAST_KEY)?;
    let lines = printed.lines().filter(|line| line.contains(" was asked "));
    let counts = lines.map(|line| {
        let words: Vec<&str> = line.split_whitespace().rev().collect();
        let [last, _, _, _, count, _, _, cpu, ..] = words[..] else {
            anyhow::bail!("{line}");
        };
        let cpu: u32 = cpu
            .trim_start_matches(|c| c != 'U')
            .trim_start_matches('U')
            .parse()?;
        let (count, last): (u64, u32) = (count.parse()?, last.parse()?);
        ensure!(last == if count == 0 { 0 } else { cpu }, "{line}");
        Ok((cpu, count))
    });
    counts.collect()
}

/// Takes the last CPU offline or back online.
fn hotplug(host: &mut Host, action: &str) -> anyhow::Result<()> {
    let output = host.run(&["/c/xen-hptool", action, "3"])?;
    ensure!(output.code == Some(0), "{action}: {output:?}");
    Ok(())
}

/// New per-CPU variables start at zero on every CPU, including those that come online
/// later, and two payloads never share a place.
fn per_cpu(host: &mut Host) -> anyhow::Result<()> {
    done(host, &["load", &format!("/lab/{PER_CPU}.livepatch")])?;
    let first = counts(host)?;
    ensure!(
        first.len() == 4 && first.values().sum::<u64>() < 5,
        "{first:?}"
    );
    for _ in 0..8 {
        done(host, &["info"])?;
    }
    let second = counts(host)?;
    ensure!(second.values().sum::<u64>() >= 8, "{second:?}");

    // A payload of other functions that would get the same place is refused.
    let other = "other";
    done(host, &["upload", other, "/lab/other.livepatch"])?;
    let printed = host.console().len();
    let output = settled(host, &["xsplice", "apply", other, "--nodeps"])?;
    ensure!(output.code == Some(1), "{output:?}");
    let console = host.console();
    let line = "another payload has the place of its per-CPU variables";
    ensure!(console[printed..].contains(line), "{}", &console[printed..]);

    // A CPU that goes offline and comes back.
    hotplug(host, "cpu-offline")?;
    let third = counts(host)?;
    ensure!(third.len() == 3, "{third:?}");
    hotplug(host, "cpu-online")?;
    let fourth = counts(host)?;
    // Its area is a new one, or the old one if offline CPUs are parked.
    let back = fourth.get(&3).copied();
    ensure!(
        back == Some(0) || back == second.get(&3).copied(),
        "{second:?}, {fourth:?}"
    );

    // A CPU that is offline while the payload is reverted and applied again.
    hotplug(host, "cpu-offline")?;
    done(host, &["revert", PER_CPU])?;
    done(host, &["apply", PER_CPU])?;
    hotplug(host, "cpu-online")?;
    let fifth = counts(host)?;
    ensure!(
        fifth.len() == 4 && fifth.values().sum::<u64>() < 5,
        "{fifth:?}"
    );
    done(host, &["revert", PER_CPU])?;
    ensure!(counts(host)?.is_empty(), "it is still there");
    done(host, &["apply", other])?;
    done(host, &["revert", other])?;
    for name in [PER_CPU, other] {
        done(host, &["unload", name])?;
    }
    Ok(())
}

#[test]
fn on_xen_s_own_core() -> anyhow::Result<()> {
    on(&base()?)
}

#[test]
fn on_our_core() -> anyhow::Result<()> {
    on(&rust_base()?)
}
