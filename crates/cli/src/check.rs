// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice check`.

use crate::output::{Ended, Failure, Problem, complain, failure, say, shown};
use crate::signature::{Certs, Keys};
use anyhow::{Context as _, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xsplice_abi::text::escaped;
use xsplice_host_image::{Checker, Function, Guard, Image, Report, Severity};
use xsplice_system::file;

const EXAMPLES: &str = "\
Examples:
  xsplice check fix.livepatch --xen-syms xen-syms
  xsplice check all.livepatch --on first.livepatch --on second.livepatch --xen-syms xen-syms

Each payload is applied on top of those before it, or replaces them if it cannot
be applied. Exits with 0 if each payload can do one of the two.

With --cert, a payload that none of these keys has signed would not load, as on a
hypervisor that enforces signatures. Without it, signatures are not checked.";

/// Arguments of `xsplice check`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Payloads, in the order in which they would be loaded and applied.
    #[arg(required = true, value_name = "FILE")]
    payloads: Vec<PathBuf>,
    /// Image of the hypervisor, with symbols.
    #[arg(long, value_name = "FILE")]
    xen_syms: PathBuf,
    /// Applied payload; repeat it for a stack, the lowest first.
    #[arg(long, value_name = "FILE")]
    on: Vec<PathBuf>,
    /// Which checks must pass before a payload is applied.
    #[arg(long, value_enum, default_value_t = GuardBy::Both)]
    guard: GuardBy,
    #[command(flatten)]
    certs: Certs,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum GuardBy {
    /// The build-ids of what the payload depends on.
    Stack,
    /// The hash of each function it patches, whatever is below.
    OldCode,
    /// The build-ids, and the hashes that the payload has.
    Both,
}

/// The verdicts on payloads.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(crate) struct Checked {
    /// In the order of the command line.
    payloads: Vec<Report>,
}

pub(crate) fn run(args: &Args, json: bool) -> ExitCode {
    match check(args) {
        Ok(payloads) => {
            if !json {
                payloads.iter().for_each(print);
            }
            let refused = refused(&payloads);
            Ended::well(Checked { payloads }).but(refused).tell(json)
        }
        Err(error) => failure(&error, json),
    }
}

/// Why not all of the payloads are good, if so.
fn refused(reports: &[Report]) -> Option<Failure> {
    let bad: Vec<&Report> = reports.iter().filter(|report| !is_good(report)).collect();
    let verdicts = bad
        .iter()
        .map(|report| format!("{}: {}", report.name, verdict(report)));
    let verdicts: Vec<String> = verdicts.collect();
    let problems = bad.iter().flat_map(|report| {
        report.problems.iter().map(|problem| Problem {
            code: None,
            place: Some(report.name.clone()),
            message: problem.message.clone(),
        })
    });
    (!bad.is_empty()).then(|| Failure::refused(verdicts.join("; "), problems.collect()))
}

fn is_good(report: &Report) -> bool {
    report.applies || report.replaces
}

fn check(args: &Args) -> anyhow::Result<Vec<Report>> {
    let image = read(&args.xen_syms)?;
    let image = Image::parse(&image).with_context(|| shown(&args.xen_syms))?;
    let mut payloads: Vec<(String, Vec<u8>)> = Vec::new();
    for path in args.on.iter().chain(&args.payloads) {
        let name = path
            .file_stem()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned();
        let taken = payloads.iter().any(|(other, _)| *other == name);
        ensure!(
            !taken,
            "{}: another payload is also called {name}",
            shown(path)
        );
        payloads.push((name, read(path)?));
    }
    let guard = match args.guard {
        GuardBy::Stack => Guard::Stack,
        GuardBy::OldCode => Guard::OldCode,
        GuardBy::Both => Guard::Both,
    };
    let keys = args.certs.read()?;
    let keys = keys.keys()?;
    let checker = Checker::new(&image).with_guard(guard);
    let checker = checker.with_signatures(Keys::demand(&keys));
    let mut reports = checker.check(&payloads);
    let asked = reports.split_off(args.on.len());
    if let Some(report) = reports.iter().find(|report| !is_good(report)) {
        let reasons = report.problems.iter();
        let reasons: Vec<_> = reasons.map(|problem| problem.message.as_str()).collect();
        bail!(
            "{} was given with --on, but it could not be applied: {}",
            report.name,
            reasons.join("; ")
        );
    }
    Ok(asked)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    file::read(path).with_context(|| format!("cannot read {}", shown(path)))
}

