// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `xsplice` command: a thin layer over the crates that do the work.
//!
//! The same executable is also the init process of a lab's dom0 (when it runs
//! as process 1) and the classic `xen-livepatch` tool (when called by that name).

use clap::{Parser, Subcommand};
use output::{Ended, Failure, Kind, complain};
use std::process::ExitCode;
use xsplice_abi::text::escaped;
use xsplice_system::interrupt;
use xsplice_system::lines::{self, Detail};

mod admin;
mod build;
mod check;
mod code;
// The hypervisor of the demonstration is code for these, which runs in this process.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod demo;
mod efi_syms;
mod inspect;
mod keygen;
mod lab;
mod manual;
mod opinion;
mod output;
mod progress;
mod report;
mod schema;
mod series;
mod sign;
mod signature;
mod store;
mod verified;
mod verify;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; standard error says why
  2  the hypervisor was busy and nothing changed; try again
  3  status --check, plan, coverage, series table: not as wanted";

/// Live patching for the Xen hypervisor.
#[derive(Parser)]
#[command(version, long_version = manual::long_version(), about, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    /// Print results as JSON, for machines.
    #[arg(long, global = true, display_order = 900)]
    json: bool,
    /// Print no results and no progress, only errors and warnings.
    #[arg(short, long, global = true, display_order = 901, conflicts_with_all = ["json", "verbose"])]
    quiet: bool,
    /// Log each step and its time to standard error.
    #[arg(short, long, global = true, display_order = 902)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build a payload from a source patch.
    Build(build::Args),
    /// Check payloads against a hypervisor image on disk.
    Check(check::Args),
    /// Show the contents of a payload.
    Inspect(inspect::Args),
    /// Create the `xen-syms` of a `xen.efi`.
    EfiSyms(efi_syms::Args),
    /// Demonstrate apply, revert and replace on a simulated hypervisor.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Demo(demo::Args),
    /// Write an HTML page about a payload for its reviewers.
    Report(report::Args),
    /// Prove that the hypervisor with payloads applied is the patched one.
    Verify(verify::Args),
    /// Sign a payload.
    Sign(sign::Args),
    /// Find out who has signed a payload.
    VerifySignature(signature::Args),
    /// Make a key to sign payloads with.
    Keygen(keygen::Args),
    /// Make all payloads of a release: for several hypervisors and levels.
    #[command(subcommand)]
    Series(series::Command),
    /// Try payloads on a disposable Xen host in QEMU.
    Lab(lab::Args),
    /// Write the manual pages.
    Man(manual::ManArgs),
    /// Print the completions of a shell.
    Completions(manual::CompletionsArgs),
    /// Write the JSON Schemas of what commands print with --json.
    Schema(schema::Args),
    #[command(flatten)]
    Admin(admin::Command),
    #[command(flatten)]
    Store(store::Command),
}

impl Command {
    /// Whether it creates files or processes that must not outlive it.
    fn makes_files(&self) -> bool {
        match self {
            Self::Build(_)
            | Self::EfiSyms(_)
            | Self::Report(_)
            | Self::Verify(_)
            | Self::Sign(_)
            | Self::Keygen(_)
            | Self::Lab(_)
            | Self::Man(_)
            | Self::Schema(_) => true,
            Self::Store(command) => command.makes_files(),
            Self::Check(_)
            | Self::Inspect(_)
            | Self::VerifySignature(_)
            | Self::Series(_)
            | Self::Completions(_)
            | Self::Admin(_) => false,
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Self::Demo(_) => false,
        }
    }
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        return lab::init();
    }
    output::ended(if admin::called_as_xen_livepatch() {
        admin::xen_livepatch()
    } else {
        run()
    })
}

/// Reports a wrong command line. The exit code is 1, since 2 means "try again".
fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    // The message quotes the command line.
    let lines: Vec<String> = text.lines().map(|line| escaped(line).to_string()).collect();
    let text = lines.join("\n");
    let message = text.trim_end().trim_start_matches("error: ");
    let json = std::env::args_os().any(|argument| argument == "--json");
    let code = Ended::<()>::badly(Failure::new(Kind::Usage, message)).tell(json);
    complain!("{}", text.trim_end());
    code
}

fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return usage(&error),
        Err(help) => {
            // clap's printing would not notice a closed standard output.
            lines::print(format_args!(""));
            lines::keep(help.print());
            return ExitCode::SUCCESS;
        }
    };
    if cli.quiet {
        lines::set_detail(Detail::Quiet);
    } else if cli.verbose {
        lines::set_detail(Detail::Verbose);
    }
    if cli.command.makes_files()
        && let Err(error) = interrupt::watch()
    {
        complain!("error: cannot catch signals: {error}");
        return ExitCode::FAILURE;
    }
    match cli.command {
        Command::Build(args) => build::run(&args, cli.json),
        Command::Check(args) => check::run(&args, cli.json),
        Command::Inspect(args) => inspect::run(&args, cli.json),
        Command::EfiSyms(args) => efi_syms::run(&args, cli.json),
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        Command::Demo(args) => demo::run(&args, cli.json),
        Command::Report(args) => report::run(&args, cli.json),
        Command::Verify(args) => verify::run(&args, cli.json),
        Command::Sign(args) => sign::run(&args, cli.json),
        Command::VerifySignature(args) => signature::run(&args, cli.json),
        Command::Keygen(args) => keygen::run(&args, cli.json),
        Command::Series(command) => series::run(&command, cli.json),
        Command::Lab(args) => lab::run(&args, cli.json),
        Command::Man(args) => manual::write_pages(&args, cli.json),
        Command::Completions(args) => manual::print_completions(&args, cli.json),
        Command::Schema(args) => schema::write_all(&args, cli.json),
        Command::Admin(command) => admin::run(&command, cli.json),
        Command::Store(command) => store::run(&command, cli.json),
    }
}
