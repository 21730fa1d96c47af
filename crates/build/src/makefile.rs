// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changes of makefiles that say no more than which objects there are.

use crate::patch::{FilePatch, Line};
use crate::{Problem, Refused};
use std::collections::BTreeSet;

/// Objects that a patched makefile adds to the hypervisor and takes out of it,
/// as paths from the `xen` directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectLists {
    /// New objects.
    pub added: BTreeSet<String>,
    /// Objects that are not built any more.
    pub removed: BTreeSet<String>,
}

impl ObjectLists {
    /// Adds what a later patch does: it may take back what this one did.
    pub(crate) fn follow(&mut self, later: Self) {
        for object in later.added {
            if !self.removed.remove(&object) {
                self.added.insert(object);
            }
        }
        for object in later.removed {
            if !self.added.remove(&object) {
                self.removed.insert(object);
            }
        }
    }
}

/// Reads what `patch` does to a makefile. `enabled` says whether the tree is
/// configured with an option, such as `CONFIG_HVM`.
///
/// # Errors
/// Every changed line that is more than a list of objects: how things are
/// compiled is not a payload's to change.
pub fn object_lists(
    patch: &FilePatch,
    enabled: &dyn Fn(&str) -> bool,
) -> Result<ObjectLists, Refused> {
    let path = patch.path();
    let directory = path.strip_prefix("xen/").unwrap_or(path);
    let directory = directory.rsplit_once('/').map_or("", |(dir, _)| dir);
    let mut lists = ObjectLists::default();
    let mut problems = Vec::new();
    for line in patch.hunks.iter().flat_map(|hunk| &hunk.lines) {
        let (text, list) = match line {
            Line::Context(_) => continue,
            Line::Added(text) => (text, &mut lists.added),
            Line::Removed(text) => (text, &mut lists.removed),
        };
        match objects(text, enabled) {
            Some(names) => list.extend(names.iter().map(|name| match directory {
                "" => (*name).to_owned(),
                _ => format!("{directory}/{name}"),
            })),
            None => problems.push(Problem::new(
                path,
                format!(
                    "`{}` changes how the hypervisor is built, which a payload cannot carry; only \
                     lines that list objects are understood, such as `obj-y += name.o`; \
                     `--leave-out {path}` does without, if the code does not need it",
                    text.trim()
                ),
            )),
        }
    }
    if !problems.is_empty() {
        return Err(Refused(problems));
    }
    // What is on both sides only moved.
    let both: Vec<String> = lists.added.intersection(&lists.removed).cloned().collect();
    for name in both {
        lists.added.remove(&name);
        lists.removed.remove(&name);
    }
    Ok(lists)
}

/// The objects that a line names; `None` if it is no list of objects.
fn objects<'a>(line: &'a str, enabled: &dyn Fn(&str) -> bool) -> Option<Vec<&'a str>> {
    let line = line.split('#').next().unwrap_or_default().trim();
    if line.is_empty() {
        return Some(Vec::new());
    }
    let (list, names) = line.split_once("+=")?;
    let list = list.trim();
    let switch = list
        .strip_prefix("obj-")
        .or_else(|| list.strip_prefix("lib-"))?;
    let active = match switch.strip_prefix("$(").and_then(|s| s.strip_suffix(')')) {
        Some(option) => enabled(option),
        None if switch == "y" => true,
        None => return None,
    };
    let names: Vec<&str> = names.split_whitespace().collect();
    // Code that is freed after boot goes into `.init.o`.
    let usual = |c: char| c.is_ascii_alphanumeric() || "-_+./".contains(c);
    let plain = |name: &&str| {
        name.ends_with(".o")
            && !name.ends_with(".init.o")
            && name.chars().all(usual)
            && !name.split('/').any(|part| matches!(part, "" | "." | ".."))
    };
    if !names.iter().all(plain) {
        return None;
    }
    Some(if active { names } else { Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch;

    fn lists(lines: &str) -> Result<ObjectLists, Refused> {
        let removed = lines.lines().filter(|l| l.starts_with('-')).count();
        let added = lines.lines().filter(|l| l.starts_with('+')).count();
        let text = format!(
            "--- a/xen/common/Makefile\n+++ b/xen/common/Makefile\n@@ -1,{} +1,{} @@\n x\n{lines}",
            removed + 1,
            added + 1
        );
        let files = patch::parse("test.patch", text.as_bytes()).expect("a patch");
        object_lists(&files[0], &|option| option == "CONFIG_HVM")
    }

    #[test]
    fn lists_of_objects_are_understood() {
        let found = lists(
            "+obj-y += one.o two.o\n+obj-$(CONFIG_HVM) += three.o # why\n\
             +obj-$(CONFIG_ARGO) += four.o\n-obj-y += five.o\n+\n",
        )
        .expect("lists of objects");
        let names = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(
            names(&found.added),
            "common/one.o common/three.o common/two.o"
        );
        assert_eq!(names(&found.removed), "common/five.o");
    }

    #[test]
    fn an_object_that_moved_in_its_list_is_no_change() {
        assert_eq!(
            lists("-obj-y += one.o\n+obj-y += one.o\n").expect("lists"),
            ObjectLists::default()
        );
    }

    #[test]
    fn every_other_line_is_refused_by_its_text() {
        let Refused(problems) = lists(
            "+CFLAGS-y += -O3\n+obj-y += dir/\n+obj-y += x.init.o\n+obj-y += ../x.o\n\
             +obj-y += $(NAME).o\n+obj-y += `id`.o\n",
        )
        .expect_err("six lines that are more than lists");
        assert_eq!(problems.len(), 6);
        assert!(problems[0].message.starts_with("`CFLAGS-y += -O3`"));
    }
}
