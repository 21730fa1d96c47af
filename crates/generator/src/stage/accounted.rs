// SPDX-License-Identifier: MIT OR Apache-2.0
//! The seventh stage: what became of each hunk of the patches.

use super::selected::Selected;
use crate::account::{Account, Accounted as Effects};
use crate::hunk::Hunk;
use crate::select::{Homes, select};
use crate::{below, constants, forgotten, stored};
use std::collections::BTreeSet;

/// A selection of which every hunk is accounted for.
pub(crate) struct Accounted<'s, 'a> {
    pub(super) selected: Selected<'s, 'a>,
    pub(super) hunks: Vec<Hunk>,
    pub(super) metadata: Vec<(String, String)>,
    /// What a reader should know.
    pub(super) notes: Vec<String>,
}

impl<'s, 'a> Selected<'s, 'a> {
    /// Finds out what each hunk does.
    pub(crate) fn account(self) -> Accounted<'s, 'a> {
        let compared = self.compared;
        let sources = compared.compiled.sources;
        let inputs = sources.inputs;
        let rules = compared.rules();
        let account = Account {
            tree: &inputs.tree,
            rebuild: &sources.rebuild,
            patches: &inputs.patches,
            own: inputs.own,
            levels: &sources.levels,
            patched: &sources.patched,
            pairs: &compared.compiled.pairs,
            hooks: (&compared.hook_files, &compared.hooks),
            units: &compared.units,
            selection: &self.selection,
            select: &|units| {
                let homes = Homes::new(units, &inputs.below.levels, &inputs.image)?;
                select(homes, &inputs.below, &rules)
            },
        };
        let Effects { mut hunks, unused } = account.hunks();
        hunks.extend(inputs.left_out.iter().cloned());
        let mut metadata = inputs.metadata.clone();
        let unused = below::mark_unused(&mut metadata, &unused);
        Accounted {
            notes: self.notes(unused),
            selected: self,
            hunks,
            metadata,
        }
    }

    /// What a reader should know; `unused` is about patches without effect.
    fn notes(&self, unused: Vec<String>) -> Vec<String> {
        let sources = self.compared.compiled.sources;
        let (inputs, source) = (sources.inputs, &sources.source);
        let units = &self.compared.units;
        let files: BTreeSet<&str> = inputs.left_out.iter().map(|h| h.file.as_str()).collect();
        let left_out = |file| format!("{file}: left out (--leave-out)");
        let mut notes: Vec<String> = files.into_iter().map(left_out).collect();
        notes.extend(self.layout_notes.iter().cloned());
        notes.extend(unused);
        notes.extend(source.loose.iter().cloned());
        let in_place = &self.selection.patched_data;
        notes.extend(units.iter().flat_map(|unit| stored::notes(unit, in_place)));
        notes.extend(self.selection.notes.iter().cloned());
        notes.extend(constants::notes(
            inputs
                .own_files()
                .filter(|file| !source.foreign.contains(file.path())),
        ));
        notes.extend(forgotten::notes(units, source, &sources.edits));
        notes.extend(
            source
                .mode_only
                .iter()
                .map(|file| format!("{file}: only its mode changes, which does not affect code")),
        );
        let foreign = source.foreign.iter();
        notes.extend(foreign.map(|file| format!("{file}: not part of this hypervisor; ignored")));
        notes
    }
}
