// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way of a patch, from start to end.

use crate::account::{self, Account, Accounted};
use crate::below::{self, Below, PATCH_KEY};
use crate::choice::{Choices, listed};
use crate::code::Code;
use crate::generated_hooks;
use crate::given::File;
use crate::hunk::Hunk;
use crate::options::Options;
use crate::pair::Pair;
use crate::patch::Edits;
use crate::payload::Identity;
use crate::problem::{Problem, Refused};
use crate::progress::Progress;
use crate::rebuild::{Patched, Rebuild};
use crate::record::{Record, Told};
use crate::select::{Carried, Hook, Replaced, Rules, Selection, select};
use crate::source::{PatchedSource, SourcePatch};
use crate::tree::Tree;
use crate::unit::Unit;
use crate::warning::Warning;
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xsplice_abi::note::hex;
use xsplice_abi::record::{LeftOut, PatchedData, PerCpuVariable};
use xsplice_objdiff::Kind;
use xsplice_system::file;
use xsplice_xen_image::Image;

/// A function that the payload replaces.
pub type PatchedFunction = Replaced;

/// What was built.
#[derive(Debug, Clone, serde::Serialize, schemars::JsonSchema)]
pub struct Report {
    /// Where the payload is.
    pub output: PathBuf,
    /// Its size in bytes.
    pub size: usize,
    /// The hypervisor's build-id in hexadecimal.
    pub hypervisor: String,
    /// How many objects the patch reaches.
    pub objects: usize,
    /// Everything that differs between the two builds, used or not.
    pub changes: Vec<String>,
    /// Functions that are replaced.
    pub functions: Vec<Replaced>,
    /// New functions and variables.
    pub carried: Vec<Carried>,
    /// Variables and constants that are changed in place (`--patch-data`).
    pub patched_data: Vec<PatchedData>,
    /// New per-CPU variables, which are in padding of the CPUs' areas.
    pub per_cpu: Vec<PerCpuVariable>,
    /// Functions that the hypervisor calls at stages of the payload's life.
    pub hooks: Vec<Hook>,
    /// Changes that were left out (`--leave-out`).
    pub left_out: Vec<LeftOut>,
    /// What became of each hunk of the patches.
    pub hunks: Vec<Hunk>,
    /// What whoever applies or takes out the payload has to know.
    pub warnings: BTreeSet<Warning>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// How many compilers run at once at most: more only slow each other down.
const MOST_JOBS: usize = 256;

/// Builds a payload.
///
/// # Errors
/// Every problem that was found; then nothing is written.
pub fn generate(options: &Options, progress: &dyn Progress) -> Result<Report, Refused> {
    options
        .check_output()
        .map_err(|e| Refused::io(&options.output, &e))?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.jobs.min(MOST_JOBS))
        .build()
        .map_err(|e| Refused::one(Code::WorkDirectory, "compiler", e.to_string()))?;
    pool.install(|| generate_in_pool(options, progress))
}

