// SPDX-License-Identifier: MIT OR Apache-2.0

//! `xsplice report`.

use crate::inspect::{read, read_image};
use crate::opinion::{self, From, Question};
use crate::output::{Ended, Failure, failure, say, shown};
use crate::progress::Shown;
use crate::signature::{Certs, Keys};
use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use xsplice_host_image::Checker;
use xsplice_review::{Image, Opinion, Payload, Review, SourcePatch};
use xsplice_system::file;
use xsplice_verify::{Difference, Verdict};

const EXAMPLES: &str = "\
Examples:
  xsplice report fix.livepatch --xen-syms xen-syms -p fix.patch -o fix.html
  xsplice report second.livepatch --on first.livepatch --xen-syms xen-syms -o second.html

A source patch is shown only if the payload records its SHA-256, or records no
source patch at all.

With -s, the complete patched hypervisor is built, and the page says whether the
payload is proved, as with `xsplice verify`. Without it, the page says that no
proof was requested: a payload cannot vouch for itself.

Exit codes: 0 if the payload would load and apply, and with -s is proved; 1 if not
(the page gives the reason), or if no page could be written.";

/// Arguments of `xsplice report`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The payload.
    payload: PathBuf,
    /// The hypervisor's image with symbols.
    #[arg(long, value_name = "FILE")]
    xen_syms: PathBuf,
    /// Source patch that the payload was built from; repeat it for several.
    #[arg(short, long, value_name = "FILE")]
    patch: Vec<PathBuf>,
    /// The built source tree of the hypervisor: also verify the payload.
    #[arg(short, long, value_name = "DIR", requires = "patch")]
    srcdir: Option<PathBuf>,
    /// Source patch of a payload given with --on, for -s; repeat it for several, in
    /// order.
    #[arg(long, value_name = "FILE", requires = "srcdir")]
    on_patch: Vec<PathBuf>,
    /// C source of hooks that the payload was built with, for -s; repeat it for
    /// several.
    #[arg(long, value_name = "FILE", requires = "srcdir")]
    hooks: Vec<PathBuf>,
    /// Applied payload; repeat it for a stack, the lowest first.
    #[arg(long, value_name = "FILE")]
    on: Vec<PathBuf>,
    /// The page to write; `-` is standard output.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    certs: Certs,
}

/// The page that was written, and what it says.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(crate) struct Reported {
    /// Where it is.
    output: String,
    /// Whether the payload would load and apply.
    check: xsplice_host_image::Report,
    /// Whether it is proved, if that was asked for.
    verify: Option<Verdict>,
}

pub(crate) fn run(args: &Args, json: bool) -> ExitCode {
    match write(args, json) {
        Ok((verdict, opinion)) => {
            let output = shown(&args.output);
            let loads = verdict.loads && verdict.applies;
            let words = if loads {
                "the payload would load and apply"
            } else {
                "the payload would NOT load and apply; the page says why"
            };
            if !json {
                say!("{output}: {words}");
                if let Some(opinion) = &opinion {
                    say!("{output}: {}", opinion::summary(opinion));
                }
            }
            let refused = (!loads).then(|| Failure::refused(words, Vec::new()));
            let refused = refused.or_else(|| opinion.as_ref().and_then(opinion::refused));
            let reported = Reported {
                output,
                check: verdict,
                verify: opinion,
            };
            Ended::well(reported).changed(true).but(refused).tell(json)
        }
        Err(error) => failure(&error, json),
    }
}

