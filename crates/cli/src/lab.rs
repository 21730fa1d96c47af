// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice lab`: trying payloads on a disposable Xen host.

use crate::output::{AGAIN, Ended, Failure, Kind, Problem, complain, failure, say, shown};
use crate::progress::Shown;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use xsplice_lab::{Host, HostConfig, Output, scenario};
use xsplice_system::file;
use xsplice_system::lines::{self, Detail};

const EXAMPLES: &str = "\
Examples:
  xsplice lab try fix.livepatch --xen xen-4.17-amd64.gz --kernel vmlinuz-6.1.0-amd64
  xsplice lab run check.scenario --xen xen.gz --kernel vmlinuz --cpus 8 --json";

/// Arguments of `xsplice lab`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Upload, apply, list, revert and unload each payload.
    #[command(
        after_help = "Example:\n  xsplice lab try fix.livepatch --xen xen.gz --kernel vmlinuz-6.1.0-amd64"
    )]
    Try {
        /// The payloads.
        #[arg(required = true)]
        payloads: Vec<PathBuf>,
        #[command(flatten)]
        machine: Machine,
    },
    /// Run a file of commands and expectations.
    #[command(
        after_help = "Example of a scenario:\n  put fix.livepatch /fix.livepatch\n  $ xsplice load \
                      /fix.livepatch\n  = 0\n  $ xsplice list\n  > applied"
    )]
    Run {
        /// The scenario: `put FILE PLACE`, `$ COMMAND`, `= CODE`, `> TEXT`,
        /// `! TEXT`, `console TEXT`, a line each.
        scenario: PathBuf,
        #[command(flatten)]
        machine: Machine,
    },
}

#[derive(clap::Args)]
struct Machine {
    /// The hypervisor: `xen.gz`, the ELF file in it, or `xen.efi`; for ARM the image
    /// `xen`.
    #[arg(long, value_name = "FILE")]
    xen: PathBuf,
    /// dom0's kernel.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The kernel's module xen-privcmd.ko [default: found in the kernel's modules
    /// directory].
    #[arg(long, value_name = "FILE")]
    privcmd: Option<PathBuf>,
    /// The `xsplice` for dom0, linked statically [default: this one].
    #[arg(long, value_name = "FILE")]
    xsplice: Option<PathBuf>,
    /// An additional program for dom0, and its shared libraries.
    #[arg(long = "program", value_name = "PLACE=FILE", value_parser = placed)]
    programs: Vec<(String, PathBuf)>,
    /// A directory to look for shared libraries in.
    #[arg(long, value_name = "DIR")]
    libraries: Vec<PathBuf>,
    /// Virtual CPUs [default: 4 on x86-64, 2 on ARM].
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,
    /// Timeout for booting, and for each command, in seconds.
    #[arg(long, value_name = "S", default_value_t = 180)]
    timeout: u64,
    /// Write the console's output to this file.
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,
}

/// Runs as the first process of a lab's dom0.
pub(crate) fn init() -> ExitCode {
    xsplice_lab::init::run()
}

pub(crate) fn run(args: &Args, json: bool) -> ExitCode {
    let result = match &args.command {
        Command::Try { payloads, machine } => try_payloads(payloads, machine, json),
        Command::Run { scenario, machine } => run_scenario(scenario, machine, json),
    };
    match result {
        Ok(code) => code,
        Err(error) => failure(&error, json),
    }
}

fn placed(argument: &str) -> Result<(String, PathBuf), String> {
    let (place, file) = argument.split_once('=').ok_or("expected PLACE=FILE")?;
    Ok((place.to_owned(), file.into()))
}

/// The module for `kernel`, in the layout that packages use: `boot/vmlinuz-RELEASE`
/// and `lib/modules/RELEASE` in one place.
fn find_privcmd(kernel: &Path) -> Option<PathBuf> {
    let release = kernel.file_name()?.to_str()?.strip_prefix("vmlinuz-")?;
    let root = kernel.parent()?.join("..");
    let module = root
        .join("lib/modules")
        .join(release)
        .join("kernel/drivers/xen/xen-privcmd.ko");
    module.exists().then_some(module)
}

