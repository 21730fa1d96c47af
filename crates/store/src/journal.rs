// SPDX-License-Identifier: MIT OR Apache-2.0
//! Records in the log of the system: the journal of systemd, or syslog where there is none.
//!
//! The journal takes one datagram for each entry, with a line `FIELD=VALUE` for each
//! field (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>); syslog takes `<PRIORITY>TEXT`
//! (RFC 3164). The history is the record that counts: that a log does not take an entry is
//! no error.

use crate::{Line, Outcome, Root};
use std::fmt::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// Where records go beside the history.
pub trait Log: std::fmt::Debug {
    /// Sends a record; nobody is waited for.
    fn send(&self, line: &Line);
}

/// No log, for tests.
#[derive(Debug, Clone, Copy)]
pub struct Unlogged;

impl Log for Unlogged {
    fn send(&self, _line: &Line) {}
}

/// The log of the system.
#[derive(Debug, Clone)]
pub struct Journal {
    journal: PathBuf,
    syslog: PathBuf,
}

/// The longest text that is sent: a datagram has a limit.
const LONGEST: usize = 8 << 10;

impl Journal {
    /// That of the host whose files are at `root`.
    #[must_use]
    pub fn new(root: &Root) -> Self {
        Self {
            journal: root.place("/run/systemd/journal/socket".as_ref()),
            syslog: root.place("/dev/log".as_ref()),
        }
    }
}

impl Log for Journal {
    fn send(&self, line: &Line) {
        if !is_sent(&self.journal, entry(line).as_bytes()) {
            is_sent(&self.syslog, message(line).as_bytes());
        }
    }
}

fn is_sent(socket: &Path, data: &[u8]) -> bool {
    let sent = UnixDatagram::unbound().and_then(|unbound| {
        unbound.set_nonblocking(true)?;
        unbound.send_to(data, socket)
    });
    sent.is_ok()
}

impl Outcome {
    /// What identifies messages of this kind in the journal, in every version.
    fn message_id(self) -> &'static str {
        match self {
            Self::Begun => "fba43b2990ff4df5b10d310dc819f22b",
            Self::Done => "a5af2d2d20d8420198652e11176cd4fe",
            Self::Failed => "950c49188e144efb8e5e950dae808ff7",
        }
    }

    /// Its severity: `info`, `notice`, `err`.
    fn priority(self) -> u8 {
        match self {
            Self::Begun => 6,
            Self::Done => 5,
            Self::Failed => 3,
        }
    }
}

/// The text for people.
fn text(line: &Line) -> String {
    let event = &line.event;
    let payload = event.payload.as_ref().map(|payload| &payload.name);
    let mut text = event.action.word().to_owned();
    if let Some(name) = payload.or(event.name.as_ref()) {
        let _ = write!(text, " {name}");
    }
    let _ = write!(text, ": {}", event.outcome.word());
    if let Some(message) = &event.message {
        let _ = write!(text, ": {message}");
    }
    one_line(&text)
}

/// The text on one line, so that it forges no other field.
fn one_line(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut length = 0;
    let short = plain.take_while(|c| {
        length += c.len_utf8();
        length <= LONGEST
    });
    short.collect()
}

/// The fields of an entry of the journal.
fn entry(line: &Line) -> String {
    let event = &line.event;
    let payload = event.payload.as_ref();
    let name = payload.map(|payload| payload.name.clone());
    let hash = payload.map(|payload| &payload.sha256);
    let fields = [
        ("MESSAGE", Some(text(line))),
        ("MESSAGE_ID", Some(event.outcome.message_id().to_owned())),
        ("PRIORITY", Some(event.outcome.priority().to_string())),
        ("SYSLOG_IDENTIFIER", Some("xsplice".to_owned())),
        ("XSPLICE_ACTION", Some(event.action.word().to_owned())),
        ("XSPLICE_OUTCOME", Some(event.outcome.word().to_owned())),
        ("XSPLICE_PAYLOAD", name.or_else(|| event.name.clone())),
        (
            "XSPLICE_PAYLOAD_BUILD_ID",
            payload.map(|payload| payload.build_id.to_string()),
        ),
        (
            "XSPLICE_PAYLOAD_SHA256",
            hash.or(event.sha256.as_ref()).map(ToString::to_string),
        ),
        (
            "XSPLICE_HYPERVISOR_BUILD_ID",
            event.base.as_ref().map(ToString::to_string),
        ),
        (
            "XSPLICE_LEVEL",
            payload.map(|payload| payload.level.to_string()),
        ),
        (
            "XSPLICE_DURATION_USEC",
            event.milliseconds.map(|time| format!("{time}000")),
        ),
        ("XSPLICE_LOGINUID", line.user.map(|user| user.to_string())),
        ("XSPLICE_SIGNER", event.signer.clone()),
    ];
    let fields = fields
        .into_iter()
        .filter_map(|(field, value)| Some((field, value?)));
    fields.fold(String::new(), |mut entry, (field, value)| {
        let _ = writeln!(entry, "{field}={}", one_line(&value));
        entry
    })
}

