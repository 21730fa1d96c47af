// SPDX-License-Identifier: MIT OR Apache-2.0
//! The patched source: what the patches make of the tree's files.

use crate::Refused;
use crate::makefile::{self, ObjectLists};
use crate::patch::{self, FilePatch, PatchedLine};
use crate::shadow::Changes;
use crate::tree::Tree;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A source patch file, read.
#[derive(Debug)]
pub struct SourcePatch {
    /// Its name, without directories.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What it changes.
    pub files: Vec<FilePatch>,
}

impl SourcePatch {
    /// Reads every patch of `paths`.
    ///
    /// # Errors
    /// All that cannot be read or are no unified diffs.
    pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Self>, Refused> {
        let mut patches = Vec::new();
        let mut problems = Vec::new();
        for path in paths {
            match Self::read(path) {
                Ok(patch) => patches.push(patch),
                Err(Refused(more)) => problems.extend(more),
            }
        }
        if problems.is_empty() {
            Ok(patches)
        } else {
            Err(Refused(problems))
        }
    }

    /// What a payload's metadata says of the patch: its name and its hash.
    pub fn record(&self) -> String {
        let hash = xsplice_abi::note::hex(&Sha256::digest(&self.bytes));
        format!("{} sha256:{hash}", self.name)
    }

    fn read(path: &Path) -> Result<Self, Refused> {
        let bytes = std::fs::read(path).map_err(|e| Refused::io(path, &e))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Self {
            name: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            files: patch::parse(&path.display().to_string(), &text)?,
            bytes,
        })
    }
}

/// One hunk of the patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HunkId {
    /// Index of the patch.
    pub patch: usize,
    /// Index of the file in the patch.
    pub file: usize,
    /// Index of the hunk in the file.
    pub hunk: usize,
}

/// The files of the hypervisor as the patches leave them.
#[derive(Debug, Default)]
pub struct PatchedSource {
    /// By path from the top of the tree; `None` for a removed file.
    files: BTreeMap<String, Option<Vec<PatchedLine>>>,
    /// Objects that come and go.
    pub lists: ObjectLists,
    /// Hunks that do not apply exactly, in words.
    pub loose: Vec<String>,
    /// Files of the patches that are no part of the hypervisor.
    pub foreign: BTreeSet<String>,
}

impl PatchedSource {
    /// Applies `patches` to the files of `tree`, in order, all but the hunk
    /// `without`.
    ///
    /// # Errors
    /// Every hunk that does not apply; changes of how the hypervisor is built.
    pub fn apply(
        tree: &Tree,
        patches: &[SourcePatch],
        without: Option<HunkId>,
    ) -> Result<Self, Refused> {
        let mut source = Self::default();
        let mut problems = Vec::new();
        for (patch, source_patch) in patches.iter().enumerate() {
            for (file, file_patch) in source_patch.files.iter().enumerate() {
                let mut file_patch = file_patch.clone();
                if let Some(left_out) = without.filter(|w| (w.patch, w.file) == (patch, file)) {
                    file_patch.hunks.remove(left_out.hunk);
                }
                if let Err(Refused(more)) = source.apply_file(tree, &file_patch) {
                    problems.extend(more);
                }
            }
        }
        if problems.is_empty() {
            Ok(source)
        } else {
            Err(Refused(problems))
        }
    }

    /// The files that differ from the tree, from the `xen` directory.
    pub fn touched(&self) -> BTreeSet<String> {
        let paths = self.files.keys();
        paths
            .filter_map(|path| Some(path.strip_prefix("xen/")?.to_owned()))
            .collect()
    }

    /// Whether the patched tree has no file `path`, given from the `xen`
    /// directory.
    pub fn removes(&self, path: &str) -> bool {
        self.files
            .get(&format!("xen/{path}"))
            .is_some_and(Option::is_none)
    }

    /// The patched texts, by path from the top; `None` for a removed file.
    pub fn texts(&self) -> impl Iterator<Item = (&str, Option<String>)> {
        self.files
            .iter()
            .map(|(path, lines)| (path.as_str(), lines.as_deref().map(|l| text(path, l))))
    }

    /// The files that differ from the tree, with what is in them.
    pub(crate) fn changes(&self) -> Changes {
        let contents =
            |(path, text): (&str, Option<String>)| (path.to_owned(), text.map(String::into_bytes));
        self.texts().map(contents).collect()
    }

