// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice build`: from a source patch to a payload.

use crate::output::{Ended, Failure, Problem, complain, failure, say, shown};
use crate::progress::Shown;
use anyhow::{Context as _, anyhow, bail};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xsplice_generator::hunk::{Effect, Hunk};
use xsplice_generator::{Options, PatchedFunction, Refused, Report, generate};
use xsplice_system::cache;
use xsplice_system::file;
use xsplice_system::lines::{self, Detail};
use xsplice_verify::Verdict;

const EXAMPLES: &str = "\
Examples:
  xsplice build -s xen-4.17 -p fix.patch --xen-syms xen-syms -o fix.livepatch
  xsplice build -s xen-4.17 -p one.patch -p two.patch --xen-syms xen-syms -o out/ -j 8
  xsplice build -s xen-4.17 -p fix.patch --xen-syms xen-syms -o fix.livepatch --json

The tree must have been built once with the hypervisor's configuration and
compiler; xsplice proves this for every function that it replaces.";

/// Arguments of `xsplice build`; the short ones are those of livepatch-build.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The built Xen source tree.
    #[arg(short, long, value_name = "DIR")]
    srcdir: PathBuf,
    /// Source patch, unified diff; repeat it for several, in order.
    #[arg(short, long, required = true, value_name = "FILE")]
    patch: Vec<PathBuf>,
    /// The payload to write, or a directory for it; `-` is standard output.
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// The hypervisor's configuration; the tree must have been built with it.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Number of parallel compile jobs; 0 is one per CPU.
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    jobs: usize,
    /// The `xen-syms` of the hypervisor to patch.
    #[arg(long, value_name = "FILE")]
    xen_syms: PathBuf,
    /// Applied payload that this one depends on; repeat it for a stack, the lowest
    /// first.
    #[arg(long, value_name = "FILE")]
    on: Vec<PathBuf>,
    /// Source patch of a payload given with --on; repeat it for several, in
    /// order.
    #[arg(long, value_name = "FILE")]
    on_patch: Vec<PathBuf>,
    /// Build-id that the payload depends on [default: that of the last --on, or
    /// of the hypervisor].
    #[arg(long, value_name = "ID", value_parser = depends)]
    depends: Option<BuildId>,
    /// Build-id of the hypervisor: refuse the xen-syms of any other.
    #[arg(long, value_name = "ID", value_parser = build_id)]
    xen_depends: Option<BuildId>,
    /// Resolve all hypervisor symbols to addresses at build time.
    #[arg(long)]
    prelink: bool,
    /// Ignored; accepted for compatibility with livepatch-build.
    #[arg(long, value_name = "STAGE")]
    skip: Option<String>,
    /// C source of hooks (LIVEPATCH_LOAD_HOOK and so on), compiled into the
    /// payload; repeat it for several.
    #[arg(long, value_name = "FILE")]
    hooks: Vec<PathBuf>,
    /// Leave out this change: a variable, `__init` function, table entry, assembly
    /// section or file of the patch that the running hypervisor does not need, or
    /// that a hook takes care of. FILE:NAME names the one in that source file.
    /// Repeat it for several.
    #[arg(long, value_name = "NAME")]
    leave_out: Vec<String>,
    /// Leave out all changes to `__init` code and data; each is reported.
    #[arg(long)]
    leave_out_init: bool,
    /// Change this constant, or this variable's initial value, in place: hooks write
    /// the new contents, and restore the old ones on revert. A payload that changes a
    /// variable is applied only while the variable has its initial value. FILE:NAME
    /// names the one in that source file.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    patch_data: Vec<String>,
    /// Accept the changed layout of this structure, or that this variable starts from
    /// its initial value; repeat it for several.
    #[arg(long, value_name = "NAME")]
    allow: Vec<String>,
    /// `KEY=VALUE` for the payload's metadata, which the hypervisor lists;
    /// repeat it for several.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    meta: Vec<(String, String)>,
    /// Verify the payload as `xsplice verify` does, by building the complete patched
    /// hypervisor, and write it only if it is proved.
    #[arg(long)]
    verify: bool,
    /// If no payload is written, write why to this file, as --json prints it; otherwise the
    /// file is removed.
    #[arg(long, value_name = "FILE")]
    refusal: Option<PathBuf>,
    /// Ignore the cache of earlier builds.
    #[arg(long)]
    no_cache: bool,
    /// For each function, print the first changed instruction and the hunks that
    /// change it; for each new symbol, what uses it; for each hunk, its effect.
    #[arg(long)]
    explain: bool,
    // The name of `--verbose` in livepatch-build.
    #[arg(long, hide = true)]
    debug: bool,
}

/// What a build made.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(crate) struct Built {
    /// The payload, if it was written.
    #[serde(flatten)]
    pub(crate) report: Option<Report>,
    /// Whether it is proved, if that was asked for.
    pub(crate) verify: Option<Verdict>,
}

