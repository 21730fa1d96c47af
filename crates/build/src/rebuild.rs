// SPDX-License-Identifier: MIT OR Apache-2.0
//! The objects that patched source reaches, compiled before and after.

use crate::cache::ObjectCache;
use crate::generated::regenerate;
use crate::shadow::Shadow;
use crate::source::PatchedSource;
use crate::tree::{ObjectFile, Tree};
use crate::{Problem, Progress, Refused, compile};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The two builds of an object.
#[derive(Debug)]
pub(crate) struct Pair {
    /// What is compiled.
    pub(crate) object: ObjectFile,
    /// From the original source; `None` for an object that is new.
    pub(crate) original: Option<Vec<u8>>,
    /// From the patched source; `None` for an object that is not built any
    /// more.
    pub(crate) patched: Option<Vec<u8>>,
    /// As the hypervisor has it, where the original source is that of payloads
    /// below; empty for an object that is new there.
    pub(crate) shipped: Option<Vec<u8>>,
}

/// Compiles objects of `tree` from the original and from patched source.
pub(crate) struct Rebuild<'a> {
    tree: &'a Tree,
    progress: &'a dyn Progress,
    /// Made only if the tree's own objects are older than its source.
    original: OnceLock<Result<Shadow, Refused>>,
}

/// Patched source, laid out to be compiled.
pub(crate) struct Patched {
    shadow: Shadow,
    cache: Option<ObjectCache>,
    /// Every file that differs from the tree, generated ones included, from
    /// the `xen` directory.
    pub(crate) touched: BTreeSet<String>,
    /// What has to be compiled, with whether the original and whether the
    /// patched tree has it.
    objects: Vec<(ObjectFile, bool, bool)>,
}

impl Patched {
    /// The objects that the patched source reaches.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &ObjectFile> {
        self.objects.iter().map(|(object, _, _)| object)
    }
}

impl<'a> Rebuild<'a> {
    pub(crate) fn new(tree: &'a Tree, progress: &'a dyn Progress) -> Self {
        Self {
            tree,
            progress,
            original: OnceLock::new(),
        }
    }

    /// Lays out `source`, and finds what it reaches. Objects are looked for and
    /// kept in the directory `cache`.
    pub(crate) fn lay_out(
        &self,
        source: &PatchedSource,
        cache: Option<&Path>,
    ) -> Result<Patched, Refused> {
        let shadow = Shadow::of(&self.tree.top)?;
        source.write(&shadow)?;
        let mut touched = source.touched();
        regenerate(self.tree, &shadow, &mut touched)?;
        let mut objects: Vec<(ObjectFile, bool, bool)> = self
            .tree
            .reached_by(&touched)
            .into_iter()
            .filter(|object| !source.lists.removed.contains(&object.path))
            .map(|object| (object.clone(), true, true))
            .collect();
        let gone = |object: &&ObjectFile| source.lists.removed.contains(&object.path);
        let removed = self.tree.objects.iter().filter(gone);
        objects.extend(removed.map(|object| (object.clone(), true, false)));
        for path in &source.lists.added {
            objects.push((self.new_object(path, &shadow)?, false, true));
        }
        for (object, _, built) in &objects {
            if *built && source.removes(&object.source) {
                return Err(Refused::one(
                    &object.source,
                    "the patch removes this file, but the makefile still lists its object",
                ));
            }
        }
        let cache = cache.map(|directory| ObjectCache::open(directory, self.tree, source));
        Ok(Patched {
            shadow,
            cache: cache.transpose()?,
            touched,
            objects,
        })
    }

    fn new_object(&self, path: &str, shadow: &Shadow) -> Result<ObjectFile, Refused> {
        let stem = path.strip_suffix(".o").unwrap_or(path);
        let sources = [format!("{stem}.c"), format!("{stem}.S")];
        let source = sources
            .iter()
            .find(|source| shadow.xen().join(source).exists());
        source
            .and_then(|source| self.tree.new_object(path, source))
            .ok_or_else(|| {
                Refused::one(
                    path,
                    "the patch adds this object, but its source is not there, or the tree compiles \
                     nothing else in its directory, so that nothing tells how",
                )
            })
    }

