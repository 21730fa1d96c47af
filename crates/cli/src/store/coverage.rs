// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice coverage`.

use crate::output::{Ended, complain, say, shown};
use anyhow::Context as _;
use schemars::JsonSchema;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;
use xsplice_abi::text::escaped;
use xsplice_store::{Coverage, Date, Fleet, Policy, Root};
use xsplice_system::file;

const EXAMPLES: &str = "\
Examples:
  xsplice coverage / --hosts fleet.txt
  xsplice coverage /srv/release --hosts fleet.txt --level 3

A line of the file is the name of a host and the build-id of its hypervisor, which
`xsplice info` prints. The store has the directories of a host: payloads are in
STORE/usr/lib/xen-livepatch/BUILD-ID and STORE/var/lib/xsplice/store/BUILD-ID, keys in
STORE/etc/xsplice/keys.d. Exit codes: 0 if every host is covered, 3 if not.";

/// Arguments of `xsplice coverage`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Directory with the store.
    store: PathBuf,
    /// The hosts and their hypervisors.
    #[arg(long, value_name = "FILE")]
    hosts: PathBuf,
    /// The level that they need [default: any].
    #[arg(long, value_name = "N")]
    level: Option<u32>,
}

/// Which hosts are covered.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Covers {
    #[serde(flatten)]
    coverage: Coverage,
    /// How many hosts there are.
    hosts: usize,
    /// How many of them are covered.
    covered: usize,
}

pub(super) fn coverage(args: &Args, json: bool) -> anyhow::Result<ExitCode> {
    let name = || shown(&args.hosts);
    let text = file::read(&args.hosts).with_context(name)?;
    let text = String::from_utf8(text).with_context(name)?;
    let fleet = Fleet::parse(&text).with_context(name)?;
    let root = Root::new(&args.store);
    let policy = Policy::read(&root)?;
    let coverage = Coverage::new(
        &root,
        &policy,
        &fleet,
        args.level,
        &Date::new(SystemTime::now()),
    );
    for damaged in &coverage.damaged {
        complain!("warning: not used: {damaged}");
    }
    if !json {
        for (base, covered) in &coverage.hypervisors {
            let verdict = if covered.covered {
                "covered"
            } else {
                "NOT COVERED"
            };
            let (level, hosts) = (covered.level, covered.hosts.join(" "));
            say!("{base}  level {level}  {verdict}  {}", escaped(&hosts));
        }
    }
    let count = |all: bool| {
        let hypervisors = coverage.hypervisors.values();
        let counted = hypervisors.filter(|covered| all || covered.covered);
        counted.map(|covered| covered.hosts.len()).sum()
    };
    let (hosts, covered) = (count(true), count(false));
    let unwanted = !coverage.is_complete();
    let covers = Covers {
        coverage,
        hosts,
        covered,
    };
    Ok(Ended::well(covers).unwanted(unwanted).tell(json))
}
