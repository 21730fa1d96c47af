// SPDX-License-Identifier: MIT OR Apache-2.0
//! Regenerates files that the build generates from patched ones.

use crate::code::Code;
use crate::generated_file::GeneratedFile;
use crate::problem::{Problem, Refused};
use crate::shadow::Changes;
use crate::variant::{Base, Variant};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Runs the recorded commands of every generated file that depends on `changes`,
/// directly or indirectly; adds those whose contents change to `changes`.
///
/// # Errors
/// The messages of failing commands; a change to how the hypervisor is linked.
pub(crate) fn regenerate(base: &Arc<Base>, changes: &mut Changes) -> Result<(), Refused> {
    let tree = base.tree;
    let reached_by = |fresh: &BTreeSet<String>| {
        let indices = 0..tree.generated.len();
        indices
            .filter(|&index| reads_any(&tree.generated[index], fresh))
            .collect::<BTreeSet<usize>>()
    };
    let from_xen = |path: &String| Some(path.strip_prefix("xen/")?.to_owned());
    let mut waiting = reached_by(&changes.keys().filter_map(from_xen).collect());
    while !waiting.is_empty() {
        // Build dependencies first.
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
        let variant = Variant::new(base, changes.clone());
        let original = Variant::new(base, Changes::new());
        let results = ready
            .par_iter()
            .map(|&index| regenerate_file(&original, &variant, &tree.generated[index]));
        let files: Vec<_> = crate::problem::all(results.collect())?;
        let files: Vec<(String, Vec<u8>)> = files.into_iter().flatten().collect();
        let fresh: BTreeSet<String> = files.iter().map(|(path, _)| path.clone()).collect();
        if let Some(path) = fresh.iter().find(|path| path.ends_with(".lds")) {
            let scripts = tree.generated.iter().filter(|file| file.path == *path);
            let mut sources = scripts.flat_map(|file| &file.inputs);
            let source = sources.find(|source| changes.contains_key(&format!("xen/{source}")));
            let source = format!("xen/{}", source.unwrap_or(path));
            let message = format!(
                "the patch changes how the hypervisor is linked ({path}), which a payload cannot \
                 carry; `--leave-out {source}` builds the payload without it, if the code does not need it"
            );
            return Err(Refused::one(Code::BuildSystem, source, message));
        }
        waiting = waiting.difference(&ready).copied().collect();
        waiting.extend(reached_by(&fresh));
        changes.extend(
            files
                .into_iter()
                .map(|(path, contents)| (format!("xen/{path}"), Some(contents))),
        );
    }
    Ok(())
}

/// Whether `file` is generated from any of `files`. The includes of public headers
/// are not recorded for files generated from them, so these depend on all.
fn reads_any(file: &GeneratedFile, files: &BTreeSet<String>) -> bool {
    let is_interface = |path: &String| {
        path.ends_with(".h")
            && (path.starts_with("include/public/") || path.starts_with("include/compat/"))
    };
    let unknown = file.path.ends_with(".i");
    !file.inputs.is_disjoint(files) || (unknown && files.iter().any(is_interface))
}

/// The path and contents of `file` if they changed.
fn regenerate_file(
    original: &Variant,
    variant: &Variant,
    file: &GeneratedFile,
) -> Result<Option<(String, Vec<u8>)>, Problem> {
    let before = variant.contents(&file.path).unwrap_or_default();
    let after = variant.generate(file)?;
    if code(&before) == code(&after) {
        return Ok(None);
    }
    let built = original.contents(&file.path).unwrap_or_default();
    if code(&built) != code(&original.generate(file)?) {
        return Err(Problem::new(
            Code::ChangedTree,
            &file.path,
            "the tree's file differs from what the tree's source makes, without any patch: a file \
             that it is made from was changed after the tree was built; restore the source that \
             the hypervisor was built from, or build the tree again if this is that source",
        ));
    }
    Ok(Some((file.path.clone(), after)))
}

/// The contents of a file after its initial comment, which may contain the
/// generator's path.
fn code(file: &[u8]) -> &[u8] {
    let comment = file.starts_with(b"/*");
    let end = file.windows(2).position(|two| two == b"*/");
    let end = end.filter(|_| comment).map_or(0, |end| end + 2);
    file.get(end..).unwrap_or_default()
}
