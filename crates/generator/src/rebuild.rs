// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compiles the objects that patched source affects, before and after.

use crate::code::Code;
use crate::compile;
use crate::generated::regenerate;
use crate::given::File;
use crate::image::compiler;
use crate::name;
use crate::pair::{Before, Pair};
use crate::problem::{Problem, Refused};
use crate::progress::Progress;
use crate::shadow::Changes;
use crate::source::PatchedSource;
use crate::tree::{ObjectFile, Tree};
use crate::unit::Unit;
use crate::variant::{Base, Variant};
use crate::witness::{self, Build};
use object::{Object as _, ObjectSection as _};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use xsplice_abi::payload::hook;
use xsplice_system::file;

/// Compiles objects of `tree` from the original and from patched source.
pub(crate) struct Rebuild<'a> {
    base: Arc<Base<'a>>,
    progress: &'a dyn Progress,
    original: Variant<'a>,
}

/// Patched source, and the objects that it affects.
pub(crate) struct Patched<'a> {
    pub(crate) variant: Variant<'a>,
    /// Objects to compile, and whether the original and the patched tree have them.
    objects: Vec<(ObjectFile, bool, bool)>,
    /// The patched source with those of hooks.
    hooks: OnceLock<Variant<'a>>,
}

impl<'a> Patched<'a> {
    /// The source that `object` is compiled from.
    pub(crate) fn source_of(&self, object: &ObjectFile) -> &Variant<'a> {
        let hooks = self.hooks.get();
        hooks
            .filter(|_| !self.variant.has(&object.source))
            .unwrap_or(&self.variant)
    }

    /// The objects that the patched source affects.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &ObjectFile> {
        self.objects.iter().map(|(object, _, _)| object)
    }

    /// Whether this source has the object `path`, if it affects it.
    pub(crate) fn has(&self, path: &str) -> Option<bool> {
        let mut objects = self.objects.iter();
        let (_, _, has) = objects.find(|(object, _, _)| object.path == path)?;
        Some(*has)
    }
}

impl<'a> Rebuild<'a> {
    /// Objects are cached in the directory `cache`.
    pub(crate) fn new(
        tree: &'a Tree,
        cache: Option<&Path>,
        progress: &'a dyn Progress,
    ) -> Result<Self, Refused> {
        let base = Arc::new(Base::new(tree, cache)?);
        Ok(Self {
            original: Variant::new(&base, Changes::new()),
            base,
            progress,
        })
    }

