// SPDX-License-Identifier: MIT OR Apache-2.0
//! The protocol between the host and dom0's first process: one JSON value per line,
//! requests one way and replies the other.

use serde::{Deserialize, Serialize};

/// A request to dom0.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Run a command.
    Run {
        /// The program and its arguments.
        argv: Vec<String>,
        /// Milliseconds after which it is killed.
        limit: u64,
    },
    /// Write a file.
    Put {
        /// Where.
        path: String,
        /// Its contents.
        data: Vec<u8>,
    },
    /// Power the machine off.
    PowerOff,
}

/// A reply from dom0.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// It has booted.
    Ready,
    /// The command exited.
    Ran(Output),
    /// Done.
    Done,
    /// The request failed.
    Failed(String),
}

/// The result of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Output {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
}
