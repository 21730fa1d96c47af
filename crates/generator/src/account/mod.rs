// SPDX-License-Identifier: MIT OR Apache-2.0
//! Determines the effect of each hunk of the patches.
//!
//! A hunk is in the payload if the payload is different without it. It has no effect
//! if the payload is the same without it alone, and without all hunks that have no
//! effect together. Both are determined by leaving hunks out and rebuilding, so
//! neither is a guess.

mod without;

use crate::choice::Choices;
use crate::given::File;
use crate::hunk::{Effect, Hunk};
use crate::pair::Pair;
use crate::patch::FilePatch;
use crate::problem::Problem;
use crate::rebuild::{Patched, Rebuild};
use crate::select::Selection;
use crate::source::{HunkId, SourcePatch, is_hypervisor};
use crate::tree::Tree;
use crate::unit::Units;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use without::{Outcome, Scope, Without};

/// The effects of all hunks.
#[derive(Debug)]
pub(crate) struct Accounted {
    pub(crate) hunks: Vec<Hunk>,
    /// The patches without effect on the payload, by index from the first of the
    /// payload's own.
    pub(crate) unused: BTreeSet<usize>,
}

/// Removes the files `names` from `patches`; returns their hunks.
pub(crate) fn leave_out(patches: &mut [SourcePatch], names: &Choices) -> Vec<Hunk> {
    let mut left_out = Vec::new();
    for patch in patches {
        let (out, stays): (Vec<FilePatch>, _) = std::mem::take(&mut patch.files)
            .into_iter()
            .partition(|file| names.contains(file.path()));
        patch.files = stays;
        for file in out {
            let lines = file.hunks.iter().map(|hunk| hunk.old_start);
            // Without hunks, such as a rename.
            let whole = file.hunks.is_empty().then_some(1);
            left_out.extend(lines.chain(whole).map(|line| Hunk {
                patch: patch.name.clone(),
                file: file.path().to_owned(),
                line,
                effect: Effect::LeftOut {
                    names: BTreeSet::from([file.path().to_owned()]),
                },
            }));
        }
    }
    left_out
}

/// Determines the contents of a payload built from other `units`.
pub(crate) type Select<'a> = dyn Fn(&Units) -> Result<Selection, Vec<Problem>> + Sync + 'a;

/// A payload, and all its inputs.
pub(crate) struct Account<'a, 't> {
    pub(crate) tree: &'a Tree,
    pub(crate) rebuild: &'a Rebuild<'t>,
    /// All patches; the first `own` are those of payloads below.
    pub(crate) patches: &'a [SourcePatch],
    pub(crate) own: usize,
    /// The source at the level of each payload below.
    pub(crate) levels: &'a [Patched<'t>],
    /// The source with all patches.
    pub(crate) patched: &'a Patched<'t>,
    /// The objects that the patches affect, except hooks.
    pub(crate) pairs: &'a [Pair],
    /// Hooks given with `--hooks`: sources and objects.
    pub(crate) hooks: (&'a [File], &'a [Pair]),
    /// The differing objects, hooks included.
    pub(crate) units: &'a Units,
    pub(crate) selection: &'a Selection,
    pub(crate) select: &'a Select<'a>,
}

