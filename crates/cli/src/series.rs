// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice series`: all payloads of a release.

mod bundle;

pub(crate) use bundle::Bundled;

use crate::output::{Ended, failure, say, shown};
use anyhow::Context as _;
use clap::builder::NonEmptyStringValueParser;
use schemars::JsonSchema;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xsplice_abi::text::escaped;
use xsplice_store::{Root, Series, Standing, Task, makefile, ninja, page};
use xsplice_system::file;

const PLAN: &str = "\
Examples:
  xsplice series plan series.toml -o release > release.mk && make -j 4 -f release.mk
  xsplice series plan series.toml -o release --format ninja > release.ninja
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
`xsplice coverage STORE`. If it is refused, FILE.refused.json beside it says why, for
`xsplice series table`. Nothing is made by this command: make, or another program that
reads the JSON, does that, and again only what is missing.";

/// The commands about a release.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Print how all payloads are made, for make, ninja or another program.
    Plan(PlanArgs),
    /// Show which fixes are in the payloads that were made.
    Table(TableArgs),
    /// Pack what the payloads are built from, for another machine.
    Bundle(bundle::Args),
}

/// Arguments of `xsplice series plan`.
#[derive(clap::Args)]
#[command(after_help = PLAN)]
pub(crate) struct PlanArgs {
    /// The file that describes the release.
    series: PathBuf,
    /// Directory for the payloads.
    #[arg(short, long, value_name = "STORE", value_parser = NonEmptyStringValueParser::new())]
    output: String,
    /// The program that makes them; `--json` is for others.
    #[arg(long, value_enum, value_name = "PROGRAM", default_value = "make")]
    format: Format,
    /// Only this level [default: all].
    #[arg(long, value_name = "N")]
    level: Option<u32>,
}

/// Programs that run what is out of date.
#[derive(clap::ValueEnum, Clone, Copy)]
enum Format {
    /// A makefile.
    Make,
    /// A build file of ninja.
    Ninja,
}

/// Arguments of `xsplice series table`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  xsplice series table series.toml -o release\n  \
    xsplice series table series.toml -o release --html table.html\n\n\
    What is said of each fix and hypervisor: in, no-effect (on this hypervisor), left-out (on \
    request), not-known (the payload has no record), refused (with the code), not-made. Exit \
    codes: 0 if all are in or without effect, 3 if not."
)]
pub(crate) struct TableArgs {
    /// The file that describes the release.
    series: PathBuf,
    /// Directory with the payloads.
    #[arg(short, long, value_name = "STORE", value_parser = NonEmptyStringValueParser::new())]
    output: String,
    /// The payloads of this level [default: the highest].
    #[arg(long, value_name = "N")]
    level: Option<u32>,
    /// Also write the table as a page, with the reasons of refusals.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
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
        Command::Bundle(args) => bundle::bundle(args, json),
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
        let text = match args.format {
            Format::Make => makefile(&tasks)?,
            Format::Ninja => ninja(&tasks)?,
        };
        say!("{}", text.trim_end());
    }
    Ok(Ended::well(Tasks { tasks }).tell(json))
}

fn table(args: &TableArgs, json: bool) -> anyhow::Result<ExitCode> {
    let written = |path: &Path| format!("cannot write {}", shown(path));
    if let Some(path) = &args.html {
        file::check_output(path, [&args.series]).with_context(|| written(path))?;
    }
    let series = read(&args.series)?;
    // Paths of the store are those of a host; this is where its files are.
    let root = Root::new(args.output.as_ref());
    let fixes = series.standing(&root, "", args.level);
    let fixes = fixes.with_context(|| shown(args.output.as_ref()))?;
    if !json {
        for standing in &fixes {
            let words = standing.words();
            let words = escaped(&words);
            say!("{:<16} {}  {words}", standing.fix, standing.base);
        }
    }
    if let Some(path) = &args.html {
        let page = page(&fixes);
        file::write(path, page.as_bytes()).with_context(|| written(path))?;
    }
    let unwanted = !fixes.iter().all(|standing| standing.verdict.is_complete());
    let ended = Ended::well(Table { fixes }).changed(args.html.is_some());
    Ok(ended.unwanted(unwanted).tell(json))
}
