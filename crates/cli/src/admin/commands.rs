// SPDX-License-Identifier: MIT OR Apache-2.0
//! The commands under their own syntax.

use super::act::{self, Acted, Task};
use super::preflight::Preflight;
use super::{TIMEOUT_MS, show};
use crate::output::{Ended, Failure, complain, say};
use crate::store::Wait;
use std::path::PathBuf;
use std::process::ExitCode;
use xsplice_store::Retries;

/// The admin commands.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Change(Change),
    /// List the payloads in the hypervisor.
    #[command(after_help = "Examples:\n  xsplice list\n  xsplice list --json")]
    List,
    /// Show the running hypervisor.
    #[command(
        after_help = "Examples:\n  xsplice info\n  xsplice info --json | jq -r .result.hypervisor.build_id\n  xsplice info --format xl"
    )]
    Info {
        /// Print it in the form of another tool.
        #[arg(long, value_enum, value_name = "FORM")]
        format: Option<show::Format>,
    },
}

/// Those that change what the hypervisor holds or has applied.
#[derive(clap::Subcommand)]
pub(crate) enum Change {
    /// Upload a payload without applying it.
    #[command(after_help = "Example:\n  xsplice upload xsa-480 xsa-480.livepatch")]
    Upload {
        /// Name for the payload.
        name: String,
        /// The payload.
        file: PathBuf,
        /// Ask the hypervisor to skip the checks that it can skip. Xen 4.19 and later take
        /// the flag; no Xen up to 4.22 skips any.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        preflight: Preflight,
        #[command(flatten)]
        wait: Wait,
    },
    /// Apply an uploaded payload.
    #[command(after_help = "Example:\n  xsplice apply xsa-480")]
    Apply {
        /// The payload.
        name: String,
        /// Check only that the payload is for this hypervisor, not which payloads it depends on.
        #[arg(long)]
        nodeps: bool,
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        wait: Wait,
    },
    /// Revert an applied payload.
    #[command(
        after_help = "Examples:\n  xsplice revert xsa-480\n  xsplice revert xsa-480 --timeout 100 --retries 20\n  xsplice revert --all"
    )]
    Revert {
        /// The payload.
        #[arg(required_unless_present = "all")]
        name: Option<String>,
        /// Revert every applied payload, from the topmost down.
        #[arg(long, conflicts_with = "name")]
        all: bool,
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        wait: Wait,
    },
    /// Revert all applied payloads and apply this one, in one action.
    #[command(
        after_help = "Examples:\n  xsplice upload all-fixes all-fixes.livepatch\n  xsplice replace all-fixes"
    )]
    Replace {
        /// The payload.
        name: String,
        /// File of an applied payload, to find out whether its variables are lost;
        /// repeat it for several. Installed files are found automatically.
        #[arg(long, value_name = "FILE")]
        on: Vec<PathBuf>,
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        wait: Wait,
    },
    /// Unload a payload that is not applied.
    #[command(after_help = "Example:\n  xsplice unload xsa-480")]
    Unload {
        /// The payload.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Upload and apply a payload; on failure, unload it again.
    #[command(
        after_help = "Examples:\n  xsplice load xsa-480.livepatch\n  xsplice load all-fixes.livepatch --replace"
    )]
    Load {
        /// The payload.
        file: PathBuf,
        /// Name for the payload [default: the name of the file].
        #[arg(long)]
        name: Option<String>,
        /// Check only that the payload is for this hypervisor, not which payloads it depends on.
        #[arg(long)]
        nodeps: bool,
        /// Revert all applied payloads in the same action, and unload them.
        #[arg(long, conflicts_with = "nodeps")]
        replace: bool,
        /// File of an applied payload, as `xsplice replace` takes it.
        #[arg(long, value_name = "FILE", requires = "replace")]
        on: Vec<PathBuf>,
        /// Ask the hypervisor to skip the checks that it can skip. Xen 4.19 and later take
        /// the flag; no Xen up to 4.22 skips any.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        preflight: Preflight,
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        wait: Wait,
    },
}

/// How long a rendezvous may take, and how often it is retried.
#[derive(clap::Args, Clone, Copy)]
pub(crate) struct Limits {
    /// Rendezvous timeout in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = TIMEOUT_MS,
          value_parser = clap::value_parser!(u32).range(1..=4294))]
    pub(super) timeout: u32,
    /// Retries after a rendezvous timeout.
    #[arg(long, value_name = "N", default_value_t = Retries::DEFAULT)]
    pub(super) retries: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: TIMEOUT_MS,
            retries: Retries::DEFAULT,
        }
    }
}

impl Change {
    /// How long it waits for another xsplice.
    pub(super) fn wait(&self) -> Wait {
        match self {
            Self::Upload { wait, .. }
            | Self::Apply { wait, .. }
            | Self::Revert { wait, .. }
            | Self::Replace { wait, .. }
            | Self::Unload { wait, .. }
            | Self::Load { wait, .. } => *wait,
        }
    }
}

pub(crate) fn run(command: &Command, json: bool) -> ExitCode {
    let change = match command {
        Command::Change(change) => change,
        Command::List => return show::list(json),
        Command::Info { format } => return show::info(*format, json),
    };
    // Refuse locally what can be refused without the hypervisor.
    match Task::new(change)
        .map_err(act::Failed::from)
        .and_then(|task| act::run(&task, change.wait().patience()))
    {
        Ok(done) => {
            if !json {
                say!("{}", done.text);
            }
            Ended::well(done.acted)
                .changed(done.changed)
                .state(done.state.as_deref())
                .tell(json)
        }
        Err(failed) => {
            let failure = Failure::from(&failed.error).with_console(&failed.console);
            let code = Ended::<Acted>::badly(failure)
                .changed(failed.changed)
                .state(failed.state.as_deref())
                .tell(json);
            complain!("error: {:#}", failed.error);
            for line in &failed.console {
                complain!("  hypervisor: {line}");
            }
            code
        }
    }
}
