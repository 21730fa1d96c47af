// SPDX-License-Identifier: MIT OR Apache-2.0
//! The fourth stage: what differs between the two builds.

use super::compiled::Compiled;
use crate::code::Code;
use crate::generated_hooks;
use crate::given::File;
use crate::pair::Pair;
use crate::problem::{Problem, Refused, all};
use crate::unit::{Unit, UnitId, Units};
use index_vec::IndexVec;
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;
use xsplice_system::file;
use xsplice_xen_image::Image;

/// The objects, compared symbol by symbol.
pub(crate) struct Compared<'s, 'a> {
    pub(super) compiled: &'s Compiled<'s, 'a>,
    /// The objects, and those of the hooks.
    pub(super) units: IndexVec<UnitId, Unit>,
    /// Sources of hooks: what the caller gave, and what the generator makes.
    pub(super) hook_files: Vec<File>,
    pub(super) hooks: Vec<Pair>,
    /// Objects that could not be compared. They do not end the build yet, which finds
    /// more to say.
    pub(super) problems: Vec<Problem>,
}

impl<'a> Compiled<'_, 'a> {
    /// Compares the builds, and compiles the hooks that the differences need.
    ///
    /// # Errors
    /// Hooks that do not compile; an original that is not what the tree's source
    /// compiles to; builds that do not differ.
    pub(crate) fn compare(&self) -> Result<Compared<'_, 'a>, Refused> {
        let sources = self.sources;
        let inputs = sources.inputs;
        sources.progress.stage("comparing", self.pairs.len());
        let (mut units, mut problems) = self.units(&self.pairs);
        check_machine(&units, &inputs.image, &inputs.options.xen_syms)?;
        let mut hook_files = inputs.given.hooks.clone();
        let needed = generated_hooks::needed(&units, &inputs.patch_data, &sources.edits);
        hook_files.extend(needed);
        let hooks = sources.rebuild.hooks(&sources.patched, &hook_files)?;
        let (hook_units, hook_problems) = self.units(&hooks);
        units.extend(hook_units);
        problems.extend(hook_problems);
        self.check_originals(&units)?;
        if units.iter().all(|unit| unit.comparison.is_empty()) && problems.is_empty() {
            return Err(no_code(&self.pairs, &self.unneeded));
        }
        Ok(Compared {
            compiled: self,
            units,
            hook_files,
            hooks,
            problems,
        })
    }

    /// Compares each of `pairs`.
    fn units(&self, pairs: &[Pair]) -> (IndexVec<UnitId, Unit>, Vec<Problem>) {
        let sources = self.sources;
        let compile = sources.rebuild.compiler(&sources.levels, &sources.patched);
        let units: Vec<Result<Option<Unit>, Problem>> = pairs
            .par_iter()
            .map(|pair| {
                let unit = Unit::compare(&sources.inputs.tree, pair, Some(&compile));
                sources.progress.step();
                unit
            })
            .collect();
        let (units, problems): (Vec<_>, Vec<_>) = units.into_iter().partition(Result::is_ok);
        let problems = problems.into_iter().filter_map(Result::err);
        let units = units.into_iter().flatten().flatten();
        (units.collect(), problems.collect())
    }

    /// Checks that differences between the two builds come from the patch.
    fn check_originals(&self, units: &Units) -> Result<(), Refused> {
        let changed = self.pairs.par_iter().filter(|pair| {
            let mut units = units.iter();
            units.any(|unit| unit.file.path == pair.object.path && !unit.comparison.is_empty())
        });
        all(changed
            .map(|pair| self.sources.rebuild.check_original(pair))
            .collect())
        .map(drop)
    }
}

/// # Errors
/// If the objects are for another machine than the hypervisor.
fn check_machine(units: &Units, image: &Image, xen_syms: &Path) -> Result<(), Refused> {
    let other = units.iter().map(|unit| unit.patched.machine());
    let Some(other) = other
        .into_iter()
        .find(|machine| *machine != image.machine())
    else {
        return Ok(());
    };
    let message = format!(
        "it is for {}, and the tree was built for {other}: give the xen-syms of that build",
        image.machine()
    );
    Err(Refused::one(
        Code::WrongHypervisor,
        file::shown(xen_syms),
        message,
    ))
}

/// The refusal if the two builds do not differ, except in library members that are
/// not linked.
fn no_code(pairs: &[Pair], unneeded: &BTreeSet<String>) -> Refused {
    let unneeded: Vec<&str> = unneeded.iter().map(String::as_str).collect();
    let unlinked = match unneeded.as_slice() {
        [] => String::new(),
        [one] => format!("{one} is in the hypervisor's library, but not linked: nothing needs it"),
        all => format!(
            "{} are in the hypervisor's library, but not linked: nothing needs them",
            all.join(", ")
        ),
    };
    let compiled = match pairs {
        [] => {
            return Refused::one(
                Code::NothingToPatch,
                "patch",
                format!("it changes no code: {unlinked}"),
            );
        }
        [pair] => format!("{}, the object that it reaches, compiles", pair.object.path),
        all => format!("all {} objects that it reaches compile", all.len()),
    };
    let was = match pairs {
        [_] => "what it was",
        _ => "what they were",
    };
    let more = match unlinked.is_empty() {
        true => unlinked,
        false => format!("; {unlinked}"),
    };
    let message = format!(
        "it changes no code: {compiled} to {was} (only comments or lines without effect \
         changed){more}"
    );
    Refused::one(Code::NothingToPatch, "patch", message)
}