    fn apply_file(&mut self, tree: &Tree, file: &FilePatch) -> Result<(), Refused> {
        let path = file.path();
        if !is_hypervisor(tree, path) {
            self.foreign.insert(path.to_owned());
            return Ok(());
        }
        self.check_build_file(tree, file)?;
        let old = match &file.old {
            Some(old) => self.lines(tree, old)?,
            None if self.exists(tree, path) => {
                return Err(Refused::one(
                    path,
                    "the patch adds this file, but the tree has it already; is the patch for \
                     another version of the source, or applied already?",
                ));
            }
            None => Vec::new(),
        };
        let text: String = old.iter().map(|l| l.text.as_str()).collect();
        let patch::Patched { mut lines, loose } = patch::apply(&text, file)?;
        self.loose
            .extend(loose.into_iter().map(|note| format!("{path}: {note}")));
        for line in &mut lines {
            let before = line.original.and_then(|number| old.get(number - 1));
            line.original = before.and_then(|line| line.original);
        }
        if let Some(old) = file.old.as_deref().filter(|_| file.is_rename()) {
            self.files.insert(old.to_owned(), None);
        }
        let removed = file.new.is_none();
        if removed && !lines.is_empty() {
            return Err(Refused::one(
                path,
                "the patch removes this file, but the tree's has more lines than the patch knows; \
                 is the patch for another version of the source?",
            ));
        }
        self.files
            .insert(path.to_owned(), (!removed).then_some(lines));
        Ok(())
    }

    fn exists(&self, tree: &Tree, path: &str) -> bool {
        match self.files.get(path) {
            Some(lines) => lines.is_some(),
            None => tree.top.join(path).exists(),
        }
    }

    fn lines(&self, tree: &Tree, path: &str) -> Result<Vec<PatchedLine>, Refused> {
        let missing = || {
            Refused::one(
                path,
                "the patch changes this file, but the tree does not have it",
            )
        };
        if let Some(lines) = self.files.get(path) {
            return lines.clone().ok_or_else(missing);
        }
        let bytes = std::fs::read(tree.top.join(path)).map_err(|_| missing())?;
        let text = String::from_utf8_lossy(&bytes);
        let numbered = text.split_inclusive('\n').zip(1..);
        Ok(numbered
            .map(|(text, number)| PatchedLine {
                text: text.to_owned(),
                original: Some(number),
            })
            .collect())
    }

    /// Of the files that say how the hypervisor is built, lists of objects are
    /// followed, and everything else is refused.
    fn check_build_file(&mut self, tree: &Tree, file: &FilePatch) -> Result<(), Refused> {
        let path = file.path();
        let name = path.rsplit('/').next().unwrap_or_default();
        if name == "Makefile" {
            let lists = makefile::object_lists(file, &|option| tree.enabled(option))?;
            self.lists.added.extend(lists.added);
            self.lists.removed.extend(lists.removed);
            return Ok(());
        }
        let builds = ["Kconfig", "Makefile."].iter().any(|n| name.starts_with(n))
            || name.ends_with(".mk")
            || path.starts_with("xen/scripts/");
        if builds {
            return Err(Refused::one(
                path,
                format!(
                    "the patch changes how the hypervisor is configured or built, which a payload \
                     cannot carry; `--leave-out {path}` does without, if the code does not need it"
                ),
            ));
        }
        Ok(())
    }
}

/// Whether the file `path` can be part of the hypervisor that the tree was
/// built for: not what tests it, and not another architecture's.
pub(crate) fn is_hypervisor(tree: &Tree, path: &str) -> bool {
    let Some(path) = path.strip_prefix("xen/") else {
        return false;
    };
    let built = |directory: &str| tree.objects.iter().any(|o| o.path.starts_with(directory));
    let architecture = path
        .strip_prefix("arch/")
        .and_then(|rest| rest.split_once('/'));
    !path.starts_with("test/")
        && architecture.is_none_or(|(name, _)| built(&format!("arch/{name}/")))
}

/// The text of a patched file. In what the preprocessor reads, the lines that
/// only moved keep their numbers.
fn text(path: &str, lines: &[PatchedLine]) -> String {
    let preprocessed = [".c", ".h", ".S"].iter().any(|end| path.ends_with(end));
    if preprocessed {
        patch::with_line_numbers(lines)
    } else {
        lines.iter().map(|l| l.text.as_str()).collect()
    }
}
