// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice build --verify`: a payload that is written only once it is proved.

use crate::build::{Args, Built, refusal, show};
use crate::opinion::{self, From, Question};
use crate::output::{Ended, complain, shown};
use crate::progress::Shown;
use anyhow::{Context as _, bail};
use std::path::PathBuf;
use xsplice_generator::{Options, Refused, Report, generate};
use xsplice_system::file;
use xsplice_system::interrupt::Directory;
use xsplice_verify::Verdict;

/// The outcome of the build.
enum Outcome {
    Refused(Refused),
    Judged(Box<Report>, Verdict),
}

pub(crate) fn run(args: &Args, options: Options, progress: &Shown, json: bool) -> Ended<Built> {
    let result = build(options, progress);
    progress.finish();
    match result {
        Ok(Outcome::Refused(refused)) => refusal(&refused),
        Ok(Outcome::Judged(report, verdict)) if verdict.proved => {
            show(args, *report, Some(verdict), json)
        }
        Ok(Outcome::Judged(_, verdict)) => {
            if !json {
                opinion::print(&verdict);
            }
            complain!("No payload was written.");
            let failure = opinion::refused(&verdict);
            let built = Built {
                report: None,
                verify: Some(verdict),
            };
            Ended::well(built).but(failure)
        }
        Err(error) => {
            complain!("error: {error:#}");
            complain!("No payload was written.");
            Ended::badly((&error).into())
        }
    }
}

fn build(mut options: Options, progress: &Shown) -> anyhow::Result<Outcome> {
    let output = options.output.clone();
    options.check_output().with_context(|| shown(&output))?;
    let lists = [&options.patches, &options.below, &options.below_patches];
    let inputs = lists.into_iter().chain([&options.hooks]).flatten();
    file::check_rereadable(inputs.chain([&options.xen_syms]))?;
    if options.depends.is_some() {
        bail!("--verify needs the payloads below: give their files with --on");
    }
    let directory = Directory::new("xsplice-build-")?;
    options.output = directory
        .path()
        .join(output.file_name().unwrap_or_default());
    let mut report = match generate(&options, progress) {
        Ok(report) => report,
        Err(refused) => return Ok(Outcome::Refused(refused)),
    };
    progress.finish();
    let mut payloads = opinion::payloads(&options.below)?;
    let payload = opinion::read(&options.output)?;
    payloads.push((shown(&output), payload));
    let accepted = opinion::recorded(&payloads)?;
    let patches: Vec<PathBuf> = [options.below_patches, options.patches].concat();
    let verdict = opinion::ask(
        &Question {
            payloads: &payloads,
            xen_syms: &options.xen_syms,
            from: From::Source {
                tree: &options.source,
                patches: &patches,
                hooks: &options.hooks,
                cached: options.cache.is_some(),
            },
            accepted,
        },
        progress,
    )?;
    if verdict.proved {
        let payload = payloads.pop().map(|(_, data)| data).unwrap_or_default();
        file::write(&output, &payload)
            .with_context(|| format!("cannot write {}", shown(&output)))?;
        report.output = output;
    }
    Ok(Outcome::Judged(Box::new(report), verdict))
}
