// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rebuilds the payload without some of the hunks.

use super::Account;
use crate::pair::Pair;
use crate::preprocessed::{Preprocessed, preprocess};
use crate::problem::Problem;
use crate::rebuild::Patched;
use crate::select::Selection;
use crate::source::{HunkId, PatchedSource};
use crate::tree::ObjectFile;
use crate::unit::Unit;
use index_vec::IndexVec;
use rayon::prelude::*;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use xsplice_objdiff::SymbolName;

/// Which objects to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Those that the patches change.
    Changed,
    /// All that the patches affect: hunks may undo each other.
    All,
}

/// The result without the hunks.
pub(super) enum Outcome {
    /// It does the same.
    Same {
        /// Number of objects that depend on the hunks.
        objects: usize,
        /// The differing symbols that are not in the payload.
        names: BTreeSet<String>,
        /// Whether it differs only in where it lies.
        only_placement: bool,
    },
    /// It differs.
    Other {
        /// The differing symbols; if the rest does not compile, those in a function
        /// or file that does not.
        names: BTreeSet<String>,
    },
}

pub(super) struct Without<'a, 't> {
    account: &'a Account<'a, 't>,
    /// The sources of objects with all hunks, by path.
    whole: Mutex<HashMap<String, Arc<Preprocessed>>>,
}

/// An object without the hunks.
enum Rebuilt {
    /// None of its inputs differ.
    Untouched,
    /// It does the same.
    Same,
    /// It does not.
    Other(Box<Difference>),
    /// It cannot be compiled; these are the affected symbols of the payload.
    Broken(BTreeSet<String>),
}

struct Difference {
    /// The object without the hunks.
    pair: Pair,
    /// The symbols that differ between the two builds.
    names: BTreeSet<SymbolName>,
    /// Whether it differs only in where it lies.
    only_placement: bool,
}

/// The source without the hunks, and where it differs from the whole.
struct Rest<'t> {
    source: Patched<'t>,
    /// Paths from the `xen` directory, those of generated files included.
    differing: BTreeSet<String>,
}

impl<'a, 't> Without<'a, 't> {
    pub(super) fn new(account: &'a Account<'a, 't>) -> Self {
        Self {
            account,
            whole: Mutex::default(),
        }
    }

    /// Leaves out `hunks`, and rebuilds the affected objects.
    pub(super) fn leave_out(&self, hunks: &BTreeSet<HunkId>, scope: Scope) -> Outcome {
        // Later patches may need these lines.
        let Some(rest) = self.rest(hunks) else {
            let names = self.all_in(hunks);
            return Outcome::Other { names };
        };
        let (mut changed, unchanged): (Vec<&Pair>, Vec<&Pair>) = self
            .account
            .pairs
            .iter()
            .partition(|pair| self.is_changed(pair));
        // Smallest first, because one difference is enough.
        changed.sort_by_key(|pair| pair.patched.as_ref().map_or(0, Vec::len));
        let mut differences = Vec::new();
        let mut objects = 0;
        let first = changed.iter().map(|pair| self.rebuilt(pair, &rest));
        let hooks = self.hooks(&rest);
        let more: Vec<Rebuilt> = match scope {
            Scope::Changed => Vec::new(),
            Scope::All => unchanged
                .par_iter()
                .map(|pair| self.rebuilt(pair, &rest))
                .collect(),
        };
        for rebuilt in first.chain(hooks).chain(more) {
            match rebuilt {
                Rebuilt::Untouched => {}
                Rebuilt::Same => objects += 1,
                Rebuilt::Broken(names) => return Outcome::Other { names },
                Rebuilt::Other(difference) => {
                    objects += 1;
                    let names = self.in_payload(&difference);
                    if !names.is_empty() {
                        return Outcome::Other { names };
                    }
                    differences.push(difference);
                }
            }
        }
        let names: BTreeSet<String> = differences
            .iter()
            .flat_map(|difference| difference.names.iter().map(ToString::to_string))
            .collect();
        if !self.is_same_payload(&rest, &differences) {
            return Outcome::Other { names };
        }
        if scope == Scope::Changed {
            objects += self.readers(&unchanged, &rest, objects == 0);
        }
        Outcome::Same {
            objects,
            names,
            only_placement: differences.iter().all(|one| one.only_placement),
        }
    }

    /// Everything in the payload from the files of `hunks`.
    fn all_in(&self, hunks: &BTreeSet<HunkId>) -> BTreeSet<String> {
        let files = hunks.iter().map(|id| {
            let patch = &self.account.patches[id.patch];
            patch.files[id.file].path()
        });
        let sources = files.filter_map(|file| file.strip_prefix("xen/"));
        sources.flat_map(|source| self.all_of(source)).collect()
    }

