//! `xsplice check`.

use std::process::ExitCode;

/// Arguments of `xsplice check`.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args, _json: bool) -> ExitCode {
    ExitCode::FAILURE
}
