// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pre-flight check: the engine loads and applies the payload on `xen-syms`.

use crate::below::Below;
use crate::code::Code;
use crate::problem::{Problem, Refused};
use std::path::Path;
use std::sync::Arc;
use xsplice_host_image::{Image, Severity, check};
use xsplice_system::file;

/// A payload, and what it is to be loaded on.
pub(crate) struct Preflight<'a> {
    /// Path of the payload.
    pub(crate) output: &'a Path,
    /// The file of the hypervisor.
    pub(crate) xen_syms: &'a Path,
    /// The hypervisor.
    pub(crate) image: &'a Arc<xsplice_xen_image::Image>,
    /// The payloads below.
    pub(crate) below: &'a Below,
    /// Whether these, or the hypervisor, are all that it depends on. If only the
    /// build-id of a payload below is known, the check is limited to the hypervisor
    /// itself.
    pub(crate) known: bool,
}

impl Preflight<'_> {
    /// Loads the payload as the hypervisor would, on top of those below.
    ///
    /// # Errors
    /// Why it would not load and apply.
    pub(crate) fn check(&self, payload: &[u8]) -> Result<(), Refused> {
        let syms = file::shown(self.xen_syms);
        let image = Image::new(Arc::clone(self.image))
            .map_err(|e| Refused::one(Code::NotXenSyms, &syms, e.to_string()))?;
        let name = file::shown(self.output);
        let stem = Path::new(&name).file_stem().unwrap_or_default();
        let mut stack: Vec<(String, &[u8])> = self
            .below
            .levels
            .iter()
            .map(|level| (level.name.clone(), level.data.as_slice()))
            .collect();
        stack.push((stem.to_string_lossy().into_owned(), payload));
        let reports = check(&image, &stack);
        let (below, own) = reports.split_at(self.below.levels.len());
        for (level, report) in self.below.levels.iter().zip(below) {
            let mut problems = report.problems.iter();
            if let Some(problem) = problems.find(|p| p.severity == Severity::NotLoaded) {
                let message = format!("the hypervisor would not load it: {}", problem.message);
                let place = format!("--on {}", level.name);
                return Err(Refused::one(Code::PreFlight, place, message));
            }
        }
        let problems: Vec<Problem> = own
            .iter()
            .flat_map(|report| &report.problems)
            .filter(|problem| match problem.severity {
                Severity::Warning => false,
                Severity::NotApplied => self.known,
                Severity::NotLoaded => true,
            })
            .map(|problem| {
                let message = format!("the pre-flight check refuses it: {}", problem.message);
                Problem::new(Code::PreFlight, &name, message)
            })
            .collect();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Refused(problems))
        }
    }
}