fn boot(machine: &Machine, files: Vec<(String, PathBuf)>, json: bool) -> anyhow::Result<Host> {
    let xsplice = match &machine.xsplice {
        Some(file) => file.clone(),
        None => std::env::current_exe().context("cannot find this executable")?,
    };
    let mut config = HostConfig::new(
        machine.xen.clone(),
        machine.kernel.clone(),
        machine
            .privcmd
            .clone()
            .or_else(|| find_privcmd(&machine.kernel)),
        xsplice,
    );
    config.files = files;
    config.programs.clone_from(&machine.programs);
    config.libraries.clone_from(&machine.libraries);
    config.cpus = machine.cpus;
    config.memory = machine.memory;
    config.timeout = Duration::from_secs(machine.timeout);
    if lines::detail() == Detail::Verbose {
        config.on_line = Some(|line| complain!("{line}"));
    }
    let shown = Shown::new(json);
    shown.wait("booting");
    Ok(Host::boot(&config)?)
}

/// Checks, before the host boots, that the console file can be written.
fn check_console(machine: &Machine) -> anyhow::Result<()> {
    let writable = machine
        .console
        .as_deref()
        .map(|path| file::check_writable(path).with_context(|| shown(path)));
    writable.unwrap_or(Ok(()))
}

fn keep_console(host: &Host, machine: &Machine) -> anyhow::Result<()> {
    match &machine.console {
        Some(path) => file::write(path, host.console().as_bytes()).with_context(|| shown(path)),
        None => Ok(()),
    }
}

fn try_payloads(payloads: &[PathBuf], machine: &Machine, json: bool) -> anyhow::Result<ExitCode> {
    let mut names = Vec::new();
    let mut files = Vec::new();
    for path in payloads {
        let name = path.file_stem().context("a payload has no name")?;
        let name = name.to_string_lossy().into_owned();
        files.push((place_of(&name), path.clone()));
        names.push(name);
    }
    check_console(machine)?;
    let mut host = boot(machine, files, json)?;
    let mut steps = Vec::new();
    let tried = try_all(
        &mut |argv| Ok(host.run(argv)?),
        &names,
        &mut |step: Step| {
            if !json {
                print_step(&step.command, &step.output);
            }
            steps.push(step);
        },
    );
    keep_console(&host, machine)?;
    let stopped = tried.as_ref().ok().cloned().flatten();
    let error = tried.and_then(|_| Ok(host.shut_down()?)).err();
    let failed = |step: &Step| {
        !step
            .output
            .code
            .is_some_and(|code| code == 0 || code == i32::from(AGAIN))
    };
    let kind = if error.is_some() {
        Some(Kind::Failed)
    } else if steps.iter().any(failed) {
        Some(Kind::Refused)
    } else {
        let again = steps.iter().any(|s| s.output.code == Some(AGAIN.into()));
        again.then_some(Kind::Busy)
    };
    let error = error.map(|error| format!("error: {error:#}"));
    let said: Vec<String> = stopped.into_iter().chain(error).collect();
    let failure = kind.map(|kind| match said.as_slice() {
        [] => Failure::new(kind, "not every command succeeded"),
        said => Failure::new(kind, said.join("\n")),
    });
    let code = Ended::well(Tried { steps }).but(failure).tell(json);
    for line in said {
        complain!("{line}");
    }
    Ok(code)
}

/// What was tried.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(crate) struct Tried {
    /// Every command, one after the other.
    steps: Vec<Step>,
}

/// What was run.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(crate) struct Ran {
    /// Every step of the scenario.
    steps: Vec<scenario::StepResult>,
}

/// How often a command with that exit code is tried.
const TRIES: u32 = 5;

/// A command on a payload, and its final result.
#[derive(serde::Serialize, schemars::JsonSchema)]
struct Step {
    /// The payload's name.
    payload: String,
    /// The command, without the name of the tool.
    command: String,
    /// How often it was tried.
    tries: u32,
    /// How it ended.
    output: Output,
}

/// Where dom0 has the payload `name`.
fn place_of(name: &str) -> String {
    format!("/lab/{name}.livepatch")
}

/// Runs a command in dom0.
type Run<'a> = dyn FnMut(&[&str]) -> anyhow::Result<Output> + 'a;

/// Tries each payload on its own. If one cannot be removed, the next would be tried
/// on top of it, so this stops and returns the reason.
fn try_all(
    run: &mut Run,
    names: &[String],
    done: &mut dyn FnMut(Step),
) -> anyhow::Result<Option<String>> {
    for (number, name) in names.iter().enumerate() {
        let Some(command) = try_payload(run, name, done)? else {
            continue;
        };
        let mut stopped = format!("stopped: `{command}` failed, so {name} is still there");
        if let Some(rest) = names.get(number + 1..).filter(|rest| !rest.is_empty()) {
            stopped += &format!("; not tried: {}", rest.join(", "));
        }
        return Ok(Some(stopped));
    }
    Ok(None)
}

