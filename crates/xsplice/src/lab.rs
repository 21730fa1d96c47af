//! `xsplice lab`.

use std::process::ExitCode;

/// Arguments of `xsplice lab`.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args, _json: bool) -> ExitCode {
    ExitCode::FAILURE
}

pub(crate) fn init() -> ExitCode {
    ExitCode::FAILURE
}
