// SPDX-License-Identifier: MIT OR Apache-2.0
//! The sixth stage: what goes into the payload.

use super::Inputs;
use super::compared::Compared;
use super::proved::Proved;
use crate::code::Code;
use crate::problem::{Problem, Refused};
use crate::select::{Rules, Selection, select};
use crate::unit::Units;
use xsplice_xen_image::Image;

/// What the payload has.
pub(crate) struct Selected<'s, 'a> {
    pub(super) compared: &'s Compared<'s, 'a>,
    pub(super) selection: Selection,
    /// What a reader should know of types that changed.
    pub(super) layout_notes: Vec<String>,
}

impl<'s> Compared<'s, '_> {
    /// What the caller decided about the selection.
    pub(super) fn rules(&self) -> Rules<'s> {
        let sources = self.compiled.sources;
        let inputs = sources.inputs;
        Rules {
            prelink: inputs.options.prelink,
            leave_out: &inputs.leave_out,
            leave_out_init: inputs.options.leave_out_init,
            patch_data: &inputs.patch_data,
            allow: &inputs.allow,
            edits: &sources.edits,
        }
    }
}

impl<'s, 'a> Proved<'s, 'a> {
    /// Selects what changed, and everything new that it leads to.
    ///
    /// # Errors
    /// Everything that keeps a payload from being built, of this stage and of those
    /// before it.
    pub(crate) fn select(self) -> Result<Selected<'s, 'a>, Refused> {
        let compared = self.compared;
        let inputs = compared.compiled.sources.inputs;
        let (units, rules) = (compared.units.as_slice(), compared.rules());
        let selection = self
            .homes
            .and_then(|homes| select(homes, &inputs.below, &rules));
        let mut problems = compared.problems.clone();
        problems.extend(mistakes(inputs));
        problems.extend(self.layouts.problems);
        match selection {
            Ok(selection) if problems.is_empty() => Ok(Selected {
                compared,
                selection,
                layout_notes: self.layouts.notes,
            }),
            selection => {
                let more = selection.err().unwrap_or_default();
                problems.extend(explain_compiler(more, units, &inputs.image));
                Err(Refused(problems))
            }
        }
    }
}

/// Names that the caller gave and that nothing has. Known once everything has been
/// looked at.
fn mistakes(inputs: &Inputs) -> Vec<Problem> {
    let mut mistakes = inputs.leave_out.mistakes("--leave-out");
    mistakes.extend(inputs.allow.mistakes("--allow"));
    mistakes.extend(inputs.patch_data.mistakes("--patch-data"));
    mistakes
}

/// Adds the compilers' names to failed proofs if they differ.
fn explain_compiler(mut problems: Vec<Problem>, units: &Units, image: &Image) -> Vec<Problem> {
    let mut originals = units.iter().map(|unit| &unit.original);
    if let Some(ours) = originals.find_map(crate::image::compiler)
        && ours != image.compiler()
    {
        problems.push(Problem::new(
            Code::OtherCompiler,
            "compiler",
            format!(
                "the hypervisor was built by `{}`, the tree by `{ours}`",
                image.compiler()
            ),
        ));
    }
    problems
}
