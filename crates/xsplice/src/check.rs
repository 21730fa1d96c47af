//! `xsplice check`.

use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xsplice_offline::{Image, Report, Severity};

/// Arguments of `xsplice check`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Payloads, in the order in which they would be loaded and applied.
    #[arg(required = true, value_name = "PAYLOAD")]
    payloads: Vec<PathBuf>,
    /// Image of the hypervisor, with symbols.
    #[arg(long, value_name = "FILE")]
    xen_syms: PathBuf,
}

pub(crate) fn run(args: &Args, json: bool) -> ExitCode {
    match check(args).and_then(|reports| {
        let good = reports.iter().all(|report| report.loads && report.applies);
        if json {
            println!("{}", serde_json::to_string_pretty(&reports)?);
        } else {
            reports.iter().for_each(print);
        }
        Ok(good)
    }) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xsplice check: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(args: &Args) -> anyhow::Result<Vec<Report>> {
    let image = read(&args.xen_syms)?;
    let image = Image::parse(&image).with_context(|| args.xen_syms.display().to_string())?;
    let mut payloads: Vec<(String, Vec<u8>)> = Vec::with_capacity(args.payloads.len());
    for path in &args.payloads {
        let name = path
            .file_stem()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned();
        let taken = payloads.iter().any(|(other, _)| *other == name);
        ensure!(
            !taken,
            "{}: another payload is called {name} too",
            path.display()
        );
        payloads.push((name, read(path)?));
    }
    Ok(xsplice_offline::check(&image, &payloads))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Verdicts that are good go to standard output, the others to standard error.
fn print(report: &Report) {
    let name = &report.name;
    let of = |severity| {
        report
            .problems
            .iter()
            .find(|problem| problem.severity == severity)
    };
    let verdict = match (of(Severity::NotLoaded), of(Severity::NotApplied)) {
        (Some(problem), _) => format!("{name}: would not load ({})", problem.errno),
        (None, Some(problem)) => format!("{name}: would load, but not apply ({})", problem.errno),
        (None, None) => format!("{name}: would load and apply"),
    };
    let mut lines = vec![verdict];
    lines.extend(
        report
            .problems
            .iter()
            .map(|problem| match problem.severity {
                Severity::Warning => format!("  warning: {}", problem.message),
                Severity::NotApplied | Severity::NotLoaded => format!("  {}", problem.message),
            }),
    );
    if report.more_problems != 0 {
        lines.push(format!("  and {} more", report.more_problems));
    }
    lines.extend(report.functions.iter().map(|function| {
        let name = if function.name.is_empty() {
            "(no name)"
        } else {
            &function.name
        };
        let (addr, old, new) = (function.old_addr, function.old_size, function.new_size);
        format!("  {name} at {addr:#x}: {old} -> {new} bytes")
    }));
    for line in lines {
        if report.loads && report.applies {
            println!("{line}");
        } else {
            eprintln!("{line}");
        }
    }
}