fn generate_in_pool(options: &Options, progress: &dyn Progress) -> Result<Report, Refused> {
    let image = Image::parse(&read(&options.xen_syms)?).map_err(|e| {
        Refused::one(
            Code::NotXenSyms,
            file::shown(&options.xen_syms),
            e.to_string(),
        )
    })?;
    let image = Arc::new(image);
    check_hypervisor(options, &image)?;
    let tree = Tree::read(&options.source)?;
    let given = Given::read(options)?;
    if let Some(config) = &given.config {
        check_config(&tree, config)?;
    }
    let mut patches = SourcePatch::read_all(&options.patches)?;
    let leave_out = Choices::new(&options.leave_out);
    let allow = Choices::new(&options.allow);
    let patch_data = Choices::new(&options.patch_data);
    let left_out = account::leave_out(&mut patches, &leave_out);
    let files: BTreeSet<&str> = left_out.iter().map(|hunk| hunk.file.as_str()).collect();
    let left_out_note = |file| format!("{file}: left out (--leave-out)");
    let mut notes: Vec<String> = files.into_iter().map(left_out_note).collect();
    let mut below_patches = SourcePatch::read_all(&options.below_patches)?;
    let mut below = Below::read(&options.below)?;
    let hypervisor = image.build_id();
    below.tie(&below_patches, hypervisor)?;
    check_depends(options, &below)?;
    let mut done = 0;
    for level in &below.levels {
        let left_out = Choices::new(&level.left_out());
        account::leave_out(&mut below_patches[done..level.patches], &left_out);
        done = level.patches;
    }
    let rebuild = Rebuild::new(&tree, options.cache.as_deref(), progress)?;
    let levels = below.levels.iter().map(|level| {
        let patches = &below_patches[..level.patches];
        rebuild.lay_out(&PatchedSource::apply(&tree, patches, &BTreeSet::new())?)
    });
    let levels: Vec<Patched> = levels.collect::<Result<_, _>>()?;
    let mut metadata = metadata(options, &patches, &image)?;
    let own = below_patches.len();
    let patches: Vec<SourcePatch> = below_patches.into_iter().chain(patches).collect();
    let source = PatchedSource::apply(&tree, &patches, &BTreeSet::new())?;
    let patched = rebuild.lay_out(&source)?;
    let mut reached = levels.iter().chain([&patched]).flat_map(Patched::objects);
    if reached.next().is_none() {
        let message = match patches[own..].iter().all(|patch| patch.files.is_empty()) {
            true => {
                "everything that it changes is left out (--leave-out): there is nothing to patch"
            }
            false => {
                "nothing that it changes goes into this hypervisor with this configuration: \
                 there is nothing to patch"
            }
        };
        return Err(Refused::one(Code::NothingToPatch, "patch", message));
    }
    let mut pairs = rebuild.pairs(&patched, &levels)?;
    let sources = (levels.as_slice(), &patched);
    let unneeded = crate::archive::settle((&tree, &image), &rebuild, sources, &mut pairs)?;
    let compile = rebuild.compiler(&levels, &patched);
    progress.stage("comparing", pairs.len());
    let compare = |pairs: &[Pair]| -> (Vec<Unit>, Vec<Problem>) {
        let units: Vec<Result<Option<Unit>, Problem>> = pairs
            .par_iter()
            .map(|pair| {
                let unit = Unit::compare(&tree, pair, Some(&compile));
                progress.step();
                unit
            })
            .collect();
        let (units, problems): (Vec<_>, Vec<_>) = units.into_iter().partition(Result::is_ok);
        let problems = problems.into_iter().filter_map(Result::err);
        let units = units.into_iter().flatten().flatten();
        (units.collect(), problems.collect())
    };
    let (mut units, mut problems) = compare(&pairs);
    let mut hook_files = given.hooks.clone();
    let edits = Edits::new(patches[own..].iter().flat_map(|patch| &patch.files));
    hook_files.extend(generated_hooks::needed(&units, &patch_data, &edits));
    let hooks = rebuild.hooks(&patched, &hook_files)?;
    let (hook_units, hook_problems) = compare(&hooks);
    units.extend(hook_units);
    problems.extend(hook_problems);
    check_originals(&rebuild, &pairs, &units)?;
    if units.iter().all(|unit| unit.comparison.is_empty()) && problems.is_empty() {
        return Err(no_code(&pairs, &unneeded));
    }
    let changed = units.iter().filter(|unit| !unit.comparison.is_empty());
    let changed: Vec<&str> = changed.map(|unit| unit.file.path.as_str()).collect();
    crate::archive::check_linked(&tree, &image, &changed)?;
    let rules = Rules {
        prelink: options.prelink,
        leave_out: &leave_out,
        leave_out_init: options.leave_out_init,
        patch_data: &patch_data,
        allow: &allow,
        edits: &edits,
    };
    let (selection, layouts) = rayon::join(
        || select(&units, &image, &below, &rules),
        || {
            crate::layout::check(
                &rebuild,
                (levels.last(), &patched),
                (&pairs, &units),
                &edits,
                &allow,
            )
        },
    );
    problems.extend(leave_out.mistakes("--leave-out"));
    problems.extend(allow.mistakes("--allow"));
    problems.extend(patch_data.mistakes("--patch-data"));
    problems.extend(layouts.problems);
    notes.extend(layouts.notes);
    let selection = match selection {
        Ok(selection) if problems.is_empty() => selection,
        selection => {
            let more = selection.err().unwrap_or_default();
            problems.extend(explain_compiler(more, &units, &image));
            return Err(Refused(problems));
        }
    };
    let account = Account {
        tree: &tree,
        rebuild: &rebuild,
        patches: &patches,
        own,
        levels: &levels,
        patched: &patched,
        pairs: &pairs,
        hooks: (&hook_files, &hooks),
        units: &units,
        selection: &selection,
        select: &|units| select(units, &image, &below, &rules),
    };
    let Accounted { mut hunks, unused } = account.hunks();
    hunks.extend(left_out);
    notes.extend(below::mark_unused(&mut metadata, &unused));
    let changes = units
        .iter()
        .flat_map(|unit| &unit.comparison.changes)
        .map(|change| format!("{}: {}", change.name, change.why));
    let foreign = source.foreign.iter();
    notes.extend(source.loose.iter().cloned());
    let in_place = &selection.patched_data;
    notes.extend(
        units
            .iter()
            .flat_map(|unit| stored_addresses(unit, in_place)),
    );
    notes.extend(selection.notes.iter().cloned());
    let files = patches[own..].iter().flat_map(|patch| &patch.files);
    notes.extend(crate::constants::notes(
        files.filter(|file| !source.foreign.contains(file.path())),
    ));
    notes.extend(crate::forgotten::notes(&units, &source, &edits));
    let modes = source.mode_only.iter();
    notes.extend(
        modes.map(|file| format!("{file}: only its mode changes, which does not affect code")),
    );
    notes.extend(foreign.map(|file| format!("{file}: not part of this hypervisor; ignored")));
    let report = Report {
        changes: changes.collect(),
        output: options.output.clone(),
        size: 0,
        hypervisor: String::new(),
        objects: pairs.len(),
        functions: Vec::new(),
        carried: Vec::new(),
        patched_data: Vec::new(),
        per_cpu: Vec::new(),
        hooks: Vec::new(),
        left_out: Vec::new(),
        warnings: crate::warning::old_code(&units),
        hunks,
        notes,
    };
    let mut report = write(
        (options, &given),
        &image,
        &below,
        selection,
        &metadata,
        report,
    )?;
    // About this machine, and so not for the payload to record.
    report.notes.extend(rebuild.unwritable().map(str::to_owned));
    Ok(report)
}

