// SPDX-License-Identifier: MIT OR Apache-2.0
//! Manual pages, completions, `--version`, and `--quiet`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn xsplice(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xsplice"));
    command.args(arguments).output().expect("xsplice runs")
}

fn printed(arguments: &[&str]) -> String {
    let output = xsplice(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The commands that the help text `help` lists.
fn commands(help: &str) -> Vec<&str> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let list = list.take_while(|line| !line.is_empty());
    let names = list.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").collect()
}

/// The long options that the help text `help` lists.
fn options(help: &str) -> impl Iterator<Item = &str> {
    let words = help.lines().map(str::trim_start);
    let words = words.filter(|line| line.starts_with('-'));
    let words = words.flat_map(|line| line.split([' ', ',']));
    words.filter(|word| word.starts_with("--"))
}

/// A page without the escapes of roff.
fn page(directory: &Path, name: &str) -> String {
    let path = directory.join(format!("{name}.1"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.replace("\\-", "-")
}

#[test]
fn each_command_has_a_page_with_its_options_and_examples() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path().join("new/man1");
    printed(&["man", directory.to_str().expect("UTF-8")]);
    let mut pages = 0;
    let mut open = vec![vec![]];
    while let Some(words) = open.pop() {
        let help = printed(&[&words[..], &["--help"]].concat());
        let name = [&["xsplice"], &words[..]].concat().join("-");
        let page = page(&directory, &name);
        for option in options(&help) {
            assert!(page.contains(option), "{name} lacks {option}");
        }
        // Examples keep their lines: nothing is filled.
        for example in help.lines().filter(|line| line.starts_with("  xsplice ")) {
            let line = format!("\\fB{example}\\fR");
            assert!(page.lines().any(|l| l == line), "{name} lacks {example}");
        }
        pages += 1;
        open.extend(commands(&help).into_iter().map(|command| {
            let command: &str = String::leak(command.to_owned());
            [&words[..], &[command]].concat()
        }));
    }
    assert_eq!(fs::read_dir(&directory).expect("pages").count(), pages);
    assert!(pages > 15, "{pages}");
}

#[test]
fn bash_completes_commands_and_options() {
    let completed = |words: &str, count: usize| {
        let script = printed(&["completions", "bash"]);
        let last = words.split(' ').next_back().unwrap_or_default();
        let ask = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD={count}\n\
             _xsplice xsplice '{last}' ''; echo \"${{COMPREPLY[*]}}\""
        );
        let output = Command::new("bash").args(["-c", &ask]).output();
        String::from_utf8(output.expect("bash runs").stdout).expect("UTF-8")
    };
    assert_eq!(completed("xsplice rep", 1), "report replace\n");
    assert_eq!(
        completed("xsplice build --leave-out-i", 2),
        "--leave-out-init\n"
    );
}

#[test]
fn each_shell_has_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = printed(&["completions", shell]);
        assert!(script.contains("leave-out-init"), "{shell}");
    }
}

#[test]
fn the_long_version_names_supported_formats_and_interfaces() {
    let text = printed(&["--version"]);
    let version = concat!("xsplice ", env!("CARGO_PKG_VERSION"), "\ncommit: ");
    let rest = text.strip_prefix(version).expect("version and commit");
    let (commit, rest) = rest.split_once('\n').expect("more lines");
    let hexadecimal = commit.chars().all(|c| c.is_ascii_hexdigit());
    assert!(
        commit == "unknown" || commit.len() >= 12 && hexadecimal,
        "{commit}"
    );
    let interfaces = "payload format: 2\nsysctl interface: 0x12, 0x13, 0x14, 0x15, 0x16\n";
    assert_eq!(rest, interfaces);
    assert_eq!(
        printed(&["-V"]),
        concat!("xsplice ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn quiet_keeps_errors_and_the_exit_code() {
    assert_eq!(printed(&["demo", "--quiet"]), "");
    assert_ne!(printed(&["demo"]), "");
    let failed = xsplice(&["inspect", "-q", "/nowhere/fix.livepatch"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(failed.stdout.is_empty(), "{failed:?}");
    let error = String::from_utf8_lossy(&failed.stderr);
    assert!(error.contains("/nowhere/fix.livepatch"), "{error}");
    for other in ["--json", "--verbose"] {
        let refused = xsplice(&["demo", "-q", other]);
        assert_eq!(refused.status.code(), Some(1), "{other}");
    }
}

#[test]
fn a_page_that_cannot_be_written_is_an_error() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let failed = xsplice(&["man", file.path().to_str().expect("UTF-8")]);
    assert_eq!(failed.status.code(), Some(1));
    let error = String::from_utf8_lossy(&failed.stderr);
    assert!(error.contains("cannot create"), "{error}");
}
