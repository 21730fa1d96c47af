// SPDX-License-Identifier: MIT OR Apache-2.0
//! What was done: `history.jsonl`, a line each, only ever added to.
//!
//! Each line has the SHA-256 of the line before, so that a line that is changed, or taken
//! out, is noticed. That the last lines are missing is not: who needs that keeps a copy
//! elsewhere. If the host went down while it wrote, the last line is incomplete; the chain
//! goes on behind it. However long the file is, a line can be added: only the last one is
//! read for that.

use crate::{BuildId, Date, Disk, Identity, Log, Moment, Paths, Result, Sha256, disk};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Line {
    /// SHA-256 of the line before; 64 zeros in the first.
    pub previous: Sha256,
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
    /// The payload of the store; null if it was done by name, or none was to be applied any
    /// more.
    pub payload: Option<Identity>,
    /// The name of the payload, if it was done by name; null if it was done to all.
    pub name: Option<String>,
    /// SHA-256 of the file that was uploaded, if it was done by name.
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
    /// A payload came into the store.
    Install,
    /// A payload was removed from the store.
    Remove,
    /// The host was brought to what its policy wants.
    Sync,
    /// The host has run with a payload for long enough.
    Settle,
    /// A payload went into quarantine.
    Quarantine,
    /// A payload was let out of quarantine.
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
    /// Where the chain is broken.
    pub broken: Vec<Broken>,
}

/// A line that does not belong to the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Broken {
    /// Its number; the first is 1.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
    /// Whether it is only an incomplete line, because the host went down: the line
    /// after it follows it.
    pub torn: bool,
}

impl History {
    /// Reads all of it.
    ///
    /// # Errors
    /// If the file cannot be read. What is wrong in it is in [`broken`](Self::broken).
    pub fn read(disk: &impl Disk) -> Result<Self> {
        let data = disk::tail(disk, &Paths::history(), u64::MAX)?.unwrap_or_default();
        let mut history = Self::default();
        let mut previous = Sha256::zero();
        for (index, text) in lines(&data).enumerate() {
            let mut broken = |reason: &str, torn| {
                history.broken.push(Broken {
                    line: index + 1,
                    reason: reason.to_owned(),
                    torn,
                });
            };
            match serde_json::from_slice::<Line>(text) {
                Ok(line) => {
                    if line.previous != previous {
                        broken(
                            "it does not follow the line before: lines were changed or removed",
                            false,
                        );
                    }
                    history.lines.push(line);
                }
                // If it was shortened later, the next line does not follow it.
                Err(error) if error.is_eof() => broken(
                    "it is incomplete: the host went down while it was written",
                    true,
                ),
                Err(_) => broken("it is not a record: it was changed", false),
            }
            previous = Sha256::of(text);
        }
        Ok(history)
    }
}

/// The lines of the file, the last one even if it is not complete.
fn lines(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let data = data.strip_suffix(b"\n").unwrap_or(data);
    let lines = data.split(|byte| *byte == b'\n');
    lines.filter(|line| !line.is_empty())
}

/// How much of the file is read first, to find its last line.
const TAIL: u64 = 64 << 10;

/// The end of the file, with all of its last line.
fn end(disk: &impl Disk, path: &Path) -> Result<Vec<u8>> {
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
        let last = lines(&data).last();
        let line = Line {
            previous: last.map_or_else(Sha256::zero, Sha256::of),
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
    fn a_line_that_is_changed_or_taken_out_is_noticed() {
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
            assert!(history.broken.iter().any(|broken| !broken.torn), "{bad}");
        }
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
                assert_eq!((first.line, first.torn), (at + 1, false), "{bad}");
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
        let broken: Vec<usize> = history.broken.iter().map(|broken| broken.line).collect();
        assert_eq!(broken, [4], "only the hole");
    }

    #[test]
    fn a_torn_line_is_said_and_the_chain_goes_on() {
        let (_directory, root) = three_lines();
        let path = root.place(&Paths::history());
        let text = std::fs::read(&path).expect("read");
        for cut in [1, 2, 20] {
            std::fs::write(&path, &text[..text.len() - cut]).expect("written");
            let event = Event::new(Action::Settle, Outcome::Done, None);
            recorder(&root).record(event).expect("written");
            let history = History::read(&root).expect("read");
            let torn = usize::from(cut > 1);
            assert_eq!(history.lines.len(), 4 - torn, "{cut}");
            let all_torn = history.broken.iter().all(|broken| broken.torn);
            assert!(
                all_torn && history.broken.len() == torn,
                "{cut}: {:?}",
                history.broken
            );
        }
    }
}
