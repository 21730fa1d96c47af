// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lines for people and programs. Whoever reads them may have gone away, as
//! `head` does: what cannot be written then is not an error, and no panic.

/// Prints a line to standard output.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// Prints a line to standard error.
macro_rules! complain {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

pub(crate) use {complain, say};

/// Says why a command failed, to programs too if they asked for `json`.
pub(crate) fn failure(error: &anyhow::Error, json: bool) -> std::process::ExitCode {
    if json {
        say!("{:#}", serde_json::json!({ "error": format!("{error:#}") }));
    }
    complain!("error: {error:#}");
    std::process::ExitCode::FAILURE
}
