// SPDX-License-Identifier: MIT OR Apache-2.0
//! How all payloads of a release are made, for programs that run what is out of date.

use super::Task;
use crate::{Error, Result};

/// A makefile that makes all of it.
///
/// # Errors
/// If a name or an option cannot be written in one.
pub fn makefile(tasks: &[Task]) -> Result<String> {
    let mut rules = String::new();
    let mut targets = Vec::new();
    for task in tasks {
        check(task)?;
        // What is made last stands for all.
        let target = task.outputs.last().map_or("", String::as_str);
        targets.push(target);
        rules += &format!("\n{target}: {}\n", task.inputs.join(" "));
        rules += &format!("\tmkdir -p {}\n", task.directory);
        for command in &task.commands {
            rules += &format!("\t{}\n", line(command));
        }
    }
    Ok(format!(
        ".DELETE_ON_ERROR:\n.PHONY: all\nall: {}\n{rules}",
        targets.join(" ")
    ))
}

/// A file for ninja that makes all of it.
///
/// # Errors
/// If a name or an option cannot be written in one.
pub fn ninja(tasks: &[Task]) -> Result<String> {
    let mut text = "rule run\n  command = $run\n  description = $out\n".to_owned();
    for task in tasks {
        check(task)?;
        let (outputs, inputs) = (task.outputs.join(" "), task.inputs.join(" "));
        let commands: Vec<String> = task.commands.iter().map(|command| line(command)).collect();
        text += &format!("\nbuild {outputs}: run {inputs}\n");
        text += &format!("  run = {}\n", commands.join(" && "));
    }
    Ok(text)
}

/// Refuses what neither make nor ninja can read.
fn check(task: &Task) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,@".contains(c);
    let files = task.inputs.iter().chain(&task.outputs);
    let mut files = files.filter(|name| name.is_empty() || !name.chars().all(plain));
    if let Some(name) = files.next() {
        return Err(Error::invalid(format!(
            "{name:?} cannot be the name of a file there: use letters, digits, and \
             \"/._-+,@\", or another format"
        )));
    }
    if let Some(word) = task.commands.iter().flatten().find(|w| w.contains('\n')) {
        let why = format!("{word:?} has a line break, which cannot be written there");
        return Err(Error::invalid(why));
    }
    Ok(())
}

/// A command, as the shell reads it in these files.
fn line(command: &[String]) -> String {
    let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
    words.join(" ")
}

/// A word of a command. A dollar sign means something to make and to ninja, too.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,@=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''").replace('$', "$$"))
}

#[cfg(test)]
mod tests {
    use super::super::Series;
    use super::super::tests::{SERIES, series};
    use super::*;

    #[test]
    fn a_makefile_has_what_make_and_the_shell_can_read() {
        let tasks = series().tasks("out", Some(2)).expect("they are there");
        let text = makefile(&tasks).expect("it can be written");
        let target = "out/usr/lib/xen-livepatch/ab01/fixes-2.livepatch.json";
        assert!(
            text.contains(&format!("\n{target}: trees/ab/xen-syms vendor.key ")),
            "{text}"
        );
        assert!(
            text.contains(r"--leave-out 'it'\''s $$new' --refusal"),
            "{text}"
        );
        for (from, to) in [
            ("trees/ab/xen-syms", "trees ab"),
            ("vendor.key", "a:b"),
            ("$new", "\\n"),
        ] {
            let series = Series::parse(&SERIES.replace(from, to)).expect("it is good");
            let tasks = series.tasks("out", None).expect("they are there");
            assert!(makefile(&tasks).is_err() && ninja(&tasks).is_err(), "{to}");
        }
    }

    #[test]
    fn ninja_gets_the_same_commands() {
        let tasks = series().tasks("out", Some(2)).expect("they are there");
        let text = ninja(&tasks).expect("it can be written");
        let payload = "out/usr/lib/xen-livepatch/ab01/fixes-2.livepatch";
        let build = format!(
            "\nbuild {payload} {payload}.json.sig {payload}.json: run trees/ab/xen-syms vendor.key "
        );
        assert!(text.contains(&build), "{text}");
        assert!(text.contains(r"--leave-out 'it'\''s $$new'"), "{text}");
        assert!(
            text.contains(" && xsplice sign --key vendor.key "),
            "{text}"
        );
    }
}
