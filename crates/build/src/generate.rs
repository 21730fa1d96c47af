//! The way of a patch, from start to end.

use crate::compile::compile;
use crate::image::Image;
use crate::patch::{self, FilePatch};
use crate::payload::Identity;
use crate::select::{Carried, Replaced, Unit, select};
use crate::shadow::Shadow;
use crate::tree::{ObjectFile, Tree};
use crate::{Problem, Refused};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use xsplice_diff::object::Object;

/// What a payload is to be built from.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The built source tree.
    pub source: PathBuf,
    /// Source patches, in the order in which they apply.
    pub patches: Vec<PathBuf>,
    /// The hypervisor's `xen-syms`.
    pub xen_syms: PathBuf,
    /// Where the payload goes.
    pub output: PathBuf,
    /// The configuration that the tree must have been built with.
    pub config: Option<PathBuf>,
    /// Build-id of what the payload is applied on top of; the hypervisor's
    /// own if none is given.
    pub depends: Option<Vec<u8>>,
    /// Build-id of the hypervisor, if not the one of `xen_syms`.
    pub xen_depends: Option<Vec<u8>>,
    /// Put addresses instead of names for all of the hypervisor's symbols.
    pub prelink: bool,
    /// How many compilers run at once.
    pub jobs: usize,
}

/// Receives what happens while a payload is built.
pub trait Progress: Sync {
    /// A stage begins that has `steps` steps.
    fn stage(&self, name: &str, steps: usize);
    /// One step of the stage is done.
    fn step(&self);
}

/// A function that the payload replaces.
pub type PatchedFunction = Replaced;

/// What was built.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// Where the payload is.
    pub output: PathBuf,
    /// Its size in bytes.
    pub size: usize,
    /// The hypervisor's build-id in hexadecimal.
    pub hypervisor: String,
    /// How many objects the patch reaches.
    pub objects: usize,
    /// Functions that are replaced.
    pub functions: Vec<Replaced>,
    /// New functions and variables.
    pub carried: Vec<Carried>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// Builds a payload.
///
/// # Errors
/// Every problem that was found; then nothing is written.
pub fn generate(options: &Options, progress: &dyn Progress) -> Result<Report, Refused> {
    let image = Image::read(
        &options.xen_syms.display().to_string(),
        &read(&options.xen_syms)?,
    )?;
    let tree = Tree::read(&options.source)?;
    if let Some(config) = &options.config {
        check_config(&tree, config)?;
    }
    let mut notes = Vec::new();
    let (original, patched) = (Shadow::of(&tree.top)?, Shadow::of(&tree.top)?);
    let touched = apply_patches(options, &tree, &patched, &mut notes)?;
    let objects = tree.reached_by(&touched);
    if objects.is_empty() {
        return Err(Refused::one(
            "patch",
            "nothing that it changes goes into this hypervisor with this configuration: \
             there is nothing to patch",
        ));
    }
    progress.stage("compiling", 2 * objects.len());
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.jobs)
        .build()
        .map_err(|e| Refused::one("compiler", e.to_string()))?;
    let pairs = pool.install(|| {
        objects
            .par_iter()
            .map(|object| {
                let (old, new) = rayon::join(
                    || compile_step(&tree, &original, object, progress),
                    || compile_step(&tree, &patched, object, progress),
                );
                Ok((*object, old?, new?))
            })
            .collect::<Vec<Result<_, Problem>>>()
    });
    let pairs = all(pairs)?;
    progress.stage("comparing", pairs.len());
    let units = pool.install(|| {
        pairs
            .par_iter()
            .map(|(object, old, new)| {
                let unit = compare_step(&tree, object, old, new);
                progress.step();
                unit
            })
            .collect::<Vec<_>>()
    });
    let units: Vec<Unit> = all(units)?.into_iter().flatten().collect();
    if units.is_empty() {
        return Err(Refused::one(
            "patch",
            format!(
                "it changes no code: all {} objects that it reaches compile to what they were \
                 (only comments or lines without effect changed)",
                pairs.len()
            ),
        ));
    }
    write(options, &image, &units, pairs.len(), notes)
}

fn write(
    options: &Options,
    image: &Image,
    units: &[Unit],
    objects: usize,
    notes: Vec<String>,
) -> Result<Report, Refused> {
    let metadata = metadata(options)?;
    let tag = hex(&Sha256::digest(format!("{metadata:?}").as_bytes())[..4]);
    let mut selection = select(units, image, &tag, options.prelink)
        .map_err(|problems| Refused(explain_compiler(problems, units, image)))?;
    if selection.replaced.is_empty() {
        return Err(Refused::one(
            "patch",
            "it changes no function of the running hypervisor: what it adds would never be called",
        ));
    }
    let hypervisor = options.xen_depends.as_deref().unwrap_or(&image.build_id);
    let depends = options.depends.as_deref().unwrap_or(hypervisor);
    if depends != hypervisor {
        // What lies below may have put a trampoline where the old code was.
        selection
            .draft
            .funcs
            .iter_mut()
            .for_each(|func| func.expected.clear());
    }
    let payload = selection
        .draft
        .write(&Identity {
            hypervisor,
            depends,
            metadata: &metadata,
        })
        .map_err(|e| Refused::one("payload", e.to_string()))?;
    let name = options.output.display().to_string();
    check(
        options,
        &name,
        &payload,
        depends == image.build_id.as_slice(),
    )?;
    replace_file(&options.output, &payload)?;
    Ok(Report {
        output: options.output.clone(),
        size: payload.len(),
        hypervisor: hex(hypervisor),
        objects,
        functions: selection.replaced,
        carried: selection.carried,
        notes,
    })
}