#[derive(Clone)]
struct BuildId(Vec<u8>);

fn depends(text: &str) -> Result<BuildId, String> {
    build_id(text).map_err(|error| {
        format!("{error}; to build on top of a payload, give its file with `--on`")
    })
}

fn build_id(text: &str) -> Result<BuildId, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text).as_bytes();
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes: Option<Vec<u8>> = pairs
        .iter()
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    match bytes {
        Some(bytes) if !bytes.is_empty() && rest.is_empty() => Ok(BuildId(bytes)),
        _ => Err("a build-id has two hexadecimal digits for each byte".to_owned()),
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| "metadata is written KEY=VALUE".to_owned())
}

pub(crate) fn run(args: &Args, json: bool) -> ExitCode {
    let Some(path) = &args.refusal else {
        return build(args, json).tell(json);
    };
    if *path == args.output {
        let error = anyhow!("--refusal and --output name the same file");
        return failure(&error, json);
    }
    if let Err(error) = remove_refusal(path) {
        return failure(&error, json);
    }
    let ended = build(args, json);
    if let Err(error) = write_refusal(path, &ended) {
        complain!("error: {error:#}");
    }
    ended.tell(json)
}

/// Removes what an earlier build has written there.
fn remove_refusal(path: &Path) -> anyhow::Result<()> {
    let name = || shown(path);
    if !path.try_exists().with_context(name)? {
        return file::check_writable(path).with_context(name);
    }
    let text = file::read(path).with_context(name)?;
    let value = serde_json::from_slice::<serde_json::Value>(&text);
    if value.is_ok_and(|value| value["error"].is_object()) {
        return std::fs::remove_file(path).with_context(name);
    }
    bail!(
        "{}: it is there, and is no refusal: name another file",
        name()
    )
}

/// Writes why no payload was written, if that is so.
fn write_refusal(path: &Path, ended: &Ended<Built>) -> anyhow::Result<()> {
    if !ended.is_failure() {
        return Ok(());
    }
    let written = file::write(path, format!("{}\n", ended.text()?).as_bytes());
    written.with_context(|| format!("cannot write {}", shown(path)))
}

fn build(args: &Args, json: bool) -> Ended<Built> {
    let options = Options {
        source: args.srcdir.clone(),
        patches: args.patch.clone(),
        xen_syms: args.xen_syms.clone(),
        output: output_file(args),
        config: args.config.clone(),
        below: args.on.clone(),
        below_patches: args.on_patch.clone(),
        depends: args.depends.clone().map(|id| id.0),
        xen_depends: args.xen_depends.clone().map(|id| id.0),
        prelink: args.prelink,
        jobs: args.jobs,
        hooks: args.hooks.clone(),
        leave_out: args.leave_out.iter().cloned().collect(),
        leave_out_init: args.leave_out_init,
        patch_data: args.patch_data.iter().cloned().collect(),
        allow: args.allow.iter().cloned().collect(),
        metadata: args.meta.clone(),
        cache: (!args.no_cache).then(|| cached("objects")).flatten(),
    };
    if args.debug {
        lines::set_detail(Detail::Verbose);
    }
    let shown = Shown::new(json);
    if args.verify {
        return crate::verified::run(args, options, &shown, json);
    }
    let result = generate(&options, &shown);
    shown.finish();
    match result {
        Ok(report) => show(args, report, None, json),
        Err(refused) => refusal(&refused),
    }
}

/// A directory of the cache, if there is one.
pub(crate) fn cached(of: &str) -> Option<PathBuf> {
    cache::root().map(|root| root.join(of))
}

pub(crate) fn refusal(refused: &Refused) -> Ended<Built> {
    let problems = refused.0.iter().map(|problem| Problem {
        code: Some(problem.code.to_string()),
        place: Some(problem.place.clone()),
        message: problem.message.clone(),
    });
    let words: Vec<String> = refused.0.iter().map(ToString::to_string).collect();
    let failure = Failure::refused(words.join("\n"), problems.collect());
    for problem in &refused.0 {
        complain!("error: {problem} [{}]", problem.code);
    }
    complain!("No payload was written.");
    Ended::badly(failure)
}

/// Shows the report of a payload, and the verdict on it if there is one.
pub(crate) fn show(
    args: &Args,
    report: Report,
    verdict: Option<Verdict>,
    json: bool,
) -> Ended<Built> {
    if !json {
        print(&report, args.explain);
        if let Some(verdict) = &verdict {
            crate::opinion::print(verdict);
        }
    }
    let built = Built {
        report: Some(report),
        verify: verdict,
    };
    Ended::well(built).changed(true)
}

/// `-o` names a file, or a directory as with livepatch-build.
fn output_file(args: &Args) -> PathBuf {
    if !args.output.is_dir() {
        return args.output.clone();
    }
    let stem = args.patch[0].file_stem().unwrap_or_default();
    args.output.join(stem).with_extension("livepatch")
}

