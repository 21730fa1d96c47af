// SPDX-License-Identifier: MIT OR Apache-2.0
//! A variant of a tree's source, and its compiled objects.
//!
//! Existing results come from the cache. A [`Shadow`], which contains only what
//! differs, is created only if something must be built.

use crate::cache::ObjectCache;
use crate::climb;
use crate::code::Code;
use crate::compile;
use crate::generated_file::GeneratedFile;
use crate::problem::{Problem, Refused};
use crate::shadow::{self, Changes, Shadow};
use crate::tree::{ObjectFile, Tree};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The state shared by all variants of a tree.
pub(crate) struct Base<'a> {
    pub(crate) tree: &'a Tree,
    cache: Option<ObjectCache>,
    /// Directories that includes leave upwards.
    left: OnceLock<Result<BTreeSet<PathBuf>, Refused>>,
}

impl<'a> Base<'a> {
    /// Objects are cached in the directory `cache`.
    pub(crate) fn new(tree: &'a Tree, cache: Option<&Path>) -> Result<Self, Refused> {
        Ok(Self {
            tree,
            cache: cache.map(|at| ObjectCache::open(at, tree)).transpose()?,
            left: OnceLock::new(),
        })
    }

    /// Deletes the oldest cached objects beyond the limit.
    pub(crate) fn trim(&self) {
        if let Some(cache) = &self.cache {
            cache.trim();
        }
    }

    /// Why nothing is cached, if so.
    pub(crate) fn unwritable(&self) -> Option<&str> {
        self.cache.as_ref()?.unwritable()
    }

    fn left(&self) -> Result<&BTreeSet<PathBuf>, Refused> {
        let left = self.left.get_or_init(|| climb::in_tree(self.tree));
        left.as_ref().map_err(|refused| Refused(refused.0.clone()))
    }
}

/// The source of a tree with some files changed.
pub(crate) struct Variant<'a> {
    base: Arc<Base<'a>>,
    pub(crate) changes: Changes,
    cache: Option<ObjectCache>,
    /// Directories that will be written to.
    writable: BTreeSet<PathBuf>,
    shadows: Mutex<Vec<Arc<Shadow>>>,
    /// A lock for each file that a compiler writes.
    outputs: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Variant<'a> {
    pub(crate) fn new(base: &Arc<Base<'a>>, changes: Changes) -> Self {
        Self {
            base: base.clone(),
            cache: base.cache.as_ref().map(|cache| cache.with(&changes)),
            changes,
            writable: BTreeSet::new(),
            shadows: Mutex::default(),
            outputs: Mutex::default(),
        }
    }

    /// The same, prepared to compile `objects` in one shadow.
    pub(crate) fn for_objects<'o>(
        mut self,
        objects: impl IntoIterator<Item = &'o ObjectFile>,
    ) -> Self {
        self.writable = objects.into_iter().flat_map(written_by).collect();
        self
    }

    /// The object that the source compiles to.
    pub(crate) fn compile(&self, object: &ObjectFile) -> Result<Vec<u8>, Problem> {
        self.kept(&[&object.path, &object.command], || self.recompile(object))
    }

    /// The result of `read` on the compiled object, if only that is worth caching.
    /// `what` names it, with a number that is raised when `read` changes its results.
    pub(crate) fn derive(
        &self,
        object: &ObjectFile,
        what: &str,
        read: impl FnOnce(&[u8]) -> Result<Vec<u8>, Problem>,
    ) -> Result<Vec<u8>, Problem> {
        self.kept(&[&object.path, &object.command, what], || {
            read(&self.recompile(object)?)
        })
    }

    /// The contents of a generated file.
    pub(crate) fn generate(&self, file: &GeneratedFile) -> Result<Vec<u8>, Problem> {
        self.kept(&[&file.path, &file.command], || {
            let shadow = self.shadow(written(&file.path, &file.command))?;
            // Some commands do not overwrite an existing file.
            let output = shadow
                .make_way(&file.path)
                .map_err(|e| Problem::new(Code::DoesNotCompile, &file.path, e.to_string()))?;
            compile::run(self.base.tree, &shadow, &file.command)
                .map_err(|words| format!("cannot be regenerated: {words}"))
                .and_then(|()| std::fs::read(&output).map_err(|e| e.to_string()))
                .map_err(|message| {
                    explain(
                        &shadow,
                        Problem::new(Code::DoesNotCompile, &file.path, message),
                    )
                })
        })
    }

    /// The same with one more file, whose path is relative to `xen`.
    pub(crate) fn with_file(&self, path: &str, text: String) -> Self {
        let mut changes = self.changes.clone();
        changes.insert(format!("xen/{path}"), Some(text.into_bytes()));
        Self::new(&self.base, changes)
    }

    /// Whether there is a file at `path`, relative to `xen`.
    pub(crate) fn has(&self, path: &str) -> bool {
        let path = format!("xen/{path}");
        match self.changes.get(&path) {
            Some(contents) => contents.is_some(),
            None => self.base.tree.top.join(path).exists(),
        }
    }

    /// The contents of the file at `path`, relative to `xen`, if it exists.
    pub(crate) fn contents(&self, path: &str) -> Option<Vec<u8>> {
        let path = format!("xen/{path}");
        match self.changes.get(&path) {
            Some(contents) => contents.clone(),
            None => std::fs::read(self.base.tree.top.join(path)).ok(),
        }
    }

    /// Compiles the object, bypassing the cache.
    fn recompile(&self, object: &ObjectFile) -> Result<Vec<u8>, Problem> {
        let shadow = self.shadow(written_by(object).collect())?;
        // Different commands for one object write the same file.
        let output = lock(&self.outputs)
            .entry(object.output.clone())
            .or_default()
            .clone();
        let _alone = lock(&output);
        compile::compile(self.base.tree, &shadow, object)
            .map_err(|problem| explain(&shadow, problem))
    }

    fn kept(
        &self,
        names: &[&str],
        make: impl FnOnce() -> Result<Vec<u8>, Problem>,
    ) -> Result<Vec<u8>, Problem> {
        match &self.cache {
            Some(cache) => cache.get(names, make),
            None => make(),
        }
    }

    /// A shadow with the writable directories `writable`.
    fn shadow(&self, mut writable: BTreeSet<PathBuf>) -> Result<Arc<Shadow>, Problem> {
        let mut shadows = lock(&self.shadows);
        let fits = |shadow: &&Arc<Shadow>| shadow.is_writable(&writable);
        if let Some(shadow) = shadows.iter().find(fits) {
            return Ok(shadow.clone());
        }
        writable.extend(self.writable.iter().cloned());
        let make = || {
            let mut left = self.base.left()?.clone();
            left.extend(climb::in_changes(self.base.tree, &self.changes));
            Shadow::of(self.base.tree, &self.changes, &writable, &left)
        };
        let shadow = make().map_err(|Refused(mut problems)| problems.remove(0))?;
        let shadow = Arc::new(shadow);
        shadows.push(shadow.clone());
        Ok(shadow)
    }
}

