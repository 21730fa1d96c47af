// SPDX-License-Identifier: MIT OR Apache-2.0
//! Claims about payloads and their patches, and the second opinion on each.
//!
//! Linking the patched hypervisor takes longer than anything else, so independent
//! payloads share one link.

use crate::Base;
use crate::mutation::Random;
use anyhow::{Context as _, ensure};
use object::{Object as _, ObjectSection as _};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;
use xsplice_abi::machine::Width;
use xsplice_abi::payload::LivepatchFunc;
use xsplice_review::Payload;
use xsplice_verify::{Accepted, Input, Inputs, Level, Plan, Verdict, generated_hooks};

/// The claim that the hypervisor with these payloads is the one built from these
/// patches.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// Source patches and the payload of each, the lowest first; `None` if the
    /// generator says that the patch changes nothing.
    pub levels: Vec<(PathBuf, Option<Vec<u8>>)>,
    /// The options of `xsplice build`.
    pub options: Vec<String>,
}

impl Claim {
    /// The values of an option.
    fn values(&self, option: &str) -> impl Iterator<Item = String> {
        let pairs = self.options.windows(2);
        let named = pairs.filter(move |pair| pair[0] == option);
        named.map(|pair| pair[1].clone())
    }

    fn leaves_out_init(&self) -> bool {
        self.options
            .iter()
            .any(|option| option == "--leave-out-init")
    }

    /// Files that the patches change, and addresses of functions that the payloads
    /// replace.
    fn touches(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut touched = BTreeSet::new();
        for (patch, payload) in &self.levels {
            let text = std::fs::read(patch)?;
            let text = String::from_utf8_lossy(&text);
            for start in ["--- a/", "+++ b/", "rename from ", "rename to "] {
                let named = text.lines().filter_map(|line| line.strip_prefix(start));
                touched.extend(named.map(|name| name.trim().to_owned()));
            }
            let replaced = payload.as_deref().map(replaced).transpose()?;
            touched.extend(replaced.into_iter().flatten());
        }
        // Hooks change the makefile.
        touched.extend(
            self.values("--hooks")
                .map(|_| "xen/common/Makefile".to_owned()),
        );
        Ok(touched)
    }
}

/// The addresses of the functions that a payload replaces.
fn replaced(payload: &[u8]) -> anyhow::Result<Vec<String>> {
    let elf = object::File::parse(payload)?;
    let records = elf.section_by_name(".livepatch.funcs");
    let records = records.context("it replaces nothing")?.data()?;
    let width = if elf.is_64() {
        Width::Bits64
    } else {
        Width::Bits32
    };
    let old = records.chunks(width.func_size()).map(|record| {
        let record = LivepatchFunc::read(record, width).context("a record is cut off")?;
        Ok(format!("{:#x}", record.old_addr.get()))
    });
    old.collect()
}

/// The second opinion on all `claims` together.
///
/// # Errors
/// If the patched hypervisor cannot be built, or a payload cannot be applied.
pub fn opinion(base: &Base, claims: &[&Claim]) -> anyhow::Result<Verdict> {
    let Stacked {
        levels,
        patches,
        payloads,
    } = Stacked::new(claims);
    let values = |option: &str| -> Vec<String> {
        claims
            .iter()
            .flat_map(|claim| claim.values(option))
            .collect()
    };
    let hooks: Vec<PathBuf> = values("--hooks").into_iter().map(PathBuf::from).collect();
    let accepted = Accepted {
        leave_out: values("--leave-out"),
        leave_out_init: claims.iter().any(|claim| claim.leaves_out_init()),
        allow: values("--allow"),
        renewed: renewed(claims)?,
        ..Accepted::default()
    };
    let generated: Vec<String> = payloads.iter().filter_map(generated_hooks).collect();
    let patched = xsplice_verify::build(
        &Plan {
            tree: &base.tree,
            patches: &patches,
            levels: &levels,
            recorded: &[],
            hooks: &hooks,
            generated: &generated,
            cache: None,
        },
        &xsplice_verify::Silent,
    )?;
    let original = std::fs::read(&base.xen_syms)?;
    let input = |name, data| Input { name, data };
    Ok(xsplice_verify::verify(&Inputs {
        original: input("xen-syms", &original),
        payloads,
        patched: input("patched", &patched.syms),
        objects: input("prelink.o", &patched.objects),
        types: patched.types.as_ref(),
        files: patched.files,
        accepted,
    })?)
}

/// What claims have at each level, the lowest first.
struct Stacked<'a> {
    levels: Vec<Level>,
    patches: Vec<PathBuf>,
    payloads: Vec<Input<'a>>,
}