/// Returns the command that failed to remove the payload, if one did.
fn try_payload(
    run: &mut Run,
    name: &str,
    done: &mut dyn FnMut(Step),
) -> anyhow::Result<Option<String>> {
    let place = place_of(name);
    let commands: [&[&str]; 5] = [
        &["upload", name, &place],
        &["apply", name],
        &["list"],
        &["revert", name],
        &["unload", name],
    ];
    for command in commands {
        let argv = [&["xsplice"], command].concat();
        let text = command.join(" ");
        let mut tries = 1;
        let mut output = run(&argv).with_context(|| text.clone())?;
        while output.code == Some(AGAIN.into()) && tries < TRIES {
            tries += 1;
            output = run(&argv).with_context(|| text.clone())?;
        }
        let happened = output.code == Some(0);
        done(Step {
            payload: name.to_owned(),
            command: text.clone(),
            tries,
            output,
        });
        match command[0] {
            "upload" if !happened => break,
            "revert" | "unload" if !happened => return Ok(Some(text)),
            _ => {}
        }
    }
    Ok(None)
}

fn run_scenario(path: &Path, machine: &Machine, json: bool) -> anyhow::Result<ExitCode> {
    let name = || shown(path);
    let text = file::read(path).with_context(name)?;
    let text = String::from_utf8(text).with_context(name)?;
    let steps = scenario::parse(&text).with_context(name)?;
    if steps.is_empty() {
        bail!("{}: the scenario has no steps", name());
    }
    check_console(machine)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut host = boot(machine, Vec::new(), json)?;
    let mut results = Vec::new();
    for (line, step) in &steps {
        let result = match scenario::run_step(&mut host, directory, *line, step) {
            Ok(result) => result,
            Err(error) => {
                keep_console(&host, machine)?;
                return Err(error).with_context(|| format!("{}:{line}", name()));
            }
        };
        if !json {
            match &result.output {
                Some(output) => print_step(&result.what, output),
                None => say!("{}", result.what),
            }
            for failure in &result.failures {
                complain!("{}:{line}: {failure}", name());
            }
        }
        results.push(result);
    }
    keep_console(&host, machine)?;
    host.shut_down()?;
    let failures = results.iter().flat_map(|result| {
        let line = result.line;
        let place = move || Some(format!("{}:{line}", shown(path)));
        result.failures.iter().map(move |message| Problem {
            code: None,
            place: place(),
            message: message.clone(),
        })
    });
    let failures: Vec<Problem> = failures.collect();
    let unmet =
        (!failures.is_empty()).then(|| Failure::refused("not every expectation was met", failures));
    Ok(Ended::well(Ran { steps: results }).but(unmet).tell(json))
}

fn print_step(what: &str, output: &Output) {
    let code = output
        .code
        .map_or("killed".to_owned(), |c| format!("exit {c}"));
    say!("$ {what}   [{code}]");
    for line in output.stdout.lines().chain(output.stderr.lines()) {
        say!("  {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The commands that run, and why it stops, if `busy` exits with "try again".
    fn tried(busy: &str) -> (Vec<String>, Option<String>) {
        let mut commands = Vec::new();
        let mut run = |argv: &[&str]| {
            let again = argv[1..].join(" ") == busy;
            Ok(Output {
                code: Some(if again { AGAIN.into() } else { 0 }),
                stdout: String::new(),
                stderr: String::new(),
            })
        };
        let names = ["one".to_owned(), "two".to_owned()];
        let stopped = try_all(&mut run, &names, &mut |step| {
            commands.push(format!("{} ({})", step.command, step.tries));
        });
        (commands, stopped.expect("it runs"))
    }

    #[test]
    fn a_payload_that_stays_applied_is_the_last() {
        let (commands, stopped) = tried("revert one");
        let last = ["apply one (1)", "list (1)", "revert one (5)"];
        assert_eq!(commands[1..], last);
        assert_eq!(
            stopped.as_deref(),
            Some("stopped: `revert one` failed, so one is still there; not tried: two")
        );
        let (commands, stopped) = tried("unload two");
        assert_eq!(commands.len(), 10);
        let words = "stopped: `unload two` failed, so two is still there";
        assert_eq!(stopped.as_deref(), Some(words));
    }

    #[test]
    fn a_payload_that_was_not_applied_does_not_stop_the_next() {
        let (commands, stopped) = tried("apply one");
        assert_eq!((commands.len(), stopped), (10, None));
        let (commands, stopped) = tried("upload one /lab/one.livepatch");
        assert_eq!((commands.len(), stopped), (6, None));
    }
}
