//! The admin commands: upload, apply, revert, replace, unload, load, list, info.

use std::process::ExitCode;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// List the payloads that the hypervisor holds.
    List,
}

pub(crate) fn called_as_xen_livepatch() -> bool {
    false
}

pub(crate) fn xen_livepatch() -> ExitCode {
    ExitCode::FAILURE
}

pub(crate) fn run(_command: &Command, _json: bool) -> ExitCode {
    ExitCode::FAILURE
}
