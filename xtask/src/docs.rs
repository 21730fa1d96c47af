// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask docs`: checks the documents, and builds the book.

mod crates;
mod page;

use anyhow::{Context as _, bail};
use page::Page;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_testbed::command;
use xsplice_testbed::println;

/// The book's table of contents, with links relative to it.
const SUMMARY: &str = "docs/SUMMARY.md";
const BOOK: &str = "target/book";
/// A code span that starts with one of these is a path of the repository.
const DIRECTORIES: [&str; 8] = [
    ".github/",
    "bench/",
    "crates/",
    "docs/",
    "examples/",
    "fuzz/",
    "tests/",
    "xtask/",
];

/// Checks the documents and builds the book.
pub(crate) fn build() -> anyhow::Result<()> {
    check()?;
    let source = PathBuf::from(BOOK).join("src");
    assemble(&source)?;
    let mdbook = || Command::new("mdbook");
    if command::output(mdbook().arg("--version")).is_err() {
        println!("installing mdbook");
        let install = ["install", "mdbook", "--locked", "--no-default-features"];
        // Into a separate target directory, not this workspace's.
        command::output(
            Command::new("cargo")
                .args(install)
                .args(["--features", "search"])
                .current_dir("/"),
        )?;
    }
    command::output(mdbook().args(["build", BOOK]))?;
    println!("{BOOK}/book/index.html");
    Ok(())
}

/// Checks that the links, pictures, paths and commands in the documents exist, and that
/// the table of crates is true. Reports every fault.
pub(crate) fn check() -> anyhow::Result<()> {
    let mut faults = faults(Path::new("."), &pages()?)?;
    faults.extend(crates::faults()?);
    if faults.is_empty() {
        return Ok(());
    }
    bail!("the documents have errors:\n{}", faults.join("\n"));
}

/// Every Markdown page of the repository, including untracked ones.
fn pages() -> anyhow::Result<Vec<PathBuf>> {
    let list = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let list = command::output(Command::new("git").args(list).arg("*.md"))?;
    let pages = list.lines().map(PathBuf::from);
    Ok(pages.filter(|path| path.exists()).collect())
}

fn faults(root: &Path, paths: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let pages = paths.iter().map(|path| Page::read(root, path));
    let pages = pages.collect::<anyhow::Result<Vec<_>>>()?;
    let mut faults = Vec::new();
    for page in &pages {
        let mut fault = |what: String| faults.push(format!("{}: {what}", page.path.display()));
        for target in &page.targets {
            if let Some(why) = broken(root, page, target, &pages) {
                fault(format!("the link {target} {why}"));
            }
        }
        for span in page.spans.iter().filter(|span| names_no_path(root, span)) {
            fault(format!("there is no {span}"));
        }
        let words = page.spans.iter().chain(&page.code);
        for name in words.filter_map(|text| unknown_task(text)) {
            fault(format!("there is no `cargo xtask {name}`"));
        }
    }
    Ok(faults)
}

/// Why a link is broken.
fn broken(root: &Path, page: &Page, target: &str, pages: &[Page]) -> Option<&'static str> {
    let path = page.resolve(target);
    if let Some(path) = &path
        && !root.join(path).exists()
    {
        return Some("leads to no file");
    }
    let (file, anchor) = target.split_once('#')?;
    if file.contains(':') {
        return None;
    }
    let path = path.unwrap_or_else(|| page.path.clone());
    let to = pages.iter().find(|page| page.path == path)?;
    let known = to.anchors.iter().any(|known| known == anchor);
    (!known).then_some("leads to no heading")
}

/// Whether `span` looks like a path of the repository, but is none. Words in capitals
/// and `*` are wildcards.
fn names_no_path(root: &Path, span: &str) -> bool {
    let is_path = DIRECTORIES.iter().any(|start| span.starts_with(start));
    let capitals = |word: &str| word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase());
    let placeholder = |part: &str| {
        let mut words = part.split(|c: char| !c.is_alphanumeric());
        part.contains(['*', '…', '{', '<']) || words.any(capitals)
    };
    if !is_path || span.contains(char::is_whitespace) {
        return false;
    }
    let path = span.split(':').next().unwrap_or(span);
    let known: PathBuf = path
        .split('/')
        .take_while(|part| !placeholder(part))
        .collect();
    !root.join(known).exists()
}

/// The command after `cargo xtask` in `text`, if it does not exist.
fn unknown_task(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("cargo xtask ")?;
    let name = rest.split_whitespace().next()?;
    let known = <crate::Cli as clap::CommandFactory>::command();
    known.find_subcommand(name).is_none().then_some(name)
}

/// Fills `source` with the book's sources: the pages in the summary and everything
/// that they link to, each at its path in the repository.
fn assemble(source: &Path) -> anyhow::Result<()> {
    if source.exists() {
        std::fs::remove_dir_all(source).context("cannot empty the book's directory")?;
    }
    let root = Path::new(".");
    let summary = Page::read(root, Path::new(SUMMARY))?;
    let mut contents = std::fs::read_to_string(SUMMARY)?;
    let mut files = BTreeSet::new();
    for target in &summary.targets {
        let path = summary.resolve(target).context("a page is not a file")?;
        contents = contents.replace(&format!("({target})"), &format!("({})", path.display()));
        let page = Page::read(root, &path)?;
        let linked = page
            .targets
            .iter()
            .filter_map(|target| page.resolve(target));
        files.extend(linked.filter(|path| path.is_file()));
        files.insert(path);
    }
    for path in files {
        let to = source.join(&path);
        std::fs::create_dir_all(to.parent().unwrap_or(source))?;
        std::fs::copy(&path, &to).with_context(|| path.display().to_string())?;
    }
    std::fs::write(source.join("SUMMARY.md"), contents)?;
    let settings = "[book]\ntitle = \"xsplice\"\n\n[build]\ncreate-missing = false\n";
    std::fs::write(Path::new(BOOK).join("book.toml"), settings)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_is_found() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        std::fs::create_dir_all(root.path().join("crates/abi"))?;
        let good = "# Here\n[a](#here) [b](b.md#there) `crates/abi` `crates/NAME/x` `crates/abi:12:3` \
                    `cargo xtask test --fast` [c](https://example.org/x#y)\n";
        let bad = "# There\n[a](#here) [c](c.md) ![d](d.svg) `crates/diff/src` [e](a.md#x)\n\
                   ```\ncargo xtask tets\n```\n";
        std::fs::write(root.path().join("a.md"), good)?;
        std::fs::write(root.path().join("b.md"), bad)?;
        let found = faults(root.path(), &["a.md".into(), "b.md".into()])?;
        let expected = [
            "b.md: the link #here leads to no heading",
            "b.md: the link c.md leads to no file",
            "b.md: the link d.svg leads to no file",
            "b.md: the link a.md#x leads to no heading",
            "b.md: there is no crates/diff/src",
            "b.md: there is no `cargo xtask tets`",
        ];
        assert_eq!(found, expected);
        Ok(())
    }
}
