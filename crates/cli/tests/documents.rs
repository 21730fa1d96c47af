// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands that documents and help texts show exist, with the options shown.

use pulldown_cmark::{Event, Parser, Tag, TagEnd};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Commands with subcommands.
const GROUPS: [&str; 2] = ["lab", "series"];

/// Help texts, by command.
#[derive(Default)]
struct Helps(BTreeMap<Vec<String>, String>);

impl Helps {
    /// What `xsplice COMMAND --help` prints; `None` where there is no such command.
    fn of(&mut self, command: &[String]) -> Option<&str> {
        if !self.0.contains_key(command) {
            let mut xsplice = Command::new(env!("CARGO_BIN_EXE_xsplice"));
            let output = xsplice.args(command).arg("--help").output();
            let output = output.expect("xsplice runs");
            if !output.status.success() {
                return None;
            }
            let help = String::from_utf8_lossy(&output.stdout).into_owned();
            self.0.insert(command.to_vec(), help);
        }
        self.0.get(command).map(String::as_str)
    }

    /// The error in a command line, which comes without the program's name.
    fn fault(&mut self, line: &str) -> Option<String> {
        // The rest belongs to the shell.
        let words = line
            .split_whitespace()
            .take_while(|word| !["|", ">", "#", "&&", ";"].contains(word));
        let words: Vec<String> = words.map(str::to_owned).collect();
        let depth = match words.first() {
            Some(first) if GROUPS.contains(&first.as_str()) => 2,
            _ => 1,
        };
        // A line may show an option alone, as in `xsplice --json`.
        let depth = words.iter().take(depth).take_while(|w| !w.starts_with('-'));
        let command: Vec<String> = depth.cloned().collect();
        let Some(help) = self.of(&command) else {
            return Some(format!("there is no `xsplice {}`", command.join(" ")));
        };
        let known: Vec<&str> = help
            .split(|c: char| c.is_whitespace() || ",[]=".contains(c))
            .collect();
        let options = words.iter().filter(|w| w.starts_with('-') && w.len() > 1);
        let unknown = options
            .map(|option| option.split('=').next().unwrap_or(option))
            .find(|option| !known.contains(option))?;
        Some(format!("`xsplice {}` has no {unknown}", command.join(" ")))
    }
}

/// The lines of code in a Markdown text, continued ones joined.
fn code(text: &str) -> Vec<String> {
    let mut in_code = false;
    let mut code = String::new();
    for event in Parser::new(text) {
        match event {
            Event::Start(Tag::CodeBlock(_)) => in_code = true,
            Event::End(TagEnd::CodeBlock) => in_code = false,
            Event::Text(words) if in_code => code.push_str(&words),
            _ => {}
        }
    }
    let joined = code.replace("\\\n", " ");
    joined.lines().map(str::to_owned).collect()
}

/// The command line of xsplice that `line` shows.
fn command(line: &str) -> Option<&str> {
    let line = line.trim_start();
    line.strip_prefix("$ ")
        .unwrap_or(line)
        .strip_prefix("xsplice ")
}

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let in_directory = |directory: PathBuf| {
        let entries = std::fs::read_dir(directory).expect("a directory");
        entries.map(|entry| entry.expect("an entry").path())
    };
    let pages = in_directory(root.clone()).chain(in_directory(root.join("docs")));
    pages
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect()
}

#[test]
fn documents_show_commands_that_exist() {
    let mut helps = Helps::default();
    let mut faults = Vec::new();
    let mut shown = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).expect("a page");
        let lines = code(&text);
        for line in lines.iter().filter_map(|line| command(line)) {
            shown += 1;
            let fault = helps.fault(line);
            faults.extend(fault.map(|fault| format!("{}: {fault}", page.display())));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(shown > 10, "{shown} commands were found");
}

#[test]
fn examples_in_help_texts_use_commands_that_exist() {
    let mut helps = Helps::default();
    let list = helps.of(&[]).expect("help text").to_owned();
    let commands = list
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .map_while(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_whitespace().next());
    for name in commands.filter(|name| *name != "help") {
        let help = helps.of(&[name.to_owned()]).expect("listed").to_owned();
        for line in help.lines().filter_map(command) {
            assert_eq!(helps.fault(line), None, "xsplice {name} --help: {line}");
        }
    }
}

#[test]
fn unknown_commands_and_options_are_faults() {
    let mut helps = Helps::default();
    for line in ["bulid -s x", "build --srcdri x", "lab tyr x", "list -x"] {
        assert!(helps.fault(line).is_some(), "{line}");
    }
    for line in ["list --json | jq .", "lab try a --xen b", "build -s x -p y"] {
        assert_eq!(helps.fault(line), None, "{line}");
    }
}
