//! Files that the build makes from source files, made anew from patched ones.

use crate::shadow::Shadow;
use crate::tree::{GeneratedFile, Tree};
use crate::{Problem, Refused, compile};
use rayon::prelude::*;
use std::collections::BTreeSet;

/// Runs the recorded commands of every generated file that `touched` (paths
/// from the `xen` directory) reaches, directly or through other generated
/// files; adds those whose contents change to `touched`.
///
/// # Errors
/// The words of commands that fail; a change of how the hypervisor is linked.
pub(crate) fn regenerate(
    tree: &Tree,
    shadow: &Shadow,
    touched: &mut BTreeSet<String>,
) -> Result<(), Refused> {
    let mut fresh = touched.clone();
    while !fresh.is_empty() {
        let reached: Vec<&GeneratedFile> = tree
            .generated
            .iter()
            .filter(|file| reads_any(file, &fresh))
            .collect();
        let results: Vec<Result<Option<String>, Problem>> = reached
            .par_iter()
            .map(|file| regenerate_file(tree, shadow, file))
            .collect();
        let mut problems = Vec::new();
        fresh.clear();
        for result in results {
            match result {
                Ok(Some(path)) if path.ends_with(".lds") => problems.push(Problem::new(
                    path,
                    "the patch changes how the hypervisor is linked, which a payload cannot carry",
                )),
                Ok(changed) => fresh.extend(changed),
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(Refused(problems));
        }
        touched.extend(fresh.iter().cloned());
    }
    Ok(())
}

/// Whether `file` is made from any of `files`. What the public headers include
/// is not recorded for those that are made from them: they are made from all.
fn reads_any(file: &GeneratedFile, files: &BTreeSet<String>) -> bool {
    let is_interface = |path: &String| {
        path.ends_with(".h")
            && (path.starts_with("include/public/") || path.starts_with("include/compat/"))
    };
    let unknown = file.path.ends_with(".i");
    !file.inputs.is_disjoint(files) || (unknown && files.iter().any(is_interface))
}

/// The path of `file` if its contents are other than before.
fn regenerate_file(
    tree: &Tree,
    shadow: &Shadow,
    file: &GeneratedFile,
) -> Result<Option<String>, Problem> {
    let output = shadow.xen().join(&file.path);
    let unreadable = |e: &std::io::Error| Problem::new(&file.path, e.to_string());
    let before = match std::fs::read(&output) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            std::fs::read(tree.top.join("xen").join(&file.path))
        }
        contents => contents,
    }
    .map_err(|e| unreadable(&e))?;
    shadow
        .remove(&output)
        .map_err(|e| Problem::new(&file.path, e.to_string()))?;
    compile::run(tree, shadow, &file.command)
        .map_err(|words| Problem::new(&file.path, format!("cannot be made anew: {words}")))?;
    let after = std::fs::read(&output).map_err(|e| unreadable(&e))?;
    Ok((before != after).then(|| file.path.clone()))
}