    fn rest(&self, hunks: &BTreeSet<HunkId>) -> Option<Rest<'t>> {
        let account = self.account;
        let source = PatchedSource::apply(account.tree, account.patches, hunks).ok()?;
        let source = account.rebuild.lay_out(&source).ok()?;
        let (old, new) = (&source.variant.changes, &account.patched.variant.changes);
        let paths = old.keys().chain(new.keys());
        let differing = paths
            .filter(|path| old.get(*path) != new.get(*path))
            .filter_map(|path| Some(path.strip_prefix("xen/")?.to_owned()));
        Some(Rest {
            differing: differing.collect(),
            source,
        })
    }

    fn is_changed(&self, pair: &Pair) -> bool {
        let mut units = self.account.units.iter();
        units.any(|unit| unit.file.path == pair.object.path)
    }

    fn rebuilt(&self, pair: &Pair, rest: &Rest<'t>) -> Rebuilt {
        let object = &pair.object;
        let built = match rest.source.has(&object.path) {
            Some(built) => built,
            // Without the hunks, it is not affected.
            None if pair.original == pair.patched => return Rebuilt::Untouched,
            None => return self.compared(pair, pair.original.clone()),
        };
        if !built {
            return match pair.patched {
                Some(_) => self.compared(pair, None),
                None => Rebuilt::Untouched,
            };
        }
        if pair.patched.is_some() {
            match self.is_same_source(object, rest) {
                None => return Rebuilt::Untouched,
                Some(true) => return Rebuilt::Same,
                Some(false) => {}
            }
        }
        match self.account.rebuild.patched(&rest.source, object) {
            Ok(bytes) => self.compared(pair, Some(bytes)),
            Err(problem) => self.broken(&problem, &object.source),
        }
    }

    /// The symbols of the payload that do not compile: the functions that the
    /// compiler names, or everything from the file.
    fn broken(&self, problem: &Problem, source: &str) -> Rebuilt {
        let named = self.carried(&uncompiled(&problem.message), source);
        Rebuilt::Broken(match named.is_empty() {
            true => self.all_of(source),
            false => named,
        })
    }

    /// Everything in the payload that is from the file `source`.
    fn all_of(&self, source: &str) -> BTreeSet<String> {
        let Selection {
            replaced, carried, ..
        } = self.account.selection;
        let replaced = replaced.iter().filter(|r| r.file == source);
        let carried = carried.iter().filter(|c| c.file == source);
        let names = replaced.map(|r| &r.name).chain(carried.map(|c| &c.name));
        names.cloned().collect()
    }

    /// Whether the compiler's input is the same; `None` if no file that it reads
    /// differs.
    fn is_same_source(&self, object: &ObjectFile, rest: &Rest<'t>) -> Option<bool> {
        let Ok(whole) = self.whole(object) else {
            return Some(false);
        };
        if whole.files.is_disjoint(&rest.differing) {
            return None;
        }
        let without = preprocess(&rest.source.variant, object);
        Some(without.is_ok_and(|without| without.hash == whole.hash))
    }

    fn whole(&self, object: &ObjectFile) -> Result<Arc<Preprocessed>, Problem> {
        let known = || self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(whole) = known().get(&object.path) {
            return Ok(whole.clone());
        }
        let whole = Arc::new(preprocess(&self.account.patched.variant, object)?);
        known().insert(object.path.clone(), whole.clone());
        Ok(whole)
    }

    /// Compares `bytes`, the object without the hunks, with the whole one.
    fn compared(&self, pair: &Pair, bytes: Option<Vec<u8>>) -> Rebuilt {
        let difference = Pair {
            original: bytes.clone(),
            below: Vec::new(),
            ..pair.clone()
        };
        let Ok(unit) = Unit::compare(self.account.tree, &difference, None) else {
            return Rebuilt::Broken(self.all_of(&pair.object.source));
        };
        let changes = unit.iter().flat_map(|unit| &unit.comparison.changes);
        let only_placement = changes.clone().all(|change| change.kind.is_of_place());
        let names: BTreeSet<SymbolName> = changes.map(|change| change.name.clone()).collect();
        if names.is_empty() {
            return Rebuilt::Same;
        }
        let pair = Pair {
            patched: bytes,
            ..pair.clone()
        };
        Rebuilt::Other(Box::new(Difference {
            pair,
            names,
            only_placement,
        }))
    }

    /// The hooks with the headers without the hunks.
    fn hooks(&self, rest: &Rest<'t>) -> Vec<Rebuilt> {
        let (files, whole) = self.account.hooks;
        let Ok(pairs) = self.account.rebuild.hooks(&rest.source, files) else {
            let sources = whole.iter().map(|pair| pair.object.source.as_str());
            let names = sources.flat_map(|source| self.all_of(source));
            return vec![Rebuilt::Broken(names.collect())];
        };
        let pairs = pairs.into_iter().zip(whole);
        pairs
            .map(|(pair, whole)| self.compared(whole, pair.patched))
            .collect()
    }

    /// The names of differing symbols in the payload.
    fn in_payload(&self, difference: &Difference) -> BTreeSet<String> {
        self.carried(&difference.names, &difference.pair.object.source)
    }

    /// Those of `names` in the file `source` that are in the payload.
    fn carried(&self, names: &BTreeSet<SymbolName>, source: &str) -> BTreeSet<String> {
        let Selection {
            replaced,
            carried,
            patched_data,
            ..
        } = self.account.selection;
        let is_in = |name: &&SymbolName| {
            let whole = name.parent().unwrap_or(name);
            let mut replaced = replaced.iter().map(|r| (&r.name, &r.file));
            let mut carried = carried.iter().map(|c| (&c.name, &c.file));
            let mut in_place = patched_data.iter().map(|d| (&d.name, &d.file));
            replaced.any(|(n, file)| (*n == **name || n == whole) && file == source)
                || carried.any(|(n, file)| *n == **name && file == source)
                || in_place.any(|(n, file)| *n == **name && file == source)
        };
        let names = names.iter().filter(is_in);
        names.map(ToString::to_string).collect()
    }

    /// Whether the payload is equivalent with the other objects.
    fn is_same_payload(&self, rest: &Rest<'t>, differences: &[Box<Difference>]) -> bool {
        if differences.is_empty() {
            return true;
        }
        let account = self.account;
        let compile = account.rebuild.compiler(account.levels, &rest.source);
        let mut units = IndexVec::new();
        for pair in account.pairs.iter().chain(account.hooks.1) {
            let is_it = |path: &str| path == pair.object.path;
            let other = differences
                .iter()
                .find(|other| is_it(&other.pair.object.path));
            let unit = match other {
                Some(other) => Unit::compare(account.tree, &other.pair, Some(&compile)),
                None => Ok(account
                    .units
                    .iter()
                    .find(|unit| is_it(&unit.file.path))
                    .cloned()),
            };
            match unit {
                Ok(unit) => units.extend(unit),
                Err(_) => return false,
            }
        }
        (account.select)(&units)
            .is_ok_and(|selection| selection.draft.does_the_same(&account.selection.draft))
    }

    /// Number of `pairs` that read differing files. Files that an object reads only
    /// because of the patches are only considered if it matters.
    fn readers(&self, pairs: &[&Pair], rest: &Rest<'t>, matters: bool) -> usize {
        let recorded = |pair: &&&Pair| !pair.object.dependencies.is_disjoint(&rest.differing);
        let reads = |pair: &&&Pair| {
            let whole = self.whole(&pair.object);
            whole.is_ok_and(|whole| !whole.files.is_disjoint(&rest.differing))
        };
        match pairs.iter().filter(recorded).count() {
            0 if matters => pairs.par_iter().filter(reads).count(),
            count => count,
        }
    }
}

/// The functions with errors, according to GCC's English messages.
fn uncompiled(message: &str) -> BTreeSet<SymbolName> {
    const QUOTES: [char; 3] = ['\'', '\u{2018}', '\u{2019}'];
    let names = message.lines().filter_map(|line| {
        let (_, name) = line.split_once(": In function ")?;
        let name = name.strip_prefix(QUOTES)?.split(QUOTES).next()?;
        Some(name.into())
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_that_do_not_compile_are_named() {
        let said = "common/x.c: does not compile:\ncommon/x.c: At top level:\ncommon/x.c:3:1: error: \
                    e\nIn file included from y.h:1:\nz.h: In function 'inlined':\nz.h:1:2: error: f\n\
                    common/x.c: In function \u{2018}f\u{2019}:\n";
        let names: Vec<SymbolName> = uncompiled(said).into_iter().collect();
        assert_eq!(names, ["f", "inlined"]);
        assert!(uncompiled("x.S:3: Error: no such instruction").is_empty());
    }
}