/// That nothing differs between the two builds, except in members of the library
/// that are not linked.
fn no_code(pairs: &[Pair], unneeded: &BTreeSet<String>) -> Refused {
    let unneeded: Vec<&str> = unneeded.iter().map(String::as_str).collect();
    let unlinked = match unneeded.as_slice() {
        [] => String::new(),
        [one] => format!("{one} is in the hypervisor's library, but not linked: nothing needs it"),
        all => format!(
            "{} are in the hypervisor's library, but not linked: nothing needs them",
            all.join(", ")
        ),
    };
    let compiled = match pairs {
        [] => {
            return Refused::one(
                Code::NothingToPatch,
                "patch",
                format!("it changes no code: {unlinked}"),
            );
        }
        [pair] => format!("{}, the object that it reaches, compiles", pair.object.path),
        all => format!("all {} objects that it reaches compile", all.len()),
    };
    let was = match pairs {
        [_] => "what it was",
        _ => "what they were",
    };
    let more = match unlinked.is_empty() {
        true => unlinked,
        false => format!("; {unlinked}"),
    };
    let message = format!(
        "it changes no code: {compiled} to {was} (only comments or lines without effect \
         changed){more}"
    );
    Refused::one(Code::NothingToPatch, "patch", message)
}

/// The files that are only read, besides patches and payloads.
struct Given {
    config: Option<File>,
    hooks: Vec<File>,
}

