// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the host and dom0's first process say to each other: a JSON value a
//! line, requests one way and replies the other.

use serde::{Deserialize, Serialize};

/// Asks dom0 to do something.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Run a command.
    Run {
        /// The program and its arguments.
        argv: Vec<String>,
        /// After how many milliseconds it is killed.
        limit: u64,
    },
    /// Write a file.
    Put {
        /// Where.
        path: String,
        /// Its contents.
        data: Vec<u8>,
    },
    /// Turn the machine off.
    PowerOff,
}

/// What dom0 says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// It has booted.
    Ready,
    /// The command ended.
    Ran(Output),
    /// It is done.
    Done,
    /// It could not be done.
    Failed(String),
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
}
