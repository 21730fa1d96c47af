// SPDX-License-Identifier: MIT OR Apache-2.0
//! What became of each hunk of the patches.
//!
//! A hunk is in the payload if the changed objects come out differently
//! without it; it has no effect on code if they come out the same. Both are
//! found by leaving it out and compiling again, so neither is a guess.

use crate::Refused;
use crate::rebuild::{Pair, Patched, Rebuild};
use crate::select::Selection;
use crate::source::{HunkId, PatchedSource, SourcePatch, is_hypervisor};
use crate::tree::{ObjectFile, Tree};
use crate::unit::Unit;
use rayon::prelude::*;
use std::collections::BTreeSet;
use xsplice_diff::Kind;

/// What a hunk does.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "effect")]
pub enum Effect {
    /// It changes what is in the payload.
    InPayload {
        /// What the payload has that differs without it, of the first object
        /// that does; empty if the rest of the patch does not compile without
        /// it.
        names: BTreeSet<String>,
    },
    /// It changes only what the payload does without, as was asked for.
    LeftOut {
        /// What that is.
        names: BTreeSet<String>,
    },
    /// It changes only what the running hypervisor does not use.
    Unused {
        /// What that is.
        names: BTreeSet<String>,
    },
    /// It changes only where variables lie, and those of the running hypervisor
    /// lie as well.
    Placement {
        /// What that is.
        names: BTreeSet<String>,
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
/// whole patch reaches, `units` those of them that it changes, `selection` what
/// is in the payload. The first `below` patches are those of payloads below.
///
/// # Errors
/// If the accounting itself fails, for example for want of disk space.
pub(crate) fn account(
    tree: &Tree,
    rebuild: &Rebuild,
    (patches, below): (&[SourcePatch], usize),
    pairs: &[Pair],
    units: &[Unit],
    selection: &Selection,
) -> Result<Vec<Hunk>, Refused> {
    let accounting = Accounting {
        tree,
        rebuild,
        patches,
        pairs,
        units,
        selection,
    };
    hunks(tree, patches)
        .par_iter()
        .filter(|id| id.patch >= below)
        .map(|&id| {
            let file = &patches[id.patch].files[id.file];
            Ok(Hunk {
                patch: patches[id.patch].name.clone(),
                file: file.path().to_owned(),
                line: file.hunks[id.hunk].old_start,
                effect: accounting.effect(id)?,
            })
        })
        .collect()
}

fn hunks(tree: &Tree, patches: &[SourcePatch]) -> Vec<HunkId> {
    let mut ids = Vec::new();
    for (patch, source) in patches.iter().enumerate() {
        for (file, changes) in source.files.iter().enumerate() {
            if is_hypervisor(tree, changes.path()) {
                ids.extend((0..changes.hunks.len()).map(|hunk| HunkId { patch, file, hunk }));
            }
        }
    }
    ids
}

struct Accounting<'a> {
    tree: &'a Tree,
    rebuild: &'a Rebuild<'a>,
    patches: &'a [SourcePatch],
    pairs: &'a [Pair],
    units: &'a [Unit],
    selection: &'a Selection,
}

impl Accounting<'_> {
    fn effect(&self, id: HunkId) -> Result<Effect, Refused> {
        let needed = Effect::InPayload {
            names: BTreeSet::new(),
        };
        // Later hunks may need this one's lines.
        let Ok(source) = PatchedSource::apply(self.tree, self.patches, Some(id)) else {
            return Ok(needed);
        };
        let Ok(without) = self.rebuild.lay_out(&source) else {
            return Ok(needed);
        };
        let mut reached = self.reached(id, &source, &without);
        if reached.is_empty() {
            return Ok(Effect::NotBuilt);
        }
        let objects = reached.len();
        // In an object that the whole patch leaves as it is the hunk does
        // nothing that another does not undo. The smallest are compiled first.
        reached.retain(|pair| self.units.iter().any(|u| u.file.path == pair.object.path));
        reached.sort_by_key(|pair| pair.patched.as_ref().map_or(0, Vec::len));
        let (mut others, mut only_placement) = (BTreeSet::new(), true);
        for pair in reached {
            let still_built = without.objects().find(|o| o.path == pair.object.path);
            let bytes = match still_built {
                Some(object) => match self.rebuild.patched(&without, object) {
                    Ok(bytes) => Some(bytes),
                    Err(_) => return Ok(needed),
                },
                None => pair.original.clone(),
            };
            let difference = Pair {
                object: pair.object.clone(),
                was: pair.was.clone(),
                original: bytes,
                patched: pair.patched.clone(),
                below: Vec::new(),
            };
            let Ok(unit) = Unit::compare(self.tree, &difference, None) else {
                return Ok(needed);
            };
            let changes = unit.iter().flat_map(|unit| &unit.comparison.changes);
            let places = |kind| matches!(kind, Kind::Elsewhere | Kind::Alignment);
            only_placement &= changes.clone().all(|change| places(change.kind));
            let (ours, not_ours): (BTreeSet<_>, BTreeSet<_>) = changes
                .map(|change| change.name.clone())
                .partition(|name| self.in_payload(name, &pair.object));
            if !ours.is_empty() {
                return Ok(Effect::InPayload { names: ours });
            }
            others.extend(not_ours);
        }
        let left_out = |name: &String| self.selection.left_out.iter().any(|l| l.name == *name);
        Ok(if others.is_empty() {
            Effect::None { objects }
        } else if others.iter().any(left_out) {
            Effect::LeftOut { names: others }
        } else if only_placement {
            Effect::Placement { names: others }
        } else {
            Effect::Unused { names: others }
        })
    }

    /// The objects that the file of the hunk goes into.
    fn reached(&self, id: HunkId, source: &PatchedSource, without: &Patched) -> Vec<&Pair> {
        let path = self.patches[id.patch].files[id.file].path();
        let mut files = BTreeSet::from([path.strip_prefix("xen/").unwrap_or(path).to_owned()]);
        if without.touched.len() > source.touched().len() {
            // Generated files may come from this one.
            files.extend(without.touched.iter().cloned());
        }
        let reads_it = |pair: &&Pair| {
            let known = &pair.object.dependencies;
            // What a new object reads was not recorded.
            known.len() == 1 || !known.is_disjoint(&files)
        };
        self.pairs.iter().filter(reads_it).collect()
    }

    fn in_payload(&self, name: &str, object: &ObjectFile) -> bool {
        let is = |other: &str, file: &str| other == name && file == object.source;
        let base = name.trim_end_matches(".cold");
        let replaced = self.selection.replaced.iter();
        let carried = self.selection.carried.iter();
        replaced
            .map(|r| (&r.name, &r.file))
            .any(|(n, f)| is(n, f) || n == base && *f == object.source)
            || carried.map(|c| (&c.name, &c.file)).any(|(n, f)| is(n, f))
    }
}
