// SPDX-License-Identifier: MIT OR Apache-2.0
//! The alert rules, by Prometheus's own checker: what fires, when, and what does not.

use std::process::Command;
use xsplice_e2e::{named_by, repository, stdout};

#[test]
fn the_alert_rules_do_what_their_tests_say() -> anyhow::Result<()> {
    let promtool = named_by("XSPLICE_PROMTOOL")?;
    for what in [
        ["check", "rules", "xsplice.rules.yml"],
        ["test", "rules", "xsplice.rules.test.yml"],
    ] {
        let directory = repository().join("packaging");
        stdout(Command::new(&promtool).args(what).current_dir(directory))?;
    }
    Ok(())
}
