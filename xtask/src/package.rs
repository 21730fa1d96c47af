// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask package`: packages of the release, with a list of all crates in them. No
//! path or time of the build is in them, so that two builds of one commit are to be the
//! same bytes; a test compares them.

mod contents;
mod crates;
mod debian;
mod program;
mod rpm;

use anyhow::Context as _;
use contents::Contents;
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_testbed::{command, packages, println};

/// Where the packages are, and what they are made of.
const DIRECTORY: &str = "target/package";

/// What to make.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also make an RPM package.
    #[arg(long)]
    rpm: bool,
}

/// What is released.
pub(crate) struct Release {
    version: String,
    /// When, in seconds since 1970: the time of everything in the packages.
    epoch: u64,
}

impl Release {
    /// That of this repository: `SOURCE_DATE_EPOCH`, or the time of the commit.
    fn new() -> anyhow::Result<Self> {
        let epoch = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(epoch) => epoch,
            Err(_) => command::output(Command::new("git").args(["log", "-1", "--format=%ct"]))?,
        };
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: epoch.trim().parse().context("SOURCE_DATE_EPOCH")?,
        })
    }

    /// The time of the release in the form of `date`'s option `format`.
    fn date(&self, format: &str) -> anyhow::Result<String> {
        let time = format!("@{}", self.epoch);
        let arguments = ["--utc", "--date", &time, format];
        let date = command::output(Command::new("date").env("LC_ALL", "C").args(arguments))?;
        Ok(date.trim().to_owned())
    }

    /// `command`, which finds the time of the release in its environment.
    fn command<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("SOURCE_DATE_EPOCH", self.epoch.to_string())
    }
}

/// Makes the packages, and prints their paths.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let deb = deb()?;
    println!("{}", deb.display());
    if args.rpm {
        println!("{}", rpm::build(&Release::new()?, &contents())?.display());
    }
    Ok(())
}

/// Makes the Debian package; returns its path.
pub(crate) fn deb() -> anyhow::Result<PathBuf> {
    packages::ensure(packages::PACKAGING)?;
    let release = Release::new()?;
    let directory = PathBuf::from(DIRECTORY);
    if directory.exists() {
        std::fs::remove_dir_all(&directory).context("cannot empty the packages' directory")?;
    }
    let contents = contents();
    contents.lay_out(&release)?;
    debian::build(&release, &directory, &contents)
}

fn contents() -> Contents {
    Contents::at(&Path::new(DIRECTORY).join("root"))
}