fn print(report: &Report, explain: bool) {
    for note in &report.notes {
        say!("note: {note}");
    }
    for warning in &report.warnings {
        say!("warning: {warning}");
    }
    print_functions(report, explain);
    print_carried(report, explain);
    print_data(report);
    print_hooks(report);
    if !report.left_out.is_empty() {
        say!("Left out (--leave-out):");
        for change in &report.left_out {
            say!("  {}: {} ({})", change.file, change.name, change.why);
        }
    }
    print_hunks(&report.hunks);
    say!(
        "{}: {} bytes, for the hypervisor with build-id {}; every replaced function was verified byte for byte against it",
        shown(&report.output),
        report.size,
        report.hypervisor
    );
}

fn print_functions(report: &Report, explain: bool) {
    if !report.functions.is_empty() {
        say!("Replaced functions:");
    }
    for f in &report.functions {
        say!(
            "  {:<32} {:<28} {:>6} -> {:<6} {}",
            f.name,
            f.file,
            f.old_size,
            f.new_size,
            f.why
        );
        if explain {
            explain_function(f, &report.hunks);
        }
    }
}

fn print_carried(report: &Report, explain: bool) {
    if !report.carried.is_empty() {
        say!("New in the payload:");
    }
    for c in &report.carried {
        say!("  {:<32} {:<28} {:>6} bytes", c.name, c.file, c.size);
        if explain && !c.used_by.is_empty() {
            say!("      used by {}", c.used_by);
        }
    }
}

/// The data of the hypervisor that the payload changes or takes.
fn print_data(report: &Report) {
    if !report.patched_data.is_empty() {
        say!("Changed in place (--patch-data):");
    }
    for d in &report.patched_data {
        let kind = if d.variable { "variable" } else { "constant" };
        say!(
            "  {:<32} {:<28} {:>6} of {} bytes, {kind}",
            d.name,
            d.file,
            d.written,
            d.size
        );
    }
    if !report.per_cpu.is_empty() {
        say!("New per-CPU variables:");
    }
    for v in &report.per_cpu {
        say!("  {:<32} {:<28} {:>6} bytes", v.name, v.file, v.size);
    }
}

fn print_hooks(report: &Report) {
    if !report.hooks.is_empty() {
        say!("Hooks:");
    }
    for hook in &report.hooks {
        say!(
            "  {:<32} {:<28} {:>6} called",
            hook.stage,
            hook.file,
            hook.functions
        );
    }
}

fn explain_function(function: &PatchedFunction, hunks: &[Hunk]) {
    if let Some(change) = &function.first_change {
        say!("      - +{:#06x} {}", change.old_offset, change.old);
        say!("      + +{:#06x} {}", change.new_offset, change.new);
        if let Some(line) = &change.line {
            say!("        at {line}");
        }
    }
    for hunk in hunks {
        if let Effect::InPayload { names } | Effect::Alternative { names, .. } = &hunk.effect
            && names.contains(&function.name)
        {
            say!("      {}:{} of {}", hunk.file, hunk.line, hunk.patch);
        }
    }
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().cloned().collect::<Vec<_>>().join(", ")
}

/// Says in one line how many hunks are in the payload, and names the others.
fn print_hunks(hunks: &[Hunk]) {
    let in_payload = |hunk: &&Hunk| hunk.effect.is_in_payload();
    say!(
        "Hunks: {} of {} in the payload",
        hunks.iter().filter(in_payload).count(),
        hunks.len()
    );
    for hunk in hunks {
        let why = match &hunk.effect {
            Effect::InPayload { .. } => continue,
            Effect::Alternative { others, names } => format!(
                "no effect alone, but leaving it out together with {} changes {}",
                list(others),
                list(names)
            ),
            Effect::LeftOut { names } => format!("left out: {}", list(names)),
            Effect::Placement { names } => format!(
                "changes only the placement of data, and the running hypervisor's is as good: {}",
                list(names)
            ),
            Effect::Restored { names } => format!(
                "undoes a change that a payload below left out: {}",
                list(names)
            ),
            Effect::Unused { names } => {
                format!(
                    "changes only what the running hypervisor does not use: {}",
                    list(names)
                )
            }
            Effect::None { objects: 0 } => {
                "no effect on code: the files generated from this one are identical without this hunk"
                    .to_owned()
            }
            Effect::None { objects: 1 } => {
                "no effect on code: the affected object is identical without this hunk".to_owned()
            }
            Effect::None { objects } => format!(
                "no effect on code: the {objects} affected objects are identical without this hunk"
            ),
            Effect::NotBuilt => "not compiled into this hypervisor".to_owned(),
        };
        say!("  {}:{}: {why}", hunk.file, hunk.line);
    }
}