impl Given {
    fn read(options: &Options) -> Result<Self, Refused> {
        let config = options.config.as_deref().map(File::read).transpose();
        let hooks = options.hooks.iter().map(|path| File::read(path));
        Ok(Self {
            config: config.map_err(|problem| Refused(vec![problem]))?,
            hooks: crate::problem::all(hooks.collect())?,
        })
    }
}

/// The hypervisor's build-id, which the user may name.
fn check_hypervisor(options: &Options, image: &Image) -> Result<(), Refused> {
    match &options.xen_depends {
        Some(named) if named.as_slice() != image.build_id() => Err(Refused::one(
            Code::WrongHypervisor,
            "--xen-depends",
            format!(
                "it names the hypervisor {}, but {} is that of {}: a payload is for the \
                 hypervisor that it was proved against",
                hex(named),
                file::shown(&options.xen_syms),
                hex(image.build_id())
            ),
        )),
        _ => Ok(()),
    }
}

/// What the payload depends on is known twice where payloads are below.
fn check_depends(options: &Options, below: &Below) -> Result<(), Refused> {
    match (&options.depends, below.build_id()) {
        (Some(named), Some(top)) if named != top => Err(Refused::one(
            Code::WrongStack,
            "--depends",
            format!(
                "it names {}, but the last payload of --on has the build-id {}: leave one of the \
                 two options out",
                hex(named),
                hex(top)
            ),
        )),
        _ => Ok(()),
    }
}

/// Checks that what differs between the two builds differs because of the patch.
fn check_originals(rebuild: &Rebuild, pairs: &[Pair], units: &[Unit]) -> Result<(), Refused> {
    let changed = pairs.par_iter().filter(|pair| {
        let mut units = units.iter();
        units.any(|unit| unit.file.path == pair.object.path && !unit.comparison.is_empty())
    });
    crate::problem::all(changed.map(|pair| rebuild.check_original(pair)).collect()).map(drop)
}

/// Tables of functions that changed: what the hypervisor did with their
/// addresses before, such as registering a handler, a payload cannot undo.
fn stored_addresses(unit: &Unit, in_place: &[PatchedData]) -> impl Iterator<Item = String> {
    let changed = unit.comparison.changes.iter().filter(|change| {
        let table = |index: usize| {
            let symbol = &unit.patched.symbols[index];
            let fields = unit
                .patched
                .relocations(symbol.section, symbol.offset, symbol.size);
            change.original.is_some() && !fields.is_empty()
        };
        let stays = in_place
            .iter()
            .any(|data| data.name == change.name && data.file == unit.file.source);
        !stays && change.kind == Kind::Constant && change.patched.is_some_and(table)
    });
    changed.map(|change| {
        format!(
            "{}: {} changed ({}); where its address was stored before, the old one stays in use: \
             change the functions in it instead, if that matters",
            unit.file.source, change.name, change.why
        )
    })
}

