// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables about code: bug frames, alternatives, exception tables.

use crate::elf::Elf;
use serde::Serialize;
use xsplice_abi::special::{self, Alternative, BugFrame, BugKind};

/// A table about code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Table {
    /// Its section.
    pub name: String,
    /// Its entries, in order.
    pub entries: Vec<Entry>,
}

/// One entry of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Entry {
    /// The place in the code that it is about.
    pub place: String,
    /// What it says about the place.
    pub meaning: String,
}

pub(crate) fn tables(elf: &Elf) -> Vec<Table> {
    let tables = elf.sections.iter().filter_map(|section| {
        let table = special::table(&section.name)?;
        let size = usize::try_from(elf.arch.entry_size(table)).ok()?;
        let entries = section
            .data
            .chunks(size)
            .zip((section.address..).step_by(size));
        Some(Table {
            name: section.name.clone(),
            entries: entries
                .filter_map(|(bytes, address)| {
                    let entry = elf.arch.read_entry(table, bytes, address)?;
                    Some(Words(elf).entry(entry))
                })
                .collect(),
        })
    });
    tables.collect()
}

/// Says in words what an entry means.
struct Words<'a>(&'a Elf);

impl Words<'_> {
    fn entry(&self, entry: special::Entry) -> Entry {
        let meaning = match entry {
            special::Entry::BugFrame {
                kind,
                frame,
                message,
            } => self.bug_frame(kind, frame, message),
            special::Entry::Exception(exception) => {
                format!(
                    "a fault here continues at {}",
                    self.name(exception.continues)
                )
            }
            special::Entry::Alternative(alternative) => self.alternative(alternative),
            special::Entry::CallSite(_) => "the call becomes a direct one".to_owned(),
        };
        Entry {
            place: self.name(entry.place()),
            meaning,
        }
    }

    fn alternative(&self, entry: Alternative) -> String {
        let replacement = match entry.replacement_len {
            0 => "no-ops".to_owned(),
            length => format!("{length} bytes of {}", self.name(entry.replacement)),
        };
        format!(
            "{} bytes become {replacement} with CPU feature {}",
            entry.total_len(),
            self.0.arch.condition(entry.condition)
        )
    }

    fn bug_frame(&self, kind: BugKind, frame: BugFrame, message: Option<u64>) -> String {
        let about = self.name(frame.pointer);
        let place = format!("{about}:{}", frame.line);
        match kind {
            BugKind::Call => format!("calls {about}"),
            BugKind::Warn => format!("WARN at {place}"),
            BugKind::Bug => format!("BUG at {place}"),
            BugKind::Assert => {
                let text = message.map(|text| self.name(text)).unwrap_or_default();
                format!("ASSERT {text} at {place}")
            }
        }
    }

    fn name(&self, address: u64) -> String {
        let label = self.0.label(address);
        let text = || self.0.string(address).filter(|text| !text.is_empty());
        let code = self.0.is_code(address);
        let name = if code { label } else { text().or(label) };
        name.unwrap_or_else(|| format!("{address:#x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// The tables of an object as gcc assembles it.
    fn assembled(text: &str) -> Vec<Table> {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("x.S"), text).expect("written");
        let mut gcc = Command::new("gcc");
        gcc.arg("-c").arg("-o").args([at("x.o"), at("x.S")]);
        assert!(gcc.status().expect("this test needs gcc").success());
        let object = std::fs::read(at("x.o")).expect("assembled");
        tables(&Elf::read(&object, &|_| None).expect("an object"))
    }

    #[test]
    fn entries_of_each_table_say_what_they_mean() {
        let tables = assembled(
            ".text\n.type f, @function\nf: ud2\ncall *(%rip)\n.size f, . - f\n\
             .section .rodata\nfile: .string \"x.c\"\nmessage: .string \"a == b\"\n\
             .section .bug_frames.3, \"a\"\n\
             1: .long f - 1b + (3 << 24), file - 1b + (5 << 24), 0, message - 1b\n\
             .section .alt_call_sites, \"a\"\n.long f + 2 - .\n",
        );
        let entry = |name: &str| {
            let table = tables.iter().find(|table| table.name == name);
            table.expect(name).entries.clone()
        };
        let one = |place: &str, meaning: &str| {
            vec![Entry {
                place: place.to_owned(),
                meaning: meaning.to_owned(),
            }]
        };
        assert_eq!(entry(".bug_frames.3"), one("f", "ASSERT a == b at x.c:389"));
        assert_eq!(
            entry(".alt_call_sites"),
            one("f+0x2", "the call becomes a direct one")
        );
    }
}