impl<'t> Account<'_, 't> {
    /// Determines the effect of each hunk.
    pub(crate) fn hunks(&self) -> Accounted {
        let without = Without::new(self);
        let ids = self.ids();
        let effects = ids.par_iter().map(|&id| match self.is_foreign(id) {
            true => (id, Effect::NotBuilt),
            false => (id, self.alone(&without, id)),
        });
        let mut effects: BTreeMap<HunkId, Effect> = effects.collect();
        self.together(&without, &mut effects);
        let in_payload = effects.iter().filter(|(_, effect)| effect.is_in_payload());
        let used: BTreeSet<usize> = in_payload.map(|(id, _)| id.patch).collect();
        let patches = self.patches.iter().enumerate().skip(self.own);
        let renames = |patch: &SourcePatch| patch.files.iter().any(FilePatch::is_rename);
        let unused = patches.filter(|(index, patch)| !used.contains(index) && !renames(patch));
        Accounted {
            unused: unused.map(|(index, _)| index - self.own).collect(),
            hunks: effects
                .into_iter()
                .map(|(id, effect)| self.hunk(id, effect))
                .collect(),
        }
    }

    fn ids(&self) -> Vec<HunkId> {
        let mut ids = Vec::new();
        for (patch, source) in self.patches.iter().enumerate().skip(self.own) {
            for (file, changes) in source.files.iter().enumerate() {
                ids.extend((0..changes.hunks.len()).map(|hunk| HunkId { patch, file, hunk }));
            }
        }
        ids
    }

    fn is_foreign(&self, id: HunkId) -> bool {
        !is_hypervisor(self.tree, self.patches[id.patch].files[id.file].path())
    }

    /// Whether the build generates files from the one that a hunk changes.
    fn is_made_from(&self, id: HunkId) -> bool {
        let path = self.patches[id.patch].files[id.file].path();
        let mut generated = self.tree.generated.iter();
        let path = path.strip_prefix("xen/");
        path.is_some_and(|path| generated.any(|file| file.inputs.contains(path)))
    }

    fn hunk(&self, id: HunkId, effect: Effect) -> Hunk {
        let file = &self.patches[id.patch].files[id.file];
        Hunk {
            patch: self.patches[id.patch].name.clone(),
            file: file.path().to_owned(),
            line: file.hunks[id.hunk].old_start,
            effect,
        }
    }

    /// The effect of the hunk with all others present.
    fn alone(&self, without: &Without<'_, 't>, id: HunkId) -> Effect {
        match without.leave_out(&BTreeSet::from([id]), Scope::Changed) {
            Outcome::Other { names } => Effect::InPayload { names },
            Outcome::Same { objects: 0, .. } if self.is_made_from(id) => {
                Effect::None { objects: 0 }
            }
            Outcome::Same { objects: 0, .. } => Effect::NotBuilt,
            Outcome::Same { objects, names, .. } if names.is_empty() => Effect::None { objects },
            Outcome::Same {
                names,
                only_placement,
                ..
            } => {
                let left_out = |name: &String| {
                    let mut all = self.selection.left_out.iter();
                    all.any(|left_out| left_out.name == *name)
                };
                if names.iter().any(left_out) {
                    Effect::LeftOut { names }
                } else if !names.is_disjoint(&self.selection.restored) {
                    Effect::Restored { names }
                } else if only_placement {
                    Effect::Placement { names }
                } else {
                    Effect::Unused { names }
                }
            }
        }
    }

    /// Leaves out together all hunks without effect alone, and finds those that are
    /// alternatives of each other.
    fn together(&self, without: &Without<'_, 't>, effects: &mut BTreeMap<HunkId, Effect>) {
        let quiet = effects.iter().filter(|(_, effect)| !effect.is_in_payload());
        let quiet: BTreeSet<HunkId> = quiet.map(|(id, _)| *id).collect();
        let names_without = |hunks: &BTreeSet<HunkId>| match without.leave_out(hunks, Scope::All) {
            Outcome::Other { names } => Some(names),
            Outcome::Same { .. } => None,
        };
        if quiet.is_empty() || names_without(&quiet).is_none() {
            return;
        }
        let mut out = BTreeSet::new();
        for id in quiet {
            let mut more = out.clone();
            more.insert(id);
            let Some(names) = names_without(&more) else {
                out = more;
                continue;
            };
            // The fewest others that show it.
            for other in &out {
                more.remove(other);
                if names_without(&more).is_none() {
                    more.insert(*other);
                }
            }
            self.are_alternatives(&more, &names, effects);
        }
    }

    fn are_alternatives(
        &self,
        hunks: &BTreeSet<HunkId>,
        names: &BTreeSet<String>,
        effects: &mut BTreeMap<HunkId, Effect>,
    ) {
        let place = |id: HunkId| {
            let hunk = self.hunk(id, Effect::NotBuilt);
            format!("{}:{}", hunk.file, hunk.line)
        };
        for &id in hunks {
            let others: BTreeSet<String> = hunks
                .iter()
                .filter(|other| **other != id)
                .map(|other| place(*other))
                .collect();
            let effect = match (effects.get_mut(&id), others.is_empty()) {
                (
                    Some(Effect::Alternative {
                        others: known,
                        names: more,
                    }),
                    _,
                ) => {
                    known.extend(others);
                    more.extend(names.iter().cloned());
                    continue;
                }
                (_, true) => Effect::InPayload {
                    names: names.clone(),
                },
                (_, false) => Effect::Alternative {
                    others,
                    names: names.clone(),
                },
            };
            effects.insert(id, effect);
        }
    }
}
