// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice verify`.

use crate::opinion::{self, From, Question};
use crate::output::{Ended, failure};
use crate::progress::Shown;
use std::path::PathBuf;
use std::process::ExitCode;
use xsplice_verify::{Accepted, Verdict};

const EXAMPLES: &str = "\
Examples:
  xsplice verify fix.livepatch -s source -p fix.patch --xen-syms xen-syms
  xsplice verify fix.livepatch -s source --patched-syms new/xen/xen-syms --xen-syms xen-syms

Builds the complete patched hypervisor, and proves that the hypervisor with the
payloads applied is equivalent: function by function, reference by reference, and
type by type for data in memory. Exits with 0 if all of it is proved, otherwise
with 1.";

/// Arguments of `xsplice verify`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Payloads, the lowest first.
    #[arg(required = true, value_name = "FILE")]
    payloads: Vec<PathBuf>,
    /// Applied payload; repeat it for a stack, the lowest first.
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
        required_unless_present = "patched_syms"
    )]
    srcdir: Option<PathBuf>,
    /// Source patch of the payloads; repeat it for several, in order.
    #[arg(
        short,
        long = "patch",
        value_name = "FILE",
        required_unless_present = "patched_syms"
    )]
    patches: Vec<PathBuf>,
    /// C source of hooks that a payload was built with; repeat it for several.
    #[arg(long, value_name = "FILE")]
    hooks: Vec<PathBuf>,
    /// The patched hypervisor, already built, in its build tree; with -s, types are
    /// compared too.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["patches", "hooks"])]
    patched_syms: Option<PathBuf>,
    /// The `prelink.o` that it was linked from, if not in the same directory.
    #[arg(long, value_name = "FILE", requires = "patched_syms")]
    patched_objects: Option<PathBuf>,
    /// Build in a temporary copy of the tree.
    #[arg(long)]
    no_cache: bool,
    /// Change that the payloads were built without, as for `xsplice build`; repeat it
    /// for several.
    #[arg(long, value_name = "NAME")]
    leave_out: Vec<String>,
    /// The payloads were built with --leave-out-init.
    #[arg(long)]
    leave_out_init: bool,
    /// Accept the changed layout of this structure, or that this variable starts from
    /// its initial value, as for `xsplice build`; repeat it for several.
    #[arg(long, value_name = "NAME")]
    allow: Vec<String>,
}

pub(crate) fn run(args: &Args, json: bool) -> ExitCode {
    match ask(args, json) {
        Ok(verdict) => {
            if !json {
                opinion::print(&verdict);
            }
            let refused = opinion::refused(&verdict);
            Ended::well(verdict).but(refused).tell(json)
        }
        Err(error) => failure(&error, json),
    }
}

fn ask(args: &Args, json: bool) -> anyhow::Result<Verdict> {
    let paths: Vec<PathBuf> = args.on.iter().chain(&args.payloads).cloned().collect();
    let payloads = opinion::payloads(&paths)?;
    let from = match (&args.patched_syms, &args.srcdir) {
        (Some(syms), tree) => From::Built {
            syms,
            objects: args.patched_objects.as_deref(),
            tree: tree.as_deref(),
        },
        (None, Some(tree)) => From::Source {
            tree,
            patches: &args.patches,
            hooks: &args.hooks,
            cached: !args.no_cache,
        },
        (None, None) => anyhow::bail!("give -s and -p, or --patched-syms"),
    };
    let question = Question {
        payloads: &payloads,
        xen_syms: &args.xen_syms,
        from,
        accepted: Accepted {
            leave_out: args.leave_out.clone(),
            leave_out_init: args.leave_out_init,
            allow: args.allow.clone(),
            renewed: opinion::recorded(&payloads)?.renewed,
            lower_hooks: false,
            recorded: false,
        },
    };
    opinion::ask(&question, &Shown::new(json))
}
