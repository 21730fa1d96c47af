// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask versions`: builds Xen of several versions, with its own live-patch core
//! and with ours, runs tests on each, and writes what it saw to `docs/versions.md`.

use crate::suite::{self, Selection};
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use xsplice_testbed::upstream::{self, Variant};
use xsplice_testbed::xen::{Build, Engine};
use xsplice_testbed::{cache, command, packages, println, programs};

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A git repository of Xen. It stays as it is.
    #[arg(long, value_name = "DIR")]
    xen_git: PathBuf,
    /// Tags or branches.
    #[arg(value_name = "TAG", default_values = BRANCHES)]
    revisions: Vec<String>,
    #[command(flatten)]
    variant: Variant,
    /// Run only this test program; may be given more than once.
    #[arg(long, value_name = "PROGRAM", value_parser = PROGRAMS.map(|(name, ..)| name))]
    only: Vec<String>,
}

/// The branches of the supported versions, and the one of development.
const BRANCHES: [&str; 7] = [
    "stable-4.17",
    "stable-4.18",
    "stable-4.19",
    "stable-4.20",
    "stable-4.21",
    "stable-4.22",
    "staging",
];

/// The test programs, each with what its column is about.
const PROGRAMS: [(&str, &str); 3] = [
    ("regression", "regression steps"),
    ("examples", "examples"),
    ("hostile", "hostile payloads"),
];
/// What is in the names of tests that need more than these two hypervisors.
const WITHOUT: [&str; 3] = ["on_debug_xen", "arm64", "arm32"];

const TABLE: &str = "docs/versions.md";

const INTRODUCTION: &str = "\
# Versions of Xen

`cargo xtask versions --xen-git DIR [TAG…]` writes this table: it builds each version
from a git repository of Xen, with the stock live-patch core and with ours, boots both in
the lab, and runs test programs of `tests/e2e/tests` on them:

- `regression`: the 37 steps of the Xen project's regression run and Xen's other test
  payloads on both cores, and invalid requests and files. From 4.21 on, the C tool
  is left out: Debian 12's does not have their interface version.
- `examples`: the generator builds the patches of `examples`; a real build of the patched
  source proves them; they are loaded, applied, observed, reverted and unloaded on both
  cores. The rows of 4.18, of clang and of other configurations are from before they were
  also proved.
- `hostile`: damaged payloads on our core.

A row is what was seen with one compiler and configuration: `yes`, `no`, or `-`: not
tried, or one of the cores does not build. `--compiler clang-19` chooses another compiler,
`--config CONFIG_UBSAN=y` another configuration; without it, it is Xen's default without
`CONFIG_DEBUG`. `cargo xtask test` tests Debian's 4.17 each time.

";

/// One row of the table, without its version and variant.
type Cells = Vec<String>;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    packages::ensure(packages::XEN)?;
    let _hypervisors = cache::hold_hypervisors()?;
    let xsplice = programs::build_xsplice()?;
    let variant = args.variant.name()?;
    let mut failed = Vec::new();
    for revision in &args.revisions {
        let commit = commit(&args.xen_git, revision)?;
        let version = format!("{revision} ({commit})");
        println!("{version}");
        let mut cells = try_version(args, &commit, &xsplice)?;
        if cells.iter().any(|cell| cell == NO) {
            failed.push(version.clone());
        }
        let mut rows = rows(&document(Path::new(TABLE))?);
        let key = (version, variant.clone());
        if let Some(before) = rows.get(&key) {
            keep(&mut cells, before);
        }
        // A branch that has moved on has a new commit, and the same row.
        rows.retain(|(other, with), _| {
            *with != variant || !other.starts_with(&format!("{revision} "))
        });
        rows.insert(key, cells);
        std::fs::write(TABLE, page(&rows)?)?;
    }
    anyhow::ensure!(failed.is_empty(), "not all works: {}", failed.join(", "));
    println!("{TABLE}");
    Ok(())
}

const YES: &str = "yes";
const NO: &str = "no";
const NOT_TRIED: &str = "-";

fn said(worked: bool) -> String {
    if worked { YES } else { NO }.to_owned()
}

/// Keeps what was seen of the same commit before, where a program was left out of this run.
fn keep(cells: &mut [String], before: &[String]) {
    if cells.iter().take(2).all(|built| built == YES) {
        for (cell, before) in cells.iter_mut().zip(before) {
            if cell == NOT_TRIED {
                cell.clone_from(before);
            }
        }
    }
}

/// Builds and tries one commit.
fn try_version(args: &Args, commit: &str, xsplice: &Path) -> anyhow::Result<Cells> {
    let source = tempfile::tempdir()?;
    extract(&args.xen_git, commit, source.path())?;
    let build = |engine| {
        let built = upstream::build(source.path(), &args.variant, &Build::new(engine));
        if let Err(error) = &built {
            println!("it does not build: {error:#}");
        }
        built.ok()
    };
    let (stock, ours) = (build(Engine::C), build(Engine::Rust));
    let mut cells = vec![said(stock.is_some()), said(ours.is_some())];
    let Some((stock, ours)) = stock.zip(ours) else {
        cells.extend(PROGRAMS.map(|_| NOT_TRIED.to_owned()));
        return Ok(cells);
    };
    let variables: [(&str, OsString); 4] = [
        ("XSPLICE_BIN", xsplice.into()),
        ("XSPLICE_BASE", stock.into()),
        ("XSPLICE_RUST_BASE", ours.into()),
        ("XSPLICE_SEED", "1".into()),
    ];
    for (program, _) in PROGRAMS {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == program) {
            cells.push(NOT_TRIED.to_owned());
            continue;
        }
        let only = [program.to_owned()];
        let selection = Selection {
            programs: &only,
            without: WITHOUT.to_vec(),
            ..Selection::default()
        };
        let passed = suite::run("xsplice-e2e", &selection, &variables);
        if let Err(error) = &passed {
            println!("{program}: {error:#}");
        }
        cells.push(said(passed.is_ok()));
    }
    Ok(cells)
}

