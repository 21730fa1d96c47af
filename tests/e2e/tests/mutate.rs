// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random small edits to the hypervisor: if the generator makes a payload of one, or
//! says that it changes nothing, a real build of the patched source and the second
//! opinion must agree. Refusals are counted by reason.
//!
//! `XSPLICE_SEED` chooses the edits, `XSPLICE_MUTATIONS` is their number,
//! `XSPLICE_FAULTS` the directory for patches that led to a wrong payload.

use anyhow::{Context as _, ensure};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use xsplice_e2e::claim::{Claim, opinion};
use xsplice_e2e::mutation::{self, Mutation, Random};
use xsplice_e2e::{Base, base, build};

/// Number of edits that share one build of the hypervisor.
const BATCH: usize = 8;

/// A change that the generator did not refuse.
struct Accepted {
    mutation: Mutation,
    claim: Claim,
}

impl Accepted {
    /// `payload` is `None` if the generator says that no code changes.
    fn new(mutation: Mutation, patch: PathBuf, payload: Option<Vec<u8>>) -> Self {
        let claim = Claim {
            name: mutation.file.clone(),
            levels: vec![(patch, payload)],
            options: Vec::new(),
        };
        Self { mutation, claim }
    }

    fn has_no_payload(&self) -> bool {
        self.claim
            .levels
            .iter()
            .all(|(_, payload)| payload.is_none())
    }
}

/// The generator's messages if there is nothing to do.
const NOTHING: [&str; 2] = ["it changes no code", "there is nothing to patch"];

#[test]
fn payloads_of_random_edits_match_the_patched_source() -> anyhow::Result<()> {
    let base = base()?;
    let number = |name: &str, otherwise: u64| match std::env::var(name) {
        Ok(text) => text.parse().context(name.to_owned()),
        Err(_) => Ok(otherwise),
    };
    let all = std::env::var_os("XSPLICE_ALL").is_some();
    let count = number("XSPLICE_MUTATIONS", if all { 200 } else { 4 })?;
    let mut random = Random::new(number("XSPLICE_SEED", 1)?);
    let sources = mutation::sources(&base)?;
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    let mut unchanged: BTreeMap<&str, usize> = BTreeMap::new();
    let mut faults = Vec::new();
    let (mut left, mut proved) = (usize::try_from(count)?, 0);
    while left > 0 {
        let batch = left.min(BATCH);
        left -= batch;
        let directory = tempfile::tempdir()?;
        let mut accepted = Vec::new();
        let mut used = Vec::new();
        for index in 0..batch {
            let mutation = mutation::mutate(&base.tree, &sources, &used, &mut random)?;
            used.push(mutation.file.clone());
            let patch = directory.path().join(format!("{index}.patch"));
            std::fs::write(&patch, &mutation.patch)?;
            match payload(&base, &patch) {
                Ok(payload) => accepted.push(Accepted::new(mutation, patch, Some(payload))),
                Err(error) if NOTHING.iter().any(|n| error.to_string().contains(n)) => {
                    *unchanged.entry(mutation.kind).or_default() += 1;
                    accepted.push(Accepted::new(mutation, patch, None));
                }
                Err(error) => {
                    let reason = reason(mutation.kind, &error.to_string());
                    say(&format!("{}: refused: {reason}: {error:#}", mutation.file));
                    *refused.entry(reason).or_default() += 1;
                }
            }
        }
        let (wrong, unbuilt) = wrong(&base, &accepted)?;
        proved += accepted.len() - wrong.len() - unbuilt;
        faults.extend(wrong);
        say(&format!(
            "{proved} proved, {} wrong, {left} to go",
            faults.len()
        ));
    }
    for (kind, count) in &unchanged {
        say(&format!("{count:4} without effect: {kind}"));
    }
    for (reason, count) in &refused {
        say(&format!("{count:4} refused: {reason}"));
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    ensure!(count < 4 || proved > 0, "nothing was proved: {refused:?}");
    Ok(())
}

fn payload(base: &Base, patch: &Path) -> anyhow::Result<Vec<u8>> {
    let output = patch.with_extension("livepatch");
    build(base, patch, &output)?;
    Ok(std::fs::read(output)?)
}

/// Which payloads are wrong, and why, and the number of edits without effect whose
/// complete build fails. All are tried together first.
fn wrong(base: &Base, accepted: &[Accepted]) -> anyhow::Result<(Vec<String>, usize)> {
    let claims: Vec<&Claim> = accepted.iter().map(|one| &one.claim).collect();
    let together = match claims.as_slice() {
        [] => return Ok((Vec::new(), 0)),
        claims => opinion(base, claims),
    };
    if together.as_ref().is_ok_and(|verdict| verdict.proved) {
        return Ok((Vec::new(), 0));
    }
    let (mut faults, mut unbuilt) = (Vec::new(), 0);
    for one in accepted {
        let why = match opinion(base, &[&one.claim]) {
            Ok(verdict) if verdict.proved => continue,
            Ok(verdict) => {
                let differences = verdict.differences.iter().map(ToString::to_string);
                differences.collect::<Vec<_>>().join("\n")
            }
            // Two files may now define the same name: there is no payload then.
            Err(error) if one.has_no_payload() => {
                say(&format!("{}: {error:#}", one.mutation.file));
                unbuilt += 1;
                continue;
            }
            Err(error) => format!("{error:#}"),
        };
        let Mutation { file, kind, patch } = &one.mutation;
        let fault = format!("{file} ({kind}):\n{patch}\n{why}\n");
        say(&fault);
        if let Some(directory) = std::env::var_os("XSPLICE_FAULTS") {
            let name = format!("{}.patch", file.replace('/', "-"));
            std::fs::write(Path::new(&directory).join(name), &fault)?;
        }
        faults.push(fault);
    }
    // Two edits may each make a function of the same name global.
    ensure!(
        !faults.is_empty() || unbuilt > 0 || together.is_err(),
        "payloads that are right alone are wrong together: {together:?}"
    );
    Ok((faults, unbuilt))
}

/// The kind of a refusal: its message without names and numbers.
fn reason(kind: &str, error: &str) -> String {
    let first = error.lines().next().unwrap_or_default();
    let known = [
        "does not compile",
        "no effect on code",
        "nothing to patch",
        "only used while booting",
        "must not be patched",
        "entry",
        "ambiguous",
        "initial value",
        "layout",
    ];
    let found = known.iter().find(|known| error.contains(**known));
    format!("{kind}: {}", found.unwrap_or(&first))
}

/// Prints progress while the test runs.
fn say(text: &str) {
    // Errors do not matter.
    let _ = writeln!(std::io::stderr(), "{text}");
}
