// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks the paths of a patch in the tree.
//!
//! A path that the tree does not have was usually made in another directory. Such a
//! part of a patch must not be ignored, and nothing may be written through a link.

use crate::code::Code;
use crate::patch::FilePatch;
use crate::problem::Problem;
use std::path::{Path, PathBuf};

/// Checks that no part of `path`, from `top`, is a symbolic link.
pub(crate) fn check_links(top: &Path, path: &str) -> Result<(), Problem> {
    let mut place = PathBuf::new();
    for part in Path::new(path).components() {
        place.push(part);
        let there = top.join(&place);
        if !there.is_symlink() {
            continue;
        }
        let target = there.canonicalize().ok();
        let target = target.and_then(|target| Some(target.strip_prefix(top).ok()?.to_owned()));
        let rest = Path::new(path)
            .strip_prefix(&place)
            .unwrap_or(Path::new(""));
        let (link, message) = (
            place.to_string_lossy(),
            match target {
                Some(target) => format!("name the file itself, {}", joined(&target, rest)),
                None => "it leads out of the tree".to_owned(),
            },
        );
        return Err(Problem::new(
            Code::BadPath,
            path,
            format!("the patch goes through the symbolic link {link}: {message}"),
        ));
    }
    Ok(())
}

fn joined(directory: &Path, rest: &Path) -> String {
    let path: PathBuf = directory.components().chain(rest.components()).collect();
    path.to_string_lossy().into_owned()
}

/// The problem that the tree at `top` does not have the file that `patch` changes,
/// with a suggestion.
pub(crate) fn missing(top: &Path, patch: &FilePatch, path: &str) -> Problem {
    let message = match meant(top, &patch.written) {
        Some(meant) => format!(
            "the tree has no such file; {}",
            hint(&patch.written, path, &meant)
        ),
        None if path.starts_with("xen/") => {
            "the tree has no such file; is the patch for another version of the source?".to_owned()
        }
        None => format!(
            "the tree has no such file; is the patch for another version of the source? \
             `--leave-out {path}` builds the payload without this part, if it is not the hypervisor's"
        ),
    };
    Problem::new(Code::BadPath, path, message)
}

/// Checks that a new file is in a directory of the tree.
pub(crate) fn check_new(top: &Path, patch: &FilePatch, path: &str) -> Result<(), Problem> {
    let directory = |path: &str| match path.rsplit_once('/') {
        Some((directory, _)) => top.join(directory).is_dir(),
        None => false,
    };
    let first = path.split_once('/').map(|(first, _)| first);
    let known = first.is_none_or(|first| top.join(first).is_dir());
    // With prefixes, the written path does not start with an existing directory.
    let unprefixed = directory(&patch.written);
    if known && !unprefixed {
        return Ok(());
    }
    let inside = format!("xen/{path}");
    let meant = match unprefixed {
        true => Some(patch.written.clone()),
        false => Some(inside).filter(|inside| directory(inside)),
    };
    let message = match meant {
        Some(meant) => format!(
            "the patch adds this file, but the tree has no such directory; {}",
            hint(&patch.written, path, &meant)
        ),
        None => format!(
            "the patch adds this file, but the tree has no directory {}",
            first.unwrap_or_default()
        ),
    };
    Err(Problem::new(Code::BadPath, path, message))
}

fn hint(written: &str, path: &str, meant: &str) -> String {
    let how = if written == meant {
        "make the patch with the prefixes `a/` and `b/` (`git diff --src-prefix=a/ \
         --dst-prefix=b/`)"
    } else if format!("xen/{path}") == meant {
        "make the patch at the top of the source, not in `xen` (`git diff --no-relative`)"
    } else {
        "paths start at the top of the source, after one directory such as `a/`"
    };
    format!("`{meant}` was probably meant: {how}")
}

