// SPDX-License-Identifier: MIT OR Apache-2.0
//! What was done: `history.jsonl`, one line for each event; lines are only appended.
//!
//! Each line has the SHA-256 of the line before, so that a line that is changed, removed,
//! added or moved is noticed. Missing last lines, or a history rewritten as a whole, are not:
//! whoever needs that keeps the hash of the last line elsewhere. If the host went down during
//! a write, the last line is incomplete; the next line continues the chain from it. If the
//! file is rotated, the chain continues in the new one. Appending reads only the last line,
//! however long the file is.

use crate::chain::{Break, Broken, Chain, Written, is_torn};
use crate::rotated::{Rotated, end, last, last_rotated, lines};
use crate::{BuildId, Date, Disk, Identity, Log, Moment, Paths, Result, Sha256, disk};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Line {
    /// SHA-256 of the line before; 64 zeros in the first; null if it is from before there
    /// were hashes.
    pub previous: Option<Sha256>,
    /// When, by the clock of the host.
    pub date: Date,
    /// In which boot.
    pub boot: String,
    /// Who: the user that logged in; null if nobody did.
    pub user: Option<u32>,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// What was done.
    pub action: Action,
    /// How far it came.
    pub outcome: Outcome,
    /// Build-id of the hypervisor.
    pub base: Option<BuildId>,
    /// The payload of the store; null if the command named the payload, or no payload was to
    /// be applied.
    pub payload: Option<Identity>,
    /// The name of the payload, if the command named it; null if the command was for all.
    pub name: Option<String>,
    /// SHA-256 of the uploaded file, if the command named the payload.
    pub sha256: Option<Sha256>,
    /// Who had signed its manifest.
    pub signer: Option<String>,
    /// How long it took, in milliseconds.
    pub milliseconds: Option<u64>,
    /// How often the hypervisor was busy.
    pub retries: Option<u32>,
    /// Why it failed, or what else there is to say.
    pub message: Option<String>,
}

/// What was done.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A payload was installed in the store.
    Install,
    /// A payload was removed from the store.
    Remove,
    /// The host was brought to what its policy wants.
    Sync,
    /// The host has run with a payload for long enough.
    Settle,
    /// A payload went into quarantine.
    Quarantine,
    /// A payload was released from quarantine.
    Release,
    /// A payload was uploaded.
    Upload,
    /// A payload was uploaded and applied.
    Load,
    /// A payload was applied.
    Apply,
    /// A payload, or all of them, were reverted.
    Revert,
    /// All payloads were reverted and one applied.
    Replace,
    /// A payload was unloaded.
    Unload,
}

/// How far it came.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It begins.
    Begun,
    /// It is done.
    Done,
    /// It failed.
    Failed,
}

impl Action {
    /// Its name in records.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Remove => "remove",
            Self::Sync => "sync",
            Self::Settle => "settle",
            Self::Quarantine => "quarantine",
            Self::Release => "release",
            Self::Upload => "upload",
            Self::Load => "load",
            Self::Apply => "apply",
            Self::Revert => "revert",
            Self::Replace => "replace",
            Self::Unload => "unload",
        }
    }
}

impl Outcome {
    /// Its name in records.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

impl Event {
    /// Something that happened to a payload, or to all of them.
    #[must_use]
    pub fn new(action: Action, outcome: Outcome, payload: Option<Identity>) -> Self {
        Self {
            action,
            outcome,
            base: None,
            payload,
            name: None,
            sha256: None,
            signer: None,
            milliseconds: None,
            retries: None,
            message: None,
        }
    }
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// The lines, the oldest first.
    pub lines: Vec<Line>,
    /// What is wrong with the chain.
    pub broken: Vec<Broken>,
    /// The SHA-256 of every line, the oldest first.
    hashes: Vec<Sha256>,
}

impl History {
    /// Reads all of it, with the files that were rotated.
    ///
    /// # Errors
    /// If a file cannot be read. What is wrong in it is in [`broken`](Self::broken).
    pub fn read(disk: &impl Disk) -> Result<Self> {
        let rotated = Rotated::read(disk)?;
        let mut files = Vec::new();
        for path in rotated.files.iter().chain([&Paths::history()]) {
            let data = disk::tail(disk, path, u64::MAX)?.unwrap_or_default();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            files.push((name.into_owned(), data));
        }
        let written = files.iter().flat_map(|(file, data)| {
            lines(data).map(|(number, text)| Written {
                file,
                number,
                text,
                hash: Sha256::of(text),
            })
        });
        Ok(Self::of(&written.collect::<Vec<_>>(), &rotated))
    }

