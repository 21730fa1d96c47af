// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds the complete patched hypervisor, as the tree was built.

use crate::copy::{Built, Copy, duplicate, listing};
use crate::recorded::check_patches;
use crate::source::Source;
use crate::types::{self, Types};
use crate::{Plan, Progress, Unusable, generated, record};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use xsplice_system::file;
use xsplice_system::interrupt::Process;

/// A build of the patched source.
#[derive(Debug)]
pub struct Patched {
    /// `xen-syms`.
    pub syms: Vec<u8>,
    /// The object that it was linked from.
    pub objects: Vec<u8>,
    /// The types of data in memory; `None` if they were not compared.
    pub types: Option<Types>,
    /// The source file of each global symbol.
    pub files: BTreeMap<String, String>,
    /// What to know about the patches that it was built from.
    pub notes: Vec<String>,
}

/// Builds the hypervisor of the plan's tree with its patches, in a copy of the tree,
/// reusing objects that are up to date. Lines that the patches only move keep their
/// numbers.
///
/// # Errors
/// If a patch does not apply, if the tree cannot be copied, or if the build
/// fails.
pub fn build(plan: &Plan, progress: &dyn Progress) -> Result<Patched, Unusable> {
    let top = top(plan.tree)?;
    let read = |path: &PathBuf| file::read(path).map_err(|e| unusable(path, &e));
    let texts = |paths: &[PathBuf]| paths.iter().map(read).collect::<Result<Vec<_>, _>>();
    let (patches, hooks) = (texts(plan.patches)?, texts(plan.hooks)?);
    let names = plan.patches.iter().map(|path| path.display().to_string());
    let given: Vec<_> = names.zip(patches.iter().map(Vec::as_slice)).collect();
    let notes = check_patches(plan.recorded, &given)?;
    let mut hooks: Vec<_> = (0..)
        .zip(hooks)
        .map(|(number, hook): (usize, _)| (format!("xsplice-hooks-{number}"), hook))
        .collect();
    hooks.extend((0..).zip(plan.generated).map(|(number, source)| {
        let source = generated::with_places(source, number);
        (generated::file(number), source.into_bytes())
    }));
    let patched = build_in_copy(plan, &top, &patches, &hooks, progress)?;
    Ok(Patched { notes, ..patched })
}

/// Builds it from the contents of `patches` and `hooks`.
fn build_in_copy(
    plan: &Plan,
    top: &Path,
    patches: &[Vec<u8>],
    hooks: &[(String, Vec<u8>)],
    progress: &dyn Progress,
) -> Result<Patched, Unusable> {
    let work = Copy::place(top, plan.cache).map_err(|e| no_work_directory(&e))?;
    let from = all_of(plan, top, patches, hooks)?;
    if let Some(built) = work.built(&from) {
        return result(work.path(), built.types, built.files);
    }
    progress.stage("copying the tree");
    work.fill(top).map_err(|e| unusable(top, &e))?;
    let copy = work.path();
    let recorded = record::arguments(&top.join("xen")).map_err(|e| unusable(top, &e))?;
    let mut source = Source::default();
    let mut types = Types::default();
    let mut before = top.join("xen");
    let mut patches = plan.patches.iter().zip(patches);
    // Each level changes the state that the levels below it left in memory.
    let levels = plan.levels();
    for (number, (level, left_out)) in levels.iter().enumerate() {
        for (path, text) in patches.by_ref().take(level.len()) {
            let name = path.display().to_string();
            let text = String::from_utf8_lossy(text);
            source.apply(top, &name, &text, left_out)?;
        }
        source.write(copy).map_err(|e| unusable(copy, &e))?;
        if number + 1 == levels.len() {
            add_hooks(copy, hooks)?;
        }
        progress.stage("building the patched hypervisor");
        make(copy, &recorded, progress)?;
        progress.stage("comparing types");
        let xen = copy.join("xen");
        let objects = record::different(&before, &xen).map_err(|e| unusable(&xen, &e))?;
        types.merge(types::compare(&before, &xen, &objects, progress)?);
        if number + 1 < levels.len() {
            let kept = copy.join(format!("xen-level-{number}"));
            duplicate(&xen, &kept).map_err(|e| unusable(&xen, &e))?;
            before = kept;
        }
    }
    let xen = copy.join("xen");
    let files = record::files(&xen).map_err(|e| unusable(&xen, &e))?;
    let built = Built { from, types, files };
    work.keep(&built);
    result(copy, built.types, built.files)
}

/// All that the hypervisor of the plan is built of, and by which program, in words.
fn all_of(
    plan: &Plan,
    top: &Path,
    patches: &[Vec<u8>],
    hooks: &[(String, Vec<u8>)],
) -> Result<String, Unusable> {
    let xen = top.join("xen");
    let program = std::env::current_exe().and_then(|program| program.metadata());
    let program = program.and_then(|program| program.modified()).ok();
    let mut text = format!("{program:?} {:?}\n", plan.levels());
    text += &listing(&xen).map_err(|e| unusable(&xen, &e))?;
    let hooks = hooks.iter().map(|(_, text)| text);
    for given in patches.iter().chain(hooks) {
        text += &format!("{}\n", given.escape_ascii());
    }
    Ok(text)
}