impl<'a> Stacked<'a> {
    fn new(claims: &[&'a Claim]) -> Self {
        let height = claims.iter().map(|claim| claim.levels.len()).max();
        let mut stacked = Self {
            levels: Vec::new(),
            patches: Vec::new(),
            payloads: Vec::new(),
        };
        for level in 0..height.unwrap_or(0) {
            let all = claims.iter();
            let all: Vec<_> = all
                .filter_map(|c| Some((*c, c.levels.get(level)?)))
                .collect();
            stacked.levels.push(Level {
                patches: Some(all.len()),
                leave_out: all
                    .iter()
                    .flat_map(|(c, _)| c.values("--leave-out"))
                    .collect(),
            });
            for (claim, (patch, payload)) in all {
                stacked.patches.push(patch.clone());
                let inputs = payload.as_deref().map(|data| Input {
                    name: &claim.name,
                    data,
                });
                stacked.payloads.extend(inputs);
            }
        }
        stacked
    }
}

/// Message flags that start again according to the payloads' records.
fn renewed(claims: &[&Claim]) -> anyhow::Result<Vec<String>> {
    let payloads = claims.iter().flat_map(|claim| &claim.levels);
    let mut renewed = Vec::new();
    for payload in payloads.filter_map(|(_, payload)| payload.as_ref()) {
        if let Some(record) = Payload::read(payload, None)?.record {
            let flags = record.renewed.into_iter();
            renewed.extend(flags.map(|flag| format!("{}:{}", flag.file, flag.name)));
        }
    }
    Ok(renewed)
}

/// Gets the second opinion on `claims`, or, unless `all`, on a sample chosen by
/// `seed`. Returns what is not proved, and why.
///
/// # Errors
/// If something cannot be built, or if payloads are proved separately but not
/// together.
pub fn not_proved(
    base: &Base,
    claims: &[Claim],
    sample: Option<(usize, u64)>,
) -> anyhow::Result<Vec<String>> {
    let mut batches = batches(claims)?;
    if let Some((count, seed)) = sample {
        let mut random = Random::new(seed);
        while batches.len() > count {
            batches.swap_remove(random.below(batches.len()));
        }
    }
    let mut faults = Vec::new();
    for batch in &batches {
        let start = Instant::now();
        let names: Vec<&str> = batch.iter().map(|claim| claim.name.as_str()).collect();
        faults.extend(faults_of(base, batch));
        let seconds = start.elapsed().as_secs_f64();
        say(&format!(
            "second opinion, {seconds:.1} s: {}",
            names.join(" ")
        ));
    }
    Ok(faults)
}

/// The claims that are not proved, found by bisection if all together are not.
fn faults_of(base: &Base, claims: &[&Claim]) -> Vec<String> {
    let words = match opinion(base, claims) {
        Ok(verdict) if verdict.proved => return Vec::new(),
        Ok(verdict) => {
            let all = verdict.differences.iter();
            let all: Vec<_> = all.map(|d| format!("{:?}: {d}", d.kind)).collect();
            all.join("\n  ")
        }
        Err(error) => format!("{error:#}"),
    };
    let (one, other) = claims.split_at(claims.len() / 2);
    if !one.is_empty() {
        let mut faults = faults_of(base, one);
        faults.extend(faults_of(base, other));
        if !faults.is_empty() {
            return faults;
        }
    }
    let names: Vec<&str> = claims.iter().map(|claim| claim.name.as_str()).collect();
    let fault = format!("not proved: {}:\n  {words}", names.join(" "));
    say(&fault);
    vec![fault]
}

/// Claims that share a build: no two change the same file or replace the same
/// function.
///
/// # Errors
/// If a patch cannot be read, or a payload.
pub fn batches(claims: &[Claim]) -> anyhow::Result<Vec<Vec<&Claim>>> {
    struct Batch<'a> {
        claims: Vec<&'a Claim>,
        touched: BTreeSet<String>,
    }
    let mut batches: Vec<Batch> = Vec::new();
    for claim in claims {
        let touched = claim.touches().with_context(|| claim.name.clone())?;
        ensure!(!touched.is_empty(), "{}: nothing is changed", claim.name);
        let fits = |batch: &&mut Batch| {
            // This option accepts changes without naming them.
            let init = batch.claims.iter().any(|other| other.leaves_out_init());
            init == claim.leaves_out_init() && batch.touched.is_disjoint(&touched)
        };
        match batches.iter_mut().find(fits) {
            Some(batch) => {
                batch.claims.push(claim);
                batch.touched.extend(touched);
            }
            None => batches.push(Batch {
                claims: vec![claim],
                touched,
            }),
        }
    }
    Ok(batches.into_iter().map(|batch| batch.claims).collect())
}

/// Prints progress while the test runs.
fn say(text: &str) {
    // Errors do not matter.
    let _ = writeln!(std::io::stderr(), "{text}");
}
