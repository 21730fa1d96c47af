// SPDX-License-Identifier: MIT OR Apache-2.0

//! `xsplice demo`: live patching on a simulated hypervisor in this process.

use crate::output::{Ended, failure, say};
use anyhow::{Context as _, ensure};
use serde::Serialize;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use xsplice_engine::{Action, Engine, Options, Policy};
use xsplice_host_process::{Cpus, Machine, call, image, payloads};

/// Arguments of `xsplice demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// CPUs of the hypervisor, each of them a thread.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
}

/// A step, and the state after it.
#[derive(Serialize, schemars::JsonSchema)]
struct Step {
    /// Since the start.
    milliseconds: u64,
    /// What was done.
    what: String,
    /// How long the CPUs were stopped.
    window_ns: Option<u64>,
    /// The version that the hypervisor tells its guests.
    version: String,
    /// Whether a guest is still granted memory that does not exist.
    vulnerable: bool,
    /// Calls that guests made since the previous step.
    guest_calls: u64,
}

/// What was demonstrated.
#[derive(Serialize, schemars::JsonSchema)]
pub(crate) struct Demonstrated {
    /// One after the other.
    steps: Vec<Step>,
}

pub(crate) fn run(args: &Args, json: bool) -> ExitCode {
    let mut steps = Vec::new();
    let result = demo(args.cpus, &mut |step| {
        if !json {
            print(&step);
        }
        steps.push(step);
    });
    match result {
        Ok(()) => Ended::well(Demonstrated { steps }).tell(json),
        Err(error) => failure(&error, json),
    }
}

fn print(step: &Step) {
    let Step {
        milliseconds,
        what,
        version,
        guest_calls,
        ..
    } = step;
    let window = match step.window_ns {
        Some(ns) => format!(" (CPUs stopped for {} µs)", ns.div_ceil(1000)),
        None => String::new(),
    };
    let repaired = if step.vulnerable {
        "vulnerable"
    } else {
        "repaired"
    };
    say!("[{milliseconds:>4} ms] {what}{window}");
    say!("          version {version}, {repaired}; {guest_calls} guest calls meanwhile");
}

fn demo(cpus: u32, report: &mut dyn FnMut(Step)) -> anyhow::Result<()> {
    let machine = Machine::new(image(), cpus).context("cannot create the simulated hypervisor")?;
    let original = machine.text();
    let mut engine = Engine::new(machine.clone(), Policy::Stock);
    let mut witness = Witness::new(&machine, report);
    let guests = Cpus::run(&machine, cpus, |_| {
        let calls = Arc::clone(&witness.calls);
        move |hypercall: &dyn Fn(u64, u64, u64) -> i64| {
            hypercall(call::GRANT, 0, 4096);
            calls.fetch_add(1, Ordering::Relaxed);
        }
    });
    witness.see(
        format!("a hypervisor with {cpus} CPUs runs in this process"),
        None,
    );
    for (name, file) in [
        ("grant-fix", payloads::GRANT),
        ("version", payloads::VERSION),
        ("cumulative", payloads::CUMULATIVE),
    ] {
        let size = file.len();
        engine.upload(name, file)?;
        witness.see(
            format!("upload {name}: {size} bytes, checked, linked and protected"),
            None,
        );
    }
    for (action, name) in [
        (Action::Apply, "grant-fix"),
        (Action::Apply, "version"),
        (Action::Replace, "cumulative"),
        (Action::Revert, "cumulative"),
    ] {
        // A long timeout: the CPUs are threads, and this machine may be busy.
        let options = Options {
            timeout: 2_000_000_000,
            ..Options::default()
        };
        engine.act(name, action, options)?;
        let window = engine.stack().find(name).map(|it| it.times().window);
        witness.see(format!("{action} {name}"), window);
    }
    for name in ["grant-fix", "version", "cumulative"] {
        engine.act(name, Action::Unload, Options::default())?;
    }
    witness.see("unload all".to_owned(), None);
    drop(guests);
    ensure!(
        machine.text() == original,
        "the text differs from the original after the revert"
    );
    Ok(())
}

/// Looks at the hypervisor as its guests see it, and reports each step.
struct Witness<'a> {
    machine: &'a Machine,
    start: Instant,
    /// Calls of the guests since the previous step.
    calls: Arc<AtomicU64>,
    report: &'a mut dyn FnMut(Step),
}

impl<'a> Witness<'a> {
    fn new(machine: &'a Machine, report: &'a mut dyn FnMut(Step)) -> Self {
        Self {
            machine,
            start: Instant::now(),
            calls: Arc::default(),
            report,
        }
    }

    /// Reports the state after the step `what`.
    fn see(&mut self, what: String, window_ns: Option<u64>) {
        std::thread::sleep(Duration::from_millis(20));
        let version = self.machine.hypercall(call::VERSION, 0, 0);
        (self.report)(Step {
            milliseconds: u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX),
            what,
            window_ns,
            version: format!("{}.{}", version / 10, version % 10),
            vulnerable: self.machine.hypercall(call::GRANT, u64::MAX, 2) == 0,
            guest_calls: self.calls.swap(0, Ordering::Relaxed),
        });
    }
}