    /// Finds the objects that `source` affects.
    pub(crate) fn lay_out(&self, source: &PatchedSource) -> Result<Patched<'a>, Refused> {
        let tree = self.base.tree;
        let mut changes = source.changes();
        regenerate(&self.base, &mut changes)?;
        let from_xen = |path: &String| Some(path.strip_prefix("xen/")?.to_owned());
        let touched: BTreeSet<String> = changes.keys().filter_map(from_xen).collect();
        let variant = Variant::new(&self.base, changes);
        let mut objects: Vec<(ObjectFile, bool, bool)> = tree
            .reached_by(&touched)
            .into_iter()
            .filter(|object| !source.lists.removed.contains(&object.path))
            .map(|object| (object.clone(), true, true))
            .collect();
        let gone = |object: &&ObjectFile| source.lists.removed.contains(&object.path);
        let removed = tree.objects.iter().filter(gone);
        objects.extend(removed.map(|object| (object.clone(), true, false)));
        for path in &source.lists.added {
            objects.push((self.new_object(path, &variant)?, false, true));
        }
        for (object, _, built) in &objects {
            if *built && source.removes(&object.source) {
                return Err(Refused::one(
                    Code::BuildSystem,
                    &object.source,
                    "the patch removes this file, but the makefile still lists its object",
                ));
            }
        }
        Ok(Patched {
            variant: variant.for_objects(objects.iter().map(|(object, _, _)| object)),
            objects,
            hooks: OnceLock::new(),
        })
    }

    fn new_object(&self, path: &str, variant: &Variant) -> Result<ObjectFile, Refused> {
        let stem = path.strip_suffix(".o").unwrap_or(path);
        let sources = [format!("{stem}.c"), format!("{stem}.S")];
        let source = sources.iter().find(|source| variant.has(source));
        source
            .and_then(|source| self.base.tree.new_object(path, source))
            .ok_or_else(|| {
                Refused::one(
                    Code::BuildSystem,
                    path,
                    "the patch adds this object, but its source is not there, or the tree compiles \
                     nothing else in its directory, so that it is unclear how",
                )
            })
    }

    /// Compiles both builds of all objects that `patched` affects. The original
    /// source is the tree's, or that of the top level: `levels` has the source of
    /// each.
    pub(crate) fn pairs(
        &self,
        patched: &Patched,
        levels: &[Patched],
    ) -> Result<Vec<Pair>, Refused> {
        let mut objects: Vec<(&ObjectFile, bool, bool)> = Vec::new();
        objects.extend(patched.objects.iter().map(|(o, had, has)| (o, *had, *has)));
        // The patch may revert a change of a payload below.
        for (object, had, _) in levels.iter().flat_map(|level| &level.objects) {
            if objects
                .iter()
                .all(|(other, _, _)| other.path != object.path)
            {
                objects.push((object, *had, *had));
            }
        }
        self.progress.stage("compiling", 2 * objects.len());
        let pairs: Vec<Result<Pair, Problem>> = objects
            .par_iter()
            .map(|&(object, had, has)| {
                let shipped = had.then(|| self.original(object)).transpose()?;
                let (below, original) = self.built_below(levels, object, shipped)?;
                self.progress.step();
                let new = has.then(|| self.patched(patched, object)).transpose();
                self.progress.step();
                Ok(Pair {
                    object: object.clone(),
                    was: None,
                    original,
                    patched: new?,
                    below,
                })
            })
            .collect();
        self.base.trim();
        crate::renamed::merge(crate::problem::all(pairs)?).map_err(|problem| Refused(vec![problem]))
    }

    /// The builds at the levels below of an object that the hypervisor has as
    /// `shipped`: the one before each, and the last.
    fn built_below(
        &self,
        levels: &[Patched],
        object: &ObjectFile,
        shipped: Option<Vec<u8>>,
    ) -> Result<(Vec<Before>, Option<Vec<u8>>), Problem> {
        let (mut before, mut bytes) = (Vec::new(), shipped.clone());
        for (level, source) in levels.iter().enumerate() {
            let after = match source.has(&object.path) {
                Some(true) => Some(self.patched(source, object)?),
                Some(false) => None,
                None => shipped.clone(),
            };
            let first = before.is_empty() && after == bytes;
            let bytes = std::mem::replace(&mut bytes, after);
            if !first {
                before.push(Before { level, bytes });
            }
        }
        Ok((before, bytes))
    }

    /// The builds of an object of the tree that is first linked at `level`, by a
    /// payload below or by the patch on top.
    pub(crate) fn linked_from(
        &self,
        level: usize,
        (levels, patched): (&[Patched], &Patched),
        object: &ObjectFile,
    ) -> Result<Pair, Problem> {
        let shipped = Some(self.original(object)?);
        let (mut below, mut original) = self.built_below(levels, object, shipped)?;
        below.retain(|before| before.level > level);
        if level < levels.len() {
            below.insert(0, Before { level, bytes: None });
        } else {
            original = None;
        }
        Ok(Pair {
            object: object.clone(),
            was: None,
            original,
            patched: Some(self.patched(patched, object)?),
            below,
        })
    }

    /// Compiles hook sources like the tree's common code, with the patched headers.
    pub(crate) fn hooks(
        &self,
        patched: &Patched<'a>,
        files: &[File],
    ) -> Result<Vec<Pair>, Refused> {
        let mut changes = patched.variant.changes.clone();
        let paths: Vec<&Path> = files.iter().map(|file| file.path.as_path()).collect();
        let objects = files.iter().enumerate().map(|(number, file)| {
            let name = hooks_name(&file.path, &paths[..number]);
            let source = name::hooks_source(&format!("common/{name}"));
            let object = self
                .base
                .tree
                .new_object(&format!("common/{name}.hooks.o"), &source)
                .ok_or_else(|| {
                    Problem::new(Code::NotBuilt, "tree", "it compiles nothing in common/")
                })?;
            changes.insert(format!("xen/{source}"), Some(file.contents.clone()));
            Ok(object)
        });
        let objects = crate::problem::all(objects.collect())?;
        let variant = patched
            .hooks
            .get_or_init(|| Variant::new(&self.base, changes));
        let pairs = objects.into_iter().zip(files).map(|(object, file)| {
            let patched = variant.compile(&object)?;
            if !has_hooks(&patched) {
                return Err(Problem::new(
                    Code::Hooks,
                    file::shown(&file.path),
                    "there is no hook in it: a hook is a function that LIVEPATCH_LOAD_HOOK or \
                     another macro of xen/livepatch_payload.h names",
                ));
            }
            Ok(Pair {
                was: None,
                original: None,
                patched: Some(patched),
                below: Vec::new(),
                object,
            })
        });
        crate::problem::all(pairs.collect())
    }

    /// Compiles `object` from the patched source.
    pub(crate) fn patched(
        &self,
        patched: &Patched,
        object: &ObjectFile,
    ) -> Result<Vec<u8>, Problem> {
        patched.variant.compile(object)
    }

    /// Why compiled objects are not cached, if so.
    pub(crate) fn unwritable(&self) -> Option<&str> {
        self.base.unwritable()
    }

    /// Recompiles an object from any of the sources up to `patched`: the tree's, and
    /// that of each level.
    pub(crate) fn compiler(
        &self,
        levels: &[Patched],
        patched: &Patched,
    ) -> impl Fn(Build, &ObjectFile, String) -> Result<Vec<u8>, Problem> + Sync {
        |build, object, list| {
            let below = match build {
                Build::Patched => None,
                Build::Original => levels.last(),
                Build::Before(level) => levels[..level].last(),
            };
            let below = below.filter(|below| below.objects().any(|o| o.path == object.path));
            let variant = match below {
                Some(below) => &below.variant,
                None if build == Build::Patched => patched.source_of(object),
                None => self.original_source(),
            };
            variant.with_file(witness::LIST, list).compile(object)
        }
    }

    /// The variant without changes.
    pub(crate) fn original_source(&self) -> &Variant<'a> {
        &self.original
    }

    /// Checks that the tree's own object, if used, is what the tree's source compiles
    /// to. Make relies on time stamps; source changed without a new one would be
    /// mistaken for part of the patch.
    pub(crate) fn check_original(&self, pair: &Pair) -> Result<(), Problem> {
        let object = pair.original_object();
        let Some(built) = compile::built(self.base.tree, object) else {
            return Ok(());
        };
        let difference = Pair {
            object: object.clone(),
            was: None,
            original: Some(built),
            patched: Some(self.original.compile(object)?),
            below: Vec::new(),
        };
        let unit = Unit::compare(self.base.tree, &difference, None)?;
        unit.map_or(Ok(()), |unit| Err(not_from_source(&unit)))
    }

    fn original(&self, object: &ObjectFile) -> Result<Vec<u8>, Problem> {
        match compile::built(self.base.tree, object) {
            Some(built) => Ok(built),
            None => self.original.compile(object),
        }
    }
}

