// SPDX-License-Identifier: MIT OR Apache-2.0
//! `git apply` as the judge of how patches are read and applied.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::path::Path;
use std::process::{Command, Output};
use xsplice_generator::patch;

/// Few different lines, so that a hunk often fits at several places.
fn line() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "{",
        "}",
        "",
        "-- x",
        "++ y",
        "@@ -1 +1 @@",
        "a",
        "b",
        "c",
        "d",
        "e",
    ])
    .prop_map(str::to_owned)
}

fn text() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(line(), 0..40)
}

#[derive(Debug, Clone)]
enum Edit {
    Insert(usize, Vec<String>),
    Remove(usize, usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let insert = (any::<usize>(), prop::collection::vec(line(), 1..4))
        .prop_map(|(at, l)| Edit::Insert(at, l));
    let remove = (any::<usize>(), 1..4usize).prop_map(|(at, count)| Edit::Remove(at, count));
    prop::collection::vec(prop_oneof![insert, remove], 0..5)
}

fn edited(text: &[String], edits: &[Edit]) -> Vec<String> {
    let mut text = text.to_vec();
    for edit in edits {
        let place = |at: usize| at % (text.len() + 1);
        match edit {
            Edit::Insert(at, lines) => {
                let at = place(*at);
                text.splice(at..at, lines.iter().cloned());
            }
            Edit::Remove(at, count) => {
                let at = place(*at);
                let end = (at + count).min(text.len());
                text.drain(at..end);
            }
        }
    }
    text
}

fn file(lines: &[String], newline: bool) -> String {
    let mut text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    if !newline {
        text.pop();
    }
    text
}

fn git(directory: &Path, arguments: &[&str]) -> Output {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(directory)
        .output();
    output.expect("this test needs git")
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().expect("below")).expect("made");
    std::fs::write(path, text).expect("written");
}

/// What we make of `text` by `diff`: without loose hunks.
fn ours(text: &str, diff: &[u8]) -> Result<String, String> {
    let files = patch::parse("test.patch", diff).map_err(|refused| refused.to_string())?;
    let patched = patch::apply(text, &files[0]).map_err(|refused| refused.to_string())?;
    match patched.loose.first() {
        Some(note) => Err(note.clone()),
        None => Ok(patched.lines.into_iter().map(|line| line.text).collect()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::with_cases(150)
    })]

    #[test]
    fn a_patch_does_what_git_apply_does(
        old in text(),
        changes in edits(),
        drift in edits(),
        context in 1..4usize,
        newlines in any::<[bool; 2]>(),
        distinct in any::<bool>(),
    ) {
        let old: Vec<String> = match distinct {
            true => old.iter().zip(0..).map(|(line, number)| format!("{line} {number}")).collect(),
            false => old,
        };
        let directory = tempfile::tempdir().expect("a directory");
        let (before, after) = (file(&old, newlines[0]), file(&edited(&old, &changes), newlines[1]));
        write(&directory.path().join("a/f"), &before);
        write(&directory.path().join("b/f"), &after);
        let unified = format!("-U{context}");
        let diff = git(directory.path(), &["diff", "--no-index", "--no-prefix", &unified, "a/f", "b/f"]);
        prop_assume!(!diff.stdout.is_empty());
        prop_assert_eq!(ours(&before, &diff.stdout), Ok(after));

        // On another version of the file: the same, or a reason.
        let other = file(&edited(&old, &drift), newlines[0]);
        write(&directory.path().join("f"), &other);
        write(&directory.path().join("f.patch"), &String::from_utf8_lossy(&diff.stdout));
        let applied = git(directory.path(), &["apply", "f.patch"]);
        let theirs = std::fs::read_to_string(directory.path().join("f")).expect("read");
        match ours(&other, &diff.stdout) {
            Ok(text) if applied.status.success() => prop_assert_eq!(text, theirs),
            // Where several places fit, git guesses; and it takes a last line that has
            // no newline for one that has.
            Err(reason) => prop_assert!(
                !distinct || !newlines[0] || !applied.status.success(),
                "{}",
                reason
            ),
            _ => {}
        }
    }
}
