// SPDX-License-Identifier: MIT OR Apache-2.0
//! Building the patched hypervisor, all of it, as the tree was built.

use crate::source::Source;
use crate::types::{self, Types};
use crate::{Plan, Progress, Unusable, record};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;
use xsplice_system::file;
use xsplice_system::interrupt::{Directory, Process, run};

/// A build of the patched source.
#[derive(Debug)]
pub struct Patched {
    /// `xen-syms`.
    pub syms: Vec<u8>,
    /// The object that it was linked from.
    pub objects: Vec<u8>,
    /// The types of what is in memory; `None` if they were not compared.
    pub types: Option<Types>,
    /// The source file of each global symbol.
    pub files: BTreeMap<String, String>,
}

/// Builds the hypervisor of the plan's tree with its patches in a copy of the
/// tree, with the tree's objects where they are up to date, as the tree was built.
/// Lines that the patches only move keep their numbers.
///
/// # Errors
/// If a patch does not apply, if the tree cannot be copied, or if the build
/// fails.
pub fn build(plan: &Plan, progress: &dyn Progress) -> Result<Patched, Unusable> {
    let top = top(plan.tree)?;
    progress.stage("copying the tree");
    let directory = Directory::new("xsplice-verify-");
    let directory = directory.map_err(|e| no_work_directory(&e))?;
    let copy = directory.path();
    copy_tree(&top, copy).map_err(|e| unusable(&top, &e))?;
    let recorded = record::arguments(&top.join("xen")).map_err(|e| unusable(&top, &e))?;
    let mut source = Source::default();
    let mut types = Types::default();
    let mut before = top.join("xen");
    // Each level changes what the levels below it left in memory.
    let levels = plan.levels();
    for (number, (level, left_out)) in levels.iter().enumerate() {
        let began = SystemTime::now();
        for path in *level {
            let text = file::read(path).map_err(|e| unusable(path, &e))?;
            let name = path.display().to_string();
            source.apply(&top, &name, &String::from_utf8_lossy(&text), left_out)?;
        }
        source.write(copy).map_err(|e| unusable(copy, &e))?;
        if number + 1 == levels.len() {
            add_hooks(copy, plan.hooks)?;
        }
        progress.stage("building the patched hypervisor");
        make(copy, &recorded, progress)?;
        progress.stage("comparing types");
        let xen = copy.join("xen");
        let objects = record::compiled_since(&xen, began).map_err(|e| unusable(&xen, &e))?;
        types.merge(types::compare(&before, &xen, &objects, progress)?);
        if number + 1 < levels.len() {
            let kept = copy.join(format!("xen-level-{number}"));
            duplicate(&xen, &kept).map_err(|e| unusable(&xen, &e))?;
            before = kept;
        }
    }
    let read = |name: &str| {
        let path = copy.join("xen").join(name);
        std::fs::read(&path).map_err(|e| unusable(&path, &e))
    };
    let xen = copy.join("xen");
    Ok(Patched {
        syms: read("xen-syms")?,
        objects: read("prelink.o")?,
        types: Some(types),
        files: record::files(&xen).map_err(|e| unusable(&xen, &e))?,
    })
}

/// A build of the patched source that is there already; its types are compared
/// with those of the built tree `original`, if that is given.
///
/// # Errors
/// If a file cannot be read, or if an object of a tree cannot be compiled again.
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

/// That there is no place for temporary files.
pub(crate) fn no_work_directory(error: &std::io::Error) -> Unusable {
    let message =
        format!("no work directory can be made here ({error}); set TMPDIR to another directory");
    unusable(&std::env::temp_dir(), &message)
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> Unusable {
    Unusable::new(&path.display().to_string(), error)
}

/// The directory that has `xen` in it.
fn top(tree: &Path) -> Result<PathBuf, Unusable> {
    let tree = tree.canonicalize().map_err(|e| unusable(tree, &e))?;
    if tree.join("xen/Rules.mk").is_file() {
        return Ok(tree);
    }
    let parent = tree.parent().filter(|_| tree.join("Rules.mk").is_file());
    let parent = parent.map(Path::to_owned);
    parent.ok_or_else(|| unusable(&tree, &"not a Xen source tree: there is no xen/Rules.mk"))
}

/// What the hypervisor is built from is copied, everything else is linked.
fn copy_tree(top: &Path, copy: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(top)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if name != OsStr::new("xen") {
            std::os::unix::fs::symlink(&path, copy.join(name))?;
        }
    }
    duplicate(&top.join("xen"), &copy.join("xen"))
}

fn duplicate(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut command = Command::new("cp");
    command.args(["-a", "--reflink=auto"]).arg(from).arg(to);
    let ran = run(&mut command);
    let (status, words) =
        ran.map_err(|e| std::io::Error::other(format!("cannot run cp to copy it: {e}")))?;
    match status.success() {
        true => Ok(()),
        false => Err(std::io::Error::other(
            String::from_utf8_lossy(&words).trim_end().to_owned(),
        )),
    }
}

/// Hooks are compiled like any other file, and linked.
fn add_hooks(copy: &Path, hooks: &[PathBuf]) -> Result<(), Unusable> {
    if hooks.is_empty() {
        return Ok(());
    }
    let common = copy.join("xen/common");
    let makefile = common.join("Makefile");
    let mut text = std::fs::read_to_string(&makefile).map_err(|e| unusable(&makefile, &e))?;
    for (number, hook) in hooks.iter().enumerate() {
        let name = format!("xsplice-hooks-{number}");
        std::fs::copy(hook, common.join(&name).with_extension("c"))
            .map_err(|e| unusable(hook, &e))?;
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
    // What compilers keep for themselves goes when the copy goes.
    command.env("TMPDIR", copy);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process::spawn(&mut command).map_err(bad)?;
    let (lines, errors) = (process.stdout.take(), process.stderr.take());
    let errors = std::thread::scope(|scope| {
        let errors = scope.spawn(|| {
            let mut text = Vec::new();
            if let Some(mut pipe) = errors {
                // What cannot be read is missing from the message only.
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