/// Loads the payload as the hypervisor would. One that goes on top of another
/// payload can only be loaded here as far as the hypervisor alone allows.
fn check(
    options: &Options,
    name: &str,
    payload: &[u8],
    on_hypervisor: bool,
) -> Result<(), Refused> {
    let syms = options.xen_syms.display().to_string();
    let image = xsplice_offline::Image::parse(&read(&options.xen_syms)?)
        .map_err(|e| Refused::one(&syms, e.to_string()))?;
    let stem = Path::new(name)
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let problems: Vec<Problem> = xsplice_offline::check(&image, &[(stem, payload)])
        .iter()
        .flat_map(|report| &report.problems)
        .filter(|problem| match problem.severity {
            xsplice_offline::Severity::Warning => false,
            xsplice_offline::Severity::NotApplied => on_hypervisor,
            xsplice_offline::Severity::NotLoaded => true,
        })
        .map(|problem| {
            Problem::new(
                name,
                format!("our own check refuses it: {}", problem.message),
            )
        })
        .collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Refused(problems))
    }
}

fn metadata(options: &Options) -> Result<Vec<(String, String)>, Refused> {
    let mut metadata = vec![(
        "generator".to_owned(),
        concat!("xsplice ", env!("CARGO_PKG_VERSION")).to_owned(),
    )];
    for patch in &options.patches {
        let name = patch
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        metadata.push((
            "patch".to_owned(),
            format!("{name} sha256:{}", hex(&Sha256::digest(read(patch)?))),
        ));
    }
    Ok(metadata)
}

/// Applies every patch in the shadow; returns the files of the hypervisor that
/// changed, from the `xen` directory.
fn apply_patches(
    options: &Options,
    tree: &Tree,
    shadow: &Shadow,
    notes: &mut Vec<String>,
) -> Result<BTreeSet<String>, Refused> {
    let mut state: BTreeMap<String, Vec<patch::PatchedLine>> = BTreeMap::new();
    let mut problems = Vec::new();
    for path in &options.patches {
        let text = String::from_utf8_lossy(&read(path)?).into_owned();
        for file in patch::parse(&path.display().to_string(), &text)? {
            if !file.path().starts_with("xen/") {
                notes.push(format!(
                    "{} is no part of the hypervisor: passed over",
                    file.path()
                ));
                continue;
            }
            match apply_file(tree, &file, &state) {
                Ok(lines) => {
                    state.insert(file.path().to_owned(), lines);
                }
                Err(Refused(more)) => problems.extend(more),
            }
        }
    }
    if !problems.is_empty() {
        return Err(Refused(problems));
    }
    for (path, lines) in &state {
        shadow.replace(path, &patch::with_line_numbers(lines))?;
    }
    Ok(state
        .into_keys()
        .filter_map(|p| Some(p.strip_prefix("xen/")?.to_owned()))
        .collect())
}

fn apply_file(
    tree: &Tree,
    file: &FilePatch,
    state: &BTreeMap<String, Vec<patch::PatchedLine>>,
) -> Result<Vec<patch::PatchedLine>, Refused> {
    let path = file.path();
    let (Some(old), Some(_)) = (&file.old, &file.new) else {
        let what = if file.old.is_none() {
            "adds"
        } else {
            "removes"
        };
        return Err(Refused::one(
            path,
            format!("the patch {what} this file, which this version cannot handle yet"),
        ));
    };
    let name = Path::new(path)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    if name.starts_with("Makefile") || name.starts_with("Kconfig") || name.ends_with(".lds.S") {
        return Err(Refused::one(
            path,
            "the patch changes how the hypervisor is built or linked, which a payload cannot carry",
        ));
    }
    if let Some(lines) = state.get(path) {
        return reapply(lines, file);
    }
    let text = String::from_utf8_lossy(&read(&tree.top.join(old)).map_err(|_| {
        Refused::one(
            path,
            "the patch changes this file, but the tree does not have it",
        )
    })?)
    .into_owned();
    patch::apply(&text, file)
}

/// Applies a further patch to a file that one was applied to already.
fn reapply(
    lines: &[patch::PatchedLine],
    file: &FilePatch,
) -> Result<Vec<patch::PatchedLine>, Refused> {
    let text: String = lines.iter().map(|l| l.text.as_str()).collect();
    let mut result = patch::apply(&text, file)?;
    for line in &mut result {
        line.original = line
            .original
            .and_then(|n| lines.get(n - 1))
            .and_then(|l| l.original);
    }
    Ok(result)
}

