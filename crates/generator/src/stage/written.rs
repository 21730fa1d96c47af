// SPDX-License-Identifier: MIT OR Apache-2.0
//! The last stage: the payload as a file, checked before it is there.

use super::accounted::Accounted;
use crate::code::Code;
use crate::payload::Identity;
use crate::preflight::Preflight;
use crate::problem::Refused;
use crate::record::{Record, RecordedOptions};
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
        let changes = self.changes();
        self.check_effect(&changes)?;
        let inputs = self.selected.compared.compiled.sources.inputs;
        let known = self.is_stack_known();
        if !known {
            // A payload below may have put a trampoline over the old code.
            for func in &mut self.selected.selection.draft.funcs {
                func.expected.clear();
                func.preimage = None;
            }
        }
        let mut warnings = warning::old_code(&self.selected.compared.units);
        warnings.extend(self.selected.selection.warnings.iter().cloned());
        let payload = self.payload(&warnings)?;
        let output = &inputs.options.output;
        let preflight = Preflight {
            output,
            xen_syms: &inputs.options.xen_syms,
            image: &inputs.image,
            below: &inputs.below,
            known,
        };
        preflight.check(&payload)?;
        file::write(output, &payload).map_err(|e| Refused::io(output, &e))?;
        Ok(self.report(payload.len(), changes, warnings))
    }

    /// # Errors
    /// If nothing would use what the payload has.
    fn check_effect(&self, changes: &[String]) -> Result<(), Refused> {
        let selection = &self.selected.selection;
        if !selection.replaced.is_empty() || !selection.hooks.is_empty() {
            return Ok(());
        }
        let message = format!(
            "it changes no function of the running hypervisor: nothing would use what it \
             changes ({})",
            changes.join(", ")
        );
        Err(Refused::one(Code::NothingToPatch, "patch", message))
    }

    /// Build-id of what the payload depends on.
    fn depends(&self) -> &[u8] {
        let inputs = self.selected.compared.compiled.sources.inputs;
        let given = inputs.options.depends.as_deref();
        let below = given.or(inputs.below.build_id());
        below.unwrap_or(inputs.image.build_id())
    }

    /// Whether the build knows all payloads that this one is loaded upon.
    fn is_stack_known(&self) -> bool {
        let inputs = self.selected.compared.compiled.sources.inputs;
        inputs.below.build_id().is_some() || self.depends() == inputs.image.build_id()
    }

    fn payload(&self, warnings: &BTreeSet<Warning>) -> Result<Vec<u8>, Refused> {
        let inputs = self.selected.compared.compiled.sources.inputs;
        let cannot_write = |why: &dyn std::fmt::Display| {
            Refused::one(Code::CannotWrite, "payload", why.to_string())
        };
        let record = self.record(warnings).map_err(|e| cannot_write(&e))?;
        let identity = Identity {
            hypervisor: inputs.image.build_id(),
            depends: self.depends(),
            metadata: &self.metadata,
            record: &record,
        };
        let draft = &self.selected.selection.draft;
        draft.write(&identity).map_err(|e| cannot_write(&e))
    }

    fn report(self, size: usize, changes: Vec<String>, warnings: BTreeSet<Warning>) -> Report {
        let compiled = self.selected.compared.compiled;
        let (sources, selection) = (compiled.sources, self.selected.selection);
        let mut notes = self.notes;
        // This is about the build machine, so the payload does not record it.
        notes.extend(sources.rebuild.unwritable().map(str::to_owned));
        Report {
            output: sources.inputs.options.output.clone(),
            size,
            hypervisor: hex(sources.inputs.image.build_id()),
            objects: compiled.pairs.len(),
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
        }
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
            ..Record::of(RecordedOptions::new(inputs.options, config, hooks))
        })
    }
}