fn not_from_source(unit: &Unit) -> Problem {
    const SHOWN: usize = 5;
    let changes = &unit.comparison.changes;
    let names: Vec<&str> = changes.iter().map(|change| change.name.as_str()).collect();
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let names = names.into_iter().take(SHOWN).collect::<Vec<_>>().join(", ");
    let compiler = |object| compiler(object).unwrap_or_default();
    let (built, now) = (compiler(&unit.original), compiler(&unit.patched));
    let cause = if built == now {
        "its source, or a header, was changed after it was built, and has an older time stamp; \
         restore the source that the hypervisor was built from, or build the tree again if this \
         is that source"
            .to_owned()
    } else {
        format!("the tree was built by `{built}`, and the compiler here is `{now}`")
    };
    Problem::new(
        Code::ChangedTree,
        &unit.file.source,
        format!(
            "the tree's object differs from what the tree's source compiles to, without any patch \
             ({names}{more}): {cause}"
        ),
    )
}

/// Whether a compiled file of hooks has any.
fn has_hooks(object: &[u8]) -> bool {
    let object = object::File::parse(object);
    object.is_ok_and(|object| {
        let mut sections = object.sections();
        sections.any(|section| section.name().is_ok_and(|name| hook::stage(name).is_some()))
    })
}

/// A name for the object of `file` in the tree: commands do not quote names, and
/// `before` may already have the name.
fn hooks_name(file: &Path, before: &[&Path]) -> String {
    let stem = |path: &Path| -> String {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let usual = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        stem.chars()
            .map(|c| if usual(c) { c } else { '_' })
            .collect()
    };
    let name = stem(file);
    match before.iter().filter(|other| stem(other) == name).count() {
        0 => name,
        same => format!("{name}.{}", same + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_have_names_that_a_shell_and_the_tree_take() {
        let files = ["a/x.c", "b/x.c", "$(id) y.c", "..", "x/-_1.c"].map(Path::new);
        let names: Vec<String> = (0..files.len())
            .map(|number| hooks_name(files[number], &files[..number]))
            .collect();
        assert_eq!(names, ["x", "x.2", "__id__y", "", "-_1"]);
    }
}
