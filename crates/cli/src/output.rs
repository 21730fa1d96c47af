// SPDX-License-Identifier: MIT OR Apache-2.0
//! How commands end.

use serde::Serialize;
use serde_json::{Value, json};
use std::process::ExitCode;
pub(crate) use xsplice_system::file::shown;
use xsplice_system::lines;
pub(crate) use xsplice_system::lines::{complain, say};

/// What programs get in place of a result: why the command failed, and whether
/// the same command can succeed a moment later. Every command that fails before
/// it has a result prints this one form.
pub(crate) fn problems(problems: impl Serialize, try_again: bool) -> Value {
    json!({ "problems": json!(problems), "try_again": try_again })
}

/// Says why a command failed, to programs too if they asked for `json`.
pub(crate) fn failure(error: &anyhow::Error, json: bool) -> ExitCode {
    failed(error, false, json);
    ExitCode::FAILURE
}

/// The same where trying again can help, as `try_again` says.
pub(crate) fn failed(error: &anyhow::Error, try_again: bool, json: bool) {
    if json {
        let problem = json!({ "message": format!("{error:#}") });
        say!("{:#}", problems([problem], try_again));
    }
    complain!("error: {error:#}");
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
