// SPDX-License-Identifier: MIT OR Apache-2.0
//! The patched source: the tree's files with the patches applied.

use crate::code::Code;
use crate::given::name_and_hash;
use crate::makefile::{self, ObjectLists};
use crate::numbering::{Language, numbered};
use crate::patch::{self, FilePatch, PatchedLine};
use crate::place;
use crate::problem::{Problem, Refused};
use crate::shadow::Changes;
use crate::tree::Tree;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use xsplice_system::file;

/// A source patch file, read.
#[derive(Debug)]
pub struct SourcePatch {
    /// Its name, without directories.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The files that it changes.
    pub files: Vec<FilePatch>,
}

impl SourcePatch {
    /// Reads every patch of `paths`.
    ///
    /// # Errors
    /// All that cannot be read or are not unified diffs.
    pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Self>, Refused> {
        let mut patches = Vec::new();
        let mut problems = Vec::new();
        for path in paths {
            match Self::read(path) {
                Ok(patch) => patches.push(patch),
                Err(Refused(more)) => problems.extend(more),
            }
        }
        for (index, patch) in patches.iter().enumerate() {
            let same = |other: &&Self| other.bytes == patch.bytes;
            if let Some(first) = patches[..index].iter().find(same) {
                let message = format!("it is given twice: {} has the same text", first.name);
                problems.push(Problem::new(Code::BadPatch, &patch.name, message));
            }
        }
        if problems.is_empty() {
            Ok(patches)
        } else {
            Err(Refused(problems))
        }
    }

    /// The record of the patch in a payload's metadata: its name and hash.
    pub fn record(&self) -> String {
        name_and_hash(&self.name, &self.bytes)
    }

    fn read(path: &Path) -> Result<Self, Refused> {
        let bytes = file::read(path).map_err(|e| Refused::io(path, &e))?;
        Ok(Self {
            name: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            files: patch::parse(&file::shown(path), &bytes)?,
            bytes,
        })
    }
}

/// One hunk of the patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HunkId {
    /// Index of the patch.
    pub patch: usize,
    /// Index of the file in the patch.
    pub file: usize,
    /// Index of the hunk in the file.
    pub hunk: usize,
}

/// The files of the hypervisor after the patches.
#[derive(Debug, Default)]
pub struct PatchedSource {
    /// By path from the top of the tree; `None` for a removed file.
    files: BTreeMap<String, Option<Vec<PatchedLine>>>,
    /// Added and removed objects.
    pub lists: ObjectLists,
    /// Descriptions of hunks that do not apply exactly.
    pub loose: Vec<String>,
    /// Patched files that are not part of the hypervisor.
    pub foreign: BTreeSet<String>,
    /// Files whose mode is the only change.
    pub mode_only: BTreeSet<String>,
}

impl PatchedSource {
    /// Applies `patches` to the files of `tree`, in order, except the hunks
    /// `without`.
    ///
    /// # Errors
    /// Every hunk that does not apply; changes to how the hypervisor is built.
    pub fn apply(
        tree: &Tree,
        patches: &[SourcePatch],
        without: &BTreeSet<HunkId>,
    ) -> Result<Self, Refused> {
        let mut source = Self::default();
        let mut problems = Vec::new();
        for (patch, source_patch) in patches.iter().enumerate() {
            for (file, file_patch) in source_patch.files.iter().enumerate() {
                let stays = |hunk| !without.contains(&HunkId { patch, file, hunk });
                let mut file_patch = file_patch.clone();
                let mut numbers = 0..;
                let all = file_patch.hunks.len();
                file_patch
                    .hunks
                    .retain(|_| numbers.next().is_none_or(stays));
                if all > 0 && file_patch.hunks.is_empty() && !file_patch.is_rename() {
                    continue;
                }
                if let Err(Refused(more)) = source.apply_file(tree, &file_patch) {
                    problems.extend(more);
                }
            }
        }
        if !problems.is_empty() {
            return Err(Refused(problems));
        }
        source.follow_links(tree);
        source.forget_unchanged(tree);
        source.forget_linked(tree);
        Ok(source)
    }

    /// The files of the hypervisor that differ from the tree, relative to the `xen`
    /// directory.
    pub fn touched(&self) -> BTreeSet<String> {
        self.own()
            .filter_map(|(path, _)| Some(path.strip_prefix("xen/")?.to_owned()))
            .collect()
    }

    /// The patched files of the hypervisor.
    fn own(&self) -> impl Iterator<Item = (&String, &Option<Vec<PatchedLine>>)> {
        let files = self.files.iter();
        files.filter(|(path, _)| !self.foreign.contains(*path))
    }

