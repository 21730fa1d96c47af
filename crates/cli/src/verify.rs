// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice verify`.

use crate::output::{complain, failure, say};
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xsplice_verify::{Input, Inputs, Patched, Verdict, build, verify};

const EXAMPLES: &str = "\
Examples:
  xsplice verify fix.livepatch -s source -p fix.patch --xen-syms xen-syms
  xsplice verify fix.livepatch --patched-syms new/xen-syms --xen-syms xen-syms

Builds the patched hypervisor as a whole, and proves function by function and
reference by reference that the hypervisor with the payloads applied is the
same. Exits with 0 if it is, and with 1 if not.";

/// Arguments of `xsplice verify`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Payloads, the lowest first.
    #[arg(required = true, value_name = "FILE")]
    payloads: Vec<PathBuf>,
    /// Payload that is applied already; repeat it for a stack, the lowest first.
    #[arg(long, value_name = "FILE")]
    on: Vec<PathBuf>,
    /// The running hypervisor, with symbols.
    #[arg(long, value_name = "FILE")]
    xen_syms: PathBuf,
    /// The built source tree of the running hypervisor.
    #[arg(
        short,
        long,
        value_name = "DIR",
        requires = "patches",
        required_unless_present = "patched_syms"
    )]
    srcdir: Option<PathBuf>,
    /// Source patch of the payloads; repeat it for several, in order.
    #[arg(short, long = "patch", value_name = "FILE")]
    patches: Vec<PathBuf>,
    /// The patched hypervisor, where it is built already.
    #[arg(long, value_name = "FILE", conflicts_with = "srcdir")]
    patched_syms: Option<PathBuf>,
    /// The `prelink.o` that it was linked from, if not in the same directory.
    #[arg(long, value_name = "FILE", requires = "patched_syms")]
    patched_objects: Option<PathBuf>,
    /// What the payloads were built without; repeat it for several.
    #[arg(long, value_name = "NAME")]
    leave_out: Vec<String>,
}

pub(crate) fn run(args: &Args, json: bool) -> ExitCode {
    match opinion(args).and_then(|verdict| {
        if json {
            say!("{}", serde_json::to_string_pretty(&verdict)?);
        } else {
            print(&verdict);
        }
        Ok(verdict.proved)
    }) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failure(&error, json),
    }
}

fn opinion(args: &Args) -> anyhow::Result<Verdict> {
    let original = read(&args.xen_syms)?;
    let payloads: Vec<(String, Vec<u8>)> = args
        .on
        .iter()
        .chain(&args.payloads)
        .map(|path| Ok((path.display().to_string(), read(path)?)))
        .collect::<anyhow::Result<_>>()?;
    let patched = match (&args.srcdir, &args.patched_syms) {
        (Some(source), _) => build(source, &args.patches)?,
        (None, Some(syms)) => built(syms, args.patched_objects.as_deref())?,
        (None, None) => anyhow::bail!("give -s and -p, or --patched-syms"),
    };
    let name = args.xen_syms.display().to_string();
    Ok(verify(&Inputs {
        original: Input {
            name: &name,
            data: &original,
        },
        payloads: payloads
            .iter()
            .map(|(name, data)| Input { name, data })
            .collect(),
        patched: Input {
            name: "the patched hypervisor",
            data: &patched.syms,
        },
        objects: Input {
            name: "the patched hypervisor's prelink.o",
            data: &patched.objects,
        },
        left_out: args.leave_out.clone(),
    })?)
}

fn built(syms: &Path, objects: Option<&Path>) -> anyhow::Result<Patched> {
    let beside = syms.with_file_name("prelink.o");
    Ok(Patched {
        syms: read(syms)?,
        objects: read(objects.unwrap_or(&beside))?,
    })
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A proof goes to standard output, anything else to standard error.
fn print(verdict: &Verdict) {
    for difference in &verdict.left_out {
        say!("left out: {difference}");
    }
    for note in &verdict.notes {
        say!("note: {note}");
    }
    for difference in &verdict.differences {
        complain!("{difference}");
    }
    let (functions, objects) = (verdict.functions, verdict.objects);
    if verdict.proved {
        let new = verdict.from_payload;
        say!(
            "proved: {functions} functions ({new} of the payload) and {objects} objects are those of the patched hypervisor"
        );
    } else {
        let count = verdict.differences.len();
        complain!(
            "not proved: {count} of the patched hypervisor's functions and objects have no equal"
        );
    }
}