/// The verdict on the payload, in one line.
fn verdict(report: &Report) -> String {
    let errno_of = |severity| {
        let mut problems = report.problems.iter();
        let found = problems.find(|problem| problem.severity == severity);
        found.map(|problem| problem.errno)
    };
    if let Some(errno) = errno_of(Severity::NotLoaded) {
        return format!("would not load ({errno})");
    }
    let not_applied = errno_of(Severity::NotApplied).unwrap_or("?");
    let not_replaced = report.replace_problems.first();
    let not_replaced = not_replaced.map_or("?", |problem| problem.errno);
    // If nothing is applied, there is nothing to replace.
    match (report.applies, report.replaces, report.below.is_empty()) {
        (true, _, true) => "would load and apply".to_owned(),
        (true, true, false) => "would load, and apply or replace".to_owned(),
        (true, false, false) => format!("would load and apply, but not replace ({not_replaced})"),
        (false, true, false) => format!("would load and replace, but not apply ({not_applied})"),
        (false, false, false) => {
            format!("would load, but neither apply ({not_applied}) nor replace ({not_replaced})")
        }
        (false, _, true) => format!("would load, but not apply ({not_applied})"),
    }
}

/// Good verdicts go to standard output, others to standard error.
fn print(report: &Report) {
    let mut lines = vec![format!("{}: {}", report.name, verdict(report))];
    for problem in &report.problems {
        lines.push(match problem.severity {
            Severity::Warning => format!("  warning: {}", problem.message),
            Severity::NotApplied | Severity::NotLoaded => format!("  {}", problem.message),
        });
    }
    if report.more_problems != 0 {
        lines.push(format!("  and {} more", report.more_problems));
    }
    if let Some(signer) = &report.signer {
        lines.push(format!("  signed by {signer}"));
    }
    let stacked = !report.below.is_empty();
    if stacked {
        let reasons = report.replace_problems.iter();
        lines.extend(reasons.map(|problem| format!("  replace: {}", problem.message)));
    }
    for function in &report.functions {
        describe(function, &mut lines);
    }
    if report.applies {
        let bytes = report.apply_writes;
        lines.push(format!("  {bytes} bytes patched with all CPUs stopped"));
    }
    if report.replaces && stacked {
        let (bytes, below) = (report.replace_writes, report.below.join(", "));
        lines.push(format!("  {bytes} bytes when it replaces {below}"));
        for name in &report.replace_loses {
            lines.push(format!(
                "  replace: the variables of {name} are lost, those of {} start with their \
                 initial values",
                report.name
            ));
        }
    }
    for line in lines {
        // Text from a payload must not forge a line.
        let line = escaped(&line);
        if is_good(report) {
            say!("{line}");
        } else {
            complain!("{line}");
        }
    }
}

fn describe(function: &Function, lines: &mut Vec<String>) {
    let name = match function.name.as_str() {
        "" => "(no name)",
        name => name,
    };
    let (addr, old, new) = (function.old_addr, function.old_size, function.new_size);
    lines.push(format!("  {name} at {addr:#x}: {old} -> {new} bytes"));
    if let Some(why) = function.denied {
        lines.push(format!("    warning: {why}"));
    }
    if !function.boot_time_sites.is_empty() {
        lines.push(format!(
            "    the hypervisor patches code under the trampoline while it boots, at {}",
            list(&function.boot_time_sites)
        ));
    }
    if !function.address_taken.is_empty() {
        lines.push(format!(
            "    its address is taken, at {}: indirect calls still go through the old entry point",
            list(&function.address_taken)
        ));
    }
}

/// The first addresses of a list, and the number of the rest.
fn list(addresses: &[u64]) -> String {
    const SHOWN: usize = 3;
    let shown = addresses.iter().take(SHOWN);
    let shown: Vec<_> = shown.map(|address| format!("{address:#x}")).collect();
    match addresses.len().checked_sub(SHOWN) {
        None | Some(0) => shown.join(", "),
        Some(more) => format!("{} and {more} more", shown.join(", ")),
    }
}