    /// Whether the patched tree lacks the file `path`, relative to the `xen`
    /// directory.
    pub fn removes(&self, path: &str) -> bool {
        self.files
            .get(&format!("xen/{path}"))
            .is_some_and(Option::is_none)
    }

    /// The patched texts, by path from the top; `None` for a removed file.
    pub fn texts(&self) -> impl Iterator<Item = (&str, Option<String>)> {
        self.own()
            .map(|(path, lines)| (path.as_str(), lines.as_deref().map(|l| text(path, l))))
    }

    /// The files that differ from the tree, with their contents.
    pub(crate) fn changes(&self) -> Changes {
        let contents =
            |(path, text): (&str, Option<String>)| (path.to_owned(), text.map(String::into_bytes));
        self.texts().map(contents).collect()
    }

    fn apply_file(&mut self, tree: &Tree, file: &FilePatch) -> Result<(), Refused> {
        let path = file.path();
        for name in file.old.iter().chain(&file.new) {
            place::check_links(&tree.top, name).map_err(one)?;
        }
        let foreign = !is_hypervisor(tree, path);
        if foreign {
            self.foreign.insert(path.to_owned());
        }
        let old = match &file.old {
            Some(old) => self.lines(tree, file, old)?,
            None => self.check_new(tree, file)?,
        };
        if file.is_mode_only() {
            self.mode_only.insert(path.to_owned());
            return Ok(());
        }
        let text: String = old.iter().map(|l| l.text.as_str()).collect();
        let patched = patch::apply(&text, file).map_err(|Refused(problems)| {
            Refused(match foreign {
                true => problems
                    .into_iter()
                    .map(|p| foreign_hint(p, path))
                    .collect(),
                false => problems,
            })
        });
        let patch::Patched { mut lines, loose } = patched?;
        let after: String = lines.iter().map(|line| line.text.as_str()).collect();
        self.check_build_file(tree, file, (&text, &after))?;
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
                Code::DoesNotApply,
                path,
                "the patch removes this file, but the tree's has more lines than the patch knows; \
                 is the patch for another version of the source?",
            ));
        }
        self.files
            .insert(path.to_owned(), (!removed).then_some(lines));
        Ok(())
    }

    /// A new file starts without lines.
    fn check_new(&self, tree: &Tree, file: &FilePatch) -> Result<Vec<PatchedLine>, Refused> {
        let path = file.path();
        place::check_new(&tree.top, file, path).map_err(one)?;
        let there = match self.files.get(path) {
            Some(lines) => lines.as_ref().map(|lines| lines.is_empty()),
            None => std::fs::metadata(tree.top.join(path))
                .ok()
                .map(|m| m.len() == 0),
        };
        if there == Some(false) {
            return Err(Refused::one(
                Code::DoesNotApply,
                path,
                "the patch adds this file, but the tree has it already: is the patch applied to \
                 the tree, or for another version of the source?",
            ));
        }
        Ok(Vec::new())
    }

    fn lines(
        &self,
        tree: &Tree,
        file: &FilePatch,
        path: &str,
    ) -> Result<Vec<PatchedLine>, Refused> {
        if let Some(lines) = self.files.get(path) {
            return lines.clone().ok_or_else(|| {
                Refused::one(
                    Code::DoesNotApply,
                    path,
                    "the patch changes this file, but one before removes it",
                )
            });
        }
        let place = tree.top.join(path);
        if !place.is_file() {
            return Err(one(self.missing(tree, file, path)));
        }
        let bytes = std::fs::read(&place).map_err(|e| Refused::io(&place, &e))?;
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            // Never written.
            Err(error) if self.foreign.contains(file.path()) => {
                String::from_utf8_lossy(error.as_bytes()).into_owned()
            }
            Err(_) => {
                return Err(Refused::one(
                    Code::BadPatch,
                    path,
                    "the patch changes this file, which is not UTF-8: its text cannot be kept as \
                     it is",
                ));
            }
        };
        let numbered = text.split_inclusive('\n').zip(1..);
        Ok(numbered
            .map(|(text, number)| PatchedLine {
                text: text.to_owned(),
                original: Some(number),
            })
            .collect())
    }

    /// The problem that the tree does not have `path`, the old name of `file`.
    fn missing(&self, tree: &Tree, file: &FilePatch, path: &str) -> Problem {
        let gone = match &file.new {
            None => Some("removes".to_owned()),
            Some(new) if file.is_rename() && tree.top.join(new).is_file() => {
                Some(format!("renames to {new}"))
            }
            Some(_) => None,
        };
        let missing = place::missing(&tree.top, file, path);
        match gone {
            Some(what) => Problem::new(
                Code::DoesNotApply,
                path,
                format!(
                    "the patch {what}: is it applied to the tree already? {}",
                    missing.message
                ),
            ),
            None => missing,
        }
    }

    /// A source that is compiled through a link changes with the link's target.
    fn follow_links(&mut self, tree: &Tree) {
        for (link, target) in &tree.links {
            if let Some(lines) = self.files.get(&format!("xen/{target}")).cloned() {
                self.files.insert(format!("xen/{link}"), lines);
            }
        }
    }

    /// Drops files that the patches leave unchanged overall.
    fn forget_unchanged(&mut self, tree: &Tree) {
        self.files.retain(|path, lines| {
            let there = std::fs::read(tree.top.join(path)).ok();
            let text = lines.as_deref().map(|lines| text(path, lines));
            there.as_deref() != text.as_deref().map(str::as_bytes)
        });
    }

    /// Drops added objects that another list loses, or that are already linked.
    fn forget_linked(&mut self, tree: &Tree) {
        let ObjectLists { added, removed } = &mut self.lists;
        let linked = |path: &String| tree.objects.iter().any(|object| object.path == *path);
        added.retain(|path| !removed.remove(path) && !linked(path));
    }

    /// Refuses changes to how the hypervisor is built, except for lists of objects,
    /// which are followed. `texts` are the file before and after.
    fn check_build_file(
        &mut self,
        tree: &Tree,
        file: &FilePatch,
        texts: (&str, &str),
    ) -> Result<(), Refused> {
        let path = file.path();
        // Also read for the hypervisor.
        let shared = path == "Config.mk" || path.starts_with("config/");
        if self.foreign.contains(path) && !shared {
            return Ok(());
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        let renamed = file.is_rename()
            && [&file.old, &file.new]
                .into_iter()
                .flatten()
                .any(is_makefile);
        if name == "Makefile" && !renamed {
            if is_unbuilt(tree, path) {
                return Ok(());
            }
            let lists = makefile::object_lists(path, texts, &|option| tree.setting(option))?;
            self.lists.follow(lists);
            return Ok(());
        }
        let builds = ["Kconfig", "Makefile.", ".config"]
            .iter()
            .any(|n| name.starts_with(n))
            || name.ends_with(".mk")
            || path.starts_with("xen/scripts/");
        if builds || renamed {
            return Err(Refused::one(
                Code::BuildSystem,
                path,
                format!(
                    "the patch changes how the hypervisor is configured or built, which a payload \
                     cannot carry; `--leave-out {path}` builds the payload without it, if the code does \
                     not need it"
                ),
            ));
        }
        Ok(())
    }
}

