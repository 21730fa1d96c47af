// SPDX-License-Identifier: MIT OR Apache-2.0
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
    let reached_by = |fresh: &BTreeSet<String>| {
        let indices = 0..tree.generated.len();
        indices
            .filter(|&index| reads_any(&tree.generated[index], fresh))
            .collect::<BTreeSet<usize>>()
    };
    let mut waiting = reached_by(touched);
    while !waiting.is_empty() {
        // What another one that waits is made from is made first.
        let outputs: BTreeSet<String> = waiting
            .iter()
            .map(|&index| tree.generated[index].path.clone())
            .collect();
        let mut ready: BTreeSet<usize> = waiting
            .iter()
            .copied()
            .filter(|&index| tree.generated[index].inputs.is_disjoint(&outputs))
            .collect();
        if ready.is_empty() {
            ready.clone_from(&waiting);
        }
        let results: Vec<Result<Option<String>, Problem>> = ready
            .par_iter()
            .map(|&index| regenerate_file(tree, shadow, &tree.generated[index]))
            .collect();
        let fresh: BTreeSet<String> = crate::all(results)?.into_iter().flatten().collect();
        if let Some(path) = fresh.iter().find(|path| path.ends_with(".lds")) {
            return Err(Refused::one(
                path,
                "the patch changes how the hypervisor is linked, which a payload cannot carry",
            ));
        }
        waiting = waiting.difference(&ready).copied().collect();
        waiting.extend(reached_by(&fresh));
        touched.extend(fresh);
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