/// A message of syslog, of the facility `daemon`.
fn message(line: &Line) -> String {
    const DAEMON: u8 = 3 << 3;
    let priority = DAEMON | line.event.outcome.priority();
    format!(
        "<{priority}>xsplice[{}]: {}",
        std::process::id(),
        text(line)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Action, Date, Event, Sha256};
    use std::time::{Duration, SystemTime};

    fn line(name: &str) -> Line {
        Line {
            previous: Some(Sha256::zero()),
            date: Date::new(SystemTime::UNIX_EPOCH),
            boot: "b".to_owned(),
            user: Some(1000),
            event: Event {
                name: Some(name.to_owned()),
                message: Some("the hypervisor refused it".to_owned()),
                ..Event::new(Action::Apply, Outcome::Failed, None)
            },
        }
    }

    /// What arrives at the sockets that are there.
    fn received(journal: bool, name: &str) -> Vec<String> {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        for above in ["run/systemd/journal", "dev"] {
            std::fs::create_dir_all(at(above)).expect("made");
        }
        let mut paths = vec![at("dev/log")];
        paths.extend(journal.then(|| at("run/systemd/journal/socket")));
        let log = Journal::new(&Root::new(directory.path()));
        let sockets = paths.iter().map(|path| {
            let socket = UnixDatagram::bind(path).expect("bound");
            socket
                .set_read_timeout(Some(Duration::from_millis(100)))
                .expect("set");
            socket
        });
        let sockets: Vec<UnixDatagram> = sockets.collect();
        log.send(&line(name));
        let messages = sockets.iter().filter_map(|socket| {
            let mut data = vec![0; 2 * LONGEST];
            let size = socket.recv(&mut data).ok()?;
            Some(String::from_utf8_lossy(&data[..size]).into_owned())
        });
        messages.collect()
    }

    #[test]
    fn the_journal_has_the_fields_and_syslog_nothing() {
        let received = received(true, "fixes-1");
        let [entry] = received.as_slice() else {
            panic!("{received:?}");
        };
        for field in [
            "MESSAGE=apply fixes-1: failed: the hypervisor refused it",
            "MESSAGE_ID=950c49188e144efb8e5e950dae808ff7",
            "PRIORITY=3",
            "XSPLICE_ACTION=apply",
            "XSPLICE_PAYLOAD=fixes-1",
            "XSPLICE_LOGINUID=1000",
        ] {
            assert!(entry.lines().any(|line| line == field), "{field}: {entry}");
        }
    }

    #[test]
    fn without_a_journal_syslog_has_a_line() {
        let received = received(false, "fixes-1");
        let [message] = received.as_slice() else {
            panic!("{received:?}");
        };
        assert!(message.starts_with("<27>xsplice["), "{message}");
        assert!(message.ends_with("apply fixes-1: failed: the hypervisor refused it"));
    }

    #[test]
    fn a_name_forges_no_field() {
        let received = received(true, &format!("a\nPRIORITY=7\r{}", "x".repeat(LONGEST)));
        let priorities = received[0].lines().filter(|l| l.starts_with("PRIORITY="));
        assert_eq!(priorities.collect::<Vec<_>>(), ["PRIORITY=3"]);
    }

    #[test]
    fn without_any_log_nothing_happens() {
        Journal::new(&Root::new("/nonexistent".as_ref())).send(&line("fixes-1"));
    }
}
