// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tool under its classic name, `xen-livepatch`: the syntax, output text
//! and exit codes that scripts rely on.
//!
//! The classic tool changed with Xen 4.19; [`Compat`] says which one this is.
//!
//! One deliberate difference: if the hypervisor's interface cannot be opened, the
//! classic tool exits with 0, this one with 1.

use super::audit::{Audit, NotBegun, Subject, recorded};
use super::{TIMEOUT_MS, name_of};
use crate::output::complain;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use xsplice_abi::sysctl::NAME_SIZE;
use xsplice_abi::text::escaped;
use xsplice_dom0::{
    Action, Errno, FORCE_SINCE, Livepatch, Privcmd, State, Status, build_id, version,
};
use xsplice_store::BuildId;
use xsplice_system::file::LARGEST_PAYLOAD;
use xsplice_system::lines;

/// The classic tool of which Xen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compat {
    /// Up to 4.18: commands may be abbreviated.
    Xen4_17,
    /// From 4.19 on: `--force`, and whole commands only.
    Xen4_19,
}

impl Compat {
    const VARIABLE: &str = "XEN_LIVEPATCH_COMPAT";

    /// The one that the environment names, otherwise that of the running hypervisor;
    /// the newest where neither says.
    fn find(hypervisor: Option<&Privcmd>) -> Result<Self, Failure> {
        let Some(named) = std::env::var_os(Self::VARIABLE) else {
            let running = hypervisor.and_then(|hypervisor| version(hypervisor).ok());
            return Ok(match running {
                Some(running) if running < FORCE_SINCE => Self::Xen4_17,
                _ => Self::Xen4_19,
            });
        };
        match named.to_str() {
            Some("4.17") => Ok(Self::Xen4_17),
            Some("4.19") => Ok(Self::Xen4_19),
            _ => {
                let named = escaped(&named.to_string_lossy()).to_string();
                complain!("{} is '{named}': use 4.17 or 4.19", Self::VARIABLE);
                Err(Failure::Other)
            }
        }
    }

    fn command(self, word: &str) -> Option<&'static str> {
        let mut commands = COMMANDS.into_iter();
        commands.find(|command| match self {
            Self::Xen4_17 => command.starts_with(word),
            Self::Xen4_19 => *command == word,
        })
    }

    fn help(self) {
        let usage = match self {
            Self::Xen4_17 => "Usage: xen-livepatch <command> [args] [command-flags]",
            Self::Xen4_19 => {
                "Usage: xen-livepatch [--force] <command> [args] [command-flags]\n \
                 Use --force option to bypass some checks."
            }
        };
        complain!(
            "xen-livepatch: live patching tool\n{usage}\n{}",
            HELP.trim_end()
        );
    }

    /// [`help`](Self::help), because the command line is wrong.
    fn misused(self) -> Outcome {
        self.help();
        Err(Failure::Other)
    }
}

const HELP: &str = " <name> An unique name of payload. Up to 128 characters.
Commands:
  help                   display this help
  upload <name> <file>   upload file <file> with <name> name
  list                   list payloads uploaded.
  apply <name> [flags]   apply <name> patch.
    Supported flags:
      --nodeps           Disable inter-module buildid dependency check.
                         Check only against hypervisor buildid.
  revert <name>          revert name <name> patch.
  replace <name>         apply <name> patch and revert all others.
  unload <name>          unload name <name> patch.
  load <file> [flags]    upload and apply <file> with name as the <file> name
    Supported flags:
      --nodeps           Disable inter-module buildid dependency check.
                         Check only against hypervisor buildid.
";

/// How long it waits for another xsplice.
const PATIENCE: Duration = Duration::from_secs(30);

/// In lookup order for abbreviated commands.
const COMMANDS: [&str; 8] = [
    "help", "list", "upload", "load", "apply", "revert", "unload", "replace",
];

/// Why a command failed. The message has already been printed.
enum Failure {
    Errno(Errno),
    Other,
}

type Outcome = Result<(), Failure>;

/// Metadata in a list. Programs parse the list: metadata must neither forge a line
/// nor contain the word for a state, which xapi searches for anywhere in a line.
fn metadata(entries: &[String]) -> String {
    let text = escaped(&entries.join(";")).to_string();
    let text = text.replace("APPLIED", r"\u{41}PPLIED");
    text.replace("CHECKED", r"\u{43}HECKED")
}

/// Whether the executable was called by the classic name.
pub(crate) fn called_as_xen_livepatch() -> bool {
    let name = std::env::args_os().next().unwrap_or_default();
    Path::new(&name)
        .file_name()
        .is_some_and(|name| name == "xen-livepatch")
}