fn write(args: &Args, json: bool) -> anyhow::Result<(xsplice_host_image::Report, Option<Verdict>)> {
    let lists = [&args.patch, &args.on, &args.on_patch, &args.hooks];
    let inputs = lists.into_iter().flatten();
    file::check_output(&args.output, inputs.chain([&args.payload, &args.xen_syms]))
        .with_context(|| shown(&args.output))?;
    if args.srcdir.is_some() {
        let inputs = lists.into_iter().flatten();
        file::check_rereadable(inputs.chain([&args.payload, &args.xen_syms]))?;
    }
    let data = read(&args.payload)?;
    let image = Arc::new(read_image(&args.xen_syms)?);
    let payload = Payload::read(&data, Some(&image)).with_context(|| shown(&args.payload))?;
    let patches = patches(&args.patch, &payload)?;
    let name = file_name(&args.payload);
    let keys = args.certs.read()?;
    let signature = keys.state(&data).to_string();
    let verdict = check(args, &image, &name, data.clone(), &keys)?;
    let opinion = opinion(args, json)?;
    let words = opinion.as_ref().map(in_words);
    let review = Review::new(&name, &data, &image, &patches, &verdict);
    let review = review.with_context(|| shown(&args.payload))?;
    let review = review.with_opinion(words.as_ref());
    let page = review.with_signature(&signature).to_html();
    file::write(&args.output, page.as_bytes())
        .with_context(|| format!("cannot write {}", shown(&args.output)))?;
    Ok((verdict, opinion))
}

/// The second opinion, if it is asked for.
fn opinion(args: &Args, json: bool) -> anyhow::Result<Option<Verdict>> {
    let Some(tree) = &args.srcdir else {
        return Ok(None);
    };
    let paths: Vec<PathBuf> = args.on.iter().chain([&args.payload]).cloned().collect();
    let payloads = opinion::payloads(&paths)?;
    let patches = [args.on_patch.as_slice(), &args.patch].concat();
    let question = Question {
        payloads: &payloads,
        xen_syms: &args.xen_syms,
        from: From::Source {
            tree,
            patches: &patches,
            hooks: &args.hooks,
            cached: true,
        },
        accepted: opinion::recorded(&payloads)?,
    };
    opinion::ask(&question, &Shown::new(json)).map(Some)
}

fn in_words(verdict: &Verdict) -> Opinion {
    let words = |differences: &[Difference]| differences.iter().map(ToString::to_string).collect();
    Opinion {
        proved: verdict.proved,
        summary: opinion::summary(verdict),
        differences: words(&verdict.differences),
        left_out: words(&verdict.left_out),
        notes: verdict.notes.clone(),
    }
}

/// Reads the source patches; the error names all that do not belong to the payload.
fn patches(paths: &[PathBuf], payload: &Payload) -> anyhow::Result<Vec<SourcePatch>> {
    let (mut patches, mut foreign) = (Vec::new(), Vec::new());
    for path in paths {
        let patch = SourcePatch::new(&file_name(path), &read(path)?, payload);
        if patch.recorded == Some(false) {
            foreign.push(format!("{} (sha256:{})", shown(path), patch.sha256));
        }
        patches.push(patch);
    }
    if foreign.is_empty() {
        return Ok(patches);
    }
    let recorded = xsplice_review::report::recorded(payload);
    let recorded: Vec<_> = recorded
        .map(|(name, hash)| format!("{name} (sha256:{hash})"))
        .collect();
    bail!(
        "the payload was not built from {}; it was built from {}",
        foreign.join(", "),
        recorded.join(", ")
    )
}

/// The verdict on the payload, on top of those below it.
fn check(
    args: &Args,
    image: &Arc<Image>,
    name: &str,
    data: Vec<u8>,
    keys: &Keys,
) -> anyhow::Result<xsplice_host_image::Report> {
    let image = xsplice_host_image::Image::new(Arc::clone(image));
    let image = image.with_context(|| shown(&args.xen_syms))?;
    let below = args.on.iter().enumerate();
    let below = below.map(|(number, path)| Ok((format!("below {number}"), read(path)?)));
    let mut payloads: Vec<_> = below.collect::<anyhow::Result<_>>()?;
    payloads.push((name.to_owned(), data));
    let keys = keys.keys()?;
    let checker = Checker::new(&image).with_signatures(Keys::demand(&keys));
    let mut verdicts = checker.check(&payloads);
    let verdict = verdicts.pop().context("the check gave no verdict")?;
    for (path, below) in args.on.iter().zip(&verdicts) {
        if !below.applies {
            bail!(
                "{}: would not load and apply itself; `xsplice check` says why",
                shown(path)
            );
        }
    }
    Ok(verdict)
}

/// Only the file name: the path is local to the author.
fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}
