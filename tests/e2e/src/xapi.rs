// SPDX-License-Identifier: MIT OR Apache-2.0
//! What xapi, the toolstack of XenServer and XCP-ng, reads and runs: it brings a host to a
//! payload by `xen-livepatch`, whose output it matches line by line.

use crate::settled;
use anyhow::{Context as _, ensure};
use xsplice_lab::Host;

/// A payload in a line of `xen-livepatch list`, as xapi finds it: `^[
/// ]*(lp_[^_ ]+_[^_ ]+).+(APPLIED|CHECKED).*$`.
#[derive(Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Whether it is applied; otherwise it is only uploaded.
    pub applied: bool,
}

impl Listed {
    /// The payload in this line, if there is one.
    pub fn read(line: &str) -> Option<Self> {
        let line = line.trim_start_matches(' ');
        let word = |text: &str| text.find(['_', ' ']).unwrap_or(text.len());
        let halves = line.strip_prefix("lp_")?;
        let from = word(halves);
        let to = halves.get(from..)?.strip_prefix('_')?;
        let size = word(to);
        let name = line.get(..4 + from + size)?;
        let rest = &to[size..];
        let applied = rest.find("APPLIED");
        let checked = rest.find("CHECKED");
        let state = applied.or(checked)?;
        (from > 0 && size > 0 && state > 0).then(|| Self {
            name: name.to_owned(),
            applied: applied.is_some(),
        })
    }
}

/// The value of a line of `xl info`, as xapi finds it: `^KEY *: *(.*)$`.
pub fn value<'a>(info: &'a str, key: &str) -> Option<&'a str> {
    let mut values = info.lines().filter_map(|line| {
        let rest = line.strip_prefix(key)?.trim_start_matches(' ');
        rest.strip_prefix(':')
    });
    values.next().map(|value| value.trim_start_matches(' '))
}

/// Brings the host to the payload `file` under the name `name`, as xapi does: one of that name
/// is unloaded, then it is uploaded and replaces the others, which are unloaded.
///
/// # Errors
/// If a step fails, or something else is there at the end.
pub fn bring(host: &mut Host, tool: &str, name: &str, file: &str) -> anyhow::Result<()> {
    if find(host, tool, name)?.is_some_and(|listed| !listed.applied) {
        run(host, &[tool, "unload", name])?;
    }
    run(host, &[tool, "upload", name, file])?;
    run(host, &[tool, "replace", name])?;
    for other in list(host, tool)?.iter().filter(|listed| !listed.applied) {
        run(host, &[tool, "unload", &other.name])?;
    }
    let there = list(host, tool)?;
    let wanted = Listed {
        name: name.to_owned(),
        applied: true,
    };
    ensure!(there == [wanted], "{tool}: {there:?}");
    Ok(())
}

fn find(host: &mut Host, tool: &str, name: &str) -> anyhow::Result<Option<Listed>> {
    let mut all = list(host, tool)?.into_iter();
    Ok(all.find(|listed| listed.name == name))
}

fn list(host: &mut Host, tool: &str) -> anyhow::Result<Vec<Listed>> {
    let text = run(host, &[tool, "list"])?;
    Ok(text.lines().filter_map(Listed::read).collect())
}

fn run(host: &mut Host, argv: &[&str]) -> anyhow::Result<String> {
    let output = settled(host, argv).with_context(|| format!("{argv:?}"))?;
    ensure!(output.code == Some(0), "{argv:?}: {output:?}");
    Ok(output.stdout)
}