fn is_makefile(path: &String) -> bool {
    Path::new(path)
        .file_name()
        .is_some_and(|name| name == "Makefile")
}

/// Whether nothing is compiled in or below the directory of a makefile in the
/// hypervisor's code.
fn is_unbuilt(tree: &Tree, makefile: &str) -> bool {
    const CODE: [&str; 6] = ["arch/", "common/", "crypto/", "drivers/", "lib/", "xsm/"];
    let path = makefile.strip_prefix("xen/").unwrap_or(makefile);
    let directory = path.strip_suffix("Makefile").unwrap_or(path);
    let mut objects = tree.objects.iter();
    CODE.iter().any(|code| directory.starts_with(code))
        && !objects.any(|object| object.path.starts_with(directory))
}

fn one(problem: Problem) -> Refused {
    Refused(vec![problem])
}

/// A change to a file outside the hypervisor may be meant for a file inside it.
fn foreign_hint(problem: Problem, path: &str) -> Problem {
    let hint = format!(
        "{path} is not part of this hypervisor; `--leave-out {path}` builds without it, if no other \
         file was meant"
    );
    Problem::new(
        problem.code,
        problem.place,
        format!("{}; {hint}", problem.message),
    )
}

/// Whether the file `path` can be part of the hypervisor that the tree was built for:
/// not a test, and not another architecture's.
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

/// The text of a patched file. If the preprocessor reads it, lines that only moved
/// keep their numbers.
fn text(path: &str, lines: &[PatchedLine]) -> String {
    match path.rsplit_once('.') {
        Some((_, "c" | "h")) => numbered(lines, Language::C),
        Some((_, "S")) => numbered(lines, Language::Assembly),
        _ => lines.iter().map(|l| l.text.as_str()).collect(),
    }
}