fn write(
    (options, given): (&Options, &Given),
    image: &Arc<Image>,
    below: &Below,
    mut selection: Selection,
    metadata: &[(String, String)],
    report: Report,
) -> Result<Report, Refused> {
    if selection.replaced.is_empty() && selection.hooks.is_empty() {
        return Err(Refused::one(
            Code::NothingToPatch,
            "patch",
            format!(
                "it changes no function of the running hypervisor: nothing would use what it \
                 changes ({})",
                report.changes.join(", ")
            ),
        ));
    }
    let hypervisor = image.build_id();
    let top = below.build_id();
    let depends = options.depends.as_deref().or(top).unwrap_or(hypervisor);
    let known = top.is_some() || depends == hypervisor;
    if !known {
        // What lies below may have put a trampoline where the old code was.
        for func in &mut selection.draft.funcs {
            func.expected.clear();
            func.preimage = None;
        }
    }
    let told = Told::new(options, given.config.as_ref(), &given.hooks);
    let record = record(told, &selection, &report)
        .map_err(|e| Refused::one(Code::CannotWrite, "payload", e.to_string()))?;
    let payload = selection
        .draft
        .write(&Identity {
            hypervisor,
            depends,
            metadata,
            record: &record,
        })
        .map_err(|e| Refused::one(Code::CannotWrite, "payload", e.to_string()))?;
    let name = file::shown(&options.output);
    check((options, image), &name, &payload, below, known)?;
    file::write(&options.output, &payload).map_err(|e| Refused::io(&options.output, &e))?;
    Ok(Report {
        size: payload.len(),
        hypervisor: hex(hypervisor),
        functions: selection.replaced,
        carried: selection.carried,
        patched_data: selection.patched_data,
        per_cpu: selection.per_cpu,
        hooks: selection.hooks,
        left_out: selection.left_out,
        warnings: report
            .warnings
            .union(&selection.warnings)
            .cloned()
            .collect(),
        ..report
    })
}

/// What a reviewer of the payload, and a build on top of it, should know.
fn record(
    told: Told,
    selection: &Selection,
    report: &Report,
) -> serde_json::Result<serde_json::Value> {
    let warnings = report.warnings.union(&selection.warnings);
    let record = Record {
        hunks: report.hunks.clone(),
        left_out: selection.left_out.clone(),
        patched_data: selection.patched_data.clone(),
        per_cpu: selection.per_cpu.clone(),
        renewed: selection.renewed.clone(),
        warnings: warnings.map(ToString::to_string).collect(),
        notes: report.notes.clone(),
        ..Record::of(told)
    };
    serde_json::to_value(record)
}

/// Loads the payload as the hypervisor would, on top of those below. If only the
/// build-id of the dependency is known, the check is limited to the hypervisor
/// itself.
fn check(
    (options, image): (&Options, &Arc<Image>),
    name: &str,
    payload: &[u8],
    below: &Below,
    known: bool,
) -> Result<(), Refused> {
    let syms = file::shown(&options.xen_syms);
    let image = xsplice_host_image::Image::new(Arc::clone(image))
        .map_err(|e| Refused::one(Code::NotXenSyms, &syms, e.to_string()))?;
    let stem = Path::new(name)
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mut stack: Vec<(String, &[u8])> = below
        .levels
        .iter()
        .map(|level| (level.name.clone(), level.data.as_slice()))
        .collect();
    stack.push((stem, payload));
    let problems: Vec<Problem> = xsplice_host_image::check(&image, &stack)
        .last()
        .into_iter()
        .flat_map(|report| &report.problems)
        .filter(|problem| match problem.severity {
            xsplice_host_image::Severity::Warning => false,
            xsplice_host_image::Severity::NotApplied => known,
            xsplice_host_image::Severity::NotLoaded => true,
        })
        .map(|problem| {
            Problem::new(
                Code::PreFlight,
                name,
                format!("the pre-flight check refuses it: {}", problem.message),
            )
        })
        .collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Refused(problems))
    }
}

