// SPDX-License-Identifier: MIT OR Apache-2.0
//! How commands report their result and exit.

use crate::code::Code;
use crate::schema;
use schemars::JsonSchema;
use serde::Serialize;
use std::process::ExitCode;
use xsplice_abi::errno::Errno;
pub(crate) use xsplice_system::file::shown;
use xsplice_system::lines;
pub(crate) use xsplice_system::lines::{complain, say};

/// Version of the form of [`Ended`]. New keys leave it as it is; it rises when one
/// goes or gets another meaning.
const SCHEMA: u32 = 1;

/// The exit code that says: nothing changed, try again.
pub(crate) const AGAIN: u8 = 2;
/// The exit code that says: it was looked at, and it is not as wanted.
const NOT_AS_WANTED: u8 = 3;

/// What every command prints with `--json`, however it ended.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Ended<T> {
    /// Version of this form. It rises when a key goes or gets another meaning, not
    /// when one is added.
    schema: u32,
    /// Whether something is not as it was before: what the hypervisor holds or has
    /// applied, or a file that the command was to write. A command that failed can
    /// have changed something, too.
    changed: bool,
    /// What state the thing that the command is about is in now, in a word; null
    /// where there is none, or where it is not known.
    state: Option<String>,
    /// What the command found out or did; null if it failed before that.
    result: Option<T>,
    /// Why the command failed; null if it did not.
    error: Option<Failure>,
    /// Whether the exit code says that something is not as wanted.
    #[serde(skip)]
    unwanted: bool,
}

/// Why a command failed.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Failure {
    /// What kind of failure it is.
    kind: Kind,
    /// What programs call the reason, such as `wrong-hypervisor`; of several problems, that
    /// of the first that has one, such as `boot-only`.
    code: Option<String>,
    /// The hypervisor's error number by its name, such as `EINVAL`.
    errno: Option<String>,
    /// What went wrong, in words.
    message: String,
    /// The problems one by one, where there can be several.
    problems: Vec<Problem>,
    /// What the hypervisor printed to its console about this, line by line.
    console: Vec<String>,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// The command line is wrong.
    Usage,
    /// What was given was looked at, and it is not good.
    Refused,
    /// The hypervisor was busy and nothing changed: try again.
    Busy,
    /// The hypervisor did not do it.
    Hypervisor,
    /// Something else failed.
    Failed,
}

/// One of the problems of a failure.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Problem {
    /// What the refusal is called in the documentation, if it is a refusal.
    pub(crate) code: Option<String>,
    /// Where it is: a file, or a function.
    pub(crate) place: Option<String>,
    /// What is wrong, in words.
    pub(crate) message: String,
}

impl<T: Serialize + JsonSchema> Ended<T> {
    /// It is done, and nothing changed.
    pub(crate) fn well(result: T) -> Self {
        Self {
            schema: SCHEMA,
            changed: false,
            state: None,
            result: Some(result),
            error: None,
            unwanted: false,
        }
    }

    /// It failed before it had a result.
    pub(crate) fn badly(failure: Failure) -> Self {
        Self {
            schema: SCHEMA,
            changed: false,
            state: None,
            result: None,
            error: Some(failure),
            unwanted: false,
        }
    }

    /// It has a result, which is this failure if there is one.
    pub(crate) fn but(self, error: Option<Failure>) -> Self {
        Self { error, ..self }
    }

    /// Whether something changed.
    pub(crate) fn changed(self, changed: bool) -> Self {
        Self { changed, ..self }
    }

    /// Whether what was looked at is not as wanted, which the exit code says.
    pub(crate) fn unwanted(self, unwanted: bool) -> Self {
        Self { unwanted, ..self }
    }

    /// The state of what the command is about.
    pub(crate) fn state(self, state: Option<&str>) -> Self {
        let state = state.map(str::to_owned);
        Self { state, ..self }
    }

    /// Whether it failed.
    pub(crate) fn is_failure(&self) -> bool {
        self.error.is_some()
    }

    /// What programs get.
    pub(crate) fn text(&self) -> serde_json::Result<String> {
        let mut value = serde_json::to_value(self)?;
        schema::addresses_as_strings(&mut value);
        Ok(format!("{value:#}"))
    }

    /// Tells programs, if they asked for `json`; gives the exit code.
    pub(crate) fn tell(&self, json: bool) -> ExitCode {
        if json {
            match self.text() {
                Ok(text) => say!("{text}"),
                Err(error) => {
                    complain!("error: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
        match &self.error {
            None if self.unwanted => ExitCode::from(NOT_AS_WANTED),
            None => ExitCode::SUCCESS,
            Some(failure) if failure.kind == Kind::Busy => ExitCode::from(AGAIN),
            Some(_) => ExitCode::FAILURE,
        }
    }
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            code: None,
            errno: None,
            message: message.into(),
            problems: Vec::new(),
            console: Vec::new(),
        }
    }

    /// What programs call it.
    pub(crate) fn with_code(self, code: Code) -> Self {
        let code = Some(code.word());
        Self { code, ..self }
    }

    /// The hypervisor's error number.
    pub(crate) fn with_errno(self, errno: Option<Errno>) -> Self {
        let errno = errno.map(errno_name);
        Self { errno, ..self }
    }

    /// What the hypervisor printed about it.
    pub(crate) fn with_console(self, lines: &[String]) -> Self {
        let console = lines.to_vec();
        Self { console, ..self }
    }

    /// A refusal for these reasons.
    pub(crate) fn refused(message: impl Into<String>, problems: Vec<Problem>) -> Self {
        Self {
            code: problems.iter().find_map(|problem| problem.code.clone()),
            problems,
            ..Self::new(Kind::Refused, message)
        }
    }
}

impl From<&anyhow::Error> for Failure {
    fn from(error: &anyhow::Error) -> Self {
        let errno = error.downcast_ref::<Errno>();
        let code = Code::of(error);
        let kind = match errno {
            None if code == Some(Code::Busy) => Kind::Busy,
            Some(&(Errno::EAGAIN | Errno::EBUSY)) => Kind::Busy,
            Some(_) => Kind::Hypervisor,
            None if code.is_some_and(Code::is_of_input) => Kind::Refused,
            None => Kind::Failed,
        };
        Self {
            code: code.map(Code::word),
            errno: errno.copied().map(errno_name),
            ..Self::new(kind, format!("{error:#}"))
        }
    }
}

/// What programs call an error number.
pub(crate) fn errno_name(errno: Errno) -> String {
    errno.name().map_or(errno.0.to_string(), str::to_owned)
}

/// Reports why a command failed, with `json` to programs too.
pub(crate) fn failure(error: &anyhow::Error, json: bool) -> ExitCode {
    let code = Ended::<()>::badly(error.into()).tell(json);
    complain!("error: {error:#}");
    code
}

/// The exit code of a command that ended with `code`: what could not be printed
/// is a failure, too.
pub(crate) fn ended(code: ExitCode) -> ExitCode {
    match lines::finish() {
        Ok(()) => code,
        Err(error) => {
            complain!("error: cannot write to standard output: {error}");
            if code == ExitCode::SUCCESS {
                ExitCode::FAILURE
            } else {
                code
            }
        }
    }
}
