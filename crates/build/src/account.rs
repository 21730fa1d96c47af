//! What became of each hunk of the patches.
//!
//! A hunk is in the payload if the changed objects come out differently
//! without it; it has no effect on code if they come out the same. Both are
//! found by leaving it out and compiling again, so neither is a guess.

use crate::rebuild::{Pair, Rebuild};
use crate::source::{HunkId, PatchedSource, SourcePatch};
use crate::tree::{ObjectFile, Tree};
use crate::unit::Unit;
use crate::{Problem, Refused};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;

/// What a hunk does.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "effect")]
pub enum Effect {
    /// It changes code that is in the payload.
    InPayload {
        /// The functions that differ without it, of the first object that
        /// does; empty if the rest of the patch does not compile without it.
        functions: Vec<String>,
    },
    /// Every object that it reaches compiles to the same without it.
    None {
        /// How many objects that are.
        objects: usize,
    },
    /// Nothing that is compiled into this hypervisor reads the file.
    NotBuilt,
}

/// A hunk and what it does.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Hunk {
    /// The patch it is in.
    pub patch: String,
    /// The file it changes.
    pub file: String,
    /// The line it starts at in the old file.
    pub line: usize,
    /// What it does.
    #[serde(flatten)]
    pub effect: Effect,
}

/// Finds what each hunk of `patches` does; `pairs` are the objects that the
/// whole patch reaches.
///
/// # Errors
/// If the accounting itself fails, for example for want of disk space.
pub(crate) fn account(
    tree: &Tree,
    rebuild: &Rebuild,
    patches: &[SourcePatch],
    pairs: &[Pair],
    cache: Option<&Path>,
) -> Result<Vec<Hunk>, Refused> {
    let ids: Vec<HunkId> = hunks(patches);
    let effects: Vec<Result<Effect, Problem>> = ids
        .par_iter()
        .map(|&id| {
            effect(tree, rebuild, patches, pairs, cache, id).map_err(|refused| {
                Problem::new(
                    describe(patches, id, Effect::NotBuilt).file,
                    refused.to_string(),
                )
            })
        })
        .collect();
    let effects = crate::all(effects)?;
    Ok(ids
        .into_iter()
        .zip(effects)
        .map(|(id, effect)| describe(patches, id, effect))
        .collect())
}

fn hunks(patches: &[SourcePatch]) -> Vec<HunkId> {
    let mut ids = Vec::new();
    for (patch, source) in patches.iter().enumerate() {
        for (file, changes) in source.files.iter().enumerate() {
            if changes.path().starts_with("xen/") {
                ids.extend((0..changes.hunks.len()).map(|hunk| HunkId { patch, file, hunk }));
            }
        }
    }
    ids
}

fn describe(patches: &[SourcePatch], id: HunkId, effect: Effect) -> Hunk {
    let file = &patches[id.patch].files[id.file];
    Hunk {
        patch: patches[id.patch].name.clone(),
        file: file.path().to_owned(),
        line: file.hunks[id.hunk].old_start,
        effect,
    }
}

fn effect(
    tree: &Tree,
    rebuild: &Rebuild,
    patches: &[SourcePatch],
    pairs: &[Pair],
    cache: Option<&Path>,
    id: HunkId,
) -> Result<Effect, Refused> {
    let needed = Effect::InPayload { functions: vec![] };
    // Later hunks may need this one's lines.
    let Ok(source) = PatchedSource::apply(tree, patches, Some(id)) else {
        return Ok(needed);
    };
    let file = patches[id.patch].files[id.file].path().to_owned();
    let Ok(without) = rebuild.lay_out(&source, cache) else {
        return Ok(needed);
    };
    let mut alone = BTreeSet::from([file.strip_prefix("xen/").unwrap_or(&file).to_owned()]);
    if without.touched.len() > source.touched().len() {
        // Generated files may come from this one.
        alone.extend(without.touched.iter().cloned());
    }
    let reads_it = |object: &ObjectFile| {
        // What a new object reads was not recorded.
        object.dependencies.len() == 1 || !object.dependencies.is_disjoint(&alone)
    };
    let mut reached: Vec<&Pair> = pairs.iter().filter(|pair| reads_it(&pair.object)).collect();
    if reached.is_empty() {
        return Ok(Effect::NotBuilt);
    }
    let objects = reached.len();
    // An object that the whole patch leaves as it is: the hunk does nothing
    // there that another does not undo. The smallest are compiled first.
    reached.retain(|pair| pair.original != pair.patched);
    reached.sort_by_key(|pair| pair.patched.as_ref().map_or(0, Vec::len));
    for pair in reached {
        let still_built = without.objects().find(|o| o.path == pair.object.path);
        let bytes = match still_built {
            Some(object) => match rebuild.patched(&without, object) {
                Ok(bytes) => Some(bytes),
                Err(_) => return Ok(needed),
            },
            None => pair.original.clone(),
        };
        let difference = Pair {
            object: pair.object.clone(),
            original: bytes,
            patched: pair.patched.clone(),
        };
        match Unit::compare(tree, &difference) {
            Ok(None) => {}
            Ok(Some(unit)) => {
                let names = unit.comparison.changes.iter().map(|c| c.name.clone());
                return Ok(Effect::InPayload {
                    functions: names.collect(),
                });
            }
            Err(_) => return Ok(needed),
        }
    }
    Ok(Effect::None { objects })
}
