// SPDX-License-Identifier: MIT OR Apache-2.0
//! The files of the history: the current one, and those that somebody has rotated.

use crate::chain::{Break, Broken};
use crate::{Disk, Paths, Result, Sha256, disk};
use std::path::{Path, PathBuf};

/// What somebody has rotated.
#[derive(Debug, Default)]
pub(crate) struct Rotated {
    /// The files, the oldest first: `history.jsonl.1` is the newest.
    pub(crate) files: Vec<PathBuf>,
    /// The names of files that are not read.
    others: Vec<String>,
}

impl Rotated {
    /// Finds the files.
    pub(crate) fn read(disk: &impl Disk) -> Result<Self> {
        let current = Paths::history();
        let (Some(directory), Some(name)) = (current.parent(), current.file_name()) else {
            return Ok(Self::default());
        };
        let beginning = format!("{}.", name.to_string_lossy());
        let mut numbers = Vec::new();
        let mut others = Vec::new();
        for file in disk::names(disk, directory)?.unwrap_or_default() {
            match file.strip_prefix(&beginning).map(str::parse::<u32>) {
                None => {}
                Some(Ok(number)) => numbers.push(number),
                Some(Err(_)) => others.push(file),
            }
        }
        numbers.sort_unstable();
        let files = numbers.iter().rev();
        let files = files.map(|number| directory.join(format!("{beginning}{number}")));
        Ok(Self {
            files: files.collect(),
            others,
        })
    }

    /// Whether there are any.
    pub(crate) fn any(&self) -> bool {
        !self.files.is_empty() || !self.others.is_empty()
    }

    /// What is not read.
    pub(crate) fn unread(&self) -> Vec<Broken> {
        let others = self.others.iter().map(|file| Broken {
            file: file.clone(),
            line: 0,
            kind: Break::OlderMissing,
            reason: "it is not read: a rotated file is called history.jsonl.NUMBER, and is not \
                     compressed"
                .to_owned(),
        });
        others.collect()
    }
}

/// The lines of the file with their numbers, the last one even if it is not complete.
pub(crate) fn lines(data: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let data = data.strip_suffix(b"\n").unwrap_or(data);
    let lines = data.split(|byte| *byte == b'\n');
    let lines = lines.enumerate().map(|(index, text)| (index + 1, text));
    lines.filter(|(_, text)| !text.is_empty())
}

/// The SHA-256 of the last line in this part of a file.
pub(crate) fn last(data: &[u8]) -> Option<Sha256> {
    lines(data).last().map(|(_, text)| Sha256::of(text))
}

/// How much of the file is read first, to find its last line.
pub(crate) const TAIL: u64 = 64 << 10;

/// The end of the file, with all of its last line.
pub(crate) fn end(disk: &impl Disk, path: &Path) -> Result<Vec<u8>> {
    let mut most = TAIL;
    loop {
        let data = disk::tail(disk, path, most)?.unwrap_or_default();
        let text = data.trim_ascii_end();
        if (data.len() as u64) < most || text.contains(&b'\n') {
            return Ok(data);
        }
        most = most.saturating_mul(2);
    }
}

/// The SHA-256 of the last line of the newest file that was rotated, if there is one.
pub(crate) fn last_rotated(disk: &impl Disk) -> Result<Option<Sha256>> {
    match Rotated::read(disk)?.files.last() {
        Some(newest) => Ok(last(&end(disk, newest)?)),
        None => Ok(None),
    }
}
