// SPDX-License-Identifier: MIT OR Apache-2.0
//! From which file a payload in the hypervisor was uploaded, as far as the history says: the
//! hypervisor lists neither a hash nor a build-id.

use crate::history::{Action, Event, History, Outcome};
use crate::{Moment, Sha256};

impl History {
    /// Whether the payload that is called `name` was uploaded from `file` in this boot, and
    /// nothing is recorded after that by which it may be another one. It is not, if lines of
    /// the history were changed.
    #[must_use]
    pub fn is_uploaded(&self, now: &Moment, name: &str, file: &Sha256) -> bool {
        let mut known = Known::default();
        for line in self.lines.iter().filter(|line| line.boot == now.boot) {
            let (about, uploaded) = match &line.event.payload {
                Some(payload) => (Some(&payload.name), Some(&payload.sha256)),
                None => (line.event.name.as_ref(), line.event.sha256.as_ref()),
            };
            if about.is_some_and(|about| about == name) {
                known.after(&line.event, uploaded == Some(file));
            }
        }
        known.is_file && self.changed().next().is_none()
    }
}

/// What is known of the payload after an event.
#[derive(Default)]
struct Known {
    /// It is from the file.
    is_file: bool,
    /// It was, before a command that has begun.
    before: bool,
}

impl Known {
    /// Adds an event about the payload; `same` says whether it is about the file, too.
    fn after(&mut self, event: &Event, same: bool) {
        let is_file = match (event.action, event.outcome) {
            (Action::Upload | Action::Load | Action::Sync | Action::Unload, Outcome::Done) => same,
            // One that is there keeps its name, whatever else is to be uploaded.
            (Action::Upload | Action::Load | Action::Unload, Outcome::Failed) => self.before,
            (Action::Upload | Action::Load | Action::Sync | Action::Unload, _) => {
                same && self.is_file
            }
            (Action::Apply | Action::Revert | Action::Replace, _) => return,
            // These are about the store.
            (
                Action::Install
                | Action::Remove
                | Action::Settle
                | Action::Quarantine
                | Action::Release,
                _,
            ) => return,
        };
        self.before = match event.outcome {
            Outcome::Begun => self.is_file,
            Outcome::Done | Outcome::Failed => is_file,
        };
        self.is_file = is_file;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Date, Identity, Paths, Recorder, Root, Unlogged};
    use std::time::{Duration, SystemTime};

    fn moment(boot: &str) -> Moment {
        Moment {
            boot: boot.to_owned(),
            uptime: Duration::ZERO,
            date: Date::new(SystemTime::UNIX_EPOCH),
        }
    }

    fn file() -> Sha256 {
        Sha256::of(b"the file")
    }

    /// A command about the payload `fix`.
    fn command(action: Action, outcome: Outcome, data: Option<&[u8]>) -> Event {
        Event {
            name: Some("fix".to_owned()),
            sha256: data.map(Sha256::of),
            ..Event::new(action, outcome, None)
        }
    }

    fn sync(name: &str) -> Event {
        let payload = Identity {
            name: name.to_owned(),
            build_id: "ab".repeat(20).try_into().expect("it is one"),
            sha256: file(),
            level: 1,
        };
        Event::new(Action::Sync, Outcome::Done, Some(payload))
    }

    /// Records these events in the boot `b`.
    fn recorded(events: &[Event]) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Root::new(directory.path());
        for event in events {
            let recorder = Recorder {
                disk: &root,
                now: moment("b"),
                user: None,
                log: &Unlogged,
            };
            recorder.record(event.clone()).expect("written");
        }
        (directory, root)
    }

    fn is_uploaded(events: &[Event], boot: &str) -> bool {
        let (_directory, root) = recorded(events);
        let history = History::read(&root).expect("read");
        history.is_uploaded(&moment(boot), "fix", &file())
    }

    #[test]
    fn only_what_is_recorded_of_this_boot_and_this_file_counts() {
        use Action::{Apply, Load, Revert, Unload, Upload};
        use Outcome::{Begun, Done, Failed};
        let mine: Option<&[u8]> = Some(b"the file");
        let other: Option<&[u8]> = Some(b"another file");
        let load = command(Load, Done, mine);
        for (expected, events) in [
            (false, vec![]),
            (true, vec![command(Load, Begun, mine), load.clone()]),
            (true, vec![command(Upload, Done, mine)]),
            (true, vec![sync("fix")]),
            (false, vec![sync("other")]),
            // The command that asks has begun, and failed before.
            (
                true,
                vec![
                    load.clone(),
                    command(Load, Begun, mine),
                    command(Load, Failed, mine),
                    command(Load, Begun, mine),
                ],
            ),
            (
                true,
                vec![
                    load.clone(),
                    command(Revert, Done, None),
                    command(Apply, Failed, None),
                ],
            ),
            (true, vec![load.clone(), Event::new(Revert, Done, None)]),
            (false, vec![command(Load, Begun, mine)]),
            (false, vec![command(Load, Failed, mine)]),
            (false, vec![command(Load, Done, other)]),
            (false, vec![load.clone(), command(Unload, Begun, None)]),
            (false, vec![load.clone(), command(Upload, Begun, other)]),
            (
                true,
                vec![
                    load.clone(),
                    command(Load, Begun, other),
                    command(Load, Failed, other),
                    command(Unload, Begun, None),
                    command(Unload, Failed, None),
                ],
            ),
            (
                false,
                vec![
                    command(Load, Begun, other),
                    command(Load, Done, other),
                    command(Load, Begun, mine),
                    command(Load, Failed, mine),
                ],
            ),
            (
                false,
                vec![
                    load.clone(),
                    command(Unload, Begun, None),
                    command(Unload, Done, None),
                ],
            ),
        ] {
            assert_eq!(is_uploaded(&events, "b"), expected, "{events:#?}");
        }
        assert!(!is_uploaded(&[load], "c"));
    }

    #[test]
    fn a_history_that_was_changed_says_nothing() {
        let load = command(Action::Load, Outcome::Done, Some(b"the file"));
        let unload = command(Action::Unload, Outcome::Done, None);
        let (_directory, root) = recorded(&[unload, load]);
        let path = root.place(&Paths::history());
        let text = std::fs::read_to_string(&path).expect("read");
        std::fs::write(&path, text.replacen("unload", "apply", 1)).expect("written");
        let history = History::read(&root).expect("read");
        assert!(!history.is_uploaded(&moment("b"), "fix", &file()));
    }
}
