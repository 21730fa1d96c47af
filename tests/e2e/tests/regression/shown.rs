// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the dom0 commands show of loaded payloads.

use anyhow::ensure;
use xsplice_abi::text::is_deceptive;
use xsplice_e2e::xapi::Listed;
use xsplice_e2e::{Base, forged, settled};
use xsplice_lab::Host;

/// A name in XenServer's form: the versions before and after the patch.
const NAME: &str = "lp_4.17.5-1_4.17.5-2";

/// A payload whose metadata looks like a line for another one.
pub(super) fn no_list_is_forged(host: &mut Host, base: &Base) -> anyhow::Result<()> {
    ensure!(Listed::read("lp_1-1_1-2  | APPLIED").is_some_and(|listed| listed.applied));
    ensure!(Listed::read("lp_1-1_1-2  | CHECKED").is_some_and(|listed| !listed.applied));
    host.put("/lab/forged.livepatch", &forged::payload(base, false)?)?;
    let upload = ["xsplice", "upload", NAME, "/lab/forged.livepatch"];
    let output = host.run(&upload)?;
    ensure!(output.code == Some(0), "{output:?}");
    let apply = ["xsplice", "apply", NAME];
    for applied in [false, true] {
        if applied {
            let output = settled(host, &apply)?;
            ensure!(output.code == Some(0), "{output:?}");
        }
        for (tool, head) in [("xsplice", 0), ("/bin/xen-livepatch", 2)] {
            let list = host.run(&[tool, "list"])?.stdout;
            let hidden = |c| is_deceptive(c) && c != '\n';
            ensure!(!list.contains(hidden), "{tool}: {list:?}");
            ensure!(list.lines().count() == head + 1, "{tool}: {list}");
            ensure!(list.contains(r"author=\nlp_1-1_1-2"), "{tool}: {list}");
            if head > 0 {
                let seen = list.lines().filter_map(Listed::read).filter(|l| l.applied);
                ensure!(seen.count() == usize::from(applied), "{tool}: {list}");
            }
        }
    }
    Ok(())
}

/// It has variables and is applied; Xen's own payload that replaces it has none.
pub(super) fn a_replace_names_what_is_lost(host: &mut Host, base: &Base) -> anyhow::Result<()> {
    let upload = [
        "xsplice",
        "upload",
        "all",
        "/lab/xen_replace_world.livepatch",
    ];
    let file = format!("/lab/{NAME}.livepatch");
    host.put(&file, &forged::payload(base, false)?)?;
    let lost = format!("the variables of {NAME} are lost: those of all start");
    let unknown = format!("if {NAME} has variables, they are lost");
    for (by, words) in [
        (&["xsplice", "replace", "all", "--on", &file][..], &lost),
        (&["xsplice", "replace", "all"], &unknown),
    ] {
        let output = host.run(&upload)?;
        ensure!(output.code == Some(0), "{output:?}");
        let output = settled(host, by)?;
        ensure!(output.code == Some(0), "{output:?}");
        ensure!(output.stdout.contains(words), "{output:?}");
        for command in [
            &["xsplice", "revert", "all"][..],
            &["xsplice", "unload", "all"],
            &["xsplice", "unload", NAME],
            &["xsplice", "load", &file],
        ] {
            let output = settled(host, command)?;
            ensure!(output.code == Some(0), "{command:?}: {output:?}");
        }
    }
    for command in ["revert", "unload"] {
        let output = settled(host, &["xsplice", command, NAME])?;
        ensure!(output.code == Some(0), "{output:?}");
    }
    Ok(())
}