fn metadata(
    options: &Options,
    patches: &[SourcePatch],
    image: &Image,
) -> Result<Vec<(String, String)>, Refused> {
    let mut metadata = vec![
        (
            "generator".to_owned(),
            concat!("xsplice ", env!("CARGO_PKG_VERSION")).to_owned(),
        ),
        ("compiler".to_owned(), image.compiler().to_owned()),
    ];
    for patch in patches {
        metadata.push((PATCH_KEY.to_owned(), patch.record()));
    }
    let mut problems = Vec::new();
    for (index, (key, value)) in options.metadata.iter().enumerate() {
        let twice = |(other, _): &&(String, String)| other == key;
        if options.metadata[..index].iter().filter(twice).count() == 1 {
            let message = "this key is given more than once; give it one value";
            problems.push(Problem::new(
                Code::BadOption,
                format!("--meta {key}"),
                message,
            ));
        }
        if metadata.iter().any(|(own, _)| own == key) {
            let message = "this key is written by the generator itself; choose another";
            problems.push(Problem::new(
                Code::BadOption,
                format!("--meta {key}"),
                message,
            ));
        } else if key.is_empty() || key.contains('=') {
            let message = "a key must not be empty and must not contain `=`";
            problems.push(Problem::new(
                Code::BadOption,
                format!("--meta {key}"),
                message,
            ));
        }
        for text in [key, value] {
            if let Some(bad) = text.chars().find(|c| xsplice_abi::text::is_deceptive(*c)) {
                problems.push(Problem::new(
                    Code::BadOption,
                    format!("--meta {}", xsplice_abi::text::escaped(key)),
                    format!(
                        "it contains {}: characters that are not seen (control characters, line \
                         breaks, marks of text direction, characters without width) can make a \
                         list of payloads look like another one",
                        bad.escape_unicode()
                    ),
                ));
            }
        }
    }
    metadata.extend(options.metadata.iter().cloned());
    if problems.is_empty() {
        Ok(metadata)
    } else {
        Err(Refused(problems))
    }
}

/// Adds the compilers' names to failed proofs when they differ.
fn explain_compiler(mut problems: Vec<Problem>, units: &[Unit], image: &Image) -> Vec<Problem> {
    let mut originals = units.iter().map(|unit| &unit.original);
    if let Some(ours) = originals.find_map(crate::image::compiler)
        && ours != image.compiler()
    {
        problems.push(Problem::new(
            Code::OtherCompiler,
            "compiler",
            format!(
                "the hypervisor was built by `{}`, the tree by `{ours}`",
                image.compiler()
            ),
        ));
    }
    problems
}

fn check_config(tree: &Tree, config: &File) -> Result<(), Refused> {
    let settings = |contents: &[u8]| -> BTreeSet<String> {
        let text = String::from_utf8_lossy(contents);
        let settings = text.lines().filter(|l| l.starts_with("CONFIG_"));
        settings.map(str::to_owned).collect()
    };
    let wanted = settings(&config.contents);
    let built = settings(&read(&tree.top.join("xen/.config"))?);
    if wanted.is_empty() {
        let message = "it has no settings `CONFIG_...`: give the hypervisor's configuration";
        return Err(Refused::one(
            Code::OtherConfiguration,
            file::shown(&config.path),
            message,
        ));
    }
    let only = |one: &BTreeSet<String>, other: &BTreeSet<String>, whose: &str| {
        let settings: Vec<&str> = one.difference(other).map(String::as_str).collect();
        (!settings.is_empty()).then(|| format!("only {whose} has {}", listed(&settings)))
    };
    let differences = [
        only(&wanted, &built, "it"),
        only(&built, &wanted, "the tree"),
    ];
    let differences: Vec<String> = differences.into_iter().flatten().collect();
    if differences.is_empty() {
        return Ok(());
    }
    Err(Refused::one(
        Code::OtherConfiguration,
        file::shown(&config.path),
        format!(
            "the tree was built with another configuration: {}; build the tree with this one, or \
             give the one that it was built with",
            differences.join("; ")
        ),
    ))
}

fn read(path: &Path) -> Result<Vec<u8>, Refused> {
    file::read(path).map_err(|e| Refused::io(path, &e))
}
