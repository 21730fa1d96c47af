// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice man` and `xsplice completions`: files for packages, generated from the
//! same description as `--help`.

use crate::output::{Ended, failure, say};
use crate::schema;
use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xsplice_abi::payload::PAYLOAD_VERSION;
use xsplice_abi::sysctl::InterfaceVersion;
use xsplice_system::file::{self, shown};
use xsplice_system::lines;

/// What `xsplice --version` prints, without the program's name: the version, the
/// commit, and the supported payload format and interfaces.
pub(crate) fn long_version() -> String {
    let mut interfaces = InterfaceVersion::ALL.map(|version| version.0);
    interfaces.sort_unstable();
    format!(
        "{}\ncommit: {}\npayload format: {PAYLOAD_VERSION}\nsysctl interface: {}",
        env!("CARGO_PKG_VERSION"),
        env!("XSPLICE_COMMIT"),
        interfaces.map(|number| format!("{number:#x}")).join(", "),
    )
}

/// Arguments of `xsplice man`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  xsplice man /usr/local/share/man/man1 && man xsplice-build")]
pub(crate) struct ManArgs {
    /// Where to write them; the directory is created.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Arguments of `xsplice completions`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  xsplice completions bash > /etc/bash_completion.d/xsplice\n  \
                  xsplice completions fish > ~/.config/fish/completions/xsplice.fish"
)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Writes a page for each command.
pub(crate) fn write_pages(args: &ManArgs, json: bool) -> ExitCode {
    match pages(&args.directory) {
        Ok(pages) => {
            if !json {
                let directory = shown(&args.directory);
                say!("{} manual pages in {directory}", pages.len());
            }
            schema::written(&pages).tell(json)
        }
        Err(error) => failure(&error, json),
    }
}

/// The completions of a shell.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(crate) struct Script {
    /// What the shell is to run.
    script: String,
}

/// Prints the completions of a shell.
pub(crate) fn print_completions(args: &CompletionsArgs, json: bool) -> ExitCode {
    let mut script = Vec::new();
    let mut command = crate::Cli::command();
    clap_complete::generate(args.shell, &mut command, "xsplice", &mut script);
    if !json {
        lines::take(&script);
    }
    let script = String::from_utf8_lossy(&script).into_owned();
    Ended::well(Script { script }).tell(json)
}

fn pages(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", shown(directory)))?;
    let mut command = crate::Cli::command().disable_help_subcommand(true);
    command.build();
    let mut written = Vec::new();
    write_all(&command, directory, &mut written)?;
    Ok(written)
}

/// Writes the page of `command` and those of its own commands.
fn write_all(
    command: &Command,
    directory: &Path,
    written: &mut Vec<PathBuf>,
) -> anyhow::Result<()> {
    let page = Man::new(command.clone())
        .source(concat!("xsplice ", env!("CARGO_PKG_VERSION")))
        .manual("Live patching for Xen");
    let path = directory.join(page.get_filename());
    let text = rendered(&page, command).context("cannot render a manual page")?;
    file::write(&path, &text).with_context(|| format!("cannot write {}", shown(&path)))?;
    written.push(path);
    for inner in command.get_subcommands() {
        write_all(inner, directory, written)?;
    }
    Ok(())
}

/// The page as rendered by `clap_mangen`, except for the text after the options:
/// `clap_mangen` would fill the lines of examples.
fn rendered(page: &Man, command: &Command) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut text)?;
    }
    if let Some(after) = command.get_after_help() {
        after_help(&after.to_string()).to_writer(&mut text)?;
    }
    Ok(text)
}

/// The text after the options in `--help`: a line without indentation that ends with
/// a colon is a heading, and the lines below it stay as they are.
fn after_help(text: &str) -> Roff {
    let mut roff = Roff::new();
    for paragraph in text.split("\n\n") {
        roff.control("PP", []);
        for line in paragraph.lines() {
            match line.strip_suffix(':') {
                Some(heading) if !line.starts_with("  ") => {
                    roff.control("SH", [heading.to_uppercase().as_str()]);
                    roff.control("nf", []);
                }
                _ => {
                    roff.text([emphasized(line)]);
                }
            }
        }
        roff.control("fi", []);
    }
    roff
}

/// The command of an example is bold.
fn emphasized(line: &str) -> Inline {
    if line.trim_start().starts_with("xsplice ") {
        bold(line)
    } else {
        roman(line)
    }
}