/// The classic tool's `main`.
pub(crate) fn xen_livepatch() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Errno(Errno::EAGAIN | Errno::EBUSY)) => ExitCode::from(2),
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(arguments: &[String]) -> Outcome {
    let hypervisor = Privcmd::open().ok();
    let compat = Compat::find(hypervisor.as_ref())?;
    let Some((mut word, mut rest)) = arguments.split_first() else {
        compat.help();
        return Ok(());
    };
    let force = compat == Compat::Xen4_19 && word == "--force";
    if force {
        match rest.split_first() {
            Some(command) => (word, rest) = command,
            None => return compat.misused(),
        }
    }
    let Some(command) = compat.command(word) else {
        let word = escaped(word);
        complain!("Unrecognised command '{word}' -- try 'xen-livepatch help'");
        return Err(Failure::Other);
    };
    let Some(hypervisor) = &hypervisor else {
        complain!("failed to get the handler");
        return Err(Failure::Other);
    };
    let tool = Tool {
        hypervisor,
        compat,
        force,
    };
    tool.run(command, rest)
}

struct Tool<'a> {
    hypervisor: &'a Privcmd,
    compat: Compat,
    /// Whether uploads ask the hypervisor to skip checks.
    force: bool,
}

impl Tool<'_> {
    fn run(&self, command: &str, arguments: &[String]) -> Outcome {
        match command {
            "help" => {
                self.compat.help();
                Ok(())
            }
            "list" => self.list(arguments),
            "upload" => self.upload(arguments),
            "load" => self.load(arguments),
            "apply" => self.action(Action::Apply, arguments),
            "revert" => self.action(Action::Revert, arguments),
            "unload" => self.action(Action::Unload, arguments),
            _ => self.action(Action::Replace, arguments),
        }
    }

    /// Build-id of the hypervisor, for the history.
    fn base(&self) -> Option<BuildId> {
        let id = build_id(self.hypervisor).ok().flatten();
        id.and_then(|id| id.try_into().ok())
    }

    fn livepatch(&self) -> Result<Livepatch<'_, Privcmd>, Errno> {
        Livepatch::negotiate(self.hypervisor)
    }

    fn list(&self, arguments: &[String]) -> Outcome {
        if !arguments.is_empty() {
            return self.compat.misused();
        }
        let payloads = self
            .livepatch()
            .and_then(|l| l.list())
            .map_err(|errno| failed("Failed to get list sizes.", errno))?;
        if payloads.is_empty() {
            say("Nothing to list\n");
            return Ok(());
        }
        say(
            " ID                                     | status     | metadata\n\
             ----------------------------------------+------------+---------------\n",
        );
        for payload in payloads {
            let state = state_name(payload.status.state);
            let result = match payload.status.rc {
                0 => String::new(),
                rc => format!(" ({}, {})", rc.wrapping_neg(), Errno(rc.wrapping_neg())),
            };
            say(&format!(
                "{:<40}| {state}{result}    | {}\n",
                escaped(&payload.name).to_string(),
                metadata(&payload.metadata)
            ));
        }
        Ok(())
    }

    /// Does a change, while no other xsplice is at work, and records it.
    fn change(&self, subject: &Subject, change: impl FnOnce() -> Outcome) -> Outcome {
        let audit = match Audit::begin_classic(subject, PATIENCE) {
            Ok(audit) => audit,
            Err(NotBegun::Locked(_)) => {
                complain!("Another xsplice is at work.");
                return Err(Failure::Errno(Errno::EBUSY));
            }
            Err(NotBegun::Unrecorded(error)) => {
                complain!("{error}");
                return Err(Failure::Other);
            }
        };
        let outcome = change();
        audit.end(match &outcome {
            Ok(()) => None,
            Err(Failure::Errno(errno)) => Some(errno.to_string()),
            Err(Failure::Other) => Some("it was not possible in this state".to_owned()),
        });
        outcome
    }

    fn upload(&self, arguments: &[String]) -> Outcome {
        let [name, path] = arguments else {
            return self.compat.misused();
        };
        check_name(name)?;
        let data = read(path)?;
        let subject = Subject {
            action: xsplice_store::Action::Upload,
            base: self.base(),
            name: Some(name),
            data: Some(&data),
        };
        self.change(&subject, || {
            say(&format!("Uploading {}... ", escaped(path)));
            let livepatch = self.livepatch();
            match livepatch.and_then(|l| l.upload(name, &data, self.force)) {
                Ok(()) => {
                    say("completed\n");
                    Ok(())
                }
                Err(errno) => {
                    say("failed\n");
                    Err(error_line(errno))
                }
            }
        })
    }

    fn load(&self, arguments: &[String]) -> Outcome {
        let Some((path, flags)) = arguments.split_first() else {
            return self.compat.misused();
        };
        let name = name_of(Path::new(path));
        self.upload(&[name.clone(), path.clone()])?;
        let mut action = vec![name.clone()];
        action.extend_from_slice(flags);
        let outcome = self.action(Action::Apply, &action);
        if outcome.is_err() {
            // Message and exit code are those of the failed apply.
            let _ = self.action(Action::Unload, &[name]);
        }
        outcome
    }

    fn action(&self, action: Action, arguments: &[String]) -> Outcome {
        let Some((name, flags)) = arguments.split_first() else {
            return self.compat.misused();
        };
        check_name(name)?;
        let nodeps = parse_flags(action, flags)?;
        let subject = Subject {
            action: recorded(action),
            base: self.base(),
            name: Some(name),
            data: None,
        };
        self.change(&subject, || self.act(name, action, nodeps))
    }

    fn act(&self, name: &str, action: Action, nodeps: bool) -> Outcome {
        let shown = &*escaped(name).to_string();
        let before = self
            .status(name)
            .map_err(|errno| failed(&format!("Failed to get status of {shown}."), errno))?;
        if before.rc == -Errno::EAGAIN.0 {
            complain!(
                "Cannot execute {}.\nOperation already in progress.",
                super::verb(action)
            );
            return Err(Failure::Errno(Errno::EAGAIN));
        }
        let (allowed, expected) = match action {
            Action::Apply | Action::Replace => (State::Checked, Some(State::Applied)),
            Action::Revert => (State::Applied, Some(State::Checked)),
            Action::Unload => (State::Checked, None),
        };
        if Some(before.state) == expected {
            say("No action needed.\n");
            return Ok(());
        }
        if before.state != allowed {
            return wrong_state(shown, before.state, allowed);
        }
        let verb = match action {
            Action::Apply => "Applying",
            Action::Revert => "Reverting",
            Action::Unload => "Unloading",
            Action::Replace => "Replacing all live patches with",
        };
        say(&format!("{verb} {shown}... "));
        let started = self
            .livepatch()
            .and_then(|l| l.action(name, action, TIMEOUT_MS * 1_000_000, nodeps));
        if let Err(errno) = started {
            say("failed\n");
            return Err(error_line(errno));
        }
        std::thread::sleep(Duration::from_millis((2 * TIMEOUT_MS).into()));
        self.ended(name, expected)
    }

    fn status(&self, name: &str) -> Result<Status, Errno> {
        self.livepatch().and_then(|l| l.get(name))
    }

    /// Says how an action ended that was to leave the payload in the state `expected`;
    /// none if it was to leave no payload.
    fn ended(&self, name: &str, expected: Option<State>) -> Outcome {
        let after = match self.status(name) {
            Ok(status) if status.rc == 0 => Ok(status.state),
            Ok(status) => Err(Errno(status.rc.wrapping_neg())),
            Err(errno) => Err(errno),
        };
        match (after, expected) {
            (Err(Errno::EAGAIN), _) => {
                say("failed\n");
                complain!("Operation didn't complete.");
                Err(Failure::Errno(Errno::EAGAIN))
            }
            (Ok(state), Some(expected)) if state == expected => {
                say("completed\n");
                Ok(())
            }
            (Err(Errno::ENOENT), None) => {
                say("completed\n");
                Ok(())
            }
            (Err(errno), _) => {
                say("failed\n");
                Err(error_line(errno))
            }
            (Ok(state), expected) => {
                say("failed\n");
                let expected = expected.unwrap_or(State::Unknown(0));
                wrong_state(&escaped(name).to_string(), state, expected)
            }
        }
    }
}

