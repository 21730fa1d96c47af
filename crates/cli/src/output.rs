// SPDX-License-Identifier: MIT OR Apache-2.0
//! How commands end.

use std::process::ExitCode;
use xsplice_system::lines;
pub(crate) use xsplice_system::lines::{complain, say};

/// Says why a command failed, to programs too if they asked for `json`.
pub(crate) fn failure(error: &anyhow::Error, json: bool) -> ExitCode {
    if json {
        say!("{:#}", serde_json::json!({ "error": format!("{error:#}") }));
    }
    complain!("error: {error:#}");
    ExitCode::FAILURE
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