    /// The lines that are `written`, in files of which the oldest may be gone if some were
    /// rotated.
    fn of(written: &[Written], rotated: &Rotated) -> Self {
        let mut history = Self {
            hashes: written.iter().map(|line| line.hash.clone()).collect(),
            broken: rotated.unread(),
            ..Self::default()
        };
        let chain = Chain::new(written, rotated.any());
        let mut hashed = false;
        for (index, at) in written.iter().enumerate() {
            match serde_json::from_slice::<Line>(at.text) {
                Ok(line) => {
                    let broken = match &line.previous {
                        Some(previous) => chain.broken(index, previous),
                        None => chain.without_hash(index, hashed),
                    };
                    hashed |= line.previous.is_some();
                    history.broken.extend(broken);
                    history.lines.push(line);
                }
                // If it was shortened later, the next line does not follow it.
                Err(_) if is_torn(at.text) => history.broken.push(at.broken(
                    Break::Torn,
                    "it is incomplete: the host went down while it was written".to_owned(),
                )),
                Err(_) => history.broken.push(at.broken(
                    Break::Changed,
                    "it is not a record: it was changed".to_owned(),
                )),
            }
        }
        history
    }

    /// Where lines were changed, removed, added or reordered.
    pub fn changed(&self) -> impl Iterator<Item = &Broken> {
        let broken = self.broken.iter();
        broken.filter(|broken| broken.kind == Break::Changed)
    }

    /// Whether all lines that were written are proved to be here as they were, but for the
    /// last ones, which may be missing.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.broken.iter().all(|broken| broken.kind == Break::Torn)
    }

    /// The SHA-256 of the last line: with it, [`has`](Self::has) shows later that no line up
    /// to this one is missing.
    #[must_use]
    pub fn last(&self) -> Option<&Sha256> {
        self.hashes.last()
    }

    /// Whether there is a line with this SHA-256.
    #[must_use]
    pub fn has(&self, hash: &Sha256) -> bool {
        self.hashes.contains(hash)
    }
}

/// Adds lines.
#[derive(Debug)]
pub struct Recorder<'a, D> {
    /// Where the file is.
    pub disk: &'a D,
    /// When.
    pub now: Moment,
    /// Who.
    pub user: Option<u32>,
    /// Where records go, too.
    pub log: &'a dyn Log,
}