/// The abbreviated commit that `revision` names.
fn commit(git: &Path, revision: &str) -> anyhow::Result<String> {
    let mut name = Command::new("git");
    name.arg("-C").arg(git);
    name.args(["rev-parse", "--short=12", "--verify"]);
    let commit = command::output(name.arg(format!("{revision}^{{commit}}")))
        .with_context(|| format!("{} has no {revision}", git.display()))?;
    Ok(commit.trim().to_owned())
}

/// Writes the files of `commit` to `directory`.
fn extract(git: &Path, commit: &str, directory: &Path) -> anyhow::Result<()> {
    let mut archive = Command::new("git");
    archive.arg("-C").arg(git).args(["archive", commit]);
    let mut archive = archive.stdout(Stdio::piped()).spawn().context("git")?;
    let files = archive.stdout.take().context("git has no output")?;
    let unpacked = command::run(
        Command::new("tar")
            .args(["-x", "-C"])
            .arg(directory)
            .stdin(files),
    );
    let ended = archive.wait().context("git")?;
    unpacked?;
    anyhow::ensure!(ended.success(), "git archive failed ({ended})");
    Ok(())
}

/// The document so far; empty if there is none yet.
fn document(path: &Path) -> anyhow::Result<String> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        read => read.with_context(|| path.display().to_string()),
    }
}

/// The rows that the table has, by version and variant.
fn rows(page: &str) -> BTreeMap<(String, String), Cells> {
    let rows = page.lines().filter_map(|line| {
        let row = line.strip_prefix("| ")?.strip_suffix(" |")?;
        let mut cells = row.split(" | ").map(str::to_owned);
        let key = (cells.next()?, cells.next()?);
        Some((key, cells.collect()))
    });
    // Behind the head and the line below it.
    rows.skip(2).collect()
}

/// The document with these rows.
fn page(rows: &BTreeMap<(String, String), Cells>) -> anyhow::Result<String> {
    let columns = PROGRAMS.map(|(_, column)| column).join(" | ");
    let mut page = INTRODUCTION.to_owned();
    writeln!(
        page,
        "| Xen | built with | stock core builds | our core builds | {columns} |"
    )?;
    writeln!(
        page,
        "| --- | --- | --- | --- | {} |",
        PROGRAMS.map(|_| "---").join(" | ")
    )?;
    for ((version, variant), cells) in rows {
        writeln!(page, "| {version} | {variant} | {} |", cells.join(" | "))?;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_they_are_written() -> anyhow::Result<()> {
        let mut written = BTreeMap::new();
        for (version, variant, cells) in [
            (
                "stable-4.20 (abc)",
                "gcc 12.2.0",
                ["yes", "yes", "yes", "no", "yes"],
            ),
            (
                "stable-4.20 (abc)",
                "gcc 14.2.0, CONFIG_UBSAN=y",
                ["yes", "no", "-", "-", "-"],
            ),
            ("staging (def)", "gcc 12.2.0", ["no", "no", "-", "-", "-"]),
        ] {
            let cells = cells.map(str::to_owned).to_vec();
            written.insert((version.to_owned(), variant.to_owned()), cells);
        }
        let page = page(&written)?;
        assert!(page.starts_with(INTRODUCTION), "{page}");
        assert_eq!(rows(&page), written);
        assert_eq!(rows(INTRODUCTION), BTreeMap::new());
        assert_eq!(rows(""), BTreeMap::new());
        Ok(())
    }

    #[test]
    fn what_is_left_out_keeps_its_result() {
        let kept = |now: [&str; 4]| {
            let mut now = now.map(str::to_owned);
            keep(&mut now, &["yes", "yes", "yes", "no"].map(str::to_owned));
            now
        };
        assert_eq!(
            kept(["yes", "yes", "-", "yes"]),
            ["yes", "yes", "yes", "yes"]
        );
        assert_eq!(kept(["yes", "yes", "-", "-"]), ["yes", "yes", "yes", "no"]);
        assert_eq!(kept(["yes", "no", "-", "-"]), ["yes", "no", "-", "-"]);
    }

    #[test]
    fn only_a_missing_document_is_empty() -> anyhow::Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("versions.md");
        assert_eq!(document(&path)?, "");
        std::fs::write(&path, INTRODUCTION)?;
        assert_eq!(document(&path)?, INTRODUCTION);
        std::fs::write(&path, [0xff])?;
        assert!(document(&path).is_err());
        Ok(())
    }

    #[test]
    fn the_document_is_as_it_is_written() -> anyhow::Result<()> {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let document = std::fs::read_to_string(Path::new(root).join(TABLE))?;
        assert_eq!(page(&rows(&document))?, document);
        Ok(())
    }
}
