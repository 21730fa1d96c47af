// SPDX-License-Identifier: MIT OR Apache-2.0
//! The last stage: the payload as a file, checked before it is there.

use super::accounted::Accounted;
use crate::code::Code;
use crate::payload::Identity;
use crate::preflight::Preflight;
use crate::problem::Refused;
use crate::record::{Record, Told};
use crate::report::Report;
use crate::warning::{self, Warning};
use std::collections::BTreeSet;
use xsplice_abi::note::hex;
use xsplice_system::file;

impl Accounted<'_, '_> {
    /// Writes the payload.
    ///
    /// # Errors
    /// A payload that would do nothing, has no valid form, or would not load and
    /// apply; then nothing is written.
    pub(crate) fn write(mut self) -> Result<Report, Refused> {
        let compared = self.selected.compared;
        let sources = compared.compiled.sources;
        let inputs = sources.inputs;
        let options = inputs.options;
        let changes = self.changes();
        if self.selected.selection.replaced.is_empty() && self.selected.selection.hooks.is_empty() {
            let message = format!(
                "it changes no function of the running hypervisor: nothing would use what it \
                 changes ({})",
                changes.join(", ")
            );
            return Err(Refused::one(Code::NothingToPatch, "patch", message));
        }
        let hypervisor = inputs.image.build_id();
        let top = inputs.below.build_id();
        let depends = options.depends.as_deref().or(top).unwrap_or(hypervisor);
        let known = top.is_some() || depends == hypervisor;
        if !known {
            // A payload below may have put a trampoline over the old code.
            for func in &mut self.selected.selection.draft.funcs {
                func.expected.clear();
                func.preimage = None;
            }
        }
        let mut warnings = warning::old_code(&compared.units);
        warnings.extend(self.selected.selection.warnings.iter().cloned());
        let cannot_write = |why: &dyn std::fmt::Display| {
            Refused::one(Code::CannotWrite, "payload", why.to_string())
        };
        let record = self.record(&warnings).map_err(|e| cannot_write(&e))?;
        let identity = Identity {
            hypervisor,
            depends,
            metadata: &self.metadata,
            record: &record,
        };
        let selection = self.selected.selection;
        let payload = selection
            .draft
            .write(&identity)
            .map_err(|e| cannot_write(&e))?;
        let preflight = Preflight {
            output: &options.output,
            xen_syms: &options.xen_syms,
            image: &inputs.image,
            below: &inputs.below,
            known,
        };
        preflight.check(&payload)?;
        file::write(&options.output, &payload).map_err(|e| Refused::io(&options.output, &e))?;
        let mut notes = self.notes;
        // This is about the build machine, so the payload does not record it.
        notes.extend(sources.rebuild.unwritable().map(str::to_owned));
        Ok(Report {
            output: options.output.clone(),
            size: payload.len(),
            hypervisor: hex(hypervisor),
            objects: compared.compiled.pairs.len(),
            changes,
            functions: selection.replaced,
            carried: selection.carried,
            patched_data: selection.patched_data,
            per_cpu: selection.per_cpu,
            hooks: selection.hooks,
            left_out: selection.left_out,
            hunks: self.hunks,
            warnings,
            notes,
        })
    }

    /// Everything that differs between the two builds.
    fn changes(&self) -> Vec<String> {
        let units = self.selected.compared.units.iter();
        let changes = units.flat_map(|unit| &unit.comparison.changes);
        changes
            .map(|change| format!("{}: {}", change.name, change.why))
            .collect()
    }

    /// The build record, for reviewers and for builds on top of the payload.
    fn record(&self, warnings: &BTreeSet<Warning>) -> serde_json::Result<serde_json::Value> {
        let inputs = self.selected.compared.compiled.sources.inputs;
        let selection = &self.selected.selection;
        let (config, hooks) = (inputs.given.config.as_ref(), &inputs.given.hooks);
        serde_json::to_value(Record {
            hunks: self.hunks.clone(),
            left_out: selection.left_out.clone(),
            patched_data: selection.patched_data.clone(),
            per_cpu: selection.per_cpu.clone(),
            renewed: selection.renewed.clone(),
            warnings: warnings.iter().map(ToString::to_string).collect(),
            notes: self.notes.clone(),
            ..Record::of(Told::new(inputs.options, config, hooks))
        })
    }
}