/// What was built in `copy`.
fn result(copy: &Path, types: Types, files: BTreeMap<String, String>) -> Result<Patched, Unusable> {
    let read = |name: &str| {
        let path = copy.join("xen").join(name);
        std::fs::read(&path).map_err(|e| unusable(&path, &e))
    };
    Ok(Patched {
        syms: read("xen-syms")?,
        objects: read("prelink.o")?,
        types: Some(types),
        files,
        notes: Vec::new(),
    })
}

/// An existing build of the patched source; its types are compared with those of the
/// built tree `original`, if given.
///
/// # Errors
/// If a file cannot be read, or if an object of a tree cannot be recompiled.
pub fn built(
    syms: &Path,
    objects: &Path,
    original: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Patched, Unusable> {
    let read = |path: &Path| file::read(path).map_err(|e| unusable(path, &e));
    let mut patched = Patched {
        syms: read(syms)?,
        objects: read(objects)?,
        types: None,
        files: BTreeMap::new(),
        notes: Vec::new(),
    };
    if let Some(tree) = original {
        let before = top(tree)?.join("xen");
        let after = syms.canonicalize().map_err(|e| unusable(syms, &e))?;
        let after = after.parent().unwrap_or(Path::new("/"));
        progress.stage("comparing types");
        let objects = record::different(&before, after).map_err(|e| unusable(after, &e))?;
        patched.types = Some(types::compare(&before, after, &objects, progress)?);
        patched.files = record::files(after).map_err(|e| unusable(after, &e))?;
    }
    Ok(patched)
}

/// The error that there is no directory for temporary files.
pub(crate) fn no_work_directory(error: &std::io::Error) -> Unusable {
    let message =
        format!("no work directory can be made here ({error}); set TMPDIR to another directory");
    unusable(&std::env::temp_dir(), &message)
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> Unusable {
    Unusable::new(&path.display().to_string(), error)
}

/// The directory that contains `xen`.
fn top(tree: &Path) -> Result<PathBuf, Unusable> {
    let tree = tree.canonicalize().map_err(|e| unusable(tree, &e))?;
    if tree.join("xen/Rules.mk").is_file() {
        return Ok(tree);
    }
    let parent = tree.parent().filter(|_| tree.join("Rules.mk").is_file());
    let parent = parent.map(Path::to_owned);
    parent.ok_or_else(|| unusable(&tree, &"not a Xen source tree: there is no xen/Rules.mk"))
}

/// Hooks, given as names and contents of files, are compiled like any other file, and
/// linked.
fn add_hooks(copy: &Path, hooks: &[(String, Vec<u8>)]) -> Result<(), Unusable> {
    if hooks.is_empty() {
        return Ok(());
    }
    let common = copy.join("xen/common");
    let makefile = common.join("Makefile");
    let mut text = std::fs::read_to_string(&makefile).map_err(|e| unusable(&makefile, &e))?;
    for (name, hook) in hooks {
        let path = common.join(name).with_extension("c");
        std::fs::write(&path, hook).map_err(|e| unusable(&path, &e))?;
        text.push_str(&format!("\nobj-y += {name}.o\n"));
    }
    std::fs::write(&makefile, text).map_err(|e| unusable(&makefile, &e))
}

fn make(copy: &Path, arguments: &[String], progress: &dyn Progress) -> Result<(), Unusable> {
    let bad = |e: std::io::Error| Unusable::new("make", &e);
    let jobs = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let mut command = Command::new("make");
    command.arg("-C").arg(copy.join("xen")).args(arguments);
    command.arg(format!("-j{jobs}")).arg("xen");
    command.env_remove("MAKEFLAGS").stdin(Stdio::null());
    // Compilers' temporary files are removed with the copy.
    command.env("TMPDIR", copy);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process::spawn(&mut command).map_err(bad)?;
    let (lines, errors) = (process.stdout.take(), process.stderr.take());
    let errors = std::thread::scope(|scope| {
        let errors = scope.spawn(|| {
            let mut text = Vec::new();
            if let Some(mut pipe) = errors {
                // If this fails, only the message is incomplete.
                let _ = pipe.read_to_end(&mut text);
            }
            text
        });
        for line in lines
            .into_iter()
            .flat_map(|pipe| BufReader::new(pipe).lines())
        {
            progress.step(line.unwrap_or_default().trim());
        }
        errors.join().unwrap_or_default()
    });
    if process.wait().map_err(bad)?.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&errors);
    let mut lines: Vec<&str> = errors.lines().collect();
    if lines.iter().any(|line| line.contains("rror")) {
        lines.retain(|line| line.contains("rror"));
    }
    let errors = lines.get(..10).unwrap_or(&lines).join("\n");
    Err(Unusable::new(
        "the patched hypervisor does not build",
        &errors,
    ))
}