/// The unique source file that shares the most trailing components with `written`.
fn meant(top: &Path, written: &str) -> Option<String> {
    let wanted: Vec<&str> = written.split('/').collect();
    let mut best: (usize, Vec<String>) = (0, Vec::new());
    each_file(&top.join("xen"), &mut |path| {
        let Some(path) = path.strip_prefix(top).ok().and_then(Path::to_str) else {
            return;
        };
        let ours = path.rsplit('/').zip(wanted.iter().rev());
        let common = ours.take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count();
        if common > best.0 {
            best = (common, Vec::new());
        }
        if common > 0 && common == best.0 {
            best.1.push(path.to_owned());
        }
    });
    match best.1.as_mut_slice() {
        [only] => Some(std::mem::take(only)),
        _ => None,
    }
}

fn each_file(directory: &Path, with: &mut dyn FnMut(&Path)) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => each_file(&entry.path(), with),
            Ok(kind) if kind.is_file() => with(&entry.path()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::parse;

    fn tree() -> tempfile::TempDir {
        let top = tempfile::tempdir().expect("a directory");
        for path in [
            "xen/common/keys.c",
            "xen/drivers/one.c",
            "xen/arch/one.c",
            "docs/x",
        ] {
            let path = top.path().join(path);
            std::fs::create_dir_all(path.parent().expect("below")).expect("made");
            std::fs::write(path, "x\n").expect("written");
        }
        let link = |to: &str, from: &str| {
            std::os::unix::fs::symlink(to, top.path().join(from)).expect("linked");
        };
        link(".", "xen/source");
        link("/tmp", "xen/out");
        link("../common/keys.c", "xen/arch/keys.c");
        top
    }

    fn patch(old: &str, new: &str) -> FilePatch {
        let text = format!("--- {old}\n+++ {new}\n@@ -1 +1 @@\n-x\n+y\n");
        parse("p", text.as_bytes()).expect("a patch").remove(0)
    }

    #[test]
    fn a_file_that_is_not_there_was_written_from_another_directory() {
        let top = tree();
        let words = |written: &str| {
            let patch = patch(written, written);
            missing(top.path(), &patch, patch.path()).to_string()
        };
        let meant = "`xen/common/keys.c` was probably meant";
        for (written, how) in [
            ("a/common/keys.c", "not in `xen`"),
            ("xen/common/keys.c", "with the prefixes"),
            ("a/keys.c", "start at the top"),
            ("a/XEN/common/keys.c", "start at the top"),
            ("a/old/xen/common/keys.c", "start at the top"),
        ] {
            let words = words(written);
            assert!(words.contains(meant) && words.contains(how), "{words}");
        }
        assert!(words("a/xen/one.c").contains("another version"));
        assert!(words("a/tools/y.c").contains("`--leave-out tools/y.c`"));
    }

    #[test]
    fn new_files_are_in_directories_of_the_tree() {
        let top = tree();
        let check = |written: &str| {
            let patch = patch("/dev/null", written);
            check_new(top.path(), &patch, patch.path()).map_err(|problem| problem.to_string())
        };
        for written in [
            "b/xen/common/new.c",
            "b/xen/new/new.c",
            "b/docs/new",
            "b/NEWS",
        ] {
            assert_eq!(check(written), Ok(()));
        }
        let meant = "`xen/common/new.c` was probably meant";
        for written in ["b/common/new.c", "xen/common/new.c"] {
            let words = check(written).expect_err("no such directory");
            assert!(words.contains(meant), "{words}");
        }
        assert!(check("b/nowhere/new.c").is_err());
    }

    #[test]
    fn links_are_named_with_what_they_lead_to() {
        let top = tree();
        let top = top.path().canonicalize().expect("a path");
        let words = |path: &str| check_links(&top, path).map_err(|problem| problem.message);
        assert_eq!(words("xen/common/keys.c"), Ok(()));
        assert_eq!(words("xen/common/new.c"), Ok(()));
        for (path, message) in [
            (
                "xen/source/common/keys.c",
                "xen/source: name the file itself, xen/common/keys.c",
            ),
            (
                "xen/arch/keys.c",
                "xen/arch/keys.c: name the file itself, xen/common/keys.c",
            ),
            ("xen/out/x", "xen/out: it leads out of the tree"),
        ] {
            let words = words(path).expect_err("a link");
            assert!(words.ends_with(message), "{words}");
        }
    }
}
