//! `xsplice build`.

use std::process::ExitCode;

/// Arguments of `xsplice build`.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args, _json: bool) -> ExitCode {
    ExitCode::FAILURE
}