fn compile_step(
    tree: &Tree,
    shadow: &Shadow,
    object: &ObjectFile,
    progress: &dyn Progress,
) -> Result<Vec<u8>, Problem> {
    let result = compile(tree, shadow, object);
    progress.step();
    result
}

/// Compares the two builds of an object; `None` if they do the same.
fn compare_step(
    tree: &Tree,
    object: &ObjectFile,
    old: &[u8],
    new: &[u8],
) -> Result<Option<Unit>, Problem> {
    if old == new {
        return Ok(None);
    }
    if object.path.ends_with(".s") {
        let changed = changed_offsets(old, new);
        if changed.is_empty() {
            return Ok(None);
        }
        return Err(Problem::new(
            &object.source,
            format!(
                "the layout of structures changes that assembly code uses ({}): the running \
                 hypervisor's assembly and data have the old one; keep the layout of the structure",
                changed.join(", ")
            ),
        ));
    }
    let unreadable = |e: xsplice_diff::ReadError| {
        Problem::new(
            &object.source,
            format!("changed boot code or an object that cannot be compared: {e}"),
        )
    };
    let mut original = Object::read(&object.path, old).map_err(unreadable)?;
    let mut patched = Object::read(&object.path, new).map_err(unreadable)?;
    // The build gives the FILE symbol its path after compiling.
    if let Some(file) = linked_file_name(tree, object) {
        original.file.clone_from(&file);
        patched.file = file;
    }
    let comparison = xsplice_diff::compare(&original, &patched);
    if comparison.is_empty() {
        return Ok(None);
    }
    Ok(Some(Unit {
        file: object.clone(),
        original,
        patched,
        comparison,
    }))
}

/// Names of the offsets that differ in two lists for assembly code: lines such
/// as `.ascii "==>#define VCPU_processor 0 ...`.
fn changed_offsets(old: &[u8], new: &[u8]) -> Vec<String> {
    let definitions = |text: &[u8]| -> BTreeSet<String> {
        let text = String::from_utf8_lossy(text).into_owned();
        text.lines()
            .filter_map(|l| Some(l.split_once("==>#define ")?.1.to_owned()))
            .collect()
    };
    let (old, new) = (definitions(old), definitions(new));
    let names: BTreeSet<String> = old
        .symmetric_difference(&new)
        .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
        .collect();
    names.into_iter().collect()
}

/// The FILE symbol of the object that the build of the tree linked.
fn linked_file_name(tree: &Tree, object: &ObjectFile) -> Option<String> {
    let data = std::fs::read(tree.top.join("xen").join(&object.path)).ok()?;
    Some(Object::read(&object.path, &data).ok()?.file)
}

/// Adds the compilers' names to failed proofs when they differ.
fn explain_compiler(mut problems: Vec<Problem>, units: &[Unit], image: &Image) -> Vec<Problem> {
    let ours = units
        .iter()
        .flat_map(|u| &u.original.sections)
        .find(|s| s.name == ".comment")
        .map(|s| crate::image::comment(&s.data));
    if let Some(ours) = ours
        && ours != image.compiler
    {
        problems.push(Problem::new(
            "compiler",
            format!(
                "the hypervisor was built by `{}`, the tree by `{ours}`",
                image.compiler
            ),
        ));
    }
    problems
}

fn check_config(tree: &Tree, config: &Path) -> Result<(), Refused> {
    let settings = |path: &Path| -> Result<BTreeSet<String>, Refused> {
        let text = String::from_utf8_lossy(&read(path)?).into_owned();
        Ok(text
            .lines()
            .filter(|l| l.starts_with("CONFIG_"))
            .map(str::to_owned)
            .collect())
    };
    let (wanted, built) = (settings(config)?, settings(&tree.top.join("xen/.config"))?);
    let problems: Vec<Problem> = wanted
        .symmetric_difference(&built)
        .map(|setting| {
            let place = if wanted.contains(setting) {
                config.display().to_string()
            } else {
                "tree".into()
            };
            Problem::new(
                place,
                format!("only here: {setting}; rebuild the tree with this configuration"),
            )
        })
        .collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Refused(problems))
    }
}

fn all<T>(results: Vec<Result<T, Problem>>) -> Result<Vec<T>, Refused> {
    let mut problems = Vec::new();
    let mut values = Vec::new();
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() {
        Ok(values)
    } else {
        Err(Refused(problems))
    }
}

/// Writes `data` beside `path` and renames it, so that no reader ever sees
/// half a payload.
fn replace_file(path: &Path, data: &[u8]) -> Result<(), Refused> {
    let fail = |e: std::io::Error| Refused::io(path, &e);
    let directory = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory)
        .map_err(fail)?;
    std::io::Write::write_all(&mut file, data).map_err(fail)?;
    file.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, Refused> {
    std::fs::read(path).map_err(|e| Refused::io(path, &e))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
