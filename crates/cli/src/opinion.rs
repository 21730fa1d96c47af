// SPDX-License-Identifier: MIT OR Apache-2.0
//! The second opinion that `verify`, `build` and `report` ask for.

use crate::build::cached;
use crate::output::{Failure, complain, say, shown};
use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};
use xsplice_host_image::Image;
use xsplice_review::{Payload, Record};
use xsplice_system::file;
use xsplice_verify::{Accepted, Input, Inputs, Level, Patched, Plan, Progress, Recorded, Verdict};
use xsplice_verify::{build, built, check, generated_hooks, verify};

/// Where the patched hypervisor comes from.
pub(crate) enum From<'a> {
    /// Built from this tree, with these patches and hooks, in a copy that is kept if
    /// `cached`.
    Source {
        tree: &'a Path,
        patches: &'a [PathBuf],
        hooks: &'a [PathBuf],
        cached: bool,
    },
    /// Already built; types are compared with those of the tree.
    Built {
        syms: &'a Path,
        objects: Option<&'a Path>,
        tree: Option<&'a Path>,
    },
}

/// What to verify.
pub(crate) struct Question<'a> {
    /// Names and contents of the payloads, from the bottom up.
    pub(crate) payloads: &'a [(String, Vec<u8>)],
    pub(crate) xen_syms: &'a Path,
    pub(crate) from: From<'a>,
    pub(crate) accepted: Accepted,
}

/// Verifies, and reports `progress`.
pub(crate) fn ask(question: &Question, progress: &dyn Progress) -> anyhow::Result<Verdict> {
    let syms = read(question.xen_syms)?;
    let name = shown(question.xen_syms);
    let original = Input {
        name: &name,
        data: &syms,
    };
    let payloads = question.payloads.iter();
    let payloads: Vec<Input> = payloads.map(|(name, data)| Input { name, data }).collect();
    // Check the inputs before minutes go into the build.
    check(original, &payloads)?;
    // The proof takes addresses from the symbols, the hypervisor from its own list.
    Image::parse(&syms).with_context(|| name.clone())?;
    let patched = patched(question, progress)?;
    progress.stage("comparing the hypervisors");
    let mut verdict = verify(&Inputs {
        original,
        payloads,
        patched: Input {
            name: "the patched hypervisor",
            data: &patched.syms,
        },
        objects: Input {
            name: "the patched hypervisor's prelink.o",
            data: &patched.objects,
        },
        types: patched.types.as_ref(),
        files: patched.files,
        accepted: question.accepted.clone(),
    })?;
    verdict.notes.extend(patched.notes);
    Ok(verdict)
}

fn patched(question: &Question, progress: &dyn Progress) -> anyhow::Result<Patched> {
    Ok(match question.from {
        From::Source {
            tree,
            patches: all,
            hooks,
            cached: keep,
        } => {
            let cache = keep.then(|| cached("trees")).flatten();
            let payloads = question.payloads.iter();
            let recorded = payloads.map(|(name, data)| Recorded::of(&Input { name, data }));
            let recorded: Vec<Recorded> = recorded.collect();
            let payloads = question.payloads.iter().zip(&recorded);
            let levels = payloads.map(|(payload, from)| level(payload, from, &question.accepted));
            let levels: Vec<Level> = levels.collect::<anyhow::Result<_>>()?;
            let payloads = question.payloads.iter();
            let generated: Vec<String> = payloads
                .filter_map(|(name, data)| generated_hooks(&Input { name, data }))
                .collect();
            let plan = Plan {
                tree,
                patches: all,
                levels: &levels,
                recorded: &recorded,
                hooks,
                generated: &generated,
                cache: cache.as_deref(),
            };
            build(&plan, progress)?
        }
        From::Built {
            syms,
            objects,
            tree,
        } => {
            let beside = syms.with_file_name("prelink.o");
            ensure!(
                objects.is_some() || beside.exists(),
                "{}: there is no prelink.o beside it: give the one that it was linked from with \
                 --patched-objects",
                shown(syms)
            );
            built(syms, objects.unwrap_or(&beside), tree, progress)?
        }
    })
}

pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    file::read(path).with_context(|| format!("cannot read {}", shown(path)))
}

/// Names and contents of payloads.
pub(crate) fn payloads(paths: &[PathBuf]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let named = paths.iter();
    named.map(|path| Ok((shown(path), read(path)?))).collect()
}

/// The inputs of a payload. A file may be left out by one payload of a stack and
/// changed by another.
fn level(
    (name, data): &(String, Vec<u8>),
    from: &Recorded,
    accepted: &Accepted,
) -> anyhow::Result<Level> {
    let options = record(name, data)?.map(|record| record.options);
    let left_out = |file: &&String| {
        let options = options.as_ref();
        options.is_none_or(|options| options.leave_out.contains(file))
    };
    let files = accepted.leave_out.iter();
    Ok(Level {
        patches: from.count(),
        leave_out: files.filter(left_out).cloned().collect(),
    })
}

/// The build record of a payload.
fn record(name: &str, data: &[u8]) -> anyhow::Result<Option<Record>> {
    let payload = Payload::read(data, None).with_context(|| name.to_owned())?;
    Ok(payload.record)
}

/// The options and decisions in the build records of `payloads`.
pub(crate) fn recorded(payloads: &[(String, Vec<u8>)]) -> anyhow::Result<Accepted> {
    let mut accepted = Accepted {
        recorded: true,
        ..Accepted::default()
    };
    for (number, (name, data)) in payloads.iter().enumerate() {
        if let Some(record) = record(name, data)? {
            let options = record.options;
            accepted.leave_out.extend(options.leave_out);
            accepted.leave_out_init |= options.leave_out_init;
            accepted.allow.extend(options.allow);
            let lower = number + 1 < payloads.len();
            accepted.lower_hooks |= lower && !options.hooks.is_empty();
            let renewed = record.renewed.into_iter();
            accepted
                .renewed
                .extend(renewed.map(|flag| format!("{}:{}", flag.file, flag.name)));
        }
    }
    Ok(accepted)
}

/// A proof goes to standard output, anything else to standard error.
pub(crate) fn print(verdict: &Verdict) {
    for difference in &verdict.left_out {
        say!("left out: {difference}");
    }
    for note in &verdict.notes {
        say!("note: {note}");
    }
    for difference in &verdict.differences {
        complain!("{difference}");
    }
    if verdict.proved {
        say!("{}", summary(verdict));
    } else {
        complain!("{}", summary(verdict));
    }
}

/// The failure that this verdict is, if it is one.
pub(crate) fn refused(verdict: &Verdict) -> Option<Failure> {
    (!verdict.proved).then(|| Failure::refused(summary(verdict), Vec::new()))
}

/// The verdict in one line.
pub(crate) fn summary(verdict: &Verdict) -> String {
    if verdict.proved {
        format!(
            "proved: {} functions ({} of the payload), {} objects and {} types are those of the \
             patched hypervisor",
            verdict.functions, verdict.from_payload, verdict.objects, verdict.types
        )
    } else {
        format!(
            "not proved: {} of the patched hypervisor's functions, objects and types have no counterpart",
            verdict.differences.len()
        )
    }
}