/// A cause that makes every command fail is reported once.
fn explain(shadow: &Shadow, problem: Problem) -> Problem {
    if shadow.is_whole() {
        return problem;
    }
    shadow::deleted()
}

/// The directories that compiling `object` writes to.
fn written_by(object: &ObjectFile) -> impl Iterator<Item = PathBuf> {
    let mut directories = written(&object.path, &object.command);
    directories.extend(written(&object.output, ""));
    directories.into_iter()
}

/// The directories that `command`, which creates `path`, writes to.
fn written(path: &str, command: &str) -> BTreeSet<PathBuf> {
    let mut files = vec![path];
    let words: Vec<&str> = command.split_whitespace().collect();
    for (index, word) in words.iter().enumerate() {
        let file = match word.trim_start_matches('>') {
            "" | "-o" | "-MF" => words.get(index + 1).copied(),
            file if file != *word => Some(file),
            _ => None,
        };
        files.extend(file);
    }
    let inside = files.iter().filter(|file| !file.starts_with('/'));
    inside
        .filter_map(|file| {
            Some(
                Path::new(file.trim_start_matches("./"))
                    .parent()?
                    .to_owned(),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMON: &str = "-nostdinc -I./include -MMD -MF common/.a.o.d";

    /// A tree in which `common/a.c` includes `public/hvm/save.h`, which includes
    /// `../xen.h`, next to many unrelated directories.
    fn tree() -> (tempfile::TempDir, Tree) {
        let directory = tempfile::tempdir().expect("a directory");
        let xen = directory.path().join("xen");
        let write = |path: &str, text: &str| {
            let path = xen.join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        write(
            "common/a.c",
            "#include <public/hvm/save.h>\nint a = VALUE;\n",
        );
        write("include/public/hvm/save.h", "#include \"../xen.h\"\n");
        write("include/public/xen.h", "#define VALUE 1\n");
        for number in 0..200 {
            write(&format!("drivers/{}/{number}.c", number % 20), "");
        }
        let object = ObjectFile {
            path: "common/a.o".to_owned(),
            command: format!("gcc {COMMON} -c common/a.c -o common/.a.o.tmp"),
            output: "common/.a.o.tmp".to_owned(),
            source: "common/a.c".to_owned(),
            dependencies: BTreeSet::from(["common/a.c".to_owned()]),
        };
        let tree = Tree {
            top: directory.path().canonicalize().expect("it is there"),
            objects: vec![object],
            generated: Vec::new(),
            links: BTreeMap::new(),
            archived: BTreeSet::new(),
        };
        (directory, tree)
    }

    fn variant<'a>(tree: &'a Tree, cache: Option<&Path>, value: &str) -> Variant<'a> {
        let base = Arc::new(Base::new(tree, cache).expect("a base"));
        let text = format!("#define VALUE {value}\n").into_bytes();
        let change = ("xen/include/public/xen.h".to_owned(), Some(text));
        Variant::new(&base, Changes::from([change]))
    }

    fn shadow(variant: &Variant) -> Option<Arc<Shadow>> {
        variant
            .shadows
            .lock()
            .expect("no thread panicked")
            .first()
            .cloned()
    }

    fn entries(directory: &Path) -> usize {
        let listed = std::fs::read_dir(directory).expect("a directory");
        let count = |entry: std::io::Result<std::fs::DirEntry>| {
            let entry = entry.expect("an entry");
            let inside = entry.file_type().is_ok_and(|kind| kind.is_dir());
            1 + if inside { entries(&entry.path()) } else { 0 }
        };
        listed.map(count).sum()
    }

    #[test]
    fn a_change_is_seen_by_an_include_that_goes_up() {
        let (_directory, tree) = tree();
        let (one, two) = (variant(&tree, None, "1"), variant(&tree, None, "2"));
        let object = &tree.objects[0];
        let original = Variant::new(&one.base, Changes::new()).compile(object);
        assert_eq!(one.compile(object), original);
        assert_ne!(two.compile(object), original);
    }

    #[test]
    fn a_new_include_that_goes_up_is_seen_too() {
        let (_directory, tree) = tree();
        let mut variant = variant(&tree, None, "1");
        let text = "#include \"../drivers/../include/public/xen.h\"\nint a = VALUE;\n";
        variant
            .changes
            .insert("xen/common/a.c".to_owned(), Some(text.into()));
        let value = "#define VALUE 2\n".into();
        variant
            .changes
            .insert("xen/include/public/xen.h".to_owned(), Some(value));
        let two = variant.compile(&tree.objects[0]);
        let original = Variant::new(&variant.base, Changes::new()).compile(&tree.objects[0]);
        assert_ne!(two.expect("compiled"), original.expect("compiled"));
    }

    #[test]
    fn a_shadow_has_only_what_differs() {
        let (directory, tree) = tree();
        let before = entries(directory.path());
        let variant = variant(&tree, None, "2");
        variant.compile(&tree.objects[0]).expect("compiled");
        let shadow = shadow(&variant).expect("it was needed");
        let made = entries(shadow.top());
        assert!(made < 20, "{made} entries for one change");
        assert_eq!(entries(directory.path()), before, "the tree is not touched");
    }

    #[test]
    fn what_was_made_before_needs_no_shadow() {
        let (_directory, tree) = tree();
        let cache = tempfile::tempdir().expect("a directory");
        let first = variant(&tree, Some(cache.path()), "2");
        let bytes = first.compile(&tree.objects[0]);
        assert!(shadow(&first).is_some());
        let again = variant(&tree, Some(cache.path()), "2");
        assert_eq!(again.compile(&tree.objects[0]), bytes);
        assert!(shadow(&again).is_none());
        let other = variant(&tree, Some(cache.path()), "3");
        assert_ne!(other.compile(&tree.objects[0]), bytes);
    }

    #[test]
    fn a_link_within_the_tree_leads_to_what_changed() {
        let (directory, mut tree) = tree();
        let xen = directory.path().join("xen");
        std::os::unix::fs::symlink(".", xen.join("source")).expect("linked");
        std::os::unix::fs::symlink("public", xen.join("include/api")).expect("linked");
        let text = "#include \"source/include/api/xen.h\"\nint a = VALUE;\n";
        std::fs::write(xen.join("common/a.c"), text).expect("written");
        tree.objects[0].command += " -I.";
        let (one, two) = (variant(&tree, None, "1"), variant(&tree, None, "2"));
        let object = &tree.objects[0];
        assert_ne!(
            one.compile(object).expect("compiled"),
            two.compile(object).expect("compiled")
        );
    }

    #[test]
    fn a_shadow_that_vanishes_is_one_problem() {
        let (_directory, tree) = tree();
        let variant = variant(&tree, None, "2");
        let object = &tree.objects[0];
        variant.compile(object).expect("compiled");
        let shadow = shadow(&variant).expect("it was needed");
        std::fs::remove_dir_all(shadow.top()).expect("removed");
        let results = (0..3).map(|_| variant.compile(object)).collect();
        let Refused(problems) = crate::problem::all(results).expect_err("it cannot compile");
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].message.contains("deleted while it ran"));
    }
}