/// The payload at `path`.
fn read(path: &str) -> Result<Vec<u8>, Failure> {
    let shown = escaped(path);
    let file =
        File::open(path).map_err(|e| failed(&format!("Could not open {shown}."), errno_of(&e)))?;
    let mut data = Vec::new();
    let could_not_map = |errno| failed(&format!("Could not map {shown}."), errno);
    if let Err(error) = file.take(LARGEST_PAYLOAD).read_to_end(&mut data) {
        // The classic tool maps the file; for a directory, mmap fails with ENODEV.
        return Err(could_not_map(match errno_of(&error) {
            Errno::EISDIR => Errno::ENODEV,
            errno => errno,
        }));
    }
    match data.is_empty() {
        true => Err(could_not_map(Errno::EINVAL)),
        false => Ok(data),
    }
}

/// Prints and flushes, so that the text appears before the hypervisor call.
fn say(text: &str) {
    lines::print(format_args!("{text}"));
    lines::flush();
}

fn failed(what: &str, errno: Errno) -> Failure {
    complain!("{what}");
    error_line(errno)
}

fn error_line(errno: Errno) -> Failure {
    complain!("Error {}: {errno}", errno.0);
    Failure::Errno(errno)
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno)
}

fn check_name(name: &str) -> Outcome {
    if name.len() > NAME_SIZE {
        complain!("ID must be no more than {NAME_SIZE} characters.");
        return Err(Failure::Errno(Errno::EINVAL));
    }
    Ok(())
}

fn parse_flags(action: Action, flags: &[String]) -> Result<bool, Failure> {
    for flag in flags {
        if action != Action::Apply || flag != "--nodeps" {
            complain!("Unsupported flag: {}.", escaped(flag));
            return Err(Failure::Errno(Errno::EINVAL));
        }
    }
    Ok(!flags.is_empty())
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Checked => "CHECKED",
        State::Applied => "APPLIED",
        State::Unknown(_) => "unknown",
    }
}

fn wrong_state(name: &str, current: State, expected: State) -> Outcome {
    complain!(
        "{name} is in the wrong state.\nCurrent state: {}\nExpected state: {}",
        state_name(current),
        state_name(expected)
    );
    Err(Failure::Other)
}