impl<D: Disk> Recorder<'_, D> {
    /// Adds a line, for good.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn record(&self, event: Event) -> Result<()> {
        let path = Paths::history();
        let data = end(self.disk, &path)?;
        let previous = match last(&data) {
            Some(last) => Some(last),
            None => last_rotated(self.disk)?,
        };
        let line = Line {
            previous: Some(previous.unwrap_or_else(Sha256::zero)),
            date: self.now.date.clone(),
            boot: self.now.boot.clone(),
            user: self.user,
            event,
        };
        self.log.send(&line);
        let text = disk::json(&line)?.to_string();
        let whole = data.is_empty() || data.ends_with(b"\n");
        let separator = if whole { "" } else { "\n" };
        disk::append(self.disk, &path, &format!("{separator}{text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotated::TAIL;
    use crate::{Root, Unlogged};
    use std::time::{Duration, SystemTime};

    fn three_lines() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Root::new(directory.path());
        for seconds in [30, 20, 10] {
            // The clock goes back, which is no reason to lose anything.
            let recorder = Recorder {
                disk: &root,
                now: Moment {
                    boot: "b".to_owned(),
                    uptime: Duration::ZERO,
                    date: Date::new(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
                },
                user: Some(1000),
                log: &Unlogged,
            };
            let event = Event::new(Action::Sync, Outcome::Done, None);
            recorder.record(event).expect("written");
        }
        (directory, root)
    }

    #[test]
    fn the_chain_is_whole() {
        let (_directory, root) = three_lines();
        let history = History::read(&root).expect("read");
        assert_eq!((history.lines.len(), history.broken), (3, vec![]));
    }

    #[test]
    fn a_line_that_is_changed_or_removed_is_noticed() {
        let (_directory, root) = three_lines();
        let path = root.place(&Paths::history());
        let text = std::fs::read_to_string(&path).expect("read");
        let lines: Vec<&str> = text.lines().collect();
        let without_second = [lines[0], lines[2], ""].join("\n");
        for bad in [
            text.replacen("1000", "0", 1),
            without_second,
            text.replacen("sync", "", 1),
        ] {
            std::fs::write(&path, &bad).expect("written");
            let history = History::read(&root).expect("read");
            assert!(history.changed().count() > 0, "{bad}");
        }
    }

    /// What the history of lines in these files is.
    fn history(files: &[(&str, &[&str])]) -> History {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Root::new(directory.path());
        for (name, lines) in files {
            let path = Paths::history().with_file_name(name);
            for line in *lines {
                disk::append(&root, &path, line).expect("written");
            }
        }
        History::read(&root).expect("read")
    }

    /// Where a history is broken, and why.
    fn breaks(history: &History) -> Vec<(usize, Break, String)> {
        let broken = history.broken.iter();
        let broken = broken.map(|broken| (broken.line, broken.kind, broken.to_string()));
        broken.collect()
    }

    #[test]
    fn what_happened_to_lines_is_named() {
        let (_directory, root) = three_lines();
        recorder(&root)
            .record(Event::new(Action::Settle, Outcome::Done, None))
            .expect("written");
        let text = std::fs::read_to_string(root.place(&Paths::history())).expect("read");
        let all: Vec<&str> = text.lines().collect();
        let changed = all[1].replacen("1000", "0", 1);
        for (lines, at, words) in [
            (
                vec![all[0], &changed, all[2], all[3]],
                vec![3],
                "line 2 of history.jsonl: that was changed",
            ),
            (
                vec![all[0], all[2], all[3]],
                vec![2],
                "line 1 of history.jsonl: that was changed, or lines between",
            ),
            (
                vec![all[1], all[2], all[3]],
                vec![1],
                "lines before it were removed",
            ),
            (
                vec![all[0], all[2], all[1], all[3]],
                vec![2, 3, 4],
                "added or reordered",
            ),
            (
                vec![all[0], all[1], all[0], all[2]],
                vec![3, 4],
                "lines before it were added",
            ),
        ] {
            let history = history(&[("history.jsonl", &lines)]);
            let found = breaks(&history);
            let places: Vec<usize> = found.iter().map(|(line, _, _)| *line).collect();
            assert_eq!(places, at, "{found:?}");
            let named = found.iter().any(|(_, _, reason)| reason.contains(words));
            assert!(
                named && history.changed().count() == at.len(),
                "{words}: {found:?}"
            );
            assert!(!history.is_whole());
        }
        // That the last line is missing is only noticed by who knows its hash.
        let whole = history(&[("history.jsonl", &all)]);
        let short = history(&[("history.jsonl", &all[..3])]);
        let last = whole.last().expect("there is one");
        assert!(short.is_whole() && whole.has(last) && !short.has(last));
    }

    #[test]
    fn a_history_goes_on_where_it_was_rotated() {
        let (_directory, root) = three_lines();
        let place = |name: &str| root.place(&Paths::history().with_file_name(name));
        for rotation in 0..2 {
            if rotation == 1 {
                std::fs::rename(place("history.jsonl.1"), place("history.jsonl.2")).expect("moved");
            }
            std::fs::rename(place("history.jsonl"), place("history.jsonl.1")).expect("moved");
            // Some tools make a new, empty file.
            std::fs::write(place("history.jsonl"), "").expect("written");
            let event = Event::new(Action::Settle, Outcome::Done, None);
            recorder(&root).record(event).expect("written");
        }
        let history = History::read(&root).expect("read");
        assert!(
            history.lines.len() == 5 && history.is_whole(),
            "{:?}",
            history.broken
        );
        // The newest rotated file is missing, or the oldest, which may be in order.
        std::fs::rename(place("history.jsonl.1"), place("kept")).expect("moved");
        let found = breaks(&History::read(&root).expect("read"));
        assert!(
            matches!(found.as_slice(), [(1, Break::Changed, _)]),
            "{found:?}"
        );
        std::fs::rename(place("kept"), place("history.jsonl.1")).expect("moved");
        std::fs::remove_file(place("history.jsonl.2")).expect("removed");
        let history = History::read(&root).expect("read");
        let found = breaks(&history);
        assert!(
            matches!(found.as_slice(), [(1, Break::OlderMissing, _)]),
            "{found:?}"
        );
        assert!(history.changed().count() == 0 && !history.is_whole());
        assert!(
            found[0].2.starts_with("history.jsonl.1, line 1: "),
            "{found:?}"
        );
        // One that was compressed is not read, which is said.
        std::fs::rename(place("history.jsonl.1"), place("history.jsonl.1.gz")).expect("moved");
        let history = History::read(&root).expect("read");
        let found = breaks(&history);
        assert!(found[0].2.starts_with("history.jsonl.1.gz: "), "{found:?}");
        assert!(
            history.changed().count() == 0 && !history.is_whole(),
            "{found:?}"
        );
    }

    #[test]
    fn lines_from_before_there_were_hashes_are_said_to_prove_nothing() {
        let (_directory, root) = three_lines();
        let path = root.place(&Paths::history());
        let text = std::fs::read_to_string(&path).expect("read");
        let old = text.lines().map(|line| {
            let mut line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            line.as_object_mut()
                .and_then(|line| line.remove("previous"));
            line.to_string() + "\n"
        });
        let old: String = old.collect();
        std::fs::write(&path, &old).expect("written");
        let event = || Event::new(Action::Settle, Outcome::Done, None);
        recorder(&root).record(event()).expect("written");
        let history = History::read(&root).expect("read");
        let found = breaks(&history);
        assert!(
            matches!(found.as_slice(), [(1, Break::WithoutHash, _)]),
            "{found:?}"
        );
        assert!(history.lines.len() == 4 && !history.is_whole());
        // The last of them is proved by the first with a hash; none comes after that.
        let text = std::fs::read_to_string(&path).expect("read");
        let at = old.len() - 40;
        let changed = format!("{} {}", &text[..at], &text[at..]);
        std::fs::write(&path, changed).expect("written");
        assert_eq!(History::read(&root).expect("read").changed().count(), 1);
        let first = old.lines().next().expect("a line");
        std::fs::write(&path, format!("{text}{first}\n")).expect("written");
        let history = History::read(&root).expect("read");
        let changed: Vec<usize> = history.changed().map(|broken| broken.line).collect();
        assert_eq!(changed, [5]);
    }

    #[test]
    fn what_is_no_record_was_changed_wherever_it_is() {
        let (_directory, root) = three_lines();
        let path = root.place(&Paths::history());
        let text = std::fs::read_to_string(&path).expect("read");
        let lines: Vec<&str> = text.lines().collect();
        for at in 0..lines.len() {
            for bad in ["{}", "x", "[1]", "{\"previous\":0"] {
                let mut changed = lines.clone();
                changed[at] = bad;
                std::fs::write(&path, changed.join("\n") + "\n").expect("written");
                let history = History::read(&root).expect("read");
                let first = history.broken.first().expect("it is noticed");
                let found = (first.line, first.kind);
                assert_eq!(found, (at + 1, Break::Changed), "{bad}");
            }
        }
    }

    fn recorder(root: &Root) -> Recorder<'_, Root> {
        Recorder {
            disk: root,
            now: Moment {
                boot: "c".to_owned(),
                uptime: Duration::ZERO,
                date: Date::new(SystemTime::UNIX_EPOCH),
            },
            user: None,
            log: &Unlogged,
        }
    }

    #[test]
    fn however_long_it_is_a_line_can_be_added() {
        let (_directory, root) = three_lines();
        let path = root.place(&Paths::history());
        let record = || {
            let event = Event {
                message: Some("x".repeat(3 * usize::try_from(TAIL).expect("it is small"))),
                ..Event::new(Action::Settle, Outcome::Done, None)
            };
            recorder(&root).record(event).expect("written");
        };
        // One line after a hole, and two that are longer than what is read first.
        let file = std::fs::File::options().write(true).open(&path);
        file.and_then(|file| file.set_len(20 << 20))
            .expect("it is sparse");
        record();
        record();
        let history = History::read(&root).expect("read");
        assert_eq!(history.lines.len(), 5);
        let found = breaks(&history);
        let [(4, Break::Torn, _)] = found.as_slice() else {
            panic!("there is only the hole: {found:?}");
        };
    }

    #[test]
    fn a_torn_line_is_said_and_the_chain_goes_on() {
        let (_directory, root) = three_lines();
        let path = root.place(&Paths::history());
        let text = std::fs::read(&path).expect("read");
        for (cut, zeros) in [(1, 0), (2, 0), (20, 0), (20, 20)] {
            let torn = [&text[..text.len() - cut], &vec![0; zeros]].concat();
            std::fs::write(&path, torn).expect("written");
            let event = Event::new(Action::Settle, Outcome::Done, None);
            recorder(&root).record(event).expect("written");
            let history = History::read(&root).expect("read");
            let torn = usize::from(cut > 1);
            assert_eq!(history.lines.len(), 4 - torn, "{cut}");
            assert!(
                history.is_whole() && history.broken.len() == torn,
                "{cut}: {:?}",
                history.broken
            );
        }
    }
}
