// SPDX-License-Identifier: MIT OR Apache-2.0
//! Types of data in memory: the patched code must use the layout that the running
//! hypervisor created.
//!
//! Code and initial values do not show that two members of a structure were swapped
//! throughout the source. Objects that differ are recompiled from both sources with
//! debugging information, and every structure, union and variable with the same name
//! in both must agree. Unchanged objects use memory as before. The recompiled objects
//! also show the meaning of references (see [`crate::witness`]).

use crate::build::no_work_directory;
use crate::dwarf::{self, Described};
use crate::verdict::{Difference, Kind};
use crate::witness::{Private, Reference};
use crate::{Progress, Unusable, record};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use xsplice_system::interrupt::{Directory, run};

/// Results from recompiled objects: the differences of types between two hypervisors,
/// and the meaning of references.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Types {
    /// Types of data in memory that differ.
    pub(crate) differences: BTreeSet<Difference>,
    /// What a reader should know.
    pub(crate) notes: BTreeSet<String>,
    /// Number of equal types.
    pub(crate) same: usize,
    /// The meaning of references to variables that share a section, by object.
    pub(crate) meant: BTreeMap<PathBuf, Vec<Reference>>,
}

impl Types {
    pub(crate) fn merge(&mut self, other: Self) {
        self.differences.extend(other.differences);
        self.notes.extend(other.notes);
        self.same = self.same.max(other.same);
        self.meant.extend(other.meant);
    }
}

/// What the objects of a tree say.
#[derive(Debug, Default)]
struct Known {
    /// The descriptions of each type or variable in the objects, by name.
    described: BTreeMap<String, BTreeSet<Described>>,
    meant: BTreeMap<PathBuf, Vec<Reference>>,
}

/// Compares the types in `objects` of the trees `before` and `after`.
pub(crate) fn compare(
    before: &Path,
    after: &Path,
    objects: &BTreeSet<PathBuf>,
    progress: &dyn Progress,
) -> Result<Types, Unusable> {
    let [old, new] = [
        known(before, objects, progress),
        known(after, objects, progress),
    ];
    let (old, new) = (old?, new?);
    let mut types = Types {
        meant: new.meant,
        ..Types::default()
    };
    for (name, descriptions) in &new.described {
        let Some(earlier) = old.described.get(name) else {
            continue;
        };
        let changed = descriptions.iter().find(|d| !earlier.contains(d));
        match (changed, earlier.first()) {
            (Some(now), Some(then)) if name.starts_with("enum ") => {
                types.notes.insert(format!(
                    "{name}: {}; what is kept in memory changes its meaning",
                    now.differs(then)
                ));
            }
            (Some(now), Some(then)) => {
                // Of several, compare with the most similar one.
                let nearest = earlier.iter().min_by_key(|then| now.distance(then));
                types.differences.insert(Difference {
                    kind: Kind::Layout,
                    name: name.clone(),
                    message: format!(
                        "what is in memory has another layout: {}",
                        now.differs(nearest.unwrap_or(then))
                    ),
                });
            }
            _ => types.same += 1,
        }
    }
    Ok(types)
}

/// What the objects of a tree say.
fn known(
    tree: &Path,
    objects: &BTreeSet<PathBuf>,
    progress: &dyn Progress,
) -> Result<Known, Unusable> {
    let directory = Directory::new("xsplice-types-").map_err(|e| no_work_directory(&e))?;
    let objects: Vec<&PathBuf> = objects.iter().collect();
    let next = AtomicUsize::new(0);
    let found: Mutex<(Known, Option<Unusable>)> = Mutex::default();
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let work = || {
        while let Some(object) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
            progress.step(&object.display().to_string());
            let output = directory
                .path()
                .join(object.to_string_lossy().replace('/', "_"));
            let described = describe(tree, object, &output);
            let Ok(mut found) = found.lock() else { return };
            match described {
                Ok((described, meant)) => {
                    for (name, description) in described {
                        let known = found.0.described.entry(name).or_default();
                        known.insert(description);
                    }
                    found.0.meant.insert((*object).clone(), meant);
                }
                Err(error) => found.1 = Some(error),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    match found.into_inner() {
        Ok((known, None)) => Ok(known),
        Ok((_, Some(error))) => Err(error),
        Err(_) => Err(Unusable::new("debugging information", &"reading it failed")),
    }
}

/// What one object of a tree says; nothing if it is not of this tree, or not C.
fn describe(
    tree: &Path,
    object: &Path,
    output: &Path,
) -> Result<(BTreeMap<String, Described>, Vec<Reference>), Unusable> {
    let place = object.display().to_string();
    let nothing = (BTreeMap::new(), Vec::new());
    let Ok(built) = std::fs::read(tree.join(object)) else {
        return Ok(nothing);
    };
    let private = Private::of(&built);
    let list = output.with_extension("s");
    let declarations = private.declarations();
    if let Some(declarations) = &declarations {
        std::fs::write(&list, declarations).map_err(|e| Unusable::new(&place, &e))?;
    }
    let list = declarations.map(|_| list.as_path());
    let Some(command) = record::debug_command(tree, object, output, list) else {
        return Ok(nothing);
    };
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).current_dir(tree);
    shell.env("TMPDIR", output.parent().unwrap_or(tree));
    let (status, words) = run(&mut shell).map_err(|e| Unusable::new(&place, &e))?;
    if !status.success() {
        let words = String::from_utf8_lossy(&words).into_owned();
        return Err(Unusable::new(&place, &format!("does not compile: {words}")));
    }
    let data = std::fs::read(output).map_err(|e| Unusable::new(&place, &e))?;
    // They are large, and there can be hundreds.
    let _ = std::fs::remove_file(output);
    let described = dwarf::read(&data).map_err(|reason| Unusable::new(&place, &reason))?;
    Ok((described, private.references(&data)))
}
