// SPDX-License-Identifier: MIT OR Apache-2.0
//! How commands report failure and exit.

use serde::Serialize;
use serde_json::{Value, json};
use std::process::ExitCode;
pub(crate) use xsplice_system::file::shown;
use xsplice_system::lines;
pub(crate) use xsplice_system::lines::{complain, say};

/// The object that programs get instead of a result: why the command failed, and
/// whether a retry can succeed. Every command that fails before it has a result
/// prints this one form.
pub(crate) fn problems(problems: impl Serialize, try_again: bool) -> Value {
    json!({ "problems": json!(problems), "try_again": try_again })
}

/// Reports why a command failed, with `json` to programs too.
pub(crate) fn failure(error: &anyhow::Error, json: bool) -> ExitCode {
    failed(error, false, json);
    ExitCode::FAILURE
}

/// The same, for failures where `try_again` says that a retry can succeed.
pub(crate) fn failed(error: &anyhow::Error, try_again: bool, json: bool) {
    if json {
        let problem = json!({ "message": format!("{error:#}") });
        say!("{:#}", problems([problem], try_again));
    }
    complain!("error: {error:#}");
}

/// The exit code of a command that ended with `code`: output that could not be
/// written is a failure too.
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