    /// Compiles all that `patched` reaches, both builds. The original source is
    /// the tree's, or `below` where payloads below changed it.
    pub(crate) fn pairs(
        &self,
        patched: &Patched,
        below: Option<&Patched>,
    ) -> Result<Vec<Pair>, Refused> {
        self.progress.stage("compiling", 2 * patched.objects.len());
        let pairs: Vec<Result<Pair, Problem>> = patched
            .objects
            .par_iter()
            .map(|(object, had, has)| {
                let original = had.then(|| self.original(object)).transpose();
                self.progress.step();
                let new = has.then(|| self.patched(patched, object)).transpose();
                self.progress.step();
                let mut pair = Pair {
                    object: object.clone(),
                    original: original?,
                    patched: new?,
                    shipped: None,
                };
                if let Some(below) = below.filter(|b| b.objects().any(|o| o.path == object.path)) {
                    let changed = Some(self.patched(below, object)?);
                    let shipped = std::mem::replace(&mut pair.original, changed);
                    pair.shipped = Some(shipped.unwrap_or_default());
                }
                Ok(pair)
            })
            .collect();
        if let Some(cache) = &patched.cache {
            cache.trim();
        }
        crate::all(pairs)
    }

    /// Compiles the user's sources of hooks, which may be anywhere, as the tree
    /// compiles its common code, with the patched headers.
    pub(crate) fn hooks(&self, patched: &Patched, files: &[PathBuf]) -> Result<Vec<Pair>, Refused> {
        let pairs = files.iter().map(|file| {
            let text = std::fs::read_to_string(file)
                .map_err(|e| Problem::new(file.display().to_string(), e.to_string()))?;
            let name = file.file_stem().unwrap_or_default().to_string_lossy();
            let source = format!("common/{name}.hooks.c");
            let object = self
                .tree
                .new_object(&format!("common/{name}.hooks.o"), &source)
                .ok_or_else(|| Problem::new("tree", "it compiles nothing in common/"))?;
            let write = patched.shadow.replace(&format!("xen/{source}"), &text);
            write.map_err(|refused| Problem::new(&source, refused.to_string()))?;
            let bytes = compile::compile(self.tree, &patched.shadow, &object)?;
            Ok(Pair {
                object,
                original: None,
                patched: Some(bytes),
                shipped: None,
            })
        });
        crate::all(pairs.collect())
    }

    /// Compiles `object` from the patched source.
    pub(crate) fn patched(
        &self,
        patched: &Patched,
        object: &ObjectFile,
    ) -> Result<Vec<u8>, Problem> {
        let make = || compile::compile(self.tree, &patched.shadow, object);
        match &patched.cache {
            Some(cache) => cache.get(object, make),
            None => make(),
        }
    }

    /// Compiles `object`, which may be other than the tree has it, from the
    /// patched source, without the cache.
    pub(crate) fn recompile_patched(
        &self,
        patched: &Patched,
        object: &ObjectFile,
    ) -> Result<Vec<u8>, Problem> {
        compile::compile(self.tree, &patched.shadow, object)
    }

    fn original(&self, object: &ObjectFile) -> Result<Vec<u8>, Problem> {
        match compile::built(self.tree, object) {
            Some(built) => Ok(built),
            None => self.recompile_original(object),
        }
    }

    /// Compiles `object`, which may be other than the tree has it, from the
    /// original source.
    pub(crate) fn recompile_original(&self, object: &ObjectFile) -> Result<Vec<u8>, Problem> {
        let shadow = self.original.get_or_init(|| Shadow::of(&self.tree.top));
        let shadow = shadow
            .as_ref()
            .map_err(|refused| Problem::new(&object.path, refused.to_string()))?;
        compile::compile(self.tree, shadow, object)
    }
}
