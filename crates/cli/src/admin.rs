// SPDX-License-Identifier: MIT OR Apache-2.0
//! The admin commands: upload, apply, revert, replace, unload, load, list, info.

mod act;
mod audit;
mod classic;
mod commands;
mod console;
mod explain;
mod host;
mod payload_file;
mod preflight;
mod replaced;
mod show;

pub(crate) use act::Acted;
pub(crate) use classic::{called_as_xen_livepatch, xen_livepatch};
pub(crate) use commands::{Command, run};
pub(crate) use host::{Dom0, Missing};
pub(crate) use show::{Info, List};

use xsplice_dom0::{Action, State};

/// Default timeout of a rendezvous in milliseconds, as in the classic tool.
pub(crate) const TIMEOUT_MS: u32 = 30;

/// The verb for an action in messages.
fn verb(action: Action) -> &'static str {
    match action {
        Action::Apply => "apply",
        Action::Revert => "revert",
        Action::Replace => "replace",
        Action::Unload => "unload",
    }
}

/// The default name of a payload loaded from `path`: the file name without its
/// extension.
fn name_of(path: &std::path::Path) -> String {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    name.rsplit_once('.')
        .map_or(name.clone(), |(stem, _)| stem.to_owned())
}

/// What programs and people call a state.
fn state_word(state: State) -> String {
    match state {
        State::Checked => "checked".to_owned(),
        State::Applied => "applied".to_owned(),
        State::Unknown(number) => format!("state {number}"),
    }
}
