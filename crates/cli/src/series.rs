// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice series`: all payloads of a release.

use crate::output::{Ended, failure, say, shown};
use anyhow::Context as _;
use schemars::JsonSchema;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xsplice_store::{Root, Series, Standing, Task, makefile};
use xsplice_system::file;

const PLAN: &str = "\
Examples:
  xsplice series plan series.toml -o release > release.mk && make -j 4 -f release.mk
  xsplice series plan series.toml -o release --json

The file:
  name = \"fixes\"              # payloads are fixes-1, fixes-2, and so on
  key = \"vendor.key\"          # signs payloads and manifests
  [[base]]                      # a hypervisor; repeat it for several
  build-id = \"39a640e6f1412319235087391df9f1c5e13ae920\"
  tree = \"xen-4.17\"           # as `xsplice build` wants it
  xen-syms = \"xen-syms-4.17\"
  config = \"config-4.17\"      # may be left out
  [[level]]                     # level 1; repeat it for each level
  patches = [\"xsa480.patch\"]
  fixes = [\"XSA-480\"]
  options = []                  # more options of `xsplice build`

The payload of a level has all patches up to it, is verified, and is signed with its
manifest. It is made in STORE/usr/lib/xen-livepatch/BUILD-ID, for packages and for
`xsplice coverage STORE`. Nothing is made by this command: make, or another program that
reads the JSON, does that, and again only what is missing.";

/// The commands about a release.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Print how all payloads are made, as a makefile.
    Plan(PlanArgs),
    /// Show which fixes are in the payloads that were made.
    Table(TableArgs),
}

/// Arguments of `xsplice series plan`.
#[derive(clap::Args)]
#[command(after_help = PLAN)]
pub(crate) struct PlanArgs {
    /// The file that describes the release.
    series: PathBuf,
    /// Directory for the payloads.
    #[arg(short, long, value_name = "STORE")]
    output: String,
    /// Only this level [default: all].
    #[arg(long, value_name = "N")]
    level: Option<u32>,
}

/// Arguments of `xsplice series table`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  xsplice series table series.toml -o release\n\n\
    What is said of each fix and hypervisor: in, no-effect (on this hypervisor), left-out (on \
    request), not-known (the payload has no record), not-made (also if it was refused). Exit \
    codes: 0 if all are in or without effect, 3 if not."
)]
pub(crate) struct TableArgs {
    /// The file that describes the release.
    series: PathBuf,
    /// Directory with the payloads.
    #[arg(short, long, value_name = "STORE")]
    output: String,
    /// The payloads of this level [default: the highest].
    #[arg(long, value_name = "N")]
    level: Option<u32>,
}

/// Which fixes are in the payloads of a release.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Table {
    /// One for each fix and hypervisor.
    fixes: Vec<Standing>,
}

/// How all payloads are made.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Tasks {
    /// One for each hypervisor and level; none needs another.
    tasks: Vec<Task>,
}

pub(crate) fn run(command: &Command, json: bool) -> ExitCode {
    let done = match command {
        Command::Plan(args) => plan(args, json),
        Command::Table(args) => table(args, json),
    };
    done.unwrap_or_else(|error| failure(&error, json))
}

fn read(path: &Path) -> anyhow::Result<Series> {
    let name = || shown(path);
    let text = file::read(path).with_context(name)?;
    let text = String::from_utf8(text).with_context(name)?;
    Series::parse(&text).with_context(name)
}

fn plan(args: &PlanArgs, json: bool) -> anyhow::Result<ExitCode> {
    let series = read(&args.series)?;
    let tasks = series.tasks(&args.output, args.level)?;
    if !json {
        say!("{}", makefile(&tasks)?.trim_end());
    }
    Ok(Ended::well(Tasks { tasks }).tell(json))
}

fn table(args: &TableArgs, json: bool) -> anyhow::Result<ExitCode> {
    let series = read(&args.series)?;
    // Paths of the store are those of a host; this is where its files are.
    let root = Root::new(args.output.as_ref());
    let fixes = series.standing(&root, "", args.level)?;
    if !json {
        for standing in &fixes {
            let verdict = standing.verdict.word();
            say!("{:<16} {}  {verdict}", standing.fix, standing.base);
        }
    }
    let unwanted = !fixes.iter().all(|standing| standing.verdict.is_complete());
    Ok(Ended::well(Table { fixes }).unwanted(unwanted).tell(json))
}
