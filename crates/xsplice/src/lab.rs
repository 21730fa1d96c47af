//! `xsplice lab`: trying payloads on a disposable Xen host.

use anyhow::{Context, bail};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use xsplice_lab::{Host, HostConfig, Output, scenario};

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
    Try {
        /// The payloads.
        #[arg(required = true)]
        payloads: Vec<PathBuf>,
        #[command(flatten)]
        machine: Machine,
    },
    /// Run a file of commands and expectations.
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
    /// The hypervisor, `xen.gz` or the ELF file in it.
    #[arg(long, value_name = "FILE")]
    xen: PathBuf,
    /// dom0's kernel.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The kernel's module xen-privcmd.ko, if it needs one.
    #[arg(long, value_name = "FILE")]
    privcmd: Option<PathBuf>,
    /// Virtual CPUs.
    #[arg(long, value_name = "N", default_value_t = 4)]
    cpus: u32,
    /// Memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,
    /// How long booting, and then each command, may take, in seconds.
    #[arg(long, value_name = "S", default_value_t = 90)]
    timeout: u64,
    /// Write what the console printed to this file.
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
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            if json {
                println!("{:#}", json!({ "error": format!("{error:#}") }));
            }
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn boot(machine: &Machine) -> anyhow::Result<Host> {
    let xsplice = std::env::current_exe().context("cannot find this executable")?;
    let mut config = HostConfig::new(
        machine.xen.clone(),
        machine.kernel.clone(),
        machine.privcmd.clone(),
        xsplice,
    );
    config.cpus = machine.cpus;
    config.memory = machine.memory;
    config.timeout = Duration::from_secs(machine.timeout);
    Ok(Host::boot(&config)?)
}

fn keep_console(host: &Host, machine: &Machine) -> anyhow::Result<()> {
    match &machine.console {
        Some(path) => {
            std::fs::write(path, host.console()).with_context(|| path.display().to_string())
        }
        None => Ok(()),
    }
}

fn try_payloads(payloads: &[PathBuf], machine: &Machine, json: bool) -> anyhow::Result<bool> {
    let files: Vec<(String, Vec<u8>)> = payloads
        .iter()
        .map(|path| {
            let name = path
                .file_stem()
                .context("a payload has no name")?
                .to_string_lossy();
            let data = std::fs::read(path).with_context(|| path.display().to_string())?;
            Ok((name.into_owned(), data))
        })
        .collect::<anyhow::Result<_>>()?;
    let mut host = boot(machine)?;
    let mut results = Vec::new();
    let mut good = true;
    for (name, data) in &files {
        let place = format!("/lab/{name}.livepatch");
        host.put(&place, data)?;
        let commands: [&[&str]; 5] = [
            &["upload", name, &place],
            &["apply", name],
            &["list"],
            &["revert", name],
            &["unload", name],
        ];
        for command in commands {
            let argv: Vec<&str> = ["xsplice"].iter().chain(command).copied().collect();
            let output = host.run(&argv)?;
            let ok = output.code == Some(0);
            good &= ok;
            if !json {
                print_step(&command.join(" "), &output);
            }
            results
                .push(json!({ "payload": name, "command": command, "output": output, "ok": ok }));
            if !ok && command[0] == "upload" {
                break;
            }
        }
    }
    keep_console(&host, machine)?;
    host.shut_down()?;
    if json {
        println!("{:#}", json!({ "ok": good, "steps": results }));
    }
    Ok(good)
}

fn run_scenario(path: &Path, machine: &Machine, json: bool) -> anyhow::Result<bool> {
    let name = || path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(name)?;
    let steps = scenario::parse(&text).with_context(name)?;
    if steps.is_empty() {
        bail!("{}: there is no step in it", name());
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut host = boot(machine)?;
    let mut results = Vec::new();
    for (line, step) in &steps {
        let result = scenario::run_step(&mut host, directory, *line, step)?;
        if !json {
            match &result.output {
                Some(output) => print_step(&result.what, output),
                None => println!("{}", result.what),
            }
            for failure in &result.failures {
                eprintln!("{}:{line}: {failure}", name());
            }
        }
        results.push(result);
    }
    keep_console(&host, machine)?;
    host.shut_down()?;
    let good = results.iter().all(|r| r.failures.is_empty());
    if json {
        println!("{:#}", json!({ "ok": good, "steps": results }));
    }
    Ok(good)
}

fn print_step(what: &str, output: &Output) {
    let code = output
        .code
        .map_or("killed".to_owned(), |c| format!("exit {c}"));
    println!("$ {what}   [{code}]");
    for line in output.stdout.lines().chain(output.stderr.lines()) {
        println!("  {line}");
    }
}
