// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds includes that leave a directory upwards, such as `"../xen.h"`.
//!
//! The system resolves `..` by a directory's real location, not by its name: out of a
//! linked directory it leads into the original tree. A [`crate::shadow`] must know
//! where that happens.

use crate::problem::Refused;
use crate::shadow::{Changes, for_each_source};
use crate::tree::Tree;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// Every directory of `tree`, relative to `xen`, that some path leaves upwards.
///
/// # Errors
/// If the tree cannot be read.
pub(crate) fn in_tree(tree: &Tree) -> Result<BTreeSet<PathBuf>, Refused> {
    let xen = tree.top.join("xen");
    let roots = include_roots(tree);
    let mut left = BTreeSet::new();
    for_each_source(&xen, &mut |path| {
        let from_xen = path.strip_prefix(&xen).unwrap_or(path);
        let directory = from_xen.parent().unwrap_or(Path::new(""));
        if path.is_symlink() {
            // The link's target is elsewhere in the tree.
            left.extend(directory.ancestors().map(Path::to_owned));
        } else if is_included(from_xen) {
            let text = std::fs::read(path).map_err(|e| Refused::io(path, &e))?;
            add(&text, directory, &roots, &mut left);
        }
        Ok(())
    })?;
    left.retain(|directory| is_directory(&xen.join(directory)));
    Ok(left)
}

/// The same for the files that differ from the tree.
pub(crate) fn in_changes(tree: &Tree, changes: &Changes) -> BTreeSet<PathBuf> {
    let roots = include_roots(tree);
    let mut left = BTreeSet::new();
    for (path, text) in changes {
        let path = path.strip_prefix("xen/").unwrap_or(path);
        let directory = Path::new(path).parent().unwrap_or(Path::new(""));
        if let Some(text) = text.as_ref().filter(|_| is_included(Path::new(path))) {
            add(text, directory, &roots, &mut left);
        }
    }
    left.retain(|directory| is_directory(&tree.top.join("xen").join(directory)));
    left
}

fn is_directory(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|metadata| metadata.is_dir())
}

/// Whether the preprocessor can read the file at `path`.
fn is_included(path: &Path) -> bool {
    let extensions = ["c", "h", "S", "i", "in", "inc", "lst"];
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|extension| extensions.contains(&extension))
}

/// The include directories of the tree's commands.
fn include_roots(tree: &Tree) -> BTreeSet<PathBuf> {
    let words = tree
        .objects
        .iter()
        .flat_map(|o| o.command.split_whitespace());
    let roots = words.filter_map(|word| word.strip_prefix("-I"));
    let inside = roots.filter(|root| !root.is_empty() && !root.starts_with('/'));
    let plain = |part: &Component| matches!(part, Component::Normal(_));
    inside
        .map(|root| Path::new(root).components().filter(plain).collect())
        .collect()
}

/// Adds the directories that paths in `text`, which is in `directory`, leave upwards.
/// Anything with a `..` counts as a path; a directory too many does no harm.
fn add(text: &[u8], directory: &Path, roots: &BTreeSet<PathBuf>, left: &mut BTreeSet<PathBuf>) {
    for at in memchr::memmem::find_iter(text, b"../") {
        let ends = |byte: &u8| b"\"<>() \t\r\n".contains(byte);
        let start = text[..at].iter().rposition(ends).map_or(0, |end| end + 1);
        let end = text[at..]
            .iter()
            .position(ends)
            .map_or(text.len(), |end| at + end);
        let way = String::from_utf8_lossy(&text[start..end]);
        leave(Path::new(&*way), directory, left);
        for root in roots {
            leave(Path::new(&*way), root, left);
        }
    }
}

/// Follows `way` from `directory`, and adds every directory that it leaves.
fn leave(way: &Path, directory: &Path, left: &mut BTreeSet<PathBuf>) {
    let mut here = directory.to_owned();
    for component in way.components() {
        match component {
            Component::ParentDir => {
                left.insert(here.clone());
                if !here.pop() {
                    return;
                }
            }
            Component::Normal(name) => here.push(name),
            _ => {}
        }
    }
}
